"""The rows of a batch in which several members of one picture go through a network together: its maps, or its two domains.

Rows lie as (condition, member, picture): under each condition that core batches, all pictures' first member, then all their second, and so
on, so that a batch of conditions or hints that core repeats over the rows meets every member of its picture.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """`conds` conditions x members x `pictures` pictures. A group is the members of one picture under one condition."""

    members: tuple[str, ...]
    conds: int = 1
    pictures: int = 1

    def __len__(self) -> int:
        return self.conds * len(self.members) * self.pictures

    def member_of_row(self, wanted: Collection[str]) -> tuple[str | None, ...]:
        """The member that each row is, None for those that are not `wanted`."""
        of_condition = [member if member in wanted else None for member in self.members for _ in range(self.pictures)]
        return tuple(of_condition * self.conds)

    def slices(self, member: str) -> list[slice]:
        """The rows of a member, in order."""
        index, count = self.members.index(member), len(self.members)
        if self.pictures == 1:
            # Single rows alternate over the conditions: a member is one slice.
            return [slice(index, None, count)]
        starts = range(index * self.pictures, len(self), count * self.pictures)
        return [slice(start, start + self.pictures) for start in starts]

    def seen_by(self, layer: str, found: int) -> "Rows":
        """The same rows where `layer` ran on `found` of them, because patches cut pictures into windows; windows count as pictures."""
        return replace(self, pictures=self.pictures * windows_per_row(layer, found, len(self)))

    def split(self, x: Tensor) -> Tensor:
        """[row, ...] -> [group, member, ...]. A view where there is one condition or one picture."""
        pictures = self.seen_by("A block", x.shape[0]).pictures
        return rearrange(x, "(cond member picture) ... -> (cond picture) member ...", cond=self.conds, picture=pictures)

    def join(self, x: Tensor) -> Tensor:
        """Inverse of `split`."""
        return rearrange(x, "(cond picture) member ... -> (cond member picture) ...", cond=self.conds)

    def of(self, member: str, x: Tensor) -> Tensor:
        """[row, ...] -> [group, ...]: the rows of one member."""
        pictures = self.seen_by("A block", x.shape[0]).pictures
        by_member = rearrange(x, "(cond member picture) ... -> cond member picture ...", cond=self.conds, picture=pictures)
        return by_member[:, self.members.index(member)].flatten(0, 1)


def windows_per_row(layer: str, found: int, rows: int) -> int:
    """How many windows each row was cut into; patches that do so put those of one row next to each other.

    Raises ValueError, naming `layer`, where the `found` rows cannot be windows of `rows`.
    """
    windows, rest = divmod(found, rows)
    if rest or not windows:
        raise ValueError(f"{layer} ran on {found} rows, a multiple of {rows} was expected: remove patches that split or merge rows.")
    return windows


def in_query_windows(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [row, token, c] cut as the queries are, where patches (HyperTile) cut the queries alone into windows.

    A window's keys are consecutive tokens, as all of ComfyUI's attentions take them. Raises ValueError where tokens do not divide.
    """
    if key.shape[0] == query.shape[0]:
        return key, value
    windows = windows_per_row("Self-attention", query.shape[0], key.shape[0])
    if key.shape[1] % windows:
        raise ValueError(
            f"A patch cut self-attention's queries into {windows} windows, and {key.shape[1]} tokens of keys do not divide by it: remove "
            "HyperTile or its like, or choose another tile size."
        )
    return key.reshape(query.shape[0], -1, key.shape[2]), value.reshape(query.shape[0], -1, value.shape[2])


def labelled_slices(label_of_row: Sequence[str | None]) -> list[tuple[str, slice]]:
    """Neighbouring rows of one label, in order; rows without a label are left out."""
    slices, start = [], 0
    for label, group in groupby(label_of_row):
        stop = start + len(list(group))
        if label is not None:
            slices.append((label, slice(start, stop)))
        start = stop
    return slices
