"""How two LoRAs are related, or one to several: the same, scaled, rounded, of lower rank, merged, a later step. Decided by `compare`.

Copies make the same change, but for rounding and strength; relatives do not. What separates them is derived, not tuned:

- rounding: a residual is rounding if it is no longer than what rounding to the files' dtypes leaves on average, a quarter more at most;
  the same tensors in the same dtype are never told apart by rounding, so there any difference is one of training;
- rank reduction: no matrix of rank r is nearer to A than what the singular values behind the r-th leave, and only what keeps the first r
  of them is that near;
- merges: the residual of the non-negative fit over the sources is rounding;
- later steps: changes and stored tensors point the same way. Other trainings start from other random tensors, or leave them elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy
import torch

from ..lora.header import DTYPES, TensorInfo, text_of
from ..lora.modules import modules_of, unread
from ..lora.weight_file import Reader
from .comparison import Comparison, Products, compare, rounding_of

SAME_BYTES, SAME_CHANGE, ROUNDED, SCALED = "same bytes", "same change", "same up to rounding", "same change, scaled"
PART, REDUCED, LATER, MERGED, UNREAD, RELATED = "part of", "rank-reduced", "later step", "merged", "unread tensors differ", "related"
MERGED_REDUCED = "merged, rank-reduced"
COPIES = (SAME_BYTES, SAME_CHANGE, ROUNDED, SCALED)
# Of the length of a change: what tools that work in float32 leave.
_ARITHMETIC = 1e-5
# Errors of thousands of numbers add up to their average; files of a few hundred stray from it.
_ROUNDING_FACTOR = 1.25
# Stored tensors and changes of one training, at a step and at twice as many; seen are .92 and .80, .62 and .39 for two trainings from one
# start, .02 and .60 for two of the same data. Of what is no step: the least cosine that is told.
_ALIKE, _LEAST_OF_STEPS, _LEAST_COSINE = 0.85, 0.7, 0.8
# Larger tensors that are not read are compared as bytes.
_VALUES_BYTES = 100 << 20


@dataclass(frozen=True)
class Kinship:
    """kind: one of those above. times: length of the other's change over the first's, where both point one way. text: for a person.

    turned: it is the first that was made from the other. cosine, apart: of the changes; |b - a| over the longer of the two.
    """

    kind: str
    text: str
    cosine: float
    times: float
    apart: float
    turned: bool = False


def kinship(first: str | Path, second: str | Path) -> Kinship | None:
    """How the second is related to the first; None if it is not, as far as can be told. Raises BadFile where one cannot be read."""
    if same_bytes(first, second):
        return Kinship(SAME_BYTES, "the same bytes", 1.0, 1.0, 0.0)
    found = compare([first, second])
    kind = _copy_of(found) or _part_of(found, first, second) or _later_than(found, first, second)
    if kind and kind.kind in COPIES and (difference := unread_difference(first, second)):
        return Kinship(UNREAD, f"{kind.text}, but {difference}", kind.cosine, kind.times, kind.apart)
    return kind


def same_bytes(first: str | Path, second: str | Path) -> bool:
    """Whether the files are equal, read to the end."""
    if Path(first).stat().st_size != Path(second).stat().st_size:
        return False
    with open(first, "rb") as one, open(second, "rb") as other:
        while block := one.read(1 << 22):
            if block != other.read(1 << 22):
                return False
    return True


def allowed(found: Products, place: int, shares: dict[int, float]) -> float:
    """Longest residual between a file and the sum of the others' shares that rounding explains."""
    squares = found.rounding[place] + sum(share**2 * found.rounding[other] for other, share in shares.items())
    return _ROUNDING_FACTOR * squares**0.5 + _ARITHMETIC * found.inner[place, place] ** 0.5


def _made(found: Comparison, kind: str, text: str, turned: bool = False) -> Kinship:
    lengths = found.inner[0, 0] ** 0.5, found.inner[1, 1] ** 0.5
    cosine = float(found.inner[0, 1] / (lengths[0] * lengths[1]))
    return Kinship(kind, text, cosine, float(lengths[1] / lengths[0]), float(found.distance(0, 1) / max(lengths)), turned)


def _copy_of(found: Comparison) -> Kinship | None:
    length = found.inner[1, 1] ** 0.5
    times = float(found.inner[0, 1] / found.inner[0, 0])
    if found.distance(0, 1) <= _ARITHMETIC * length:
        return _made(found, SAME_CHANGE, "the same change")
    rounding = allowed(found, 1, {0: 1.0})
    # Equal tensors of one dtype round to equal ones: where they differ by less than their rounding, it is not by rounding.
    may_round = found.precision[0] != found.precision[1] or found.alike[0, 1] < 1 - 1e-3
    if found.distance(0, 1) <= rounding:
        return _made(found, ROUNDED, f"the same change up to rounding ({_dtypes(found)})") if may_round else None
    if times > 0 and found.distance(0, 1, times) <= allowed(found, 1, {0: times}):
        return _made(found, SCALED, f"the same change times {times:.4g}")
    return None


def _dtypes(found: Comparison) -> str:
    first, second = found.precision
    return first if first == second else f"{first} -> {second}"


def _part_of(found: Comparison, first: str | Path, second: str | Path) -> Kinship | None:
    """The second as some modules of the first, or as their best approximation of lower rank; or the other way round."""
    distance, rounding = found.distance(0, 1), allowed(found, 1, {0: 1.0})
    for turned, (a, b) in enumerate(((0, 1), (1, 0))):
        whole, part = (Path(path).name for path in ((second, first) if turned else (first, second)))
        share = found.inner[b, b] / found.inner[a, a]
        for kind, left, text in (
            (PART, found.lacking[a, b], f"{part} is {whole} without some of its modules ({{:.1%}} of its energy)"),
            (REDUCED, found.tails[a, b], f"{part} is {whole} reduced to a lower rank ({{:.1%}} of its energy)"),
        ):
            if rounding**2 < left and distance <= left**0.5 + rounding and share > 0:
                return _made(found, kind, text.format(share), bool(turned))
    return None


def _later_than(found: Comparison, first: str | Path, second: str | Path) -> Kinship | None:
    plain = _made(found, RELATED, "")
    if found.alike[0, 1] < _ALIKE or plain.cosine < _LEAST_OF_STEPS:
        text = f"a relative (cosine {plain.cosine:.3f}); what was done to it cannot be told"
        return _made(found, RELATED, text) if plain.cosine >= _LEAST_COSINE else None
    steps = [count for count in (_steps(first), _steps(second)) if count is not None]
    # Training moves away from nothing: where the header does not say which is later, it is the longer one.
    known = len({*steps}) == 2
    turned = steps[0] > steps[1] if known else plain.times < 1
    early, late = (Path(path).name for path in ((second, first) if turned else (first, second)))
    when = f" (steps {min(steps)} and {max(steps)})" if known else " (by the length of its change)"
    return _made(found, LATER, f"{late} is a later step of the training of {early}{when}, {plain.apart:.1%} further", turned)


def _steps(path: str | Path) -> int | None:
    with Reader(path) as reader:
        text = text_of(reader.header.metadata, "ss_steps")
    return int(text) if text.isdecimal() and len(text) < 12 else None


def unread_difference(first: str | Path, second: str | Path) -> str:
    """In words, what tensors that no change is made of differ in: magnitudes of DoRAs, what belongs to no module; "" if in nothing.

    Values count as equal where rounding to the coarser dtype leaves no more between them.
    """
    with Reader(first) as one, Reader(second) as other:
        ours, theirs = _unread_tensors(one), _unread_tensors(other)
        if only := sorted(ours.keys() ^ theirs.keys()):
            return f"only {Path(first if only[0] in ours else second).name} holds {only[0]}, which is not read"
        for name, key in ours.items():
            if not _equal_values(one, key, other, theirs[name]):
                return f"they differ in {key}, which is not read"
    return ""


def _unread_tensors(reader: Reader) -> dict[str, str]:
    """A name that all spellings share -> key."""
    layout = reader.header.layout
    modules = modules_of(layout)
    read = {key for module in modules.values() for key in module.read.values()}
    named = {key: f"{role} of {name}" for name, module in modules.items() for role, key in module.keys.items()}
    overruled = {key for key in layout.tensors if key not in named} - set(unread(layout))
    return {named.get(key, key): key for key in layout.tensors if key not in read | overruled}


def _equal_values(one: Reader, key: str, other: Reader, like: str) -> bool:
    both = one.header.layout.tensors[key], other.header.layout.tensors[like]
    infos = [info for info in both if isinstance(info, TensorInfo) and info.form.kind in DTYPES and info.form.size <= _VALUES_BYTES]
    if len(infos) == 2:
        values = one.tensor(key).double().flatten(), other.tensor(like).double().flatten()
        if values[0].shape != values[1].shape:
            return False
        squares = sum(float(rounding_of(numbers, info.form.dtype)) for numbers, info in zip(values, infos, strict=True))
        return torch.equal(*values) or float((values[1] - values[0]).norm()) <= _ROUNDING_FACTOR * squares**0.5
    kinds = [(reader.header.layout.dtype(name), reader.header.layout.shape(name)) for reader, name in ((one, key), (other, like))]
    return kinds[0] == kinds[1] and all(block == same for block, same in zip_longest(one.stored(key), other.stored(like)))


def fit_shares(found: Products, place: int, sources: Sequence[int]) -> dict[int, float]:
    """Source -> its share in the sum of sources that is nearest to the file at `place`; those that fit best at 0 or below are left out."""
    return dict(zip(sources, nonnegative_fit(found.inner[numpy.ix_(sources, sources)], found.inner[sources, place]), strict=True))


def nonnegative_fit(gram: numpy.ndarray, products: numpy.ndarray) -> list[float]:
    """argmin over s >= 0 of s^T gram s - 2 s^T products (Lawson and Hanson), [k]."""
    count = len(products)
    used = numpy.zeros(count, bool)
    shares = numpy.zeros(count)
    for _ in range(3 * count):
        gradient = products - gram @ shares
        gradient[used] = -numpy.inf
        if gradient.max() <= 1e-12 * abs(products).max():
            break
        used[gradient.argmax()] = True
        while True:
            wanted = numpy.zeros(count)
            wanted[used] = numpy.linalg.lstsq(gram[numpy.ix_(used, used)], products[used], rcond=None)[0]
            if (wanted[used] > 0).all():
                shares = wanted
                break
            # As far towards it as all stay positive; what comes to 0 is left out.
            below = used & (wanted <= 0)
            step = (shares[below] / (shares[below] - wanted[below])).min()
            shares = shares + step * (wanted - shares)
            used &= shares > 1e-12 * abs(shares).max()
            shares[~used] = 0
    return shares.tolist()
