"""A run that is stopped, cannot print, does not fit into memory or diverges: saved, with a message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.run.runs import digits, same, train

import bivallate as bv
from bivallate import cli
from bivallate.record import NonFinite
from bivallate.run import checkpoint, trainer
from bivallate.run.progress import Progress, TerminalProgress
from bivallate.run.signals import Interrupted
from bivallate.safe_streams import safe_streams

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
)

# asked to stop ---------------------------------------------------------------------------------------


class Ask(Progress):
    """Sends this process a signal after a minibatch."""

    def __init__(self, number: int, at: tuple[int, int] = (1, 1)) -> None:
        self.number, self.at = number, at

    def step(self, session: Any, record: Any, lr: float) -> None:
        if (session.epoch, session.step) == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("at", [(0, 0), (1, 1), (1, 2)])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_save_and_stop(name, at, tmp_path):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=rf"epoch {at[0] + 1}, minibatch {at[1] + 1}.*bivallate resume"):
        train(tmp_path / "run", progress=Ask(number, at), checkpoint_minutes=99.0)
    assert signal.getsignal(number) is before
    bv.resume(tmp_path / "run", dataset=digits())
    train(tmp_path / "whole", checkpoint_minutes=99.0)
    same(tmp_path / "whole", tmp_path / "run")


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert len(train(tmp_path / "run", progress=Ask(signal.SIGHUP)).history) == 3
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


SLOW = """
import os, time
os.write(1, b"importing")
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["module", "script"])
def test_ctrl_c_while_libraries_are_imported_is_one_line(how, tmp_path):
    """`torch` takes seconds; here it takes a minute."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(SLOW)
    (tmp_path / "bivallate").write_text("from bivallate.cli import main\nmain()\n")
    source = str(Path(bv.__file__).parents[1])
    command = ["-m", "bivallate"] if how == "module" else [str(tmp_path / "bivallate")]
    process = subprocess.Popen(
        [sys.executable, *command, "train", "at", "--dry-run"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), source])},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(9) == b"importing"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, b"bivallate: interrupted\n")


# nobody listens --------------------------------------------------------------------------------------


def command(arguments: list[str], out: int, error: int) -> int:
    """The exit status of the command line in a process whose output goes there."""
    number = os.fork()
    if number == 0:
        status = 99
        try:
            os.dup2(out, 1)
            os.dup2(error, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            cli.main(arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 98
            try:
                sys.stdout.flush(), sys.stderr.flush()
            except BaseException:
                status = 97  # what the interpreter would end with: it flushes too
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def broken() -> int:
    """A pipe that nobody reads."""
    ready, end = os.pipe()
    os.close(ready)
    return end


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def to(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT)


QUICK = ["train", "at", "--epochs", "1", "--model", "linear", "--threads", "1", "--batch-size", "512"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("where", [broken, full])
def test_training_goes_on_when_nobody_listens(where, tmp_path):
    arguments = [*QUICK, "--out", str(tmp_path / "run")]
    end = where()
    assert command(arguments, end, end) == 0
    os.close(end)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 1
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_evaluation_that_cannot_be_printed_is_kept_and_that_is_said(tmp_path):
    run = tmp_path / "run"
    train(run)
    arguments = ["evaluate", str(run), "--attack", "fgsm", "--n", "20", "--threads", "1"]
    assert command(arguments, full(), to(tmp_path / "said")) == 1
    assert "standard output could not be written ([Errno 28]" in (tmp_path / "said").read_text()
    assert len(list((run / "evaluation").glob("*.json"))) == 1
    assert command(["methods"], broken(), to(tmp_path / "silent")) == 0
    assert (tmp_path / "silent").read_text() == ""


def test_a_closed_standard_stream_is_not_taken_by_a_file(tmp_path):
    """Else what is printed would land in a checkpoint."""
    number = os.fork()
    if number == 0:
        os.close(1)
        os.close(2)
        sys.stdout = sys.stderr = None  # pyright: ignore  as the interpreter has it then
        with safe_streams():
            print("lost")
            os._exit(os.open(tmp_path / "a", os.O_CREAT | os.O_WRONLY))
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) > 2


def test_a_character_that_the_stream_lacks_is_written_as_its_number(tmp_path, monkeypatch):
    with open(tmp_path / "a", "w", encoding="cp1252") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with safe_streams():
            print("classes \u03b1, \u00e9")
        monkeypatch.undo()
    assert (tmp_path / "a").read_text(encoding="cp1252") == "classes \\u03b1, \u00e9\n"


def test_a_bar_in_python_breaks_no_training(tmp_path, monkeypatch):
    stream = os.fdopen(broken(), "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    assert len(train(tmp_path / "run", progress=TerminalProgress("at")).history) == 3
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        stream.close()


# no room ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (RuntimeError(ALLOCATOR), "8,192 MiB more were asked for"),
        (MemoryError("std::bad_alloc"), "memory. Nothing"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."),
            "2.50 GiB more were asked",
        ),
    ],
)
@pytest.mark.parametrize("room", [3, 0])
def test_a_minibatch_that_does_not_fit_says_which_would(error, amount, room, tmp_path, monkeypatch):
    original = trainer.train_step

    def cramped(model: Any, optimizer: Any, method: Any, batch: Any, clock: Any, *more: Any) -> Any:
        if len(batch.y) > room and clock.epoch == 1:
            raise error
        return original(model, optimizer, method, batch, clock, *more)

    monkeypatch.setattr(trainer, "train_step", cramped)
    advice = "--batch-size 2" if room else "Not even one image fits"
    with pytest.raises(bv.UserError, match=rf"minibatch of 8 images does not fit.*{amount}.*{advice}"):
        train(tmp_path / "run")
    monkeypatch.undo()
    bv.resume(tmp_path / "run", dataset=digits())  # the tries left nothing behind
    train(tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "run")


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def fails(*arguments: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(trainer, "train_step", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        train(None)


# divergence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [24, 8])
@pytest.mark.parametrize("minutes", [1e-6, 99.0])
def test_a_state_that_has_exploded_is_never_kept(batch_size, minutes, tmp_path):
    """With one minibatch an epoch, what explodes is the last step of it."""
    more = {"optimizer": bv.SGD(1e38), "rate": bv.Flat(), "batch_size": batch_size, "average": 0.0}
    with pytest.raises(
        NonFinite, match=r"(diverged|not finite|is nan).*--lr 2\.5e\+37 \(it was 1e\+38\)"
    ) as caught:
        train(tmp_path / "run", checkpoint_minutes=minutes, **more)
    assert "resume from the last" not in str(caught.value)
    found = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert all(bool(t.isfinite().all()) for k, t in found.tensors.items() if k.startswith("model."))
    assert (found.epoch, found.step) == (0, 0)
    assert not list((tmp_path / "run").glob("*.safetensors"))
