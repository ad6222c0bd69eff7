"""Files as people and downloads leave them: opened only where they are regular files, text in whatever an editor writes.

A named pipe would be waited for and a device never ends, so neither is ever opened for reading. Messages name a file by its last parts.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

# More than any caption, config or index of weights holds.
MOST_BYTES = 1 << 26


def describe(path: Path) -> str:
    """The last parts of a path: enough to find the file, without telling a remote user how the machine is laid out."""
    return "/".join(path.parts[-3:])


def open_regular(path: Path) -> BinaryIO:
    """A file to read from. Raises OSError for one that is not there, or is no regular file."""
    # Without O_NONBLOCK, opening a pipe waits for somebody to write.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{describe(path)} is no regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path) -> str:
    """A text in UTF-8, with or without byte order mark, in UTF-16 with one, else in Windows' cp1252.

    Raises ValueError, naming the file, where it cannot be read or is none of these.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{describe(path)} cannot be read ({error.strerror or error}): check that it is a readable file.") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"{describe(path)} is longer than {MOST_BYTES >> 20} MB, which no text here is: replace it.")
    encodings = ("utf-16",) if content.startswith((b"\xff\xfe", b"\xfe\xff")) else ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise ValueError(f"{describe(path)} is no text in UTF-8, UTF-16 or cp1252: save it as UTF-8.")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError, naming the file, where it cannot be read or is no JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{describe(path)} is nested deeper than any such file: replace it.") from None
    except ValueError as error:
        raise ValueError(f"{describe(path)} is not readable JSON ({error}): copy the file again.") from None


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file below a folder, or a folder on the way to it, has a name that starts with a dot, such as macOS' `._photo.jpg`."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def visible(paths: Iterable[Path], folder: Path) -> Iterator[Path]:
    """Those of the paths below a folder that are regular files and not hidden."""
    return (path for path in paths if not is_hidden(path, folder) and os.path.isfile(path))
