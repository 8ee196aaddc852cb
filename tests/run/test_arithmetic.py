"""Number formats: bfloat16 where the hardware has it, refused where it would only be slower."""

import dataclasses
import json

import pytest
import torch

import bivallate as bv
from bivallate.errors import UserError
from bivallate.parts import decode, encode
from bivallate.reproduce.definition import without_machine
from bivallate.run import arithmetic
from bivallate.run.config import Config
from bivallate.run.from_config import create_model
from bivallate.run.progress import Progress
from bivallate.run.resuming import computable
from bivallate.run.session import Session

CPU = torch.device("cpu")


def processor(monkeypatch, *, bf16: bool = False, amx: bool = False) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)


@pytest.mark.parametrize(("bf16", "amx"), [(True, False), (False, True)])
def test_a_processor_that_has_bfloat16_may_use_it(monkeypatch, bf16, amx):
    processor(monkeypatch, bf16=bf16, amx=amx)
    assert arithmetic.autocast_of("bf16", CPU) is torch.bfloat16
    assert arithmetic.autocast_of("float32", CPU) is None


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_it_is_refused_where_it_would_be_slower(monkeypatch, device):
    processor(monkeypatch)
    assert arithmetic.autocast_of("float32", torch.device(device)) is None
    with pytest.raises(UserError, match="slower than float32: use --precision float32"):
        arithmetic.autocast_of("bf16", torch.device(device))


def test_cells_are_computed_in_float32_where_there_is_no_bfloat16(monkeypatch):
    wanted = Config(bv.methods.at(bv.Linf(0.1)), device="cpu", precision="bf16")
    processor(monkeypatch, bf16=True)
    assert computable(wanted) == wanted
    processor(monkeypatch)
    assert computable(wanted) == dataclasses.replace(wanted, precision="float32")


def test_the_network_of_a_run_computes_in_it(monkeypatch):
    processor(monkeypatch, bf16=True)
    config = Config(bv.methods.at(bv.Linf(0.1)), device="cpu", precision="bf16", channels_last=True)
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


def plain(**settings) -> Config:
    return Config(bv.methods.plain(bv.Linf(0.1)), device="cpu", **settings)


OLDER = [
    ({"amp": True}, "bf16"),
    ({"amp": False}, "float32"),
    ({}, "float32"),
    ({"precision": "tf32"}, "tf32"),
]


@pytest.mark.parametrize(("written", "meant"), OLDER)
def test_an_older_configuration_means_what_it_meant(tmp_path, written, meant):
    entry = {k: v for k, v in encode(plain()).items() if k not in ("precision", "deterministic")} | written
    read = decode(json.loads(json.dumps(entry)))
    assert (read.precision, read.deterministic) == (meant, False)
    assert without_machine(read) == without_machine(plain()), "records of it count as the same definition"
    for key, value in written.items():
        assert plain().set(key, str(value)).precision == meant
    file = tmp_path / "config.toml"
    plain().write(file)
    lines = "".join(f"{k} = {json.dumps(v)}\n" for k, v in written.items())
    kept = [x for x in file.read_text().splitlines(True) if not x.startswith(("precision", "deterministic"))]
    file.write_text(kept[0] + lines + "".join(kept[1:]))
    assert Config.read(file) == read


@pytest.mark.parametrize("value", ["maybe", 2])
def test_an_older_name_with_a_wrong_value_is_refused(value):
    with pytest.raises(UserError, match="amp, now precision, was true or false, got"):
        plain().set("amp", value)


@pytest.mark.parametrize("wrong", [{"precision": "fp8"}, {"deterministic": "yes"}])
def test_other_values_are_refused(wrong):
    with pytest.raises(UserError):
        plain(**wrong)


class Noted(Progress):
    """What torch allows while it trains, and while it measures."""

    def __init__(self) -> None:
        self.seen: set[tuple] = set()

    def step(self, *_):
        self.seen.add((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))

    epoch = step


def test_training_and_validation_multiply_in_float32_unless_asked(monkeypatch):
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True  # as torch has it
    try:
        for precision, allowed in (("float32", (False, "highest")), ("tf32", (True, "high"))):
            monkeypatch.setattr(arithmetic, "has_tf32", lambda device: True)
            noted = Noted()
            bv.train(
                "linear",
                "digits",
                plain().method,
                epochs=1,
                progress=noted,
                device="cpu",
                precision=precision,
            )
            assert noted.seen == {allowed}
            assert torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_tf32_is_refused_where_there_is_none():
    with pytest.raises(UserError, match="precision=tf32 needs a CUDA device"):
        arithmetic.autocast_of("tf32", CPU)
    assert computable(plain(precision="tf32")).precision == "float32"


REFUSALS = [
    (
        "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation",
        "no deterministic form on",
    ),
    ("... set an environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8", "before Python starts"),
]


@pytest.mark.parametrize(("said", "told"), REFUSALS)
def test_deterministic_operations_alone_on_a_card(monkeypatch, said, told):
    card = torch.device("cuda")
    found = torch.are_deterministic_algorithms_enabled()
    with arithmetic.computing("float32", True, card):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    with arithmetic.computing("float32", True, CPU):
        assert torch.are_deterministic_algorithms_enabled() == found, "a processor needs nothing"
    assert torch.are_deterministic_algorithms_enabled() == found
    with pytest.raises(UserError, match=told), arithmetic.computing("float32", True, card):
        raise RuntimeError(said)
    for deterministic in (False, True):
        with pytest.raises(RuntimeError, match="other"), arithmetic.computing("float32", deterministic, card):
            raise RuntimeError("other" if deterministic else f"other {said}")
