"""Pickled weights made safetensors, in a process that may do little."""

import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

CONFINED = """
import socket, numpy
from intrinsic_lab.tools.to_safetensors import ROOM, confine
listening = socket.create_server(("127.0.0.1", 0))
left = confine(1 << 20)
try:
    numpy.ones(ROOM + (8 << 20), numpy.uint8)
    print("memory")
except MemoryError:
    pass
try:
    socket.create_connection(listening.getsockname(), timeout=5)
    print("the network")
except OSError:
    pass
print("left:", *left)
"""


def convert(*paths) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "intrinsic_lab.tools.to_safetensors", *map(str, paths)], capture_output=True, text=True)


class RunsCode:
    def __reduce__(self):
        return print, ("code ran",)


def test_pickles_of_every_age_become_safetensors_and_nothing_in_them_runs(tmp_path):
    square = torch.randn(3, 3)
    wanted = {
        "a": torch.randn(2, 5).half(),
        "view": square[:, :2],
        "shared": square,
        "bf16": torch.randn(4).bfloat16(),
        "n": torch.tensor(3),
    }
    torch.save({"state_dict": wanted, "epoch": 7}, tmp_path / "nested.ckpt")
    torch.save(wanted, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    done = convert(tmp_path / "nested.ckpt", tmp_path / "legacy.bin")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("nested", "legacy"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found.keys() == wanted.keys()
        assert all(found[key].dtype == value.dtype and torch.equal(found[key], value) for key, value in wanted.items())
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": RunsCode()}))
    evil, again = convert(tmp_path / "evil.pt"), convert(tmp_path / "nested.ckpt")
    assert evil.returncode == 1 and "evil.pt holds more than named weights" in evil.stdout and "code ran" not in evil.stdout
    assert again.returncode == 2 and "is there already" in again.stdout + again.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no namespaces")
def test_the_process_has_no_memory_and_no_network_but_what_it_says(tmp_path):
    done = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True, check=True)
    *had, left = done.stdout.splitlines()
    assert set(had) <= set(left.removeprefix("left: ").split(" and ")), done.stdout
    assert "memory" not in had
