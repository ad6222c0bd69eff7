"""What makes reading many LoRA files faster than reading one, many times: nothing else in this room keeps anything from file to file."""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from threading import Lock, local
from typing import TypeVar

import numpy

from .header import Layout, parse_layout

# Layouts that are kept, and the text of the longest; some 2 MB of objects each.
_LAYOUTS, _LAYOUT_CHARACTERS = 32, 2 << 20
_MEMORY_BYTES = 96 << 20
# Sets of views that are remembered, some 0.5 MB of objects each.
_VIEWS = 32

Viewed = TypeVar("Viewed")


class ReadCache:
    """Make one for a run over many files and let it go with it; threads may share it.

    Most of a collection comes from a few trainers, whose files have one layout: understanding a header of 2,000 tensors takes longer than
    using it. Each thread reads into memory that it has used before: what is new to a process costs ten times as much as a copy into it.
    With it go the views of it: files of one layout are looked at through the same ones.
    """

    def __init__(self) -> None:
        self._met: set[int] = set()
        self._layouts = lru_cache(maxsize=_LAYOUTS)(partial(parse_layout, shared=True))
        self._threads = local()
        self._large = Lock()

    def layout(self, text: str) -> Layout:
        """`parse_layout(text)`, the same object from the second time on while there is room."""
        if hash(text) in self._met and len(text) <= _LAYOUT_CHARACTERS:
            return self._layouts(text)
        # Thousands of objects that live on make every garbage collection longer: what comes once is not kept.
        self._met.add(hash(text))
        return parse_layout(text)

    def memory(self, size: int) -> numpy.ndarray:
        """At least `size` bytes, the same for every call of this thread; very many are not kept."""
        if size > _MEMORY_BYTES:
            return numpy.empty(size, numpy.uint8)
        kept = getattr(self._threads, "memory", None)
        if kept is None or len(kept) < size:
            kept = self._threads.memory = numpy.empty(size, numpy.uint8)
            self._threads.views = {}
        return kept

    def room(self, size: int) -> AbstractContextManager:
        """To be held by the thread that has so much more than `memory` keeps: one thread at a time."""
        return self._large if size > _MEMORY_BYTES else nullcontext()

    def views(self, region: Hashable, data: numpy.ndarray, make: Callable[[], Viewed]) -> Viewed:
        """`make()`, or what it gave when the same region lay in the same `memory`."""
        if data is not getattr(self._threads, "memory", None):
            return make()
        kept = self._threads.views
        if region not in kept:
            made = make()
            if len(kept) >= _VIEWS:
                del kept[next(iter(kept))]
            kept[region] = made
        return kept[region]

    def numbers(self, count: int) -> numpy.ndarray:
        """`count` float32 to add up in, the same for every call of this thread that asks for as many."""
        kept = getattr(self._threads, "numbers", None)
        if kept is None or len(kept) != count:
            kept = self._threads.numbers = numpy.empty(count, numpy.float32)
        return kept
