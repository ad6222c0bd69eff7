"""A few LoRA files side by side, exactly: inner products in double precision, and what rounding and rank reduction would leave.

Files pass module by module; what any of them fuses (qkv) is looked at as one. Differences of 1e-5 show, where float32 sums would drown
what lies below 1e-3. Plain LoRAs stay in rank space, other kinds are formed some rows at a time.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..lora.cache import ReadCache
from ..lora.delta import BLOCK_NUMBERS, Delta, LowRank
from ..lora.formats import ALPHA
from ..lora.formats.lora import LORA
from ..lora.header import DTYPES, Layout
from ..lora.modules import modules_of, sizes_of
from ..lora.names import fused_rows
from ..lora.reading import module_deltas
from ..lora.weight_file import Reader

# Coarse to fine; names as in the header.
_BY_PRECISION = ("F8_E5M2", "F8_E4M3", "BF16", "F16", "F32", "F64")
# A module's change as a file has it: pieces (what is not fused in any file) -> what adds up there.
_Changes = dict[str, list[Delta]]


@dataclass(frozen=True)
class Products:
    """Of k changes. inner [k, k]. rounding [k]: squared length of what rounding to the nearest in the file's dtype leaves on average."""

    inner: numpy.ndarray
    rounding: numpy.ndarray


@dataclass(frozen=True)
class Comparison(Products):
    """Of k files. All are sums over the modules, squared lengths of changes where nothing else is said.

    tails [a, b]: what the best approximations of a's modules with b's ranks leave (Eckart and Young), all of a module that b lacks.
    lacking [a, b]: a's modules that b lacks. alike [a, b]: mean cosine of the stored tensors that have one role and shape in both; 0 if
    none have. precision [k]: the dtype that most of its numbers fit in, which may be coarser than the stored one.
    """

    tails: numpy.ndarray
    lacking: numpy.ndarray
    alike: numpy.ndarray
    precision: tuple[str, ...]

    def distance(self, a: int, b: int, times: float = 1.0) -> float:
        """|b - times a|."""
        return max(self.inner[b, b] - 2 * times * self.inner[a, b] + times**2 * self.inner[a, a], 0.0) ** 0.5


def compare(paths: Sequence[str | Path], report: Callable[[int, int], None] | None = None) -> Comparison:
    """report(done, total) may raise to stop. Raises BadFile where one cannot be read."""
    count, cache = len(paths), ReadCache()
    inner, tails, lacking = numpy.zeros((count, count)), numpy.zeros((count, count)), numpy.zeros((count, count))
    rounding, cosines, alike = numpy.zeros(count), numpy.zeros((count, count)), numpy.zeros((count, count))
    fitting: list[Counter[str]] = [Counter() for _ in paths]
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader(path, cache)) for path in paths]
        groups = _groups([reader.header.layout for reader in readers])
        for done, group in enumerate(groups, 1):
            files = [_File(reader, names, fitting[place]) for place, (reader, names) in enumerate(zip(readers, group, strict=True))]
            products = _products([file.changes for file in files])
            inner += products
            rounding += [file.rounding for file in files]
            for b, other in enumerate(files):
                for a, file in enumerate(files):
                    if a != b:
                        missing = [piece for piece in file.changes if piece not in other.changes]
                        lost = _products([{piece: file.changes[piece] for piece in missing}])[0, 0] if missing else 0.0
                        lacking[a, b] += lost
                        tails[a, b] += lost + sum(file.tail(pieces, rank) for pieces, rank in other.ranks)
                        similar = file.cosines(other)
                        cosines[a, b] += sum(similar)
                        alike[a, b] += len(similar)
            if report:
                report(done, len(groups))
    precision = tuple(kinds.most_common(1)[0][0] if kinds else "" for kinds in fitting)
    return Comparison(inner, rounding, tails, lacking, cosines / numpy.maximum(alike, 1), precision)


def compare_within(paths: Sequence[str | Path]) -> tuple[Products, Products] | None:
    """(k changes as the first's singular vectors see them, the changes themselves); None where one is no product, or of another shape.

    With U and V the first's left and right ones, module by module: of [U^T D; D V] for each change D, of all of D where the first has
    nothing. The best approximation B of a sum M of changes has U^T M = U^T B and M V = B V: what is cut off lies across both.
    """
    cache, rounding = ReadCache(), numpy.zeros(len(paths))
    seen, whole = numpy.zeros((len(paths), len(paths))), numpy.zeros((len(paths), len(paths)))
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader(path, cache)) for path in paths]
        for group in _groups([reader.header.layout for reader in readers]):
            files = [_File(reader, names, Counter()) for reader, names in zip(readers, group, strict=True)]
            first = files[0].changes
            for piece, deltas in ((piece, deltas) for file in files for piece, deltas in file.changes.items()):
                if _plain(deltas) is None or deltas[0].shape != first.get(piece, deltas)[0].shape:
                    return None
            whole += _products([file.changes for file in files])
            rounding += [file.rounding for file in files]
            for pieces, _ in files[0].ranks:
                seen += _seen_by_first([[_plain(file.changes.get(piece, [])) or [] for piece in pieces] for file in files])
            beside = [{piece: deltas for piece, deltas in file.changes.items() if piece not in first} for file in files]
            seen += _products(beside)
    # Rounding is seen from both sides, and turns the first's singular vectors besides.
    return Products(seen, 4 * rounding), Products(whole, rounding)


def _seen_by_first(files: Sequence[Sequence[Sequence[LowRank]]]) -> numpy.ndarray:
    """Of one module: file -> piece -> changes. The pieces lie one above the other."""
    heights = [deltas[0].shape[0] for deltas in files[0]]
    width = files[0][0][0].shape[1]
    up, down = _stacked(files[0], heights, width)
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.T)
    inner_left, values, inner_right = torch.linalg.svd(upper @ lower.T)
    kept = values > 1e-9 * values.max()
    left, right = left @ inner_left[:, kept], right @ inner_right.T[:, kept]
    pairs = (_stacked(file, heights, width) for file in files)
    seen = torch.stack([torch.cat([((left.T @ up) @ down).flatten(), (up @ (down @ right)).flatten()]) for up, down in pairs])
    return (seen @ seen.T).numpy()


def _stacked(pieces: Sequence[Sequence[LowRank]], heights: Sequence[int], width: int) -> tuple[Tensor, Tensor]:
    """(up, down) of the whole: the pieces' ups on a diagonal."""
    ups, downs = [], [torch.zeros(0, width, dtype=torch.float64)]
    for deltas, height in zip(pieces, heights, strict=True):
        ups.append(torch.cat([torch.zeros(height, 0, dtype=torch.float64), *(delta.up * delta.scale for delta in deltas)], 1))
        downs += [delta.down for delta in deltas]
    return torch.block_diag(*ups), torch.cat(downs)


def _groups(layouts: Sequence[Layout]) -> list[list[list[str]]]:
    """[[modules of each file] of each group]: what shares a piece in any of the files belongs together."""
    parent: dict[str, str] = {}

    def root(piece: str) -> str:
        while parent.setdefault(piece, piece) != piece:
            piece = parent[piece]
        return piece

    pieces = [
        {name: [piece for piece, *_ in fused_rows(name, size.out, size.width)] for name, size in sizes_of(layout).items()}
        for layout in layouts
    ]
    for file in pieces:
        for first, *others in file.values():
            for other in others:
                parent[root(other)] = root(first)
    groups: dict[str, list[list[str]]] = {}
    for place, file in enumerate(pieces):
        for name, (first, *_) in file.items():
            groups.setdefault(root(first), [[] for _ in layouts])[place].append(name)
    return list(groups.values())


class _File:
    """One file's part of a group."""

    def __init__(self, reader: Reader, names: Sequence[str], fitting: Counter[str]) -> None:
        self.changes: _Changes = {}
        self.ranks: list[tuple[tuple[str, ...], int]] = []
        self.rounding = 0.0
        self._reader, self._names = reader, names
        layout = reader.header.layout
        for name in names:
            module = modules_of(layout)[name]
            stored = layout.dtype(module.weight)
            deltas = [_in_double(delta) for delta in module_deltas(reader, name)]
            for delta in deltas:
                self.changes.setdefault(delta.module, []).append(delta)
            if module.format is LORA:
                self.ranks.append((tuple(dict.fromkeys(delta.module for delta in deltas)), sizes_of(layout)[name].rank))
            kind = _fitting(deltas, stored)
            fitting[kind] += 1
            weights = sum(role != ALPHA for role in module.read)
            self.rounding += sum(_rounding(delta, DTYPES[kind], weights) for delta in deltas)

    def tail(self, pieces: Sequence[str], rank: int) -> float:
        """What the best approximation of these pieces together by a matrix of this rank leaves; 0 where they are no products."""
        changes = [_plain(self.changes.get(piece, [])) for piece in pieces]
        if not any(changes) or any(plain is None for plain in changes):
            return 0.0
        factors = [plain for plain in changes if plain]
        # Pieces lie one above the other: factors of the whole are all downs, and the ups on a diagonal.
        down = torch.cat([delta.down for deltas in factors for delta in deltas])
        if len(down) <= rank:
            return 0.0
        ups = [torch.cat([delta.up * delta.scale for delta in deltas], 1) for deltas in factors]
        values, vectors = torch.linalg.eigh(torch.block_diag(*(up.T @ up for up in ups)))
        left = vectors * values.clamp(min=0).sqrt()
        squares = torch.linalg.eigvalsh(left.T @ (down @ down.T) @ left)
        return float(squares[: len(squares) - rank].clamp(min=0).sum())

    def cosines(self, other: "_File") -> list[float]:
        """Of the stored tensors that are of one module, role and shape in both."""
        found = []
        for name in {*self._names} & {*other._names}:
            ours, theirs = (modules_of(file._reader.header.layout)[name].read for file in (self, other))
            for role in (ours.keys() & theirs.keys()) - {ALPHA}:
                one, two = self._reader.tensor(ours[role]).double().flatten(), other._reader.tensor(theirs[role]).double().flatten()
                if one.shape == two.shape and one.any() and two.any():
                    found.append(float(torch.dot(one, two) / (one.norm() * two.norm())))
        return found


def _in_double(delta: Delta) -> Delta:
    return LowRank(delta.module, delta.down.double(), delta.up.double(), delta.scale) if isinstance(delta, LowRank) else delta


def _products(files: Sequence[_Changes]) -> numpy.ndarray:
    """[k, k] inner products."""
    total = numpy.zeros((len(files), len(files)))
    for piece in {piece for file in files for piece in file}:
        there = [place for place, file in enumerate(files) if piece in file]
        total[numpy.ix_(there, there)] += _gram([files[place][piece] for place in there]).numpy()
    return total


def _gram(files: Sequence[Sequence[Delta]]) -> Tensor:
    """Of changes of one piece, each a sum of some. Those of another shape are another matrix."""
    shapes = [deltas[0].shape for deltas in files]
    total = torch.zeros(len(files), len(files), dtype=torch.float64)
    for shape in set(shapes):
        places = torch.tensor([place for place, one in enumerate(shapes) if one == shape])
        alike = [files[place] for place in places]
        plain = [found for deltas in alike if (found := _plain(deltas))]
        total[places.unsqueeze(1), places] = _low_rank_gram(plain) if len(plain) == len(alike) else _dense_gram(alike, shape)
    return total


def _plain(deltas: Sequence[Delta]) -> list[LowRank] | None:
    """These, if all are products of two factors."""
    found = [delta for delta in deltas if isinstance(delta, LowRank)]
    return found if len(found) == len(deltas) else None


def _low_rank_gram(files: Sequence[Sequence[LowRank]]) -> Tensor:
    up = torch.cat([delta.up * delta.scale for deltas in files for delta in deltas], 1)
    down = torch.cat([delta.down for deltas in files for delta in deltas])
    sizes = [sum(len(delta.down) for delta in deltas) for deltas in files]
    product = (up.T @ up) * (down @ down.T)
    return torch.stack([torch.stack([part.sum() for part in rows.split(sizes, 1)]) for rows in product.split(sizes)])


def _dense_gram(files: Sequence[Sequence[Delta]], shape: tuple[int, int]) -> Tensor:
    out, width = shape
    total = torch.zeros(len(files), len(files), dtype=torch.float64)
    for start, stop in _blocks(out, max(1, BLOCK_NUMBERS // max(width, 1))):
        rows = torch.stack([torch.stack([delta.dense(start, stop).double() for delta in deltas]).sum(0).flatten() for deltas in files])
        total += rows @ rows.T
    return total


def _blocks(out: int, at_once: int) -> Iterator[tuple[int, int]]:
    for start in range(0, out, at_once):
        yield start, min(start + at_once, out)


def _fitting(deltas: Sequence[Delta], stored: str) -> str:
    """The coarsest dtype that holds the numbers of a plain LoRA as they are; what it is stored in for any other."""
    if (plain := _plain(deltas)) is None:
        return stored
    numbers = [numbers for delta in plain for numbers in (delta.up.float(), delta.down.float())]
    coarser = _BY_PRECISION[: _BY_PRECISION.index(stored)]
    return next((kind for kind in coarser if all(torch.equal(one, one.to(DTYPES[kind]).float()) for one in numbers)), stored)


def _rounding(delta: Delta, dtype: torch.dtype, weights: int) -> float:
    """Expected squared length of the error of a change whose stored numbers were rounded to the nearest, each by itself.

    A number's error is even within its spacing: spacing^2 / 12. Of a product, sum_k |e(b_k)|^2 |a_k|^2 + |b_k|^2 |e(a_k)|^2 + both. Of
    other kinds, of so many tensors, each is taken to change all by eps^2 / 12.
    """
    if not isinstance(delta, LowRank):
        rows = (delta.dense(start, stop).double() for start, stop in _blocks(delta.shape[0], max(1, BLOCK_NUMBERS // delta.shape[1])))
        return weights * torch.finfo(dtype).eps ** 2 / 12 * sum(float((block**2).sum()) for block in rows)
    up, down = ((delta.up**2).sum(0), (delta.down**2).sum(1))
    up_error, down_error = rounding_of(delta.up, dtype, 0), rounding_of(delta.down, dtype, 1)
    return delta.scale**2 * float((up_error * down + up * down_error + up_error * down_error).sum())


def rounding_of(numbers: Tensor, dtype: torch.dtype, axis: int = 0) -> Tensor:
    """Expected squared error, summed over an axis, of numbers that were rounded to the nearest of dtype."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(numbers)
    least = info.smallest_normal * info.eps
    spacing = torch.ldexp(torch.full_like(numbers, info.eps), exponent - 1).clamp(min=least)
    # Nothing has no exponent.
    spacing[numbers == 0] = least
    return spacing.square().sum(axis) / 12
