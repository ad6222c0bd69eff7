"""Packages that only some of the pack needs."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import tomllib
from intrinsic_lab.methods import extras

SETTINGS = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What belongs to ComfyUI and other packs: installing the nodes may not bring or move it.
OTHERS = {"diffusers", "peft", "accelerate", "transformers", "tokenizers", "huggingface-hub", "opencv-python", "scipy"}


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


def test_installing_the_nodes_brings_nothing_that_others_own():
    brought = set()
    for requirement in SETTINGS["dependencies"]:
        needed_by(requirement, brought)
    assert {"torch", "numpy", "comfyui-frontend-package"} <= brought and not brought & OTHERS


def test_the_oldest_versions_are_those_of_the_extras():
    named = [requirement for extra in SETTINGS["optional-dependencies"].values() for requirement in extra]
    asked = dict(re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:;.*)?", requirement).groups() for requirement in named)
    assert {name: asked.get(name) for name in extras.LEAST} == extras.LEAST


def test_a_package_that_is_missing_or_too_old_is_told_with_its_remedy(monkeypatch):
    assert extras.extra("scipy.io", "This").__name__ == "scipy.io"
    monkeypatch.setitem(extras.LEAST, "scipy", "99.1")
    with pytest.raises(ValueError, match=r"This needs scipy 99\.1 or newer, .* is installed: run `pip install \"scipy>=99\.1\"`"):
        extras.extra("scipy.io", "This")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ValueError, match="This needs h5py, which is not installed"):
        extras.extra("h5py", "This")
