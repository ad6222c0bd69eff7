"""Makes NAME.safetensors beside a `.bin`, `.pt`, `.pth` or `.ckpt`: `python -m intrinsic_lab.tools.to_safetensors FILE ...`

Nothing in a pickle is run: it is read as data (`methods/pickled_weights.py`). Each file is read in a process of its own all the same, which
may take ROOM bytes of memory and four times the file, write files no larger than the one it reads and HEADER bytes (both where the system
has such limits: not on Windows), and has no network (on Linux with user namespaces). What could not be taken away is said.
"""

import argparse
import ctypes
import os
import subprocess
import sys
from pathlib import Path

from ..methods.pickled_weights import read_pickled
from ..training.atomic import write_tensors
from .console import WorkbenchError, exit_code, say

ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
# torch alone maps 3 to 6 GB, most of which it never touches.
ROOM, HEADER = 10 << 30, 64 << 20
# Of Linux' unshare: a user namespace, in which a process may have a network namespace of its own, which holds nothing.
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000


def confine(size: int) -> list[str]:
    """Takes from this process what reading a file of `size` bytes does not need; returns, in words, what could not be taken."""
    left = []
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (ROOM + 4 * size,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER + size,) * 2)
    except (ImportError, OSError, ValueError):
        left.append("memory without a limit")
    try:
        alone = ctypes.CDLL(None, use_errno=True).unshare(_NEW_USER | _NEW_NETWORK) == 0
    except (AttributeError, OSError, TypeError):
        alone = False
    return left if alone else [*left, "the network"]


def convert(path: Path) -> Path:
    """Writes the named tensors of a pickle and returns the file. Raises ValueError, naming the file, for anything that holds none."""
    pickled = read_pickled(path)
    try:
        tensors = pickled.named_tensors()
    except ValueError as error:
        raise ValueError(f"{path.name} holds more than named weights ({error})") from None
    target = path.with_suffix(".safetensors")
    # Tensors that share their numbers, or are a view of others, become whole ones.
    write_tensors(target, {name: tensor.clone().contiguous() for name, tensor in tensors.items()})
    return target


def _in_its_own_process(path: Path) -> int:
    if left := confine(path.stat().st_size):
        say(f"  this system lets the process keep {' and '.join(left)}")
    try:
        written = convert(path)
    except (ValueError, OSError, MemoryError) as error:
        say(f"{error or f'{path.name} asks for more memory than {path.stat().st_size} bytes explain'}")
        return 1
    say(f"{written.name}: {written.stat().st_size} bytes")
    return 0


def run(paths: list[Path]) -> int:
    """Converts every file; 1 if one could not be. Raises WorkbenchError for what is no such file, or is converted already."""
    for path in paths:
        if not path.is_file() or path.suffix not in ENDINGS:
            raise WorkbenchError(f"{path} is no file that ends in {', '.join(ENDINGS)}.", "give the path of a downloaded weight file.")
        if path.with_suffix(".safetensors").exists():
            raise WorkbenchError(f"{path.with_suffix('.safetensors')} is there already.", "move it away, or use it.")
    command = [sys.executable, "-m", "intrinsic_lab.tools.to_safetensors", "--in-this-process"]
    # One thread: each maps memory of its own.
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return max(subprocess.run([*command, str(path)], env=quiet, check=False).returncode != 0 for path in paths)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="weights that only a pickle holds")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    raise SystemExit(exit_code(lambda: _in_its_own_process(chosen.files[0]) if chosen.in_this_process else run(chosen.files)))
