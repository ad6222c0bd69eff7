"""The change of one module's weight matrix, in the smallest exact form.

Matrices are [out, in]; a convolution's kernel is flattened into `in` (in * kh * kw). Tensors are float32, those of a `Stack` in any dtype.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """`scale * up @ down`: up [out, rank], down [rank, in]."""

    module: str
    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def times_left(self, left: Tensor) -> Tensor:
        """`left [k, out] @ delta`: [k, in]."""
        return (left @ self.up * self.scale) @ self.down

    def factors(self) -> "LowRank":
        return self

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


@dataclass(frozen=True)
class Kronecker:
    """`scale * kron(left, right)` (LoKr): left [o1, i1], right [o2, i2], out = o1 o2, in = i1 i2. Never formed for a sketch."""

    module: str
    left: Tensor
    right: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0] * self.right.shape[0], self.left.shape[1] * self.right.shape[1]

    def times_left(self, left: Tensor) -> Tensor:
        """`left [k, out] @ delta`: [k, in]."""
        blocks = left.reshape(len(left), self.left.shape[0], self.right.shape[0])
        return torch.einsum("kab,ac,bd->kcd", blocks, self.left * self.scale, self.right).reshape(len(left), -1)

    def factors(self) -> LowRank:
        """The same matrix as one product of the least rank that its shape allows: exact, larger, for the exact comparison."""
        dense = torch.kron(self.left, self.right)
        return dense_delta(self.module, dense, self.scale)

    def rows(self, module: str, start: int, stop: int) -> "Kronecker | LowRank":
        """Rows start..stop as the change of a module of their own; a Kronecker product again where they fall between blocks."""
        block = self.right.shape[0]
        if start % block == 0 and stop % block == 0:
            return Kronecker(module, self.left[start // block : stop // block], self.right, self.scale)
        return self.factors().rows(module, start, stop)


Delta = LowRank | Kronecker


def dense_delta(module: str, dense: Tensor, scale: float) -> LowRank:
    """A full matrix [out, in] in the form of a product with the identity on its smaller side."""
    out, width = dense.shape
    if out < width:
        return LowRank(module, dense, torch.eye(out), scale)
    return LowRank(module, torch.eye(width), dense, scale)


def inner_product(first: Delta, second: Delta) -> float:
    """`<first, second>` (Frobenius), without forming either: in rank space, tr((B1^T B2)(A2 A1^T)), or factor by factor."""
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        return first.scale * second.scale * _dot(first.up.T @ second.up, first.down @ second.down.T)
    if isinstance(first, LowRank):
        return first.scale * _dot(second.times_left(first.up.T), first.down)
    if isinstance(second, LowRank):
        return inner_product(second, first)
    if first.left.shape == second.left.shape and first.right.shape == second.right.shape:
        return first.scale * second.scale * _dot(first.left, second.left) * _dot(first.right, second.right)
    return inner_product(first.factors(), second)


def _dot(first: Tensor, second: Tensor) -> float:
    return float(torch.sum(first * second, dtype=torch.float64))
