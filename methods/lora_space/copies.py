"""What a copy of a space in a server still lacks, a batch at a time; alike for every kind of server."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy

from .index import LoraIndex
from .sketch import KINDS
from .space import LEAST_FOR_PCA, Pca, Space

# Of stamps that are compared, and ids that are deleted, at once.
PAGE = 2_000
Vectors = Mapping[str, numpy.ndarray]


@dataclass(frozen=True)
class Source:
    """What a copy shall hold. ids: rising; stamps(some ids): id -> what its file is, its vectors are sent again where that is another.

    vectors(some ids): the ids that are there, and kind -> unit rows [n, d] of these. Of a large index only the ids are in memory.
    """

    family: str
    subnetwork: str
    pca: Mapping[str, Pca]
    dimensions: int
    ids: numpy.ndarray
    stamps: Callable[[Sequence[int]], Mapping[int, str]]
    vectors: Callable[[Sequence[int]], tuple[Sequence[int], Vectors]]

    @classmethod
    def of_index(cls, index: LoraIndex, family: str, subnetwork: str) -> "Source":
        ids = index.spaces.members(family, subnetwork)
        if len(ids) < LEAST_FOR_PCA:
            return cls.of_space(index.space(family, subnetwork), index.stamps)
        fit = index.spaces.fit(family, subnetwork, ids)
        return cls(family, subnetwork, fit.pca, fit.dimensions, ids, index.stamps, lambda some: index.spaces.vectors(fit, some))

    @classmethod
    def of_space(cls, space: Space, stamps: Callable[[Sequence[int]], Mapping[int, str]]) -> "Source":
        """Of vectors that are in memory; their ids must rise."""

        def vectors(some: Sequence[int]) -> tuple[Sequence[int], Vectors]:
            rows = numpy.searchsorted(space.ids, some)
            return some, {kind: matrix[rows] for kind, matrix in space.vectors.items()}

        return cls(space.family, space.subnetwork, space.pca, space.vectors[KINDS[0]].shape[1], space.ids, stamps, vectors)

    def unsent(self, there: Iterable[tuple[int, str]], batch: int) -> Iterator[tuple[dict[int, str], list[int]]]:
        """(id -> stamp of what is to be sent, ids that are to go), at most so many each. there: (id, stamp) that the copy holds, rising."""
        send: dict[int, str] = {}
        gone: list[int] = []
        copied = chain(there, [(None, "")])
        number, stamp = next(copied)
        for wanted, its in chain(self._stamped(), [(None, "")]):
            while number is not None and (wanted is None or number < wanted):
                gone.append(number)
                number, stamp = next(copied)
            if wanted is not None and (number != wanted or stamp != its):
                send[wanted] = its
            if number is not None and number == wanted:
                number, stamp = next(copied)
            if len(send) >= batch or len(gone) >= batch:
                yield send, gone
                send, gone = {}, []
        if send or gone:
            yield send, gone

    def _stamped(self) -> Iterator[tuple[int | None, str]]:
        for start in range(0, len(self.ids), PAGE):
            page = [int(number) for number in self.ids[start : start + PAGE]]
            stamps = self.stamps(page)
            # What another process removed since is nowhere.
            yield from ((number, stamps[number]) for number in page if number in stamps)
