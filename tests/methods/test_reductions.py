"""Methods that are one and the same at a special value of a parameter: equal models after several updates.

Reductions of a part, of a walk or of a prepared state stand with their parts: AWP without gamma on every
loss in `tests/upper/test_awp.py`; YOPO-m-1, and YOPO with an affine first layer, as PGD in
`test_amortised.py`; BiLAW with a constant network in `test_learned.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.methods.glue import EPS, Net, gap, minibatches, train

from bivallate import Linf, Method, methods
from bivallate.lower.start import gaussian
from bivallate.methods.reweighted import RECIPE
from bivallate.upper.loss import Mart

THREAT = Linf(EPS)
AT, TRAIN_AT = methods.at(THREAT), methods.at(THREAT, attack_mode="train")
RECIPE_AT = methods.at(THREAT, step_size=RECIPE)
GAUSSIAN_AT = RECIPE_AT.but(solver__start=gaussian)
TRADES = methods.trades(THREAT, beta=5.0, step_size=RECIPE)
PLAIN = methods.plain(THREAT)
FIRST, LAST = ({"epoch": e, "epochs": 12} for e in (0, 11))


@dataclass
class Row:
    """`one` is `two`.

    Attributes:
        where: further arguments of `train`, such as the epoch.
        norm: False where one of them makes a pass more in train mode, which moves the running statistics.
        minibatches: how many, of 6, 6, 3, 6, 6, 3 rows in two visits to the same 15.
        tolerance: 0 where the two do the same operations, rounding otherwise.
    """

    one: Method
    two: Method
    where: dict[str, Any] = field(default_factory=dict)
    norm: bool = True
    minibatches: int = 3
    tolerance: float = 1e-12


TABLE = {
    "MAIL without slope is AT": Row(methods.mail_at(THREAT, slope=0.0, burn_in=0.0), GAUSSIAN_AT),
    "MAIL in its burn-in is AT": Row(methods.mail_at(THREAT, burn_in=1.0), GAUSSIAN_AT),
    "MAIL-TRADES without slope is TRADES": Row(methods.mail_trades(THREAT, slope=0.0, burn_in=0.0), TRADES),
    "MAIL-MART without slope is MART": Row(
        methods.mail_mart(THREAT, slope=0.0, burn_in=0.0), methods.mart(THREAT)
    ),
    "WMMR without alpha is AT": Row(methods.wmmr(THREAT, alpha=0.0), TRAIN_AT),
    "WMMR-TRADES without alpha is TRADES": Row(methods.wmmr(THREAT, base="trades", alpha=0.0), TRADES),
    "GAIRAT with an infinite shift is AT": Row(
        methods.gairat(THREAT, shift=math.inf, burn_in=0.0), RECIPE_AT
    ),
    "GAIRAT in its burn-in is AT": Row(methods.gairat(THREAT, burn_in=1.0), RECIPE_AT),
    "patient GAIR-FAT is GAIRAT": Row(
        methods.gair_fat(THREAT, tau=(10, 10, 10), burn_in=0.0),
        methods.gairat(THREAT, shift=0.0, burn_in=0.0),
    ),
    "patient FAT without noise is AT": Row(
        methods.fat(THREAT, tau=10, step_size=0.25, omega=0.0), AT, tolerance=0
    ),
    "patient FAT-TRADES is TRADES": Row(
        methods.fat_trades(THREAT, tau=10, step_size=0.25), methods.trades(THREAT), tolerance=0
    ),
    "dynamic without threshold is AT": Row(methods.dynamic(THREAT, c_max=0.0), AT, tolerance=0),
    "curriculum begins as plain": Row(methods.curriculum(THREAT), PLAIN, FIRST, tolerance=0),
    "curriculum ends as AT": Row(methods.curriculum(THREAT), AT, LAST, tolerance=0),
    "TRADES without beta is plain": Row(methods.trades(THREAT, beta=0.0), PLAIN, norm=False),
    "MART without its terms is AT": Row(
        methods.mart(THREAT).but(loss=Mart(beta=0.0, boosted=False)), GAUSSIAN_AT, norm=False
    ),
    "ATTA that is reset every epoch is AT": Row(
        methods.atta(THREAT, steps=3, step_size=0.25, reset=1),
        methods.at(THREAT, steps=3).but(solver__start=gaussian),
        {"epoch": [0, 0, 0, 1, 1, 1], "epochs": 2},
        minibatches=6,
        tolerance=0,
    ),
    "ATTA-TRADES that is reset every epoch is TRADES": Row(
        methods.atta_trades(THREAT, steps=3, step_size=0.25, reset=1, attack_loss="kl"),
        methods.trades(THREAT, steps=3),
        {"epoch": [0, 0, 0, 1, 1, 1], "epochs": 2},
        minibatches=6,
        tolerance=0,
    ),
    "Free-AT with one replay starts as plain": Row(
        methods.free_at(THREAT, replays=1), PLAIN, minibatches=1, tolerance=0
    ),
    "DONE-PGD at an infinite temperature without implicit part is AT": Row(
        methods.done_pgd(THREAT, coupling="none").but(weighting__temperature=math.inf), TRAIN_AT
    ),
    "GradAlign without coefficient is FGSM-AT": Row(
        methods.fast_at_ga(THREAT, coefficient=0.0), methods.fgsm_at(THREAT), tolerance=0
    ),
    "N-FGSM without noise is FGSM-AT": Row(methods.n_fgsm(THREAT, k=0), methods.fgsm_at(THREAT), tolerance=0),
    "projected N-FGSM from the ball is Fast-AT": Row(
        methods.n_fgsm(THREAT, k=1.0, step_size=1.25).but(solver__reach=1.0), methods.fast_at(THREAT)
    ),
    "AT-AWP without gamma is AT": Row(methods.at_awp(THREAT, gamma=0.0), TRAIN_AT, tolerance=0),
    "TRADES-AWP while it warms up is TRADES": Row(
        methods.trades_awp(THREAT, warm_up=12), methods.trades(THREAT), LAST, tolerance=0
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_reduces(name: str) -> None:
    row = TABLE[name]
    data = (minibatches() + minibatches())[: row.minibatches]
    a, b = (train(Net(row.norm), method, data, **row.where).model for method in (row.one, row.two))
    assert gap(a, Net(row.norm)) > 1e-3, "nothing was learned, so nothing is compared"
    assert gap(a, b) <= row.tolerance
