"""`bivallate attack`."""

from __future__ import annotations

from pathlib import Path

from bivallate.commands.options import Ball, Count, DataName, Flag, Machine, Split, WeightsSource
from bivallate.errors import UserError
from bivallate.terminal import say


def attack(
    run: Path,
    /,
    *,
    save: Path,
    attack: str = "pgd-20",
    ball: Ball = Ball(),  # noqa: B008  frozen
    split: Split = "test",
    data: DataName | None = None,
    n: Count | None = None,
    first: Count | None = None,
    source: WeightsSource = WeightsSource(),  # noqa: B008
    machine: Machine = Machine(),  # noqa: B008
    overwrite: Flag = False,
) -> None:
    """Make adversarial images of a run's data and save them as PNG files, as arrays, and on one sheet.

    SAVE gets sheet.png, adversarial.npz (x, x_adv, y, predicted, index, classes; unrounded, in [0, 1]) and
    images/, one PNG an image. Rounding to eight bits can undo an attack; the command prints how many
    attacks survive it.

    Parameters
    ----------
    run
        folder of the run.
    save
        folder for the images and arrays.
    attack
        name of an attack; `bivallate attacks` lists them.
    data
        another data set than the run's.
    n
        size of a seeded random subset of the images. [default: 24, or all of fewer]
    first
        number of images to take from the start instead.
    overwrite
        replace what an earlier attack left in SAVE.
    """
    from bivallate.evaluation.attacked_images import craft
    from bivallate.evaluation.threat_union import listed_radii
    from bivallate.reports.adversarial_images import write
    from bivallate.run.evaluation_target import EvaluationTarget

    device = machine.prepare()
    target = EvaluationTarget.of(run, threat=ball.of, split=split, data=data, device=device, **source.reading)
    for note in (*target.data.notes, *target.warnings):
        say(f"{target.data.name}: {note}", to_stderr=True)
    points, threat = target.chosen_split, target.threat
    if target.others:
        say(f"the run was trained under {listed_radii(target.threats)}: this is the first", to_stderr=True)
    n = min(24, len(points)) if n is None and first is None else n
    if save.exists() and any(save.iterdir()) and not overwrite:
        raise UserError(
            f"{save} is not empty: name another folder, or say --overwrite to replace what is there"
        )
    made = craft(target.model, points, threat, attack, seed=source.seed, n=n, first=first)
    write(made, save, target.data.classes)
    say(
        f"{made.attack} at {type(threat).__name__} eps {threat.eps:.5g}: {len(made.y)} images, "
        f"{int(made.correct.sum())} right before, {int((made.correct & ~made.fooled).sum())} after; of "
        f"{int(made.fooled.sum())} that fool the model {int(made.fooled_in_8_bits.sum())} still do in 8 bits"
    )
    say(f"kept in {save}: sheet.png, adversarial.npz, images/")
