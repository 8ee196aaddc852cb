"""Train under one threat or several and attack under three, on digits: the table of docs/threats.md.

    python -m benchmarks.threats [--jobs N]     trains what is missing, writes the page and the figure
    python -m benchmarks.threats --table        writes both from the records alone

Data, network and epochs are the catalogue's, and so is each method with its defaults; the recipe `e-at` goes
on for three epochs with the weights of AT. One JSON record a network in results/threats/; what is there is
not made again, so it can be interrupted at any time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.catalogue import configured, digits_network, provenance
from bivallate.evaluation.statistics import wilson
from bivallate.files import write_json, write_text
from bivallate.style import COLUMN, save, styled

ROOT = Path(__file__).parents[1]
RECORDS, PAGE = ROOT / "results" / "threats", ROOT / "docs" / "threats.md"
PICTURE = ROOT / "docs" / "figures" / "threats"
BEGIN, END = "<!-- threats: begin -->", "<!-- threats: end -->"
RADII = {"linf": 0.2, "l2": 0.75, "l1": 2.0}  # AT is about equally robust under each
SHOWN = {"": "nothing", "linf": "Linf", "l2": "L2", "l1": "L1", "linf-l1": "Linf, L1", "all": "all three"}
SHOWN |= {f"{kind}-then": f"{SHOWN[kind]}, then Linf and L1" for kind in RADII}
TOGETHER = {"linf-l1": ("linf", "l1"), "all": tuple(RADII)}  # trainings under several threats
START = {f"{kind}-then": kind for kind in RADII}  # trainings that go on with the weights of AT
TOGETHER |= dict.fromkeys(START, ("linf", "l1"))
METHODS, SEEDS, ATTACK = ("at", "trades", "bastion", "fast-bat", "n-fgsm"), (0, 1, 2), "autoattack"
SEVERAL = (("max-at", "all"), ("msd", "all"), ("e-at", "all"), ("e-at", "linf-l1"))
SEVERAL += tuple(("e-at", kind) for kind in START)
CELLS = (("plain", ""), *((method, kind) for kind in RADII for method in METHODS), *SEVERAL)
COLUMNS = {"clean": "clean"} | {kind: f"{SHOWN[kind]} {eps:g}" for kind, eps in RADII.items()}
COLUMNS |= {"all": "all three"}


def cell(task: tuple[str, str, int]) -> str:
    """Train one method under its threats with one seed, attack it under all, and write the record."""
    name, kind, seed = task
    import torch

    import bivallate as bv
    from bivallate.lower.threat import threat

    torch.set_num_threads(1)
    try:
        network, passes, alarms = trained(name, kind, seed)
    except bv.UserError as error:
        return f"{name} trained under {SHOWN[kind]}, seed {seed}: no record, {error}"
    data, right = bv.data.load("digits", seed=seed), {}
    for attacked, eps in RADII.items():
        score = bv.evaluate(network, data.test, threat(attacked, eps), ATTACK)
        right |= {"clean": _text(score.clean), attacked: _text(score.robust)}
    record = {
        "method": name,
        "trained": kind,
        "seed": seed,
        "radii": RADII,
        "attack": ATTACK,
        "right": right,
        "passes": passes,
        "alarms": sorted(alarms),
        **provenance(),
    }
    write_json(_path(*task), record)
    figures = ", ".join(f"{shown} {share(record, key):.1%}" for key, shown in COLUMNS.items())
    return f"{name} trained under {SHOWN[kind]}, seed {seed}: {figures}"


def trained(name: str, kind: str, seed: int) -> tuple[Any, float, set[str]]:
    """The network of a training, its passes an image and its alarms, with those of its start."""
    import bivallate as bv
    from bivallate.lower.threat import threat
    from bivallate.methods.entries import create
    from bivallate.run.execution import execute
    from bivallate.run.recipes.published import recipe_for

    data = bv.data.load("digits", seed=seed)
    network, passes, alarms = digits_network(data, seed), 0.0, set[str]()
    first, *others = (threat(each, RADII[each]) for each in TOGETHER.get(kind, (kind or "linf",)))
    method = create(name, first, others=tuple(others)) if others else create(name, first)
    config = configured(method, seed)
    if kind in START:
        network, passes, alarms = trained("at", START[kind], seed)
        recipe = recipe_for("e-at", method, "digits")
        config = replace(config, optimizer=recipe.optimizer, rate=recipe.rate, epochs=recipe.epochs)
    folder = Path("runs/threats") / f"{name}-{kind}-{seed}"
    run = execute(config, data, network, folder, overwrite=True)
    passes += run.history[-1]["total_forward"] + run.history[-1]["total_backward"]
    alarms |= {alarm["kind"] for line in run.history for alarm in line["alarms"]}
    return bv.load(folder, "best" if kind else "last"), passes, alarms


def _path(name: str, kind: str, seed: int) -> Path:
    return RECORDS / f"{name}-{kind or 'none'}-{seed}.json"


def _text(verdicts: Any) -> str:
    return "".join(str(int(v)) for v in verdicts.tolist())


def verdicts(record: dict[str, Any], key: str) -> np.ndarray:
    """Which points (n,) are right under "clean", under one threat, or under "all" three."""
    keys = RADII if key == "all" else (key,)
    return np.all([[mark == "1" for mark in record["right"][one]] for one in keys], axis=0)


def share(record: dict[str, Any], key: str) -> float:
    """The accuracy of `verdicts`."""
    return float(verdicts(record, key).mean())


def table(records: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """The table, a row a method and threat, as mean [lowest, highest seed], and what made it."""
    lines = [
        f"| trained under | method | {' | '.join(COLUMNS.values())} | passes an image |",
        f"|{' --- |' * (len(COLUMNS) + 3)}",
    ]
    for (name, kind), found in records.items():
        figures = [_spread([100 * share(r, key) for r in found]) for key in COLUMNS]
        passes = f"{np.mean([r['passes'] for r in found]):.0f}"
        row = [SHOWN[kind], f"[{name}](methods/{name}.md)", *figures, passes]
        lines.append(f"| {' | '.join(row)} |")
    every = [r for found in records.values() for r in found]
    points = len(every[0]["right"]["clean"])
    low, high = (f"{100 * end:.0f}" for end in wilson(points // 2, points))
    made = ", ".join(sorted({r["commit"] for r in every})), "; ".join(sorted({r["machine"] for r in every}))
    alarmed = sorted({f"{r['method']} under {SHOWN[r['trained']]}" for r in every if r["alarms"]})
    numbers = ", ".join(map(str, sorted({r["seed"] for r in every})))
    said = (
        f"Mean over the seeds {numbers} [lowest, highest], {points} test images: where half are right,\n"
        f"the 95 % interval (Wilson) of one seed is {low} to {high} %. Alarms of the sentinel: "
        f"{', '.join(alarmed) or 'none'}.\n`python -m benchmarks.threats`, commit {made[0]}; {made[1]}."
    )
    return "\n".join([*lines, "", said])


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def drawn(records: dict[tuple[str, str], list[dict[str, Any]]]) -> Figure:
    """A square of colour for each network and attack; bold: the threat that it was trained under."""
    values = np.array([[np.mean([share(r, key) for r in of]) for key in COLUMNS] for of in records.values()])
    kinds = [SHOWN[kind] if kind not in TOGETHER else "several" for _, kind in records]
    fig = Figure(figsize=(1.5 * COLUMN, 0.19 * len(values) + 0.5), layout="constrained")
    ax = fig.subplots()
    ax.imshow(values, aspect="auto", cmap="Blues", vmin=0, vmax=1)
    ax.grid(visible=False)
    for (row, column), value in np.ndenumerate(values):
        kind, attacked = list(records)[row][1], list(COLUMNS)[column]
        own = attacked in (kind, *TOGETHER.get(kind, ()))
        ax.text(
            column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7,
            color="white" if value > 0.6 else "black", weight="bold" if own else "normal",
        )  # fmt: skip
    ax.set_xticks(range(len(COLUMNS)), COLUMNS.values())
    ax.set_yticks(range(len(values)), [f"{name}, {SHOWN[kind]}" if kind else name for name, kind in records])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    for place in [k for k, kind in enumerate(kinds) if k and kind != kinds[k - 1]]:
        ax.axhline(place - 0.5, color="white", linewidth=3)
    for place in (0.5, len(COLUMNS) - 1.5):
        ax.axvline(place, color="white", linewidth=3)
    return fig


def read() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The records, a list of seeds for each (method, threat), in the order of the table."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, kind in CELLS:
        paths = (_path(name, kind, seed) for seed in SEEDS)
        if of := [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]:
            if any((r["radii"], r["attack"]) != (RADII, ATTACK) for r in of):
                raise SystemExit(
                    f"{name}, {SHOWN[kind]}: made at other radii or attack; delete them in {RECORDS}"
                )
            found[name, kind] = of
    return found


def main() -> None:
    """Run what is missing; write page and figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="write page and figure from the records alone")
    options = parser.parse_args()
    RECORDS.mkdir(parents=True, exist_ok=True)
    tasks = [(*of, seed) for seed in SEEDS for of in CELLS if not _path(*of, seed).exists()]
    if tasks and not options.table:
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            for k, line in enumerate(pool.imap_unordered(cell, tasks), 1):
                print(f"[{k}/{len(tasks)}] {line}", flush=True)
    records = read()
    if missing := [f"{n} under {SHOWN[k]}" for n, k in CELLS if len(records.get((n, k), ())) < len(SEEDS)]:
        parser.error(f"there is no record of every seed for {', '.join(missing)}; the page is as before")
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    write_text(PAGE, f"{head}{BEGIN}\n\n{table(records)}\n\n{END}{rest.partition(END)[2]}")
    with styled():
        save(drawn(records), PICTURE, ("svg",))


if __name__ == "__main__":
    main()
