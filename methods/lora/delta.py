"""The change of one module's weight matrix, in the smallest exact form.

Matrices are [out, in]; a convolution's kernel is flattened into `in` (in * kh * kw). Tensors are float32, those of a `Stack` and a `Full`
in any dtype. What is no product of two factors is formed some rows at a time, never whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .header import BadFile

# Numbers of a change that are formed at once: 4 MB, what a cache holds.
BLOCK_NUMBERS = 1 << 20
# What is multiplied out and kept, of one module: 256 MB. More is asked for by no trainer's file, only by a wrong or hostile header.
KEPT_NUMBERS = 1 << 26


@dataclass(frozen=True)
class LowRank:
    """`scale * up @ down`: up [out, rank], down [rank, in]. Raises RuntimeError where they do not meet, as multiplying them would."""

    module: str
    down: Tensor
    up: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            raise RuntimeError(f"shapes {tuple(self.up.shape)} and {tuple(self.down.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def times_left(self, left: Tensor) -> Tensor:
        """`left [k, out] @ delta`: [k, in]."""
        return (left @ self.up * self.scale) @ self.down

    def factors(self) -> "LowRank":
        return self

    def dense(self, start: int, stop: int) -> Tensor:
        """Rows start..stop."""
        return self.up[start:stop] * self.scale @ self.down

    def rows(self, module: str, start: int, stop: int) -> "LowRank":
        """Rows start..stop as the change of a module of their own."""
        return LowRank(module, self.down, self.up[start:stop], self.scale)


@dataclass(frozen=True)
class Stack:
    """`LowRank`s of one size, as many as there are modules: a file has hundreds, which are added up together."""

    modules: Sequence[str]
    down: Sequence[Tensor]
    up: Sequence[Tensor]
    scales: Sequence[float]

    def each(self) -> Iterator[LowRank]:
        """One by one, in float32."""
        for module, down, up, scale in zip(self.modules, self.down, self.up, self.scales, strict=True):
            yield LowRank(module, down.float(), up.float(), scale)


class Blockwise(ABC):
    """A change that knows its shape and any of its rows, and what follows from that."""

    module: str

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @abstractmethod
    def dense(self, start: int, stop: int) -> Tensor:
        """Rows start..stop."""

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, some rows) until all have come."""
        out, width = self.shape
        at_once = max(1, BLOCK_NUMBERS // max(width, 1))
        for start in range(0, out, at_once):
            yield start, self.dense(start, min(start + at_once, out))

    def times_left(self, left: Tensor) -> Tensor:
        """`left [k, out] @ delta`: [k, in]."""
        total = torch.zeros(len(left), self.shape[1])
        for start, rows in self.blocks():
            total.addmm_(left[:, start : start + len(rows)], rows)
        return total

    def factors(self) -> LowRank:
        """The same matrix as a product with the identity on its smaller side: exact, and large. Raises BadFile where it is too large."""
        out, width = self.shape
        check_numbers(self.module, out * width)
        whole = self.dense(0, out)
        return LowRank(self.module, whole, torch.eye(out)) if out < width else LowRank(self.module, torch.eye(width), whole)


@dataclass(frozen=True)
class Full(Blockwise):
    """`scale * matrix`."""

    module: str
    matrix: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def dense(self, start: int, stop: int) -> Tensor:
        return self.matrix[start:stop].float() * self.scale

    def rows(self, module: str, start: int, stop: int) -> "Full":
        """Rows start..stop as the change of a module of their own."""
        return Full(module, self.matrix[start:stop], self.scale)


@dataclass(frozen=True)
class Hadamard(Blockwise):
    """`scale * first * second`, element by element, of two products (LoHa). Raises RuntimeError where their shapes differ."""

    module: str
    first: LowRank
    second: LowRank
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.first.shape != self.second.shape:
            raise RuntimeError(f"shapes {self.first.shape} and {self.second.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.first.shape

    def dense(self, start: int, stop: int) -> Tensor:
        return self.first.dense(start, stop).mul_(self.second.dense(start, stop)).mul_(self.scale)

    def rows(self, module: str, start: int, stop: int) -> "Hadamard":
        """Rows start..stop as the change of a module of their own."""
        return Hadamard(module, self.first.rows(module, start, stop), self.second.rows(module, start, stop), self.scale)


@dataclass(frozen=True)
class Kronecker(Blockwise):
    """Rows of `scale * kron(left, right)` (LoKr): left [o1, i1], right [o2, i2], in = i1 i2.

    window: (first row, last row + 1) of the o1 o2 rows; None: all. What is cut out of a fused projection need not end between blocks.
    """

    module: str
    left: Tensor
    right: Tensor
    scale: float = 1.0
    window: tuple[int, int] | None = None

    @property
    def _span(self) -> tuple[int, int]:
        return self.window or (0, len(self.left) * len(self.right))

    @property
    def shape(self) -> tuple[int, int]:
        start, stop = self._span
        return stop - start, self.left.shape[1] * self.right.shape[1]

    def times_left(self, left: Tensor) -> Tensor:
        """`left [k, out] @ delta`: [k, in], by the factor first that leaves less."""
        start, stop = self._span
        (o1, i1), (o2, i2) = self.left.shape, self.right.shape
        blocks = pad(left, (start, o1 * o2 - stop)).view(len(left), o1, o2)
        if o2 * i1 <= o1 * i2:
            return (torch.einsum("kab,ac->kcb", blocks, self.left * self.scale) @ self.right).flatten(1)
        return torch.einsum("kad,ac->kcd", blocks @ self.right, self.left * self.scale).flatten(1)

    def dense(self, start: int, stop: int) -> Tensor:
        rows = torch.arange(start, stop) + self._span[0]
        size = len(self.right)
        left, right = self.left[rows.div(size, rounding_mode="floor")] * self.scale, self.right[rows % size]
        return (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1)

    def rows(self, module: str, start: int, stop: int) -> "Kronecker":
        """Rows start..stop as the change of a module of their own: the blocks that they lie in, and which rows of those."""
        size, first = len(self.right), self._span[0]
        block, end = (first + start) // size, -(-(first + stop) // size)
        window = first + start - block * size, first + stop - block * size
        whole = window == (0, (end - block) * size)
        return Kronecker(module, self.left[block:end], self.right, self.scale, None if whole else window)


def numbers_of(delta: object) -> int:
    """How many numbers a delta keeps in memory."""
    return sum(
        value.numel() if isinstance(value, Tensor) else numbers_of(value) for value in vars(delta).values() if hasattr(value, "__dict__")
    )


Delta = LowRank | Full | Hadamard | Kronecker


def check_numbers(module: str, numbers: int) -> None:
    """Raises BadFile where a module asks for too many to be multiplied out; to be called before they are."""
    if numbers > KEPT_NUMBERS:
        raise BadFile(
            f"module {module} asks for {numbers:,} numbers to be multiplied out, at most {KEPT_NUMBERS:,} are: the file is damaged, "
            "or made to use up memory. Download it again from where you trust it."
        )


def inner_product(first: Delta, second: Delta) -> float:
    """`<first, second>` (Frobenius), without forming either: in rank space, tr((B1^T B2)(A2 A1^T)), factor by factor, or row by row."""
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        return first.scale * second.scale * _dot(first.up.T @ second.up, first.down @ second.down.T)
    if isinstance(first, LowRank):
        return first.scale * _dot(second.times_left(first.up.T), first.down)
    if isinstance(second, LowRank):
        return inner_product(second, first)
    if isinstance(first, Kronecker) and isinstance(second, Kronecker):
        found = _kronecker_product(first, second)
        if found is not None:
            return first.scale * second.scale * found
    return sum(_dot(rows, second.dense(start, start + len(rows))) for start, rows in first.blocks())


def _kronecker_product(first: Kronecker, second: Kronecker) -> float | None:
    """Of the factors without their scales; None where they divide the matrix in ways that have no common one."""
    (o1, i1), (o2, i2) = first.left.shape, first.right.shape
    (p1, q1), (p2, q2) = second.left.shape, second.right.shape
    if (o1, i1, o2, i2, first.window) == (p1, q1, p2, q2, second.window):
        if first.window is None:
            return _dot(first.left, second.left) * _dot(first.right, second.right)
        rows = [
            torch.linalg.vecdot(one.double(), other.double()) for one, other in ((first.left, second.left), (first.right, second.right))
        ]
        return float(torch.outer(*rows).flatten()[slice(*first.window)].sum())
    rows, columns = (max(o1, p1), min(o1, p1)), (max(i1, q1), min(i1, q1))
    if first.window or second.window or rows[0] % rows[1] or columns[0] % columns[1]:
        return None
    # Rows are (a, b, c), columns (x, y, z): whose left factor is larger has b, or y, in it, the other one in the right factor.
    b, y = rows[0] // rows[1], columns[0] // columns[1]
    lefts, rights = [], []
    for one in (first, second):
        tall, wide = b if len(one.left) == rows[0] else 1, y if one.left.shape[1] == columns[0] else 1
        lefts.append(one.left.reshape(rows[1], tall, columns[1], wide))
        rights.append(one.right.reshape(b // tall, -1, y // wide, i1 * i2 // columns[0]))
    return _dot(torch.einsum("abxy,abxy->by", *lefts), torch.einsum("bcyz,bcyz->by", *rights))


def _dot(first: Tensor, second: Tensor) -> float:
    return float(torch.sum(first * second, dtype=torch.float64))
