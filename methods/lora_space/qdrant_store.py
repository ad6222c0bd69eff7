"""The vectors of one space in a Qdrant server, for libraries that outgrow one machine's memory.

SQLite stays the truth; a collection is a copy that `sync` brings up to date. Several indexes may share a server: each has collections
of its own. Needs qdrant-client: `pip install intrinsic-lab[qdrant]`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy

from ..extras import extra
from .copies import PAGE, Source, Vectors
from .entries import Progress, Report
from .index import LoraIndex
from .sketch import KINDS, SKETCH_VERSION
from .space import Candidate, Pca, pack, project

_BATCH = 256


def connect(where: str) -> Any:
    """A client for a server's address ("http://host:6333") or, in Qdrant's local mode, a folder or ":memory:".

    Raises ValueError if qdrant-client is not installed.
    """
    QdrantClient = extra("qdrant_client", "Searching in Qdrant").QdrantClient
    if where.startswith(("http://", "https://")):
        return QdrantClient(url=where)
    return QdrantClient(location=where) if where == ":memory:" else QdrantClient(path=where)


class QdrantStore:
    """A `Store` whose vectors are in the collection of one fitted space; make it with `sync`."""

    def __init__(self, client: Any, identity: str, family: str, subnetwork: str, pca: Mapping[str, Pca]) -> None:
        self.family, self.subnetwork, self.pca = family, subnetwork, dict(pca)
        self._client = client
        # Vectors of one fit compare with no other's.
        fit = hashlib.blake2b(b"%d " % SKETCH_VERSION + pack(self.pca)[1], digest_size=6).hexdigest()
        self._prefix = f"lora-space.{identity}.{family}.{subnetwork}."
        self.collection = self._prefix + fit

    @classmethod
    def sync(cls, client: Any, index: LoraIndex, family: str, subnetwork: str = "all", report: Report | None = None) -> "QdrantStore":
        """Brings the collection in step with the index: new and changed LoRAs are sent, missing ones deleted, older fits dropped."""
        source = Source.of_index(index, family, subnetwork)
        store = cls(client, index.identity, family, subnetwork, source.pca)
        store._make(source.dimensions)
        total = sum(len(send) for send, _ in source.unsent(store._there(), _BATCH))
        done = 0
        for send, gone in source.unsent(store._there(), _BATCH):
            if gone:
                client.delete(store.collection, points_selector=gone)
            if send:
                store._send(*source.vectors(list(send)), send)
                done += len(send)
                if report:
                    report(Progress("send", done, max(done, total)))
        return store

    def project(self, sketches: Mapping[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
        """See `Store`."""
        return project(self.pca, sketches)

    def nearest(self, query: Mapping[str, numpy.ndarray], count: int, allowed: Sequence[int] | None = None) -> list[Candidate]:
        """See `Store`. Approximate on a server with large collections (HNSW): every kind's best are found with its usual recall."""
        from qdrant_client import models

        chosen = None if allowed is None else models.Filter(must=[models.HasIdCondition(has_id=list(allowed))])
        found: dict[int, Candidate] = {}
        for kind in KINDS:
            points = self._client.query_points(
                self.collection, query=query[kind].tolist(), using=kind, limit=count, query_filter=chosen, with_vectors=True
            ).points
            for point in points:
                cosines = (float(numpy.dot(point.vector[other], query[other])) for other in KINDS)
                found[int(point.id)] = Candidate(int(point.id), *cosines)
        return sorted(found.values(), key=lambda candidate: (-candidate.score, candidate.id))

    def _make(self, dimensions: int) -> None:
        from qdrant_client import models

        names = [collection.name for collection in self._client.get_collections().collections]
        for name in names:
            if name.startswith(self._prefix) and name != self.collection:
                self._client.delete_collection(name)
        if self.collection not in names:
            sizes = {kind: models.VectorParams(size=dimensions, distance=models.Distance.COSINE) for kind in KINDS}
            self._client.create_collection(self.collection, vectors_config=sizes)

    def _there(self) -> Iterator[tuple[int, str]]:
        """(id, stamp) of what the collection holds, by rising id."""
        offset = None
        while True:
            points, offset = self._client.scroll(self.collection, limit=PAGE, offset=offset, with_payload=["stamp"], with_vectors=False)
            yield from ((int(point.id), point.payload["stamp"]) for point in points)
            if offset is None:
                return

    def _send(self, ids: Sequence[int], vectors: Vectors, stamps: Mapping[int, str]) -> None:
        from qdrant_client import models

        points = [
            models.PointStruct(id=number, vector={kind: vectors[kind][row].tolist() for kind in KINDS}, payload={"stamp": stamps[number]})
            for row, number in enumerate(ids)
        ]
        if points:
            self._client.upsert(self.collection, points)
