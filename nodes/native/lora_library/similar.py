"""What the front end's panel shows: the LoRAs most like one, by the index alone, and what a LoRA's header says. Nothing is written."""

import sqlite3
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....methods.lora_space.entries import Entry
from ..paths import without_roots
from .background_index import background_index
from .files import BUNDLED_MARK
from .lora_collection import BUNDLED, LORAS, database_of, lora_path, shown_name

if TYPE_CHECKING:
    from ....methods.lora_space.index import LoraIndex

MOST = 100
# While a shelf is indexed, it is looked at anew so often: reading all of it takes longer than an answer.
STALE_SECONDS = 5.0
# An index has the vectors of its collection in memory: opened once, and asked by one request after the other.
_one_at_a_time = threading.Lock()
_open: dict[str, tuple[tuple[int, int], "LoraIndex"]] = {}


def similar_loras(name: str, k: int) -> dict[str, Any]:
    """The k LoRAs (at most MOST) most like the one with that shown name: rows of name, score and facts, best first.

    message: why there are none, where that is so. Raises FileNotFoundError for a name that no list shows.
    """
    from ....methods.lora_space.search import find_similar

    path, collection = lora_path(name), BUNDLED if name.endswith(BUNDLED_MARK) else LORAS
    answer: dict[str, Any] = {"collection": collection, "indexing": background_index(collection).state(), "indexed": 0}
    answer |= {"message": "", "query": None, "loras": []}
    with _one_at_a_time:
        try:
            index = _reading(collection)
            index.stale_seconds = STALE_SECONDS if answer["indexing"]["running"] else 0.0
            answer["indexed"] = sum(index.families().values())
            entry = index.entry(path)
            answer["query"] = _row(entry, name)
            if not entry.embedded:
                raise ValueError(f"{name} was read by an older version: update the index.")
            found = find_similar(index, [path], k=min(max(k, 1), MOST), rerank=0)
        except (ValueError, sqlite3.Error) as error:
            return answer | {"message": without_roots(str(error))}
    answer["loras"] = [_row(match.entry, shown_name(match.entry, collection)) | {"score": round(match.score, 4)} for match in found]
    return answer if found else answer | {"message": f"No other LoRA of this index is made for {entry.family}."}


def lora_facts(name: str) -> dict[str, Any]:
    """What the header of the LoRA with that shown name says of its training. Raises FileNotFoundError as above, BadFile for no header."""
    from ....methods.lora.training_facts import training_facts
    from ....methods.lora.weight_file import read_header

    return asdict(training_facts(read_header(lora_path(name)).metadata))


def _row(entry: Entry, name: str) -> dict[str, Any]:
    """What a row says, without the place of the file."""
    facts = entry.as_json()
    return {"name": name, "family": entry.family, "variant": entry.variant, "format": entry.format, "rank": facts["rank"]}


def _reading(collection: str) -> "LoraIndex":
    """Opened anew where the file is another one. Raises ValueError where there is no index."""
    from ....methods.lora_space.index import LoraIndex

    database = Path(database_of(collection))
    state = database.stat() if database.is_file() else None
    identity = (state.st_dev, state.st_ino) if state else (0, 0)
    if collection in _open and _open[collection][0] != identity:
        _open.pop(collection)[1].close()
    if state is None:
        raise ValueError("These LoRAs have no index yet.")
    if collection not in _open:
        _open[collection] = identity, LoraIndex(database, read_only=True)
    return _open[collection][1]
