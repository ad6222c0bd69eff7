"""Indexing a collection beside ComfyUI's own work, for the front end: nothing is queued, and nobody waits for it."""

import logging
import threading
from typing import Any

from ....methods.lora_space.entries import Progress
from ..paths import without_roots
from . import lora_collection

# A second reader would be no faster than the disk for long, and take the core that answers the browser.
_WORKERS = 1


class _Stopped(Exception):
    """Somebody has asked for it."""


class BackgroundIndex:
    """One collection's update in a thread of its own; what it has read stays when it is stopped, or ComfyUI is."""

    def __init__(self, collection: str) -> None:
        """Raises ValueError if there is no such collection."""
        self._roots = lora_collection.roots_of(collection)
        self._database = lora_collection.database_of(collection)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._progress = Progress("read", 0, 0)
        self._ending = ""

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def state(self) -> dict[str, Any]:
        """running, done and total (files that had to be read), ending: what came of it, "" before that."""
        return {"running": self.running, "done": self._progress.done, "total": self._progress.total, "ending": self._ending}

    def start(self) -> None:
        """Begins, unless it is running."""
        with self._lock:
            if not self.running:
                self._stop.clear()
                self._progress, self._ending = Progress("read", 0, 0), ""
                self._thread = threading.Thread(target=self._run, name="intrinsic lab: index", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Ends it after the file at hand."""
        self._stop.set()

    def wait(self) -> None:
        """Until it has ended."""
        if self._thread is not None:
            self._thread.join()

    def _report(self, progress: Progress) -> None:
        self._progress = progress
        if self._stop.is_set():
            raise _Stopped

    def _run(self) -> None:
        from ....methods.lora_space.index import LoraIndex

        try:
            with LoraIndex(self._database) as index:
                summary = index.update(self._roots, workers=_WORKERS, report=self._report)
                # So that searches, which only read, find everybody in their place.
                for family in index.families():
                    index.space(family)
            # The problems are told one by one by Index LoRAs.
            self._ending = summary.text().partition("\n")[0]
        except _Stopped:
            self._ending = "Stopped; what was read is kept."
        except Exception as error:
            logging.exception("Intrinsic Lab could not index the LoRAs")
            self._ending = without_roots(f"It ended with an error: {error}")


_of_collection: dict[str, BackgroundIndex] = {}


def background_index(collection: str) -> BackgroundIndex:
    """The one of a collection. Raises ValueError if there is no such collection."""
    if collection not in _of_collection:
        _of_collection.setdefault(collection, BackgroundIndex(collection))
    return _of_collection[collection]
