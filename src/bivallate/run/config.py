"""The complete, resolved configuration of a run, and its file."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from bivallate.errors import UserError, check_seed, check_whole, unknown
from bivallate.files import write_text
from bivallate.from_text import override
from bivallate.method import Method
from bivallate.parts import decode, encode, part, written
from bivallate.run.arithmetic import Precision, amp_read
from bivallate.run.averaging import Averaging, average_setting
from bivallate.run.config_parts import Data, Model, Validation
from bivallate.run.folder import FIRST_LINE
from bivallate.run.initial import Init
from bivallate.run.optim import SGD, Cosine, Flat, MultiStep, Optimizer, Rate, Triangle
from bivallate.run.phases import Phase, check_phases
from bivallate.run.sentinel import Sentinel
from bivallate.schema import MEGABYTE, check, parse, read_text
from bivallate.toml import to_toml

METHOD_PARTS = tuple(written(Method))


@part
class Config:
    """Everything that a run is a function of.

    Attributes:
        method, data, model, optimizer, rate: parts. init: weights to begin with, and which of them stay.
        epochs, batch_size, seed: of training.
        warm_up: share of the minibatches over which the radius that is trained on grows from almost 0 to the
            threat's; held-out data is always attacked within the whole.
        average: of the weights, kept as `ema` beside them: a number is the decay of an exponential moving
            average per step, 0 or None keeps none; or a part, `SWA` or `Cyclic`.
        validation, sentinel: what is watched.
        device: "auto", "cpu", "cuda" or "mps".
        channels_last: memory layout of convolutions. "auto" tries a few steps of the training in both when it
            begins, and writes true or false into the run's configuration. Layouts differ in rounding, so the
            bits of a run that begins with "auto" depend on a measurement; those of its written configuration
            do not.
        precision: of the model's products and convolutions, in training and on held-out data. "float32";
            "tf32": inputs rounded to ten bits of mantissa, on CUDA; "bf16": bfloat16 autocast, on CUDA and on
            processors with AVX-512 BF16 or AMX. In bf16 gradients by the image stay in float32 where more
            than their signs are used: raw, Adam and L2 steps, FOSC, GradAlign, implicit gradients. Fast-BAT
            and DONE's raw steps gain nothing from it.
        deterministic: only operations that give the same bits every time, which a resume to the bit needs on
            CUDA; slower there, and refused where a layer has none. A processor's are so anyway.
        compile: training steps go through torch.compile, wherever one derivative is enough: quicker after a
            wait of minutes when training begins, and the same to rounding. Held-out measurements do not.
        graphs: attacks of a fixed number of steps are recorded as CUDA graphs, which spares the processor
            their launches; on CUDA. Those that cannot be recorded go on step by step, which is said.
        sync_batchnorm: on several processes, BatchNorm's statistics are those of the whole minibatch, at two
            all-reduces a layer and pass; false: of each process's own rows.
        threads: of the processor; 0 leaves torch's own choice.
        checkpoint_minutes: at most so long between checkpoints; one is also written after every epoch.
        phases: parts of training with smaller images and minibatches; empty: one, as said elsewhere.
        patience: training ends when the held-out robust accuracy has not risen for so many epochs; 0: never.
        extended: lengths that the run was planned with before `resume` made it longer, rising; up to the end
            of each, every schedule is that of a run of this length.
        keep: epochs, counted from 1, whose weights stay too, as `epoch-N`; the weights themselves, not their
            average.
        recipe: name of the recipe the values came from, for the record.
    """

    method: Method
    data: Data = field(default=Data())
    model: Model = field(default=Model())
    init: Init = field(default=Init())
    optimizer: Optimizer = field(default=SGD())
    rate: Rate = field(default=Triangle())
    epochs: int = 20
    batch_size: int = 128
    seed: int = 0
    average: float | Averaging | None = 0.0
    warm_up: float = 0.0
    validation: Validation = field(default=Validation())
    sentinel: Sentinel = field(default=Sentinel())
    device: str = "auto"
    channels_last: bool | Literal["auto"] = False
    precision: Precision = "float32"
    deterministic: bool = False
    compile: bool = False
    graphs: bool = False
    sync_batchnorm: bool = False
    threads: int = 0
    checkpoint_minutes: float = 5.0
    keep: tuple[int, ...] = ()
    patience: int = 0
    phases: tuple[Phase, ...] = ()
    recipe: str = "none"
    extended: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_whole("epochs", self.epochs)
        check_whole("batch_size", self.batch_size)
        check_whole("patience", self.patience, 0)
        object.__setattr__(self, "average", average_setting(self.average))
        if not 0 <= self.warm_up < 1:
            raise UserError(f"warm_up is a share of training in [0, 1), got {self.warm_up!r}")
        check_phases(self.phases)
        if not self.checkpoint_minutes > 0:
            raise UserError(f"checkpoint_minutes must be positive, got {self.checkpoint_minutes!r}")
        if not isinstance(self.keep, tuple) or not all(type(e) is int and e >= 1 for e in self.keep):
            raise UserError(f"keep is a tuple of epochs, counted from 1, such as (1, 10), got {self.keep!r}")
        lengths = (0, *self.extended, self.epochs) if isinstance(self.extended, tuple) else ()
        if not lengths or not all(type(e) is int for e in lengths) or sorted({*lengths}) != [*lengths]:
            raise UserError(f"extended is a tuple of rising lengths below epochs, got {self.extended!r}")
        for role, asked in (("optimizer", "make"), ("rate", "__call__")):
            if isinstance(getattr(self, role), type | str) or not hasattr(getattr(self, role), asked):
                raise UserError(f"{getattr(self, role)!r} cannot serve as the {role} of a run")

    @staticmethod
    def read_older(fields: dict[str, Any]) -> dict[str, Any]:
        """The fields as they are now."""
        return amp_read(fields)

    def set(self, path: str, text: Any) -> Config:
        """A copy with one value changed: `set("solver.steps", "20")`.

        A method's part needs no `method.` before it, another `threat` is followed as by `Method.but`, and
        other `epochs` are a plan of their own.
        """
        ((path, text),) = amp_read({path: text}).items()
        first = path.partition(".")[0]
        if path.startswith("model.options."):
            chosen = self.model.with_option(path.removeprefix("model.options."), str(text))
            return dataclasses.replace(self, model=chosen)
        own = {f.name for f in dataclasses.fields(self)}
        if first not in own and first in METHOD_PARTS:
            path = f"method.{path}"
        elif first not in own:
            raise unknown("configuration key", path, [*own, *METHOD_PARTS])
        if path.startswith("method.threat."):
            method = self.method.but(**{path.removeprefix("method.").replace(".", "__"): text})
            return dataclasses.replace(self, method=method)
        return override(dataclasses.replace(self, extended=()) if path == "epochs" else self, path, text)

    def planned(self, epoch: int) -> int:
        """How many epochs the run was to have when it came to this one, counted from 0.

        Example:
            >>> from bivallate import Linf, methods
            >>> run = Config(methods.plain(Linf(0)), epochs=30, extended=(20,))
            >>> run.planned(19), run.planned(20)
            (20, 30)
        """
        return next((length for length in self.extended if epoch < length), self.epochs)

    def longer(self, epochs: int) -> Config:
        """A copy that goes on to more epochs. Raises UserError for fewer; as many change nothing."""
        check_whole("epochs", epochs)
        if epochs < self.epochs:
            raise UserError(f"this run has {self.epochs} epochs: name more of them to go on, got {epochs}")
        if epochs == self.epochs:
            return self
        return dataclasses.replace(self, epochs=epochs, extended=(*self.extended, self.epochs))

    def goes_beyond(self, other: Config) -> bool:
        """Whether this is the other's plan made longer, whatever else differs."""
        before = (*other.extended, other.epochs)
        return self.extended[: len(before)] == before

    def write(self, path: Path) -> None:
        """The configuration as TOML."""
        entry = encode(self)
        write_text(path, f"{FIRST_LINE}: `bivallate train --config` repeats this run.\n" + to_toml(entry))

    @staticmethod
    def read(path: Path) -> Config:
        """Read a configuration file.

        Raises UserError for what it cannot read, with the nearest name for a wrong key.
        """
        text = read_text(path, "configuration", 4 * MEGABYTE)
        entry = parse(text, path, "configuration", dict[str, Any], "TOML")
        entry = Config.read_older(entry)
        known = [*written(Config), "kind"]
        for key in entry:
            if key not in known:
                raise UserError(f"{path}: {unknown('configuration key', key, known)}")
        if not isinstance(entry.get("method"), dict):
            raise UserError(f"{path} has no [method] table: every run needs a method")
        try:
            return check(Config, decode({**entry, "kind": "Config"}), "configuration")
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


__all__ = ["Config", "Cosine", "Data", "Flat", "Model", "MultiStep", "Validation"]
