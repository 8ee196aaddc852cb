"""The catalogue: each method is one function, a composition of parts in a few lines."""

from bivallate.methods.fast import done_fast, fast_at, fast_bat
from bivallate.methods.reweighted import done_adam, done_gd, done_pgd
from bivallate.methods.standard import at, plain, trades

__all__ = ["at", "done_adam", "done_fast", "done_gd", "done_pgd", "fast_at", "fast_bat", "plain", "trades"]
