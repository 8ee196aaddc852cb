"""The training loop: epochs of minibatches with measurements, checkpoints and interruption."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from bivallate import collective
from bivallate.data.workers import WorkersLost
from bivallate.errors import UserError, out_of_memory
from bivallate.lower.modes import set_train_mode
from bivallate.record import DeviceRecord, NonFinite, Summands
from bivallate.run import checkpoint, packing
from bivallate.run.cai_curriculum import CaiCurriculum
from bivallate.run.divergence import trouble_of
from bivallate.run.epoch_sums import StepSums
from bivallate.run.folder import RunFolder
from bivallate.run.lock import Lock
from bivallate.run.next_commands import resume_command
from bivallate.run.optim import set_rate
from bivallate.run.out_of_memory import memory_error
from bivallate.run.progress import Progress
from bivallate.run.sentinel_loop import SentinelLoop
from bivallate.run.session import Session
from bivallate.run.signals import Interrupted, Request, interruptible
from bivallate.run.validation import clean_margins, held_out
from bivallate.run.warm_up import set_radius
from bivallate.step import train_step
from bivallate.types import Batch, Clock, StepRecord


class Trainer:
    """The training of a session to its end, in a folder or in memory.

    Attributes:
        session: the state of the run.
        folder: where it is saved, or None.
        progress: what is shown.
        lock: of the folder; checked before anything is written there.
        watch, curriculum: the sentinel and a curriculum of attacks; they act after steps and epochs.
        minutes: time after which to save and stop; None sets no limit.
    """

    def __init__(
        self,
        session: Session,
        folder: RunFolder | None,
        progress: Progress,
        lock: Lock | None = None,
        minutes: float | None = None,
    ) -> None:
        self.session, self.folder, self.progress, self.lock = session, folder, progress, lock
        self.watch, self.curriculum, self.minutes = SentinelLoop(session), CaiCurriculum(session), minutes
        self._saved = time.monotonic()
        self._since = time.monotonic()

    def run(self) -> None:
        """Train from the session's present state to the last epoch.

        Raises:
            Interrupted: a signal asked to stop, or the time is up; the state is saved.
            NonFinite: the loss, a gradient or the weights are not finite; the last checkpoint is kept.
            UserError: the folder is removed or taken by another process, or memory is too small.
        """
        session = self.session
        set_train_mode(session.model)
        with (
            interruptible(self.minutes) as request,
            self.progress as progress,
            packing.own_generators(session),
        ):
            if self.folder is not None and session.epoch == 0 and session.step == 0:
                self._save()  # so that a run killed in its first minutes can be resumed
            progress.begin(session)
            self._since = time.monotonic()
            while session.epoch < session.config.epochs and not session.out_of_patience:
                self._epoch(request)
            self._check_lock()
            progress.end(session)

    def _epoch(self, request: Request) -> None:
        session = self.session
        for batch in self._batches(request):
            stop, due = self._minibatch(batch, request)
            session.step += 1
            self._tell(self.watch.after_step())
            # Several processes stop together: `stop` is what one of them sent with the last gradients.
            if stop or (request.made and not collective.is_distributed()):
                self._interrupt(request)
            if due:
                self._save()
        self._finish_epoch()

    def _batches(self, request: Request) -> Iterator[Batch]:
        """The remaining minibatches of the epoch."""
        session = self.session
        try:
            yield from session.batches.epoch(session.epoch, session.step)
        except WorkersLost:  # a signal to stop may have ended the decoding processes too
            if not request.made or collective.is_distributed():
                raise
            self._interrupt(request)

    def _minibatch(self, batch: Batch, request: Request) -> tuple[bool, bool]:
        """Make all replays of one minibatch; checkpoints are written between minibatches.

        Returns whether any process has been asked to stop, and whether it is time to save a checkpoint.
        """
        session, config = self.session, self.session.config
        rate = set_rate(
            session.optimizer, config.optimizer, config.rate, session.clock(), session.sentinel.rate
        )
        set_radius(session.method, session.growth())
        replays = list[StepRecord]()
        for replay in range(session.method.replays):
            clock = session.clock(replay)
            replays.append(self._step(batch, clock, request, replays))
            if session.average is not None and session.method.updates_after(clock):
                session.average.update(session.model)
        sums = session.tally.add_minibatch(replays)
        self._lap()
        session.rate = rate
        self.progress.step(session, replays[-1], rate)
        return sums.stop > 0, sums.save > 0

    def _step(self, batch: Batch, clock: Clock, request: Request, earlier: list[StepRecord]) -> StepRecord:
        """Make one training step after earlier replays; turn its failures into errors that say what to do."""
        session, patience = self.session, 60 * self.session.config.checkpoint_minutes

        def summands(on_device: DeviceRecord) -> Sequence[float]:  # with a minibatch's last gradients
            if clock.replay < session.method.replays - 1:
                return ()
            due = collective.rank() == 0 and time.monotonic() - self._saved > patience
            return StepSums(request.made, due, *session.tally.unsent([*earlier, on_device]))

        def work(batch: Batch) -> StepRecord:
            with session.acceleration.used(self.progress.note):
                return _step(session, batch, clock, summands)

        try:
            return work(batch)
        except NonFinite as error:
            raise NonFinite(f"{error}. {self._advice()}") from error
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or collective.is_distributed():
                raise
            failed = error.with_traceback(None)  # the traceback would keep the step's tensors in memory
        raise memory_error(failed, batch, work)

    def _advice(self) -> str:
        lr = self.session.config.optimizer.lr
        return (
            "Training is deterministic, so resuming from the last good checkpoint leads to the same point: "
            f"train again with a lower rate, such as --lr {lr / 4:.2g} (it was {lr:g}), or a smaller --eps"
        )

    def _check_good(self) -> None:
        """Raise NonFinite if the state has diverged, so that it does not replace the last good one."""
        session, trouble = self.session, trouble_of(self.session)
        if trouble:
            place = f"epoch {session.epoch + 1}, minibatch {session.step}"
            raise NonFinite(
                f"training has diverged by {place}: {trouble}. This state is not kept. {self._advice()}"
            )

    def _lap(self) -> None:
        now = time.monotonic()
        self.session.tally.seconds += now - self._since
        self._since = now

    def _finish_epoch(self) -> None:
        """Measure, keep the best weights, write the epoch's line and move on to the next epoch."""
        session = self.session
        collective.broadcast(session.model.buffers())
        self._check_good()
        self._check_lock()
        lr = session.config.optimizer.lr if session.rate is None else session.rate
        line: dict[str, Any] = {"epoch": session.epoch + 1, "lr": lr}
        whole = session.tally.over_ranks()
        line |= whole.line() | self._averaged() | self._measure() | session.radius()
        rows = [int(row) for row in line["watched"]]
        clean = clean_margins(session.model, session.batches.split, rows, session.device)
        line["watched_clean"] = dict(zip(line["watched"], clean, strict=True))
        self._keep(line)
        told = self.watch.after_epoch(line)  # this call and the next may restore earlier weights
        self.curriculum.after_epoch(line)
        session.forward += whole.forward
        session.backward += whole.backward
        self._lap()
        session.tally.seconds = collective.broadcast_object(session.tally.seconds)  # the first rank's time
        session.seconds += session.tally.seconds
        rows = max(len(session.batches.split), 1)
        line |= {"total_forward": session.forward / rows, "total_backward": session.backward / rows}
        line["seconds"] = session.tally.seconds
        session.history.append(line)
        session.epoch, session.step, session.tally = session.epoch + 1, 0, session.new_tally()
        self._check_lock()
        if self.folder is not None and collective.rank() == 0:
            session.save_model(self.folder.path, "model")
            if session.average is not None:
                session.save_model(self.folder.path, "ema", session.average.model)  # pyright: ignore
            self.folder.write_metrics(session.history)
        self._save()
        self.progress.epoch(session, line)
        self._tell(told)

    def _keep(self, line: dict[str, Any]) -> None:
        """Save the weights that were measured: the best, and those of an epoch that is to be kept."""
        session, found = self.session, line.get("robust", float(self.session.epoch))
        names = [f"epoch-{session.epoch + 1}"] if session.epoch + 1 in session.config.keep else []
        if found > session.best:
            session.best, session.best_epoch = found, session.epoch
            names.append("best")
        if self.folder is not None and collective.rank() == 0:
            for name in names:
                session.save_model(self.folder.path, name)

    def _tell(self, alarms: list[str]) -> None:
        for text in alarms:
            self.progress.alarm(self.session, text)

    def _averaged(self) -> dict[str, float]:
        """Take the weights into an average over epochs; return the passes spent on it, for the line."""
        session, batches = self.session, self.session.batches
        if session.average is None:
            return {}
        ends = session.model, session.clock(), session.config.rate
        passes = session.average.after_epoch(*ends, lambda: batches.epoch(session.epoch))
        return {"average_forward": passes / len(batches.split)} if passes else {}

    def _measure(self) -> dict[str, float]:
        """Measure clean and robust accuracy on held-out data, of the weights and of their average."""
        session, split = self.session, self.session.dataset.validation
        if split is None or len(split) == 0:
            return {}
        clean, robust, passes = self._held_out(session.model)
        line = {"clean": clean, "robust": robust}
        if session.average is not None:
            line["average_clean"], line["average_robust"], more = self._held_out(session.average.model)
            passes = passes + more
        line["validation_forward"] = passes.forward / len(session.batches.split)
        line["validation_backward"] = passes.backward / len(session.batches.split)
        return line

    def _held_out(self, model: nn.Module):
        session, watched = self.session, self.session.config.validation
        split, threats = session.dataset.validation, session.method.spec.threats
        assert split is not None
        of = {"seed": session.config.seed, "device": session.device}
        return held_out(model, split, threats, steps=watched.steps, rows=watched.rows, **of)

    def _check_lock(self) -> None:
        """Raise UserError on all processes if the first one has lost its lock of the folder."""
        lost = None
        try:
            if self.lock is not None:
                self.lock.check_held()
        except UserError as error:
            lost = error
        collective.raise_on_all_ranks(lost)

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self.folder is not None:
            self._check_lock()
            self._check_good()
            checkpoint.save(self.folder.checkpoints, packing.pack(self.session))

    def _interrupt(self, request: Request) -> None:
        if self.folder is None:
            raise Interrupted("interrupted; the run had no folder (out=...), so its state is lost")
        self._save()
        collective.barrier()  # a launcher ends all processes when the first one exits: all must have saved
        session = self.session
        architecture = str(getattr(session.model, "architecture", ""))
        raise Interrupted(
            f"{'the time is up' if request.late else 'interrupted'} at epoch {session.epoch + 1}, "
            f"minibatch {session.step}; all is saved. "
            f"Go on with: {resume_command(self.folder.path, session.config, architecture)}"
        )


def _step(session: Session, batch: Batch, clock: Clock, summands: Summands) -> StepRecord:
    """Call `train_step`. Raises UserError if BatchNorm has only one value per channel to normalise."""
    try:
        return train_step(session.model, session.optimizer, session.method, batch, clock, summands)
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise UserError(
            f"BatchNorm cannot normalise a minibatch of {len(batch.y)} image whose features are 1 x 1: "
            "use a --batch-size of 2 or more on each process"
        ) from error
