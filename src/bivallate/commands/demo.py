"""`bivallate demo`."""

from __future__ import annotations

from pathlib import Path

from bivallate.commands.options import Amount, Count


def demo(*, out: Path = Path("runs/demo"), epochs: Count = 30, threads: Amount = 1) -> None:
    """Train four methods on scikit-learn's digits, attack each, and print the results: about two minutes.

    Parameters
    ----------
    out
        folder of the runs; what an earlier demo left there is replaced.
    epochs
        of each method.
    threads
        of the processor.
    """
    from bivallate.demo import run_demo

    run_demo(out, epochs=epochs, threads=threads)
