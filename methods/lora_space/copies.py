"""What a copy of a space in a server still lacks; alike for every kind of server."""

from collections.abc import Mapping
from dataclasses import dataclass

from .index import LoraIndex
from .space import Space


def stamps_of(index: LoraIndex, family: str) -> dict[int, str]:
    """id -> what a LoRA's file is: its vectors are sent again where this is another."""
    return {entry.id: f"{entry.size} {entry.mtime_ns}" for entry in index.entries(family=family)}


@dataclass(frozen=True)
class Unsent:
    """rows: of the space, to be sent. gone: ids that the copy holds and the space does not."""

    rows: list[int]
    gone: list[int]

    @classmethod
    def of(cls, space: Space, stamps: Mapping[int, str], there: Mapping[int, str]) -> "Unsent":
        """there: id -> stamp of what the copy holds."""
        ids = space.ids.tolist()
        rows = [row for row, number in enumerate(ids) if number in stamps and there.get(number) != stamps[number]]
        return cls(rows, sorted(there.keys() - set(ids)))
