"""Files that are written whole or not at all: texts, JSON, tensors, copies."""

import json
import shutil
from pathlib import Path
from typing import Any

from ..methods.atomic import write_atomically
from ..methods.atomic import write_tensors as write_tensors


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, atomically."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """A readable JSON file, atomically; what JSON has no type for, such as a path, is written as text."""
    write_text(path, json.dumps(content, indent=1, default=str))


def copy_file(source: Path, target: Path) -> None:
    """Copy what a file holds, atomically."""
    write_atomically(target, lambda partial: shutil.copyfile(source, partial))
