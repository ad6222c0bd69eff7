"""Packages that only some of the pack needs: here, new enough, or said in words what to install."""

import importlib
import importlib.metadata
import re
from types import ModuleType

# The oldest that works, found by trying; pyproject.toml's extras say the same.
LEAST = {
    "accelerate": "0.34",
    "diffusers": "0.36",
    "h5py": "3.10",
    "openexr": "3.3",
    "peft": "0.17.1",
    "pgvector": "0.3",
    "prodigyopt": "1.0",
    "psycopg": "3.2",
    "qdrant-client": "1.9",
    "scipy": "1.11",
    "transformers": "4.50.3",
}


def extra(name: str, what: str) -> ModuleType:
    """The module `name`, imported. what: needs it, for the message. Raises ValueError where it is missing, broken or too old."""
    package = name.partition(".")[0].lower().replace("_", "-")
    wanted = f'`pip install "{package}>={LEAST[package]}"` with the Python that runs this'
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{what} needs {package}, which is not installed ({error}): run {wanted}.") from None
    version = importlib.metadata.version(package)
    if _numbers(version) < _numbers(LEAST[package]):
        raise ValueError(f"{what} needs {package} {LEAST[package]} or newer, {version} is installed: run {wanted}.")
    return module


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
