"""Number formats: bfloat16 where the hardware has it, refused where it would only be slower."""

import dataclasses

import pytest
import torch

import bivallate as bv
from bivallate.errors import UserError
from bivallate.reproduce.running import computable
from bivallate.run import arithmetic
from bivallate.run.config import Config
from bivallate.run.session import Session, create_model

CPU = torch.device("cpu")


def processor(monkeypatch, *, bf16: bool = False, amx: bool = False) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)


@pytest.mark.parametrize(("bf16", "amx"), [(True, False), (False, True)])
def test_a_processor_that_has_bfloat16_may_use_it(monkeypatch, bf16, amx):
    processor(monkeypatch, bf16=bf16, amx=amx)
    assert arithmetic.amp_dtype(True, CPU) is torch.bfloat16
    assert arithmetic.amp_dtype(False, CPU) is None


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_it_is_refused_where_it_would_be_slower(monkeypatch, device):
    processor(monkeypatch)
    assert arithmetic.amp_dtype(False, torch.device(device)) is None
    with pytest.raises(UserError, match="slower than float32: leave amp off"):
        arithmetic.amp_dtype(True, torch.device(device))


def test_cells_are_computed_in_float32_where_there_is_no_bfloat16(monkeypatch):
    wanted = Config(bv.methods.at(bv.Linf(0.1)), device="cpu", amp=True)
    processor(monkeypatch, bf16=True)
    assert computable(wanted) == wanted
    processor(monkeypatch)
    assert computable(wanted) == dataclasses.replace(wanted, amp=False)


def test_the_network_of_a_run_computes_in_it(monkeypatch):
    processor(monkeypatch, bf16=True)
    config = Config(bv.methods.at(bv.Linf(0.1)), device="cpu", amp=True, channels_last=True)
    config = config.set("model.name", "small-cnn").set("model.width", 0.125)
    dataset = bv.data.load("digits")
    session = Session(config, dataset, create_model(config.model, dataset, 0))
    assert session.model.autocast_dtype is torch.bfloat16
    convolutions = [m for m in session.model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions[0].out_channels == 8
    assert convolutions[1].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_without_the_option_says_so():
    config = Config(bv.methods.at(bv.Linf(0.1)), device="cpu").set("model.width", 0.5)
    dataset = bv.data.load("digits")
    with pytest.raises(UserError, match="unknown option of tiny-cnn 'width'"):
        create_model(config.model, dataset, 0)
