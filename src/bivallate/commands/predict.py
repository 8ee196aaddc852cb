"""`bivallate predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from bivallate.commands.options import Ball, Count, Flag, Machine, Names, WeightsSource, threats_of
from bivallate.data.layout import IMAGES
from bivallate.data.reading import Canvas, Reading
from bivallate.errors import UserError
from bivallate.quoting import line
from bivallate.terminal import literal_console, say_json


def predict(
    run: Path,
    /,
    *images: Path,
    attack: str = "pgd-20",
    ball: Ball = Ball(),  # noqa: B008  frozen
    threat: Names = (),
    top: Count = 3,
    source: WeightsSource = WeightsSource(),  # noqa: B008
    machine: Machine = Machine(),  # noqa: B008
    json: Flag = False,
) -> None:
    """Classify IMAGES with the model of a run, and test whether an attack changes the predictions.

    Images are resized to the model's input, as in training with data.size. The attack leads away from the
    predicted class, whether that is right or not.

    Parameters
    ----------
    run
        folder of the run.
    images
        image files, or folders of them.
    attack
        name of the attack; clean attacks nothing. `bivallate attacks` lists them.
    threat
        one or several threats in place of --norm and --eps, each a norm and a radius: linf:8/255 l2:0.5. A
        prediction survives if it does within each. [default: all that the run was trained under]
    top
        number of likeliest classes to show for each image.
    json
        print a list as JSON instead of a table.
    """
    from bivallate.evaluation import attack_named
    from bivallate.evaluation import predict as ask
    from bivallate.run.folder import RunFolder
    from bivallate.run.foreign_method import read_config
    from bivallate.run.load_model import load_run

    attack_named(attack)  # a misspelt attack is said before anything else
    device = machine.prepare()
    images, texts = _split_images(images, threat)
    own = read_config(RunFolder.open(run).config).config.method.threats
    asked = threats_of(texts, beside=ball.given, nor="image")
    threats = asked or ((ball.of(own[0]),) if ball.given else own)
    model = load_run(run, source.weights, source.model).to(device)
    pictures = read(images, model.shape)
    readable = [picture for picture in pictures if picture.x is not None]
    found: list[Any] = []
    if readable:
        import torch

        x = torch.stack([picture.x for picture in readable]).to(device)
        found = ask(model, x, None if attack == "clean" else threats, attack, top=top, seed=source.seed)
    names = model.classes or [str(k) for k in range(model.num_classes)]
    if json:
        say_json(_plain(pictures, found, names))
    else:
        _show(pictures, found, names, _head(attack, threats), several=len(threats) > 1)
    if not readable:
        raise UserError("none of the images could be read")


def _split_images(images: Sequence[Path], threat: Sequence[str]) -> tuple[tuple[Path, ...], list[str]]:
    """Move images that --threat has taken to the images: the option takes all words up to the next one."""
    taken = [word for word in threat if Path(word).exists()]
    return (*images, *map(Path, taken)), [word for word in threat if word not in taken]


def _head(attack: str, threats: Sequence[Any]) -> str:
    """The heading of the column that says whether the prediction survives the attack."""
    from bivallate.evaluation.threat_union import radius, union_of

    return "attack" if attack == "clean" else f"survives {attack} at {radius(union_of(threats))}"


@dataclass(frozen=True)
class NamedImage:
    """An image file, or why it could not be read.

    Attributes:
        name: as it is printed.
        x: (C, H, W) in [0, 1]; None if it could not be read.
        fault: why not.
    """

    name: str
    x: Any
    fault: str = ""


def read(images: tuple[Path, ...], shape: tuple[int, int, int]) -> list[NamedImage]:
    """Read image files, those of a folder in the order of their names, and resize them.

    Args:
        images: files or folders.
        shape: (C, H, W) of the model.

    Raises:
        UserError: a path that does not exist, a folder without images, or no path at all. Files that
            cannot be decoded are returned with their fault.
    """
    paths: list[tuple[str, Path]] = []
    for path in images:
        if not path.exists():
            raise UserError(f"there is no image at {path}")
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())
        if path.is_dir() and not inside:
            raise UserError(f"{path} holds no image ({', '.join(sorted(IMAGES))})")
        short = sum(other.is_dir() for other in images) == 1  # the names in several folders may be equal
        named = [(str(p.relative_to(path) if short else p), p) for p in inside]
        paths += named if path.is_dir() else [(str(path), path)]
    if not paths:
        raise UserError("name at least one image or folder of images")
    reading = Reading(size=shape[1:], channels=shape[0], on_bad="convert")
    return [_picture(name, path, Canvas(shape), reading) for name, path in paths]


def _picture(name: str, path: Path, canvas: Any, reading: Any) -> NamedImage:
    import torch

    from bivallate.data.grey_levels import DARK
    from bivallate.data.image import BadImage, pixels, quiet

    try:
        with quiet():
            found = pixels(path, canvas, reading)
    except (BadImage, UserError) as error:
        return NamedImage(name, None, str(error))
    if found.highest is not None and found.highest <= DARK:
        return NamedImage(name, None, f"reaches {found.highest:.2%} of white: save it with 8 bits a channel")
    return NamedImage(name, torch.from_numpy(found.array.copy()).float() / 255)


def _plain(pictures: list[NamedImage], found: list[Any], names: list[str]) -> list[dict[str, Any]]:
    from bivallate.evaluation.threat_union import threat_json

    answers, listed = iter(found), []
    for picture in pictures:
        if picture.x is None:
            listed.append({"image": picture.name, "error": picture.fault})
            continue
        said = next(answers)
        listed.append(
            {
                "image": picture.name,
                "class": names[said.label],
                "confidence": said.confidence,
                "survives": said.survives,
                "becomes": None if said.becomes is None else names[said.becomes],
                "within": None if said.within is None else threat_json(said.within),
                "top": {names[label]: share for label, share in said.top},
            }
        )
    return listed


def _show(
    pictures: list[NamedImage], found: list[Any], names: list[str], attack: str, *, several: bool
) -> None:
    """Print a table; several: whether a prediction can change within one of several threats."""
    from bivallate.evaluation.threat_union import radius

    table = Table("image", "class", "confidence", attack, "next")
    answers = iter(found)
    for picture in pictures:
        if picture.x is None:
            table.add_row(
                Text(line(picture.name), overflow="fold"), Text(line(picture.fault), style="red"), "", "", ""
            )
            continue
        said = next(answers)
        mind = {None: "not attacked", True: "yes"}.get(said.survives, "")
        mind = mind or f"no: becomes {line(names[said.becomes], 40)}" + f" ({radius(said.within)})" * several
        others = ", ".join(f"{line(names[k], 24)} {share:.0%}" for k, share in said.top if k != said.label)
        cells = (line(names[said.label], 40), f"{said.confidence:.1%}", mind, others)
        table.add_row(Text(line(picture.name), overflow="fold"), *(Text(cell) for cell in cells))
    literal_console().print(table)
