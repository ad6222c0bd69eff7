"""Makes the development environment: .venv with pinned packages, ComfyUI's requirements, chromium."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .comfyui_source import NEWEST, ROOT, bring_release, find_comfyui, version_of
from .console import WorkbenchError, run_logged, say, step

VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
WORKSPACE = ROOT / ".comfyui"
LOG = WORKSPACE / "setup.log"
STAMP = VENV / "intrinsic-lab.json"
OLDEST_PYTHON = (3, 11)

PACKAGES = [
    *("torch", "torchvision", "diffusers", "peft", "accelerate", "einops", "prodigyopt", "rich", "h5py", "openexr"),
    *("pytest", "ruff", "mypy", "playwright", "scikit-image", "websocket-client", "qdrant-client", "mkdocs-material", "hypothesis"),
    *("psycopg[binary]", "pgvector", "pgserver; python_version < '3.13'", "ray; python_version < '3.14'"),
]
# What they take in .venv.
PACKAGES_GB = 8
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def venv_python() -> Path:
    """The interpreter of the environment."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_chromium() -> str | None:
    """The browser of the browser tests: CHROMIUM_PATH, or the first Chromium on the PATH; None if there is none."""
    if asked := os.environ.get("CHROMIUM_PATH"):
        return asked
    bundled = "/Applications/Chromium.app/Contents/MacOS/Chromium", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    return next((found for name in (*BROWSERS, *bundled) if (found := shutil.which(name))), None)


def set_up(browser: bool = True) -> Path:
    """Makes everything that is not there yet, and returns the ComfyUI folder to use.

    browser: also look for chromium and install it where that is possible without asking anybody.
    Raises WorkbenchError with the remedy if a step fails.
    """
    WORKSPACE.mkdir(exist_ok=True)
    with _one_at_a_time():
        if not venv_python().exists():
            with step(f"Making the Python environment in {VENV.name}") as notes:
                _make_venv()
                notes.append(f"Python {'.'.join(map(str, _version_of_python(venv_python())))}")
        comfyui = find_comfyui()
        if comfyui is None:
            with step(f"Bringing ComfyUI {NEWEST.version}") as notes:
                comfyui = bring_release(NEWEST, venv_python(), LOG)
                notes.append(f"ComfyUI {version_of(comfyui)} in {comfyui}")
        else:
            say(f"- ComfyUI {version_of(comfyui)} in {comfyui}")
        fingerprint = _fingerprint(comfyui)
        if STAMP.exists() and json.loads(STAMP.read_text(encoding="utf-8")).get("fingerprint") == fingerprint:
            say("- Python packages are as pinned")
        else:
            if (free := shutil.disk_usage(VENV).free / 1e9) < PACKAGES_GB and not STAMP.exists():
                say(f"- Only {free:.1f} GB are free here; the Python packages take about {PACKAGES_GB} GB: free some space if this stops.")
            with step(f"Installing the pinned Python packages (about {PACKAGES_GB} GB on first use)") as notes:
                _install_packages(comfyui)
                STAMP.write_text(json.dumps({"fingerprint": fingerprint}), encoding="utf-8")
                notes.append(f"details in {LOG.relative_to(ROOT)}")
        link_pack(WORKSPACE)
        _link_here(WORKSPACE / "packages" / "intrinsic_lab")
        if browser:
            _provide_chromium()
    return comfyui


def link_pack(base: Path) -> Path:
    """Makes `base` a ComfyUI base directory whose custom_nodes holds a link to this pack, and returns it.

    Its input folder gets the pictures that the example workflows show in Load Image.
    """
    for folder in ("custom_nodes", "models", "input", "output", "user", "temp"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    # ComfyUI's own input folder always holds a picture of this name; the examples' Load Image shows it.
    shutil.copy(ROOT / "assets" / "demo_scene.png", base / "input" / "example.png")
    for picture in (ROOT / "web" / "pictures").iterdir():
        # As web/example_picture.js names them.
        shutil.copy(picture, base / "input" / f"intrinsic_lab_{picture.name}")
    _link_here(base / "custom_nodes" / "intrinsic-lab")
    return base


def _link_here(link: Path) -> None:
    if link.is_symlink() and link.resolve() == ROOT:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError as error:
        raise WorkbenchError(
            f"The pack could not be linked into {link.parent}: {error}",
            "use a file system with symbolic links (on Windows: turn on developer mode).",
        ) from error


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keeps two set-ups of the same checkout from working on .venv at the same time."""
    if os.name == "nt":
        yield
        return
    import fcntl

    with open(WORKSPACE / "setup.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("- Waiting for another set-up of this checkout")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _version_of_python(python: str | Path) -> tuple[int, ...]:
    """The (major, minor) of an interpreter, () if it does not run."""
    try:
        done = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(int(part) for part in done.stdout.split()) if done.returncode == 0 else ()


def _make_venv() -> None:
    candidates = [sys.executable, *(found for minor in (13, 12, 11) if (found := shutil.which(f"python3.{minor}")))]
    python = next((python for python in candidates if _version_of_python(python) >= OLDEST_PYTHON), None)
    wanted = ".".join(map(str, OLDEST_PYTHON))
    if python is None:
        raise WorkbenchError(
            f"The development environment wants Python {wanted} or newer, this is {sys.version.split()[0]}.",
            f"install a newer Python, or run `make setup PYTHON=/path/to/python{wanted}`. (The pack itself runs on Python 3.10 or newer.)",
        )
    remedy = "install Python's venv module (Debian, Ubuntu: apt-get install python3-venv) and run `make setup` again."
    try:
        run_logged([python, "-m", "venv", VENV], LOG, remedy)
    except BaseException:
        # Half an environment would look like a whole one the next time.
        shutil.rmtree(VENV, ignore_errors=True)
        raise
    run_logged([venv_python(), "-m", "pip", "install", "--upgrade", "pip"], LOG, "check that pip reaches a package index.")


def _fingerprint(comfyui: Path) -> str:
    """Changes whenever the packages must be installed again."""
    parts = [str(ROOT), " ".join(PACKAGES)]
    parts += [
        file.read_text(encoding="utf-8") for file in (CONSTRAINTS, ROOT / "pyproject.toml", ROOT / "setup.py", comfyui / "requirements.txt")
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _install_packages(comfyui: Path) -> None:
    remedy = (
        f"read {LOG}, check the network and the free disk space ({PACKAGES_GB} GB), "
        "then run `make setup` again: it goes on where it stopped."
    )
    wanted = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = WORKSPACE / "comfyui-requirements.txt"
    # torch and torchvision come pinned; torchaudio's releases name an older torch, it is installed by itself below.
    requirements.write_text(
        "\n".join(line for line in wanted if not re.match(r"torch(vision|audio)?\b(?!sde)", line)) + "\n", encoding="utf-8"
    )
    pip: list[str | Path] = [
        venv_python(),
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        "--constraint",
        CONSTRAINTS,
    ]
    run_logged([*pip, *PACKAGES, "--requirement", requirements], LOG, remedy)
    # Of comfy-draftsman the tests use what reads graphs, not the server it is made for.
    run_logged([*pip, "--no-deps", "torchaudio", "comfy-draftsman"], LOG, remedy)
    run_logged([*pip, "--no-deps", "--editable", ROOT], LOG, remedy)


def _provide_chromium() -> None:
    if found := find_chromium():
        say(f"- Browser for the browser tests: {found}")
        return
    by_hand = (
        "install chromium (Debian, Ubuntu: apt-get install chromium) or set CHROMIUM_PATH; "
        "only the browser tests need it (INTRINSIC_LAB_SKIP_BROWSER=1 leaves them out)."
    )
    if os.name == "nt" or shutil.which("apt-get") is None or os.geteuid() != 0:
        say(f"- No chromium found: {by_hand}")
        return
    with step("Installing chromium") as notes:
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        try:
            run_logged(["apt-get", "update", "-qq"], LOG, by_hand, quiet)
            run_logged(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"], LOG, by_hand, quiet)
            notes.append(find_chromium() or by_hand)
        except WorkbenchError as error:
            # Everything but the browser tests works without it, and those say what is missing.
            notes.append(str(error))
