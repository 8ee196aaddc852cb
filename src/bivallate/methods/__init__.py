"""The catalogue: each method is one function, a composition of parts in a few lines."""

from bivallate.methods.adaptive import curriculum, dynamic, fat, fat_trades
from bivallate.methods.amortised import atta, atta_trades, free_at, yopo
from bivallate.methods.composed import bastion
from bivallate.methods.decoupled import ikl
from bivallate.methods.done import done_adam, done_gd, done_pgd
from bivallate.methods.fair import cfa, cfol, dafa, faal, wat
from bivallate.methods.fast import done_fast, fast_at, fast_bat
from bivallate.methods.learned import bilaw, bilaw_trades, non_parametric
from bivallate.methods.multi_norm import e_at, max_at, msd
from bivallate.methods.perturbed import at_awp, trades_awp
from bivallate.methods.prior_guided import fgsm_pgi, liet, sora
from bivallate.methods.reweighted import gair_fat, gairat, mail_at, mail_mart, mail_trades, mart, wmmr
from bivallate.methods.single_step import (
    aaer,
    backward_smoothing,
    elle,
    fast_at_ga,
    fgsm_at,
    gat,
    n_fgsm,
    nuat,
)
from bivallate.methods.standard import at, hat, lbgat, plain, trades

__all__ = [
    "aaer",
    "at",
    "at_awp",
    "atta",
    "atta_trades",
    "backward_smoothing",
    "bastion",
    "bilaw",
    "bilaw_trades",
    "cfa",
    "cfol",
    "curriculum",
    "dafa",
    "done_adam",
    "done_fast",
    "done_gd",
    "done_pgd",
    "dynamic",
    "e_at",
    "elle",
    "faal",
    "fast_at",
    "fast_at_ga",
    "fast_bat",
    "fat",
    "fat_trades",
    "fgsm_at",
    "fgsm_pgi",
    "free_at",
    "gair_fat",
    "gairat",
    "gat",
    "hat",
    "ikl",
    "lbgat",
    "liet",
    "mail_at",
    "mail_mart",
    "mail_trades",
    "mart",
    "max_at",
    "msd",
    "n_fgsm",
    "non_parametric",
    "nuat",
    "plain",
    "sora",
    "trades",
    "trades_awp",
    "wat",
    "wmmr",
    "yopo",
]
