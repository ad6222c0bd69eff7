"""Starts a headless ComfyUI with this pack, and always stops it again."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .console import WorkbenchError

# Runs a script until whoever holds the other end of standard input is gone, however that ended.
_WITH_ITS_STARTER = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(1)), daemon=True).start()
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class RunningServer:
    """A ComfyUI that answers at `url`; `base` is its base directory, `log` what it printed."""

    url: str
    base: Path
    log: Path
    process: subprocess.Popen


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    """Whether nobody on this machine listens on a TCP port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def device_arguments() -> list[str]:
    """`--cpu` where there is no accelerator that torch could use."""
    has_accelerator = sys.platform == "darwin" or Path("/dev/kfd").exists() or shutil.which("nvidia-smi") is not None
    return [] if has_accelerator else ["--cpu"]


def server_command(python: Path, comfyui: Path, base: Path, port: int, arguments: Sequence[str]) -> list[str]:
    """The command line of a ComfyUI that keeps everything it writes inside `base`."""
    command = [str(python), str(comfyui / "main.py"), "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    for folder in ("input", "output", "user"):
        command += [f"--{folder}-directory", str(base / folder)]
    # ComfyUI makes its folder `temp` inside the one it is given.
    command += ["--temp-directory", str(base), "--database-url", "sqlite:///:memory:"]
    return [*command, "--disable-auto-launch", "--disable-api-nodes", *arguments]


@contextmanager
def comfyui_server(
    python: Path,
    comfyui: Path,
    base: Path,
    arguments: Sequence[str] = (),
    seconds_to_start: float = 600,
    port: int | None = None,
    outlived: bool = True,
) -> Iterator[RunningServer]:
    """Runs ComfyUI on a free port of 127.0.0.1 while the `with` block lasts.

    base: a folder made by environment.link_pack. outlived=False: the server also ends if this process is killed.
    Raises WorkbenchError with the server's last words if it does not start, and for a port that is taken: whoever listens there would
    answer in its place.
    """
    port = port or free_port()
    if not is_free(port):
        raise WorkbenchError(f"Port {port} is taken, perhaps by another ComfyUI.", "stop that one, or choose another port.")
    log = base / f"server-{port}.log"
    with open(log, "wb") as record:
        # A process group of its own: Ctrl-C reaches this process only, which then stops the server in order.
        command = server_command(python, comfyui, base, port, arguments)
        process = subprocess.Popen(
            command if outlived else [command[0], "-c", _WITH_ITS_STARTER, *command[1:]],
            cwd=base,
            stdin=subprocess.DEVNULL if outlived else subprocess.PIPE,
            stdout=record,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = RunningServer(f"http://127.0.0.1:{port}", base, log, process)
    with _stop_on_signals():
        try:
            _wait_until_ready(server, seconds_to_start)
            yield server
        finally:
            stop(process)


def stop(process: subprocess.Popen) -> None:
    """Asks a server's process group to end, and makes it after ten seconds."""
    for demand in (signal.SIGTERM, signal.SIGKILL if os.name != "nt" else signal.SIGTERM):
        if process.poll() is not None:
            return
        if os.name == "nt":
            process.terminate()
        else:
            os.killpg(process.pid, demand)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into SystemExit, so that `finally` blocks run; Ctrl-C does that by itself."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    try:
        before = {number: signal.signal(number, leave) for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))}
    except ValueError:
        # Signals belong to the main thread; in another one they are not ours to handle.
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_until_ready(server: RunningServer, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (code := server.process.poll()) is not None:
            raise WorkbenchError(f"ComfyUI ended with exit code {code} while starting. {_last_words(server)}", f"read {server.log}.")
        try:
            with urllib.request.urlopen(f"{server.url}/system_stats", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise WorkbenchError(f"ComfyUI did not answer within {seconds:.0f} s. {_last_words(server)}", f"read {server.log}.")


def _last_words(server: RunningServer) -> str:
    lines = server.log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "Its last words:\n    " + "\n    ".join(lines[-20:])
