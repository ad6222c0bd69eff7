"""What the index tells: entries, problems, progress."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a long work is. stage: "scan", "read", "compare", "layout" or "send"; done of total; path: the file at hand, if any."""

    stage: str
    done: int
    total: int
    path: str = ""


Report = Callable[[Progress], None]
"""Called from the calling thread. Whatever it raises stops the work and is passed on; what is finished stays: this is how to cancel."""


@dataclass(frozen=True)
class Entry:
    """One readable LoRA; see `modules.Facts`. name: path below root. embedded: its sketches are in the index."""

    id: int
    path: str
    root: str
    name: str
    size: int
    mtime_ns: int
    family: str
    format: str
    rank_min: int
    rank_max: int
    dtype: str
    modules: int
    approximate: bool
    tags: tuple[str, ...]
    embedded: bool
    variant: str = ""
    loading: str = ""

    @property
    def folder(self) -> str:
        """Folder below root, "" for root itself."""
        return os.path.dirname(self.name)

    def as_json(self) -> dict[str, Any]:
        """What the command line and the nodes show of it."""
        rank = str(self.rank_min) if self.rank_min == self.rank_max else f"{self.rank_min}-{self.rank_max}"
        about = {"name": self.name, "path": self.path, "family": self.family, "format": self.format, "rank": rank, "dtype": self.dtype}
        return about | {name: value for name in ("variant", "approximate", "loading") if (value := getattr(self, name))}


@dataclass(frozen=True)
class Problem:
    """A file or folder that is not in the index, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """What an update did, in files. refreshed: unchanged files of which an older version had understood less, their headers read anew."""

    files: int
    added: int
    changed: int
    moved: int
    removed: int
    unchanged: int
    embedded: int
    problems: tuple[Problem, ...]
    seconds: float
    refreshed: int = 0

    def text(self) -> str:
        """For a person, one line and one per problem."""
        counts = f"{self.added} new, {self.changed} changed, {self.moved} moved, {self.removed} removed, {self.unchanged} unchanged"
        anew = f" ({self.refreshed} headers read anew)" if self.refreshed else ""
        lines = [f"{self.files} LoRA files in {self.seconds:.1f} s: {counts}{anew}; {self.embedded} read; {len(self.problems)} problems."]
        return "\n".join(lines + [f"{problem.path}: {problem.reason}" for problem in self.problems])
