"""`bivallate train` and `resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bivallate import terminal
from bivallate.commands.options import (
    Amount,
    Count,
    DataFolder,
    DataName,
    Flag,
    Log,
    Names,
    Positive,
    Seed,
    Settings,
)  # fmt: skip
from bivallate.from_text import pair
from bivallate.parts import encode
from bivallate.quoting import file_name
from bivallate.toml import to_toml


def train(
    method: str | None = None,
    /,
    *,
    data: DataName | None = None,
    model: str | None = None,
    eps: str | None = None,
    norm: str = "linf",
    epochs: Count | None = None,
    passes: Positive | None = None,
    batch_size: Count | None = None,
    lr: float | None = None,
    seed: Seed | None = None,
    average: str | None = None,
    recipe: str | None = None,
    init: str | None = None,
    freeze: Names = (),
    config: Path | None = None,
    set_: Settings = (),
    data_dir: DataFolder | None = None,
    device: str | None = None,
    precision: str | None = None,
    deterministic: Flag = False,
    compile: Flag = False,
    threads: Amount | None = None,
    out: Path | None = None,
    overwrite: Flag = False,
    resume_if_there: Flag = False,
    max_minutes: Positive | None = None,
    patience: Amount | None = None,
    log: Log = "",
    dry_run: Flag = False,
    quiet: Flag = False,
) -> None:
    """Train a classifier with METHOD and keep the run in a folder.

    Parameters
    ----------
    method
        name of a method, as `bivallate methods` lists them, or package.module:function of your own. With
        --config only the latter, if the file's method is your own.
    data
        data set: a name, a folder, an .npz, .zip or .tar, or hub:owner/name. [default: digits]
    model
        architecture, or package.module:factory of your own. [default: tiny-cnn, or the recipe's]
    eps
        radius of the perturbations in pixel units of [0, 1], such as 8/255. [default in Linf: 0.3 for
        mnist, 0.1 for fashion-mnist, 0.15 for digits, else 8/255; in L1 12 for cifar10; else it
        must be given]
    norm
        linf, l2 or l1.
    epochs
        passes over the training data. [default: 20, or the recipe's]
    passes
        forward and backward passes an example, over the whole training: as many epochs as the method affords
        within them. In place of --epochs.
    batch_size
        examples of a minibatch. [default: 128, or an eighth of fewer than 1,024 images; or the recipe's]
    lr
        peak learning rate. [default: 0.1 for digits, else 0.05; or the recipe's]
    seed
        of everything random. [default: 0]
    average
        of the weights, kept as `ema` beside them: the decay per step of an exponential one, such as 0.999;
        SWA, the mean over the last quarter's epochs; Cyclic, over the ends of the rate's cycles. [default: 0,
        none]
    recipe
        a paper's training recipe, such as done; `bivallate recipes` lists them.
    init
        weights to begin with: a run, a folder, a .safetensors or .pt file, hub:owner/name, timm:NAME or
        zoo:NAME. They decide the network, but for a bare file, which needs --model; a head for other classes
        is new. [default: fresh weights]
    freeze
        layers that are not trained: a name, in which * matches anything, stem, head, or !head for all but
        the head; repeatable.
    config
        a config.toml to start from; other options change it. A network of your own in it needs --model, and
        a method of your own METHOD.
    set_
        one value of the configuration, KEY=VALUE, repeatable: a parameter of the method (steps=7), a field of
        a part (solver.steps=7, weighting.rate=1, optimizer.weight_decay=2e-4) or a setting
        (validation.steps=20). Where a parameter of the method has the name of a setting, method.rate=0.2 and
        config.rate=Cycles say which is meant; the plain name is the method's if the value fits it.
    data_dir
        where named sets are looked for. [default: BIVALLATE_DATA]
    device
        auto, cpu, cuda or mps. [default: auto]
    precision
        of products and convolutions: float32, tf32 or bf16. [default: float32]
    deterministic
        only operations that give the same bits every time: slower, on CUDA.
    compile
        compile training steps with torch.compile: faster, after minutes of compilation.
    threads
        of the processor; resuming to the bit needs the same number. [default: torch's choice]
    out
        folder of the run. [default: runs/METHOD-DATA-SEED]
    overwrite
        replace an existing run.
    resume_if_there
        go on with the run that is in the folder, if one is, and begin it otherwise: one command for the first
        start and for every later one.
    max_minutes
        save and stop after this many minutes, as an interruption does; `bivallate resume` continues.
    patience
        end when the held-out robust accuracy has not risen for this many epochs. [default: 0, never]
    log
        where the numbers go besides: csv, tensorboard, wandb, trackio; several with commas.
    dry_run
        print the resolved configuration and what it is going to take; train and write nothing.
    quiet
        print nothing but alarms.
    """
    from bivallate.commands.configuration import init_pairs, introduce, one_length, plan_of, resolved
    from bivallate.run.progress import TerminalProgress
    from bivallate.run.resuming import begin_or_resume

    one_length(passes, epochs, set_)
    set_ = (*init_pairs(init, freeze), *set_)
    plan = plan_of(method, config, data, eps, norm, recipe, set_, model, average)
    changes = {"seed": seed, "device": device, "threads": threads, "patience": patience}
    changes |= {"precision": precision, "deterministic": deterministic or None, "compile": compile or None}
    changes |= {"epochs": epochs, "batch_size": batch_size, "optimizer.lr": lr, "data.data_dir": data_dir}
    for path, value in changes.items():
        plan = plan.set(path, value) if value is not None else plan
    default = (
        Path("runs") / f"{file_name(plan.method.name)}-{file_name(Path(plan.data.name).stem)}-{plan.seed}"
    )
    folder = out or default
    chosen = batch_size is not None or recipe is not None or config is not None or _sets(set_, "batch_size")
    tell = (lambda text: None) if quiet else say
    named = plan.model.name if _sets(set_, "model.name") else model
    plan, dataset, network = resolved(plan, fit=not chosen, architecture=named, tell=tell, passes=passes)
    introduce(plan, dataset, tell)
    if dry_run:
        _foretell(plan, dataset, network, folder)
        return
    spoken = TerminalProgress(plan.method.name, quiet=quiet)
    options = {"progress": spoken, "max_minutes": max_minutes, "log": log}
    options |= {"overwrite": overwrite, "resume_if_there": resume_if_there}
    run = begin_or_resume(plan, dataset, network, folder, **options)
    if not quiet:
        _finished(run, folder, [])


def _sets(settings: tuple[str, ...], key: str) -> bool:
    """Whether one of the settings KEY=VALUE has this key."""
    return any(pair(item)[0].removeprefix("config.") == key for item in settings)


def _foretell(plan: Any, dataset: Any, network: Any, folder: Path) -> None:
    """Print the configuration on standard output and the expected cost on standard error."""
    from bivallate.run.arithmetic import limit_threads
    from bivallate.run.execution import check_possible
    from bivallate.run.forecast import forecast

    check_possible(plan, dataset)
    limit_threads(plan.threads)
    terminal.say(to_toml(encode(plan)))
    say("timing a few minibatches")
    expected = forecast(plan, dataset, network)
    say(f"would take {expected}; would be kept in {folder}; nothing was written")


def resume(
    run: Path,
    /,
    *,
    epochs: Count | None = None,
    method: str | None = None,
    model: str | None = None,
    fall_back: bool = True,
    data: DataName | None = None,
    data_dir: DataFolder | None = None,
    device: str | None = None,
    threads: Amount | None = None,
    max_minutes: Positive | None = None,
    log: Log = "",
    quiet: Flag = False,
) -> None:
    """Go on with an interrupted run, or with a finished one to more epochs.

    An interrupted run ends with exactly the weights that an uninterrupted one would have reached.

    On another device or with another number of threads they agree up to rounding only.

    Parameters
    ----------
    run
        folder of the run.
    epochs
        train up to this many epochs in all, more than were planned, also if the run is finished. The number
        is written into its configuration, and its effect on the schedules is printed.
    method
        package.module:function, if the run trains with a method of your own.
    model
        package.module:factory, if the run trained a network of your own.
    fall_back
        take the older checkpoint if the newest is damaged, and say so.
    data
        where the data are now, if they were moved. [default: as before]
    data_dir
        where named sets are looked for. [default: as before]
    device
        auto, cpu, cuda or mps. [default: as before]
    threads
        of the processor. [default: as before]
    max_minutes
        save and stop after this many minutes, as an interruption does.
    log
        where the numbers go besides, as for train; a run does not remember it. [default: nowhere]
    quiet
        print nothing but alarms.
    """
    from bivallate.commands.settings import named
    from bivallate.run.next_commands import data_options
    from bivallate.run.progress import TerminalProgress
    from bivallate.run.resuming import resume as go_on

    if method is not None:
        named(method)  # which makes its parts known
    elsewhere = {"data": data, "data_dir": data_dir, "device": device, "threads": threads}
    spoken = TerminalProgress(run.resolve().name, quiet=quiet)
    finished = go_on(
        run,
        epochs=epochs,
        model=model,
        fall_back=fall_back,
        progress=spoken,
        max_minutes=max_minutes,
        log=log,
        **elsewhere,
    )
    if not quiet:
        _finished(finished, run, data_options(name=data, data_dir=data_dir))


def say(text: str) -> None:
    """Print one line on standard error, in the first process only."""
    from bivallate import collective

    if collective.rank() == 0:
        terminal.say(text, to_stderr=True)


def _finished(run: Any, folder: Path, moved: list[str]) -> None:
    """Print the results and the next command; `moved`: its options for data that were moved."""
    from bivallate.run.chance import chance_warning
    from bivallate.run.next_commands import evaluate_command

    last = run.history[-1] if run.history else {}
    held = [line["robust"] for line in run.history if "robust" in line]
    if held:
        best = max(range(len(held)), key=held.__getitem__)
        forward, backward = last["total_forward"], last["total_backward"]
        say(
            f"held-out robust accuracy: last {last['robust']:.1%}, best {held[best]:.1%} (epoch {best + 1}); "
            f"{forward:.4g} forward and {backward:.4g} backward passes per example"
        )
    if "average_robust" in last:
        say(
            f"their average (ema): {last['average_robust']:.1%}; the best epoch is chosen by the weights "
            "themselves"
        )
    told = chance_warning(run.history)
    if told:
        say(told)
    say(f"run: {folder}\nnext: {evaluate_command(folder, run.model.architecture, moved)}")
