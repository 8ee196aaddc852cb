"""The complete, resolved configuration of a run, and its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar, Literal

from bivallate.errors import UserError, check_seed, check_whole, unknown
from bivallate.files import write_text
from bivallate.from_text import override, read
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.parts import decode, encode, part, written
from bivallate.run.arithmetic import Precision, amp_read
from bivallate.run.averaging import Averaging, average_setting
from bivallate.run.config_parts import Data, Model, Validation
from bivallate.run.folder import FIRST_LINE
from bivallate.run.initial import Init
from bivallate.run.optim import SGD, OptimizerSpec
from bivallate.run.phases import Phase, check_phases
from bivallate.run.rates import Cosine, Flat, MultiStep, Rate, Triangle
from bivallate.run.sentinel import Sentinel
from bivallate.schema import MEGABYTE, check_fits, parse, read_text
from bivallate.toml import to_toml

METHOD_PARTS = tuple(written(Method))
# Settings of the machine and of what it keeps -> their defaults. They leave the weights as they are, or
# change them no more than another seed does.
OF_THE_MACHINE: Mapping[str, Any] = {
    "device": "auto", "threads": 0, "data.data_dir": "", "data.resident": "auto", "keep": (), "graphs": False,
    "compile": False, "channels_last": False, "deterministic": False, "precision": "float32",
}  # fmt: skip


@part
class Config:
    """Everything that determines a run.

    Attributes:
        method, data, model, optimizer, rate: the parts of the run.
        init: initial weights, and which layers stay as they are.
        epochs: number of epochs.
        batch_size: images of a minibatch, over all processes.
        seed: seed of everything random.
        warm_up: fraction of the minibatches over which the training radius grows from almost 0 to the
            threat's. Held-out data are always attacked within the full radius.
        average: average of the weights, saved as `ema`: the decay of an exponential moving average, 0 or None
            for no average, or the part `SWA` or `Cyclic`.
        validation, sentinel: what is measured during training.
        device: "auto", "cpu", "cuda" or "mps".
        channels_last: memory layout of convolutions. "auto" times a few training steps in both layouts when
            training begins, and writes true or false into the run's configuration. The layouts differ in
            rounding, so the bits of a run that begins with "auto" depend on a measurement. The written
            configuration determines them.
        precision: of the model's matrix products and convolutions, in training and on held-out data:
            "float32"; "tf32" (inputs rounded to ten bits of mantissa, on CUDA); or "bf16" (bfloat16 autocast,
            on CUDA and on processors with AVX-512 BF16 or AMX). With bf16, input gradients are computed in
            float32 where more than their signs are used: raw, Adam and L2 steps, FOSC, GradAlign, implicit
            gradients. Fast-BAT and the raw steps of DONE gain nothing from it.
        deterministic: use only operations that give the same bits every time. On CUDA a resume to the same
            bits needs this; it is slower, and an error if a layer has no such operation. Operations on a
            processor are deterministic without it.
        compile: run training steps through torch.compile, where no second derivative is needed. Training
            begins some minutes later and is then faster; results agree to rounding. Held-out measurements are
            not compiled.
        graphs: on CUDA, record attacks of a fixed number of steps as CUDA graphs, which saves the time of
            launching kernels one by one. An attack that cannot be recorded runs as usual, and a note says so.
        sync_batchnorm: on several processes, compute BatchNorm's statistics over the whole minibatch, by two
            all-reduces per layer and pass. Otherwise each process uses its own rows.
        threads: number of threads on the processor; 0 keeps torch's choice.
        checkpoint_minutes: longest time between checkpoints. One is also written after every epoch.
        phases: stages of training with other image sizes and batch sizes; empty for none.
        patience: end training if the held-out robust accuracy has not risen for so many epochs; 0 never does.
        extended: numbers of epochs, rising, that the run was planned with before `resume` made it longer. Up
            to the end of each, every schedule is that of a run of this length.
        keep: epochs, counted from 1, whose weights (not their average) are saved as `epoch-N`.
        recipe: name of the recipe that the values came from, for the record, or None.

    Raises:
        UserError: a value is out of its range, or a part cannot play its role.
    """

    WRITTEN_NONE: ClassVar = {"recipe": "none"}

    method: Method
    data: Data = field(default=Data())
    model: Model = field(default=Model())
    init: Init = field(default=Init())
    optimizer: OptimizerSpec = field(default=SGD())
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
    recipe: str | None = None
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

    @staticmethod
    def read_older(fields: dict[str, Any]) -> dict[str, Any]:
        """Translate fields of an older version's configuration into the present ones."""
        return amp_read(fields)

    def set(self, path: str, text: Any) -> Config:
        """A copy with one value changed: `set("solver.steps", "20")`.

        The path of a method's part may leave out `method.`; `config.` before a path, which says on the
        command line that no parameter of a method is meant, changes nothing. A change of the threat also
        changes what depends on it, as `Method.but` does. A change of `epochs` drops `extended`.

        Raises UserError for an unknown path or a value that does not fit.
        """
        ((path, text),) = amp_read({path.removeprefix("config."): text}).items()
        if path in ("recipe", "extended"):
            raise UserError(f"{path} says what was done, and changes nothing: a recipe is named by --recipe")
        first = path.partition(".")[0]
        if path.startswith("model.options."):
            chosen = self.model.with_option(path.removeprefix("model.options."), str(text))
            return dataclasses.replace(self, model=chosen)
        own = {f.name for f in dataclasses.fields(self)}
        if first not in own and first in METHOD_PARTS:
            path = f"method.{path}"
        elif first not in own:
            raise unknown("configuration key", path, [*own, *METHOD_PARTS])
        if path == "method.threat" or path.startswith("method.threat."):
            text = read(text, Threat, path) if path == "method.threat" and isinstance(text, str) else text
            method = self.method.but(**{path.removeprefix("method.").replace(".", "__"): text})
            return dataclasses.replace(self, method=method)
        return override(dataclasses.replace(self, extended=()) if path == "epochs" else self, path, text)

    def planned(self, epoch: int) -> int:
        """The planned number of epochs when the run reached this epoch, which is counted from 0.

        Example:
            >>> from bivallate import Linf, methods
            >>> run = Config(methods.plain(Linf(0)), epochs=30, extended=(20,))
            >>> run.planned(19), run.planned(20)
            (20, 30)
        """
        return next((length for length in self.extended if epoch < length), self.epochs)

    def longer(self, epochs: int) -> Config:
        """A copy with more epochs, which `extended` remembers. Raises UserError for fewer epochs."""
        check_whole("epochs", epochs)
        if epochs < self.epochs:
            raise UserError(f"this run has {self.epochs} epochs: name more of them to go on, got {epochs}")
        if epochs == self.epochs:
            return self
        return dataclasses.replace(self, epochs=epochs, extended=(*self.extended, self.epochs))

    def goes_beyond(self, other: Config) -> bool:
        """Whether the epochs of this plan extend those of the other, or equal them."""
        before = (*other.extended, other.epochs)
        return self.extended[: len(before)] == before

    def write(self, path: Path) -> None:
        """Write the configuration as TOML, whole or not at all."""
        entry = encode(self)
        write_text(path, f"{FIRST_LINE}: `bivallate train --config` repeats this run.\n" + to_toml(entry))

    def ended(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a training that has had these epochs is over: by their number, or by `patience`."""
        if len(history) >= self.epochs:
            return True
        robust: list[float] = [line["robust"] for line in history if line.get("robust") is not None]
        if not robust or len(robust) < len(history):
            return False
        return self.out_of_patience(len(robust), robust.index(max(robust)))

    def out_of_patience(self, epochs: int, best: int) -> bool:
        """Whether the held-out robust accuracy has not risen for `patience` of this many epochs.

        Args:
            best: the epoch, from 0, in which it was highest.
        """
        return 0 < self.patience <= epochs - 1 - best

    @staticmethod
    def read(path: Path) -> Config:
        """Read a configuration file.

        Raises UserError if it cannot be read or a value is wrong; for a wrong key it gives the nearest name.
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
            return check_fits(Config, decode({**entry, "kind": "Config"}), "configuration")
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


__all__ = ["Config", "Cosine", "Data", "Flat", "Model", "MultiStep", "Validation"]
