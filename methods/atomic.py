"""Files that are written whole or not at all."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a temporary file beside `path`, flush it to disk, then rename: a kill leaves the old file or the new one.

    Raises OSError, which names the file, where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        # safetensors makes files that only their owner may read.
        partial.chmod(mode)
        with open(partial, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors tell a full disk in their own words.
        raise OSError(f"{path} could not be written ({error}): free some disk space or choose another folder.") from error
    finally:
        # A full disk must not be filled further by what could not be finished.
        partial.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, atomically."""
    write_atomically(path, lambda partial: save_file(dict(tensors), partial, dict(metadata) if metadata else None))
