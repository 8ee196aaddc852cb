"""The state of a run; `packing` turns it into a checkpoint and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bivallate import collective, data, models
from bivallate.data import Batches, Dataset, Split
from bivallate.method import check_two_labels
from bivallate.models import Classifier
from bivallate.models.io import renamed
from bivallate.models.layers import freeze
from bivallate.models.trainable import trainable
from bivallate.parts import encode, portable
from bivallate.run.acceleration import acceleration_of
from bivallate.run.arithmetic import autocast_of, lay_out
from bivallate.run.averaging import average_of
from bivallate.run.checkpoint import section
from bivallate.run.config import Config
from bivallate.run.epoch_sums import EpochSums
from bivallate.run.from_config import check_several, pick_device
from bivallate.run.identity import identity_of
from bivallate.run.optim import optimizer_of
from bivallate.run.optimizer_state import pack_optimizer, unpack_optimizer
from bivallate.run.origin import origin
from bivallate.run.phases import batches_by_phase, phase_at, take_sizes
from bivallate.run.sentinel import SentinelState
from bivallate.run.sync_batchnorm import synchronise_batchnorm
from bivallate.run.warm_up import growth
from bivallate.types import Clock, Facts

WATCHED = 100  # about so many training rows have their margin and weight recorded in every epoch


class Session:
    """The state of a run: model, optimiser, average, the method's state, and the place in the data.

    Attributes:
        config, dataset, model: what determines the run.
        method: bound to this run.
        average: of the weights, or None.
        acceleration: compiled steps, recorded attacks.
        epoch, step: place of the next minibatch, counted from 0.
        tally: sums over the current epoch.
        history: lines of the finished epochs.
        best, best_epoch: highest held-out robust accuracy so far, and its epoch.
        forward, backward, seconds: totals of the finished epochs, passes summed over examples.
        rate: learning rate of the last minibatch; None before the first.
        run: identifier of the run, sixteen hexadecimal digits (`identity_of`).
        sentinel, sentinel_tensors: the sentinel's state, and the tensors it may restore.
    """

    def __init__(self, config: Config, dataset: Dataset, model: nn.Module) -> None:
        self.config, self.dataset = config, dataset
        check_several(dataset)
        self.device = pick_device(config.device)
        self.model = self._prepared(model)
        train, meta = self._streams()
        augment = _augmentation(config, dataset)
        take_sizes(self.model, config.phases)
        self._batches = batches_by_phase(
            config.phases, train, meta, augment, config.batch_size, config.seed, self.device,
            fewest=1 if config.sync_batchnorm else 2, resident_data=config.data.resident,
        )  # fmt: skip
        self.acceleration = acceleration_of(config, self.model, self._batches, self.device)
        self.epoch, self.step = 0, 0
        facts = Facts(
            len(train),
            dataset.shape,
            len(dataset.classes),
            self.device,
            torch.float32,
            augment.padding,
            len(self.batches),
            augment.reshapes,
            bool(self.model.other_sizes),
        )
        self._facts = facts
        self.method = config.method.bind(facts)
        self.optimizer = optimizer_of(config.optimizer, self.model)
        self.average = average_of(self.model, config.average, self.clock(), config.rate)
        self.tally, self.history = self.new_tally(), list[dict[str, Any]]()
        self.best, self.best_epoch = -1.0, -1
        self.forward, self.backward, self.seconds = 0, 0, 0.0
        self.rate: float | None = None
        self.run = identity_of(config, dataset.fingerprint, self.model.architecture)
        self.sentinel = SentinelState()
        self.sentinel_tensors: dict[str, Tensor] = {}
        collective.broadcast([*self.model.parameters(), *self.model.buffers()])

    def _prepared(self, model: nn.Module) -> Classifier:
        """The network as a classifier on its device, with the configuration's precision and layout."""
        config, dataset = self.config, self.dataset
        made = models.wrap(model, num_classes=len(dataset.classes), shape=dataset.shape).to(self.device)
        made.classes = list(dataset.classes)
        trainable(made)
        freeze(made, config.init.freeze)
        if config.sync_batchnorm:
            synchronise_batchnorm(made, config.method)
        lay_out(made, config.channels_last)
        made.autocast_dtype = autocast_of(config.precision, self.device)  # pyright: ignore[reportArgumentType]
        return made

    @property
    def out_of_patience(self) -> bool:
        """Whether the held-out robust accuracy has not risen for `patience` epochs."""
        return self.config.out_of_patience(self.epoch, self.best_epoch)

    @property
    def batches(self) -> Batches:
        """The minibatches of the current phase; after the last epoch those of the last phase."""
        return self._batches[phase_at(self.config.phases, self.epoch, self.config.planned(self.epoch))]

    def new_tally(self) -> EpochSums:
        """Sums for a new epoch; they watch the same rows, about `WATCHED`, in every epoch."""
        return EpochSums(stride=max(1, len(self.dataset.train) // WATCHED))

    def _streams(self) -> tuple[Split, Split | None]:
        """The training rows, and the rows of the second stream if the weighting needs one."""
        train, config = self.dataset.train, self.config
        if not config.method.weighting.needs_meta:
            return train, None
        rows = min(config.data.meta, len(train) // 4)
        rest, meta = data.holdout(train, rows, config.seed, "meta")
        return rest, meta

    def clock(self, replay: int = 0) -> Clock:
        """The clock at the session's place in training."""
        c = self.config
        return Clock(self.epoch, c.planned(self.epoch), self.step, len(self.batches), replay, c.seed)

    def growth(self) -> float:
        """Factor of the radius at this minibatch, by the warm-up or by a warm-up that the sentinel began."""
        share, begun = self.sentinel.growing or (self.config.warm_up, 0.0)
        return growth(self.clock(), share, begun)

    def radius(self) -> dict[str, float]:
        """The radius of the last minibatch, for the epoch's line; empty if the radius does not grow."""
        grows = self.config.warm_up > 0 or self.sentinel.growing is not None
        return {"eps": float(self.method.threat.eps)} if grows else {}

    def learned(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What training has changed (weights, optimiser, method, average): tensors and values, not copied."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        packed, numbers = pack_optimizer(self.optimizer, self.model)
        tensors |= {f"optimizer.{k}": v for k, v in packed.items()}
        memory = self.method.state_dict()
        tensors |= {f"method.{k}": v for k, v in memory.items() if isinstance(v, Tensor)}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.model.state_dict().items()}
        values = {
            "method": {k: v for k, v in memory.items() if not isinstance(v, Tensor)},
            "optimizer": numbers,
            "average_updates": self.average.updates if self.average is not None else 0,
        }
        return tensors, values

    def restore_learned(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `learned` gave; the attack has the steps that the sentinel has set."""
        kept = {name: section(tensors, name) for name in ("model", "optimizer", "method", "average")}
        self.model.load_state_dict(renamed(kept["model"], self.model.state_dict()))
        numbers = values.get("optimizer", {})  # checkpoints that lack them were made without any
        unpack_optimizer(self.optimizer, self.model, {**kept["optimizer"], **numbers})
        left = self.sentinel
        self.method = self.config.method.stepped(left.length, left.number or 1.0).bind(self._facts)
        self.method.load_state_dict({**kept["method"], **values["method"]})
        if self.average is not None:
            average = self.average.model
            average.load_state_dict(renamed(kept["average"], average.state_dict()))
            self.average.updates = values["average_updates"]

    def manifest(self) -> dict[str, Any]:
        """The present content of model.json."""
        return models.manifest(self.model, classes=self.dataset.classes, entries=self._entries())

    def save_model(self, folder: Path, weights: str, model: Classifier | None = None) -> None:
        """Write weights, and the manifest that all weights of a run share; its `epoch` is the latest one."""
        models.save(
            model or self.model,
            folder,
            weights=weights,
            classes=self.dataset.classes,
            entries=self._entries(),
        )

    def _entries(self) -> dict[str, Any]:
        return {
            "method": self.config.method.name,
            "config": portable(encode(self.config)),
            "data": self.dataset.name,
            "data_fingerprint": self.dataset.fingerprint,
            "split_fingerprints": self.dataset.split_fingerprints,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch + 1,
            "run": self.run,
            "made_by": origin(),
        }


def _augmentation(config: Config, dataset: Dataset) -> data.Augment:
    text = config.data.augment
    augment = dataset.augment if text == "default" else data.Augment.parse(text)
    if augment.cutmix:
        check_two_labels(config.method)
    return augment
