"""One run in one folder: the lock ends with its holder, and never before."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from tests.run.runs import digits, same, train

import bivallate as bv
from bivallate.errors import UserError
from bivallate.processes import alive
from bivallate.run import lock
from bivallate.run.lock import Holder, lock_folder
from bivallate.run.progress import Progress


def holder(folder: Path) -> int:
    """Another process, which holds the folder and waits to be killed."""
    ready, done = os.pipe()
    number = os.fork()
    if number == 0:
        with lock_folder(folder):
            os.write(done, b"1")
            time.sleep(60)
        os._exit(0)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    os.close(done)
    return number


def test_a_living_holder_is_named_and_a_killed_one_makes_way(tmp_path):
    number = holder(tmp_path)
    with pytest.raises(UserError, match=rf"in use: process {number} on .*--out"), lock_folder(tmp_path):
        pass
    os.kill(number, signal.SIGSTOP)  # stopped is not gone
    with pytest.raises(UserError, match="in use"), lock_folder(tmp_path):
        pass
    os.kill(number, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while alive(number):  # a signal takes its time
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with lock_folder(tmp_path):  # a zombie is gone, although its number is still given
        pass
    os.waitpid(number, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_number_given_to_another_process_is_not_the_holder(tmp_path):
    (tmp_path / lock.NAME).write_text(json.dumps(asdict(Holder(start="1"))))
    with lock_folder(tmp_path):
        pass


def test_a_second_holder_in_the_same_process_is_refused(tmp_path):
    with lock_folder(tmp_path), pytest.raises(UserError, match="in use"), lock_folder(tmp_path):
        pass


def unseen() -> str:
    return json.dumps(asdict(Holder(host="elsewhere", pid=1, place="0" * 12)))


@pytest.mark.parametrize("text", [unseen(), "", "[]", '{"pid": 1}', '{"pid": "1", "host": 1}', "\0\0"])
def test_a_holder_that_cannot_be_seen_is_gone_when_it_is_silent(text, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE", 0.3)
    (tmp_path / lock.NAME).write_text(text)
    said: list[str] = []
    with lock_folder(tmp_path, said.append):
        pass
    assert len(said) == 1
    assert "sign of life" in said[0]


def test_a_holder_that_cannot_be_seen_and_gives_signs_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE", 2.0)
    (tmp_path / lock.NAME).write_text(unseen())
    beat = threading.Timer(0.2, os.utime, [tmp_path / lock.NAME])
    beat.start()
    with (
        pytest.raises(UserError, match="in use: process 1 on elsewhere"),
        lock_folder(tmp_path, lambda text: None),
    ):
        pass
    beat.join()


def test_long_silence_is_not_waited_for(tmp_path):
    (tmp_path / lock.NAME).write_text(unseen())
    os.utime(tmp_path / lock.NAME, (1, 1))
    with lock_folder(tmp_path):
        pass


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with lock_folder(tmp_path):
        os.utime(tmp_path / lock.NAME, (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / lock.NAME).stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_of_many_at_once_one_wins(tmp_path):
    (tmp_path / lock.NAME).write_text(json.dumps(asdict(Holder(start="1"))))  # all see that it is free
    won = tmp_path / "won"
    children = []
    for _ in range(8):
        number = os.fork()
        if number == 0:
            try:
                with lock_folder(tmp_path):
                    os.close(os.open(won, os.O_CREAT | os.O_EXCL))
                    time.sleep(0.3)
                    won.unlink()
                os._exit(0)
            except UserError:
                os._exit(1)
            except BaseException:
                os._exit(2)
        children.append(number)
    ends = [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in children]
    assert set(ends) == {0, 1}


@pytest.mark.parametrize("act", ["overwrite", "resume"])
def test_a_running_run_is_left_alone(act, tmp_path):
    """`--overwrite` of it would leave the configuration of one with the weights of the other."""
    refused: list[str] = []

    class Interfere(Progress):
        def step(self, session, record, lr) -> None:
            if (session.epoch, session.step) == (1, 1):
                with pytest.raises(UserError, match="in use") as caught:
                    interfere()
                refused.append(str(caught.value))

    def interfere() -> None:
        if act == "overwrite":
            train(tmp_path / "run", seed=7, overwrite=True)
        else:
            bv.resume(tmp_path / "run", dataset=digits())

    train(tmp_path / "run", progress=Interfere())
    train(tmp_path / "whole")
    assert len(refused) == 1
    same(tmp_path / "whole", tmp_path / "run")
    assert not (tmp_path / "run" / lock.NAME).exists()


def test_a_run_whose_folder_was_taken_over_stops_and_writes_nothing_more(tmp_path):
    class Take(Progress):
        def step(self, session, record, lr) -> None:
            if (session.epoch, session.step) == (1, 1):
                (tmp_path / "run" / lock.NAME).write_text(unseen())

    with pytest.raises(UserError, match="process 1 on elsewhere has taken"):
        train(tmp_path / "run", progress=Take())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "run" / lock.NAME).read_text())["host"] == "elsewhere"
