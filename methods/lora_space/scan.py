"""What lies in the folders, and what a single file holds. Nothing here knows the database."""

import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..lora.cache import ReadCache
from ..lora.header import BadFile
from ..lora.modules import Facts, describe
from ..lora.names import SUFFIXES
from ..lora.reading import batches_of
from ..lora.weight_file import Reader
from .sketch import Sketches, sketch_batches

PICKLES = (".pt", ".pt2", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Found:
    """A weight file in a folder: name is its path below root."""

    path: str
    root: str
    name: str
    size: int
    mtime_ns: int


@dataclass
class Listing:
    """What `list_files` found. problems: (path, reason). closed: folders that could not be listed, so nothing is known of them."""

    files: list[Found] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)


def list_files(roots: Iterable[str | Path]) -> Listing:
    """Every weight file below the roots: one stat each, links followed, every folder entered once, what is hidden passed over.

    Names of one file are one LoRA: a file itself counts, not a link to it; of hard links the first by name.
    """
    listing = Listing()
    entered: set[tuple[int, int]] = set()
    listed: dict[tuple, tuple[bool, str]] = {}
    for root in map(os.path.abspath, roots):
        pending = [root]
        while pending:
            folder = pending.pop()
            try:
                state = os.stat(folder)
                # Links to folders may lead in circles.
                if (state.st_dev, state.st_ino) in entered:
                    continue
                entered.add((state.st_dev, state.st_ino))
                with os.scandir(folder) as entries:
                    for entry in entries:
                        hidden = entry.name.startswith(".")
                        if not hidden and not _add_file(entry, root, listing, listed) and _is_folder(entry):
                            pending.append(entry.path)
            except OSError as error:
                listing.problems.append((folder, f"the folder cannot be listed ({error.strerror}): check that it is there and readable."))
                listing.closed.append(folder)
    kept = {path for _, path in listed.values()}
    listing.files = list({file.path: file for file in listing.files if file.path in kept}.values())
    return listing


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _add_file(entry: os.DirEntry, root: str, listing: Listing, listed: dict[tuple, tuple[bool, str]]) -> bool:
    """True if the entry has the name of a weight file. listed: by device and inode, (whether it is a link, the path that counts)."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix not in SUFFIXES and suffix not in PICKLES:
        return False
    try:
        if entry.is_dir():
            return False
        if suffix in PICKLES:
            listing.problems.append((entry.path, "it is a pickle, which could run code, so it was not opened: ask for safetensors."))
            return True
        state = entry.stat()
        entry.path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(entry.path).decode("utf-8", "backslashreplace")
        listing.problems.append((shown, "its name is not valid Unicode: rename it."))
        return True
    except OSError as error:
        listing.problems.append((entry.path, f"it cannot be found ({error.strerror}): the link leads nowhere, delete it."))
        return True
    if not stat.S_ISREG(state.st_mode):
        listing.problems.append((entry.path, "it is no regular file, so it was not opened: delete it."))
        return True
    # Windows gives no inode here.
    identity = (state.st_dev, state.st_ino) if state.st_ino else (entry.path,)
    listed[identity] = min(listed.get(identity, (True, entry.path)), (entry.is_symlink(), entry.path))
    listing.files.append(Found(entry.path, root, os.path.relpath(entry.path, root), state.st_size, state.st_mtime_ns))
    return True


@dataclass(frozen=True)
class Inspection:
    """What one file holds. sketches: None if only the header was asked for. reason: "" or why the file cannot be used.

    unreadable: it may be otherwise next time (permission, network, memory), so it is worth asking again.
    """

    fingerprint: bytes | None = None
    facts: Facts | None = None
    sketches: Sketches | None = None
    reason: str = ""
    unreadable: bool = False


def inspect(path: str, embed: bool, known: Collection[bytes | None] = (), cache: ReadCache | None = None) -> Inspection:
    """Header, and with `embed` the sketches, of one file. A file whose fingerprint is among `known` is not read further."""
    fingerprint = None
    try:
        reader = Reader(path, cache)
    except BadFile as error:
        return Inspection(reason=str(error), unreadable=not os.access(path, os.R_OK))
    with reader:
        fingerprint = reader.header.fingerprint
        if fingerprint in known:
            return Inspection(fingerprint)
        try:
            facts = describe(reader.header)
            return Inspection(fingerprint, facts, sketch_batches(batches_of(reader), cache) if embed else None)
        except BadFile as error:
            return Inspection(fingerprint, reason=str(error))
        # One odd file among thousands must not end the work on the others; it is listed with what happened, and tried again.
        except Exception as error:
            return Inspection(fingerprint, reason=f"it could not be understood ({type(error).__name__}: {error}).", unreadable=True)
