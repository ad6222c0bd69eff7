"""Packages that only some of the pack needs."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from intrinsic_lab.methods import extras

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What belongs to ComfyUI and other packs: installing the nodes may not bring or move it.
OTHERS = {"diffusers", "peft", "accelerate", "transformers", "tokenizers", "huggingface-hub", "opencv-python", "scipy"}

OLDER_PINS = {
    **{"torch": "2.4.1", "numpy": "1.26.4", "pillow": "10.4.0", "einops": "0.8.0", "safetensors": "0.4.5", "transformers": "4.57.1"},
    **{"tokenizers": "0.22.1", "huggingface-hub": "0.36.0", "diffusers": "0.33.1", "comfyui-frontend-package": "1.39.19"},
}


def needed_by(requirement: str, seen: set[str]) -> set[str]:
    """Every package that installing one brings, by its own metadata."""
    name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
    if name in seen:
        return seen
    seen.add(name)
    try:
        parts = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return seen
    for part in parts:
        if "extra ==" not in part:
            needed_by(part, seen)
    return seen


def test_installing_the_nodes_or_an_extra_beside_training_brings_nothing_that_others_own():
    for extra in (None, "batch", "ray", "qdrant", "postgres"):
        brought = set()
        for requirement in SETTINGS["optional-dependencies"][extra] if extra else SETTINGS["dependencies"]:
            needed_by(requirement, brought)
        assert brought and not brought & OTHERS, extra
        assert extra or {"torch", "numpy", "comfyui-frontend-package"} <= brought


def test_pip_moves_nothing_in_an_environment_of_older_pins(tmp_path):
    """The packages of a ComfyUI of last year, without what is in them; pip has no index: whatever it wanted to bring would be an error."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    packages = next(tmp_path.glob("[Ll]ib/**/site-packages"))
    for name, version in OLDER_PINS.items():
        info = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    python = next(tmp_path.glob("[bS]*/python*"))

    def pip(*wanted: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--dry-run", "--no-index", *wanted]
        return subprocess.run(command, capture_output=True, text=True)

    done = pip("-r", str(ROOT / "requirements.txt"))
    assert done.returncode == 0 and "Would install" not in done.stdout, done.stderr
    assert pip("diffusers>=0.38").returncode != 0, "it does ask for newer ones"


def test_the_oldest_versions_are_those_of_the_extras():
    named = [requirement for extra in SETTINGS["optional-dependencies"].values() for requirement in extra]
    asked = dict(re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement).groups() for requirement in named)
    assert {name: asked.get(name) for name in extras.LEAST} == extras.LEAST


def test_a_package_that_is_missing_or_too_old_is_told_with_its_remedy(monkeypatch):
    assert extras.extra("scipy.io", "This").__name__ == "scipy.io"
    monkeypatch.setitem(extras.LEAST, "scipy", "99.1")
    with pytest.raises(ValueError, match=r"This needs scipy 99\.1 or newer, .* is installed: run `pip install \"scipy>=99\.1\"`"):
        extras.extra("scipy.io", "This")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ValueError, match="This needs h5py, which is not installed"):
        extras.extra("h5py", "This")
