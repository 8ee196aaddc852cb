"""Time the search for near-duplicates of test images in the training data, on CIFAR-10.

    python -m benchmarks.duplicates [--threads 1] [--features zoo:cifar10-fast-bat]

Compares the 10,000 test images of `cifar10_jpeg` in the data folder with 10,000 and with 50,000 training
images of `cifar10`. Prints wall time and processor time; other work on the machine does not affect the
latter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import bivallate as bv
from bivallate.data.duplicates import near_duplicates
from bivallate.data.feature_duplicates import feature_duplicates
from bivallate.models.layers import last_features


def timed(name: str, search: Callable[[], list[object]]) -> None:
    """Print what was found, and how long it took."""
    clock, processor = time.perf_counter(), time.process_time()
    found = search()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    print(f"{name}: {len(found):,} pairs, {clock:.0f} s by the clock, {processor:.0f} s of the processor")


def main() -> None:
    """Time both searches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--features")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    train, test = bv.data.load("cifar10", validation=0).train, bv.data.load("cifar10_jpeg").test
    embed = last_features(bv.load(asked.features)) if asked.features else None
    for count in (10_000, len(train)):
        some = train.subset(slice(0, count))
        timed(f"{len(test):,} against {count:,}, pixels", lambda some=some: near_duplicates(some, test))
        if embed is not None:
            timed(
                f"{len(test):,} against {count:,}, features",
                lambda some=some: feature_duplicates(embed, some, test),
            )


if __name__ == "__main__":
    main()
