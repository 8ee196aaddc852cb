"""The commands of `bivallate`: plain functions that `cli` registers.

Every call of the program imports the modules of all commands, because cyclopts reads the options from the
functions. They import torch, and whatever imports it, inside the functions, so that help and lists are quick.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["COMMANDS", "Command"]


@dataclass(frozen=True)
class Command:
    """A command as the overview and its help show it.

    Attributes:
        place: module:function within this package.
        usage: its arguments, as the first line of the help.
        examples: command lines without `bivallate`; only the names of runs have to be replaced.
        instead: option that the command lacks but users may expect -> what to use instead.
    """

    place: str
    usage: str
    examples: tuple[str, ...]
    instead: Mapping[str, str] = field(default_factory=dict)

    def function(self) -> Callable[..., Any]:
        """The function that the command runs; imports its module."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)


SET = "use --set {0}=VALUE, or VALUE,VALUE for several"
OF_TRAIN = {
    **{
        f"--{name}": SET.format(name.replace("-", "_"))
        for name in (
            "eps",
            "epochs",
            "batch-size",
            "lr",
            "average",
            "patience",
            "precision",
            "deterministic",
            "compile",
        )
    },
    "--seed": "use --seeds: how many, or VALUE,VALUE; one alone with a comma behind it",
    "--freeze": "use --fix init.freeze=PATTERN",
    "--config": "write its values as --fix KEY=VALUE, those that vary as --set KEY=VALUE,VALUE",
    "--overwrite": "runs are kept: use another --out, or remove the folders of those to be trained anew",
    "--resume-if-there": "the same command goes on by itself",
    "--max-minutes": "Ctrl-C stops and saves, and the same command goes on",
    "--log": "each run keeps metrics.jsonl; a single `bivallate train` has --log",
    "--quiet": "what the runs say is in the folder logs",
}

COMMANDS = {
    "train": Command(
        "train:train",
        "METHOD [OPTIONS]",
        (
            "train at",
            "train fast-bat --data cifar10 --model preact-resnet18 --epochs 30",
            "train trades --data photos/ --set data.size=32 --set beta=4",
            "train mine:robust --model mine:net --data digits",
            "train --config runs/a/config.toml --seed 1 --out runs/b",
        ),
    ),
    "resume": Command(
        "train:resume",
        "RUN [OPTIONS]",
        ("resume runs/at-digits-0", "resume runs/at-digits-0 --epochs 40"),
    ),
    "evaluate": Command(
        "evaluate:evaluate_runs",
        "RUN... [OPTIONS]",
        (
            "evaluate runs/at-digits-0 --attack autoattack",
            "evaluate runs/a runs/b --attack pgd-50-10 cw --first 1000",
            "evaluate net.pt --arch resnet18 --data cifar10 --eps 8/255",
        ),
    ),
    "audit": Command(
        "audit:audit",
        "RUN [OPTIONS]",
        ("audit runs/at-digits-0", "audit runs/at-digits-0 --budget 30 --against runs/plain-digits-0"),
    ),
    "compare": Command(
        "compare:compare",
        "RUN... [OPTIONS]",
        ("compare runs/a runs/b", "compare runs/a runs/b --attack autoattack --markdown"),
    ),
    "report": Command(
        "report:report",
        "RUN... [OPTIONS]",
        ("report runs/a runs/b --out report.html", "report runs/a --out report.tex"),
    ),
    "diagnose": Command(
        "diagnose:diagnose",
        "RUN... [OPTIONS]",
        ("diagnose runs/a", "diagnose runs/a runs/b --what curves --what ranks"),
    ),
    "attack": Command(
        "attack:attack",
        "RUN --save FOLDER [OPTIONS]",
        ("attack runs/at-digits-0 --save attacked", "attack runs/a --save x --attack apgd-ce --first 8"),
    ),
    "predict": Command(
        "predict:predict",
        "RUN IMAGE... [OPTIONS]",
        ("predict runs/a photo.png", "predict runs/a photos/ --attack clean --json"),
    ),
    "curve": Command(
        "curve_and_distances:curve",
        "RUN... [OPTIONS]",
        ("curve runs/a runs/b --n 500", "curve runs/a --eps 0,2/255,4/255,8/255"),
    ),
    "distances": Command(
        "curve_and_distances:distances", "RUN... [OPTIONS]", ("distances runs/a runs/b --n 200",)
    ),
    "transfer": Command(
        "transfer:transfer",
        "RUN --from RUN... [OPTIONS]",
        ("transfer runs/a --from runs/b runs/c --attack pgd-50",),
    ),
    "sweep": Command(
        "sweep:sweep",
        "METHOD[,METHOD] [OPTIONS]",
        (
            "sweep at,trades --seeds 3 --jobs 2",
            "sweep at --data cifar10 --set eps=4/255,8/255 --out runs/radii",
        ),
        OF_TRAIN,
    ),
    "check-gradient": Command(
        "check_gradient:check_gradient",
        "METHOD [OPTIONS]",
        ("check-gradient done-adam", "check-gradient mine:robust --model mine:net --data digits"),
    ),
    "reproduce": Command(
        "reproduce:reproduce",
        "[TABLE] [OPTIONS]",
        ("reproduce", "reproduce T-F1 --scale cpu --list", "reproduce T-D1 --scale cpu --only AT DONE-ADAM"),
    ),
    "doctor": Command("doctor:doctor", "[OPTIONS]", ("doctor", "doctor --no-self-test --json")),
    "demo": Command("demo:demo", "[OPTIONS]", ("demo", "demo --out /tmp/demo --epochs 5")),
    "methods": Command("lists:methods", "[NAME] [OPTIONS]", ("methods", "methods fast-bat")),
    "models": Command("lists:models", "[NAME] [OPTIONS]", ("models", "models resnet18")),
    "datasets": Command(
        "datasets:datasets",
        "[NAME] [OPTIONS]",
        (
            "datasets",
            "datasets digits --sheet digits.png",
            "datasets cifar10 --check",
            "datasets photos/ --set data.size=64",
        ),
    ),
    "zoo": Command(
        "zoo:zoo",
        "[NAME] [OPTIONS]",
        ("zoo", "zoo fashion-mnist-at", "zoo fashion-mnist-at --save robust"),
    ),
    "recipes": Command(
        "lists:recipes",
        "[NAME] [OPTIONS]",
        ("recipes", "recipes done --method done-adam --data cifar10"),
    ),
    "attacks": Command("lists:attacks", "[NAME] [OPTIONS]", ("attacks", "attacks autoattack")),
}
