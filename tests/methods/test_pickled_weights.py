"""Pickles are read as data: equal to torch's own reading where that is safe, and inert where a file tries to run code."""

import io
import os
import pickle
import random
import zipfile
from argparse import Namespace
from collections import OrderedDict
from functools import partial

import pytest
import torch
from intrinsic_lab.methods.pickled_weights import Made, read_pickled


class ModelCheckpoint:
    """Stands for a training framework's class."""


class Runs:
    """A pickle of it calls a function when it is opened."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def weights():
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    return {
        "linear.weight": base,
        "linear.rows": base[2:4, ::2],
        "turned": base.T,
        "half": torch.randn(3, 1).half(),
        "bfloat": torch.randn(5).bfloat16(),
        "scalar": torch.tensor(2.5),
        "count": torch.arange(4),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "nothing": torch.empty(0, 3),
    }


def save(path, content, form):
    if form == "pickle.dump":
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


FORMS = ["zip", "before zip", "pickle.dump"]


@pytest.mark.parametrize("form", FORMS)
def test_weights_equal_what_torch_reads(form, tmp_path):
    path = save(tmp_path / "a.pt", {"state_dict": OrderedDict(weights())}, form)
    pickled = read_pickled(path)
    found = pickled.tensors(pickled.content["state_dict"])
    assert found.keys() == weights().keys()
    for name, tensor in weights().items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        assert not found[name].requires_grad
    # Python's own pickler writes the numbers of each name anew.
    assert form == "pickle.dump" or found["turned"].data_ptr() == found["linear.weight"].data_ptr(), "names cost more than the file holds"


@pytest.mark.parametrize("form", FORMS)
def test_a_training_states_classes_and_options_stay_names(form, tmp_path):
    content = {
        "epoch": 3,
        "rate": 1e-4,
        "callbacks": {ModelCheckpoint: {"best": torch.tensor(1.0)}, (1, 2): None},
        "args": Namespace(size=256, path="x"),
        "seen": {1, 2},
        "state_dict": weights(),
    }
    pickled = read_pickled(save(tmp_path / "a.ckpt", content, form))
    assert pickled.content["epoch"] == 3 and pickled.content["rate"] == 1e-4
    checkpoint = next(iter(pickled.content["callbacks"]))
    assert isinstance(checkpoint, Made) and checkpoint.name.endswith("ModelCheckpoint") and checkpoint.args is None
    assert pickled.content["args"].name == "argparse.Namespace" and pickled.content["args"].state == {"size": 256, "path": "x"}
    assert torch.equal(pickled.tensors(pickled.content["state_dict"])["turned"], weights()["turned"])
    with pytest.raises(ValueError, match=r"argparse\.Namespace stands where named weights were expected"):
        pickled.tensors(pickled.content["args"])
    with pytest.raises(ValueError, match=r"int stands where a tensor was expected"):
        pickled.tensor(pickled.content["epoch"])


ATTACKS = {
    "os.system": (os.system, "echo code ran > {witness}"),
    "eval": (eval, "open({witness!r}, 'w')"),
    "exec": (exec, "open({witness!r}, 'w')"),
    "open": (open, "{witness}", "w"),
    "import": (__import__, "antigravity"),
    "torch.load": (torch.load, "{witness}"),
    "torch.hub": (torch.hub.load, "a/b", "c"),
    "getattr": (getattr, os, "system"),
    "partial": (partial, os.system, "echo > {witness}"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_file_that_tries_to_run_code_runs_none(attack, form, tmp_path, monkeypatch):
    witness = tmp_path / "witness"
    function, *args = ATTACKS[attack]
    if attack == "getattr":
        args = [Runs(__import__, "os"), "system"]
    args = [argument.format(witness=str(witness)) if isinstance(argument, str) else argument for argument in args]
    path = save(tmp_path / "a.pkl", {"state_dict": weights(), "trap": Runs(function, *args), "inside": [Runs(function, *args)]}, form)

    def never(*_, **__):
        raise AssertionError("a name of the file was looked up")

    # The interpreter's own way to a class or function is not taken at all.
    monkeypatch.setattr(pickle, "_Unpickler", never)
    monkeypatch.setattr(pickle, "Unpickler", never)
    monkeypatch.setattr(pickle, "loads", never)
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(torch, "load", never)
    pickled = read_pickled(path)
    assert isinstance(pickled.content["trap"], Made) and torch.equal(
        pickled.tensors(pickled.content["state_dict"])["count"], torch.arange(4)
    )
    assert not witness.exists()
    with pytest.raises(ValueError, match="stands where a tensor was expected"):
        pickled.tensor(pickled.content["trap"])


def opcodes(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def test_opcodes_that_reach_into_what_is_there_do_not(tmp_path):
    """GLOBAL, then BUILD with a dictionary for `setattr`, on torch's own functions and on classes; INST; extension registry."""
    before = torch._utils._rebuild_tensor_v2.__defaults__, dict(vars(OrderedDict))
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"collections\nOrderedDict", b"builtins\neval", b"torch.storage\n_load_from_bytes"):
        path = tmp_path / "a.pkl"
        path.write_bytes(opcodes(b"c" + name + b"\n", b"N}X\x0c\x00\x00\x00__defaults__Ns\x86b"))
        made = read_pickled(path).content
        assert isinstance(made, Made) and made.args is None and made.state == (None, {"__defaults__": None})
    assert before == (torch._utils._rebuild_tensor_v2.__defaults__, dict(vars(OrderedDict)))
    path.write_bytes(opcodes(b"(X\x02\x00\x00\x00idios\nsystem\n"))
    assert read_pickled(path).content.name == "os.system"
    for refused in (b"\x82\x01", b"Pid\n"):
        path.write_bytes(opcodes(refused))
        with pytest.raises(ValueError, match=r"a\.pkl is no whole pickle .*never need"):
            read_pickled(path)


def test_what_is_not_whole_is_refused_in_words(tmp_path):
    whole = pickle.dumps({"a": torch.arange(100.0)}, protocol=4)
    path = tmp_path / "a.pt"
    for broken in (b"", b"text", whole[:100], whole[:-40], b"\x80\x02(.", b"\x80\x02N0.", b"\x80\x02R.", b"\x80\x04\x8e" + b"\xff" * 8):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.pt is no whole pickle"):
            read_pickled(path)
    with pytest.raises(ValueError, match=r"gone\.pt cannot be read"):
        read_pickled(tmp_path / "gone.pt")


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(10.0)}, buffer)
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    with pytest.raises(ValueError, match="compressed"):
        read_pickled(path)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info)[: 8 if "/data/" in info.filename else None])
    pickled = read_pickled(path)
    with pytest.raises(ValueError, match="8 bytes were found for 10 numbers"):
        pickled.tensor(pickled.content["a"])
    tensor = read_pickled(save(path, {"a": torch.arange(10.0)}, "zip"))
    stored, *_ = tensor.content["a"].args
    for place in ((8, (5,), (1,)), (0, (20,), (0,)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (1,))):
        with pytest.raises(ValueError):
            tensor.tensor(Made("torch._utils._rebuild_tensor_v2", (stored, *place)))


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_end_in_words(form, tmp_path):
    path = save(tmp_path / "a.pt", {"state_dict": {"a": torch.arange(6.0), "b": torch.nn.Parameter(torch.ones(2, 3))}}, form)
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in draw.sample(range(len(whole)), draw.choice((1, 3, 20))):
            damaged[place] = draw.randrange(256)
        path.write_bytes(damaged[: draw.choice((len(whole), len(whole), draw.randrange(len(whole))))])
        try:
            pickled = read_pickled(path)
            pickled.tensors(pickled.content["state_dict"] if isinstance(pickled.content, dict) else pickled.content)
        except ValueError:
            refused += 1
        except KeyError as error:
            assert error.args == ("state_dict",), "the test's own key"
    assert refused > 100


def test_a_key_that_takes_for_ever_to_hash_costs_nothing(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(opcodes(b"}", b")", b"2\x86" * 200, b"Ns"))
    assert len(read_pickled(path).content) == 1


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickled_modules_weights_are_its_state_dict(protocol, tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2, bias=False)))
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"G_ema": module}, protocol=protocol))
    pickled = read_pickled(path)
    found, wanted = pickled.module_tensors(pickled.content["G_ema"]), module.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    with pytest.raises(ValueError, match="PyTorch module was expected"):
        pickled.module_tensors({"state": {}})
    twice = Made("a", (), {"_parameters": {}, "_modules": {name: Made("b", (), {"_parameters": {}}) for name in "xy"}})
    assert pickled.module_tensors(twice) == {}
    twice.state["_modules"]["y"] = twice.state["_modules"]["x"]
    with pytest.raises(ValueError, match="PyTorch module was expected"):
        pickled.module_tensors(twice)
    circle = Made("a", (), {"_parameters": {}})
    circle.state["_modules"] = {"b": circle}
    with pytest.raises(ValueError, match="PyTorch module was expected"):
        pickled.module_tensors(circle)
