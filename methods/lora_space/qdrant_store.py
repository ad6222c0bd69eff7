"""The vectors of one space in a Qdrant server, for libraries that outgrow one machine's memory.

SQLite stays the truth; a collection is a copy that `sync` brings up to date. Several indexes may share a server: each has collections
of its own. Needs qdrant-client: `pip install intrinsic-lab[qdrant]`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from ..extras import extra
from .copies import Unsent, stamps_of
from .entries import Progress, Report
from .index import LoraIndex
from .sketch import KINDS, SKETCH_VERSION
from .space import Candidate, Pca, Space, pack, project

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
        space = index.space(family, subnetwork)
        store = cls(client, index.identity, family, subnetwork, space.pca)
        store._make(space)
        stamps = stamps_of(index, family)
        unsent = Unsent.of(space, stamps, store._stamps())
        for start in range(0, len(unsent.rows), _BATCH):
            store._send(space, unsent.rows[start : start + _BATCH], stamps)
            if report:
                report(Progress("send", min(start + _BATCH, len(unsent.rows)), len(unsent.rows)))
        if unsent.gone:
            client.delete(store.collection, points_selector=unsent.gone)
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

    def _make(self, space: Space) -> None:
        from qdrant_client import models

        names = [collection.name for collection in self._client.get_collections().collections]
        for name in names:
            if name.startswith(self._prefix) and name != self.collection:
                self._client.delete_collection(name)
        if self.collection not in names:
            sizes = {kind: models.VectorParams(size=space.vectors[kind].shape[1], distance=models.Distance.COSINE) for kind in KINDS}
            self._client.create_collection(self.collection, vectors_config=sizes)

    def _stamps(self) -> dict[int, str]:
        """id -> what the file was when its vectors were sent."""
        stamps, offset = {}, None
        while True:
            points, offset = self._client.scroll(self.collection, limit=10_000, offset=offset, with_payload=["stamp"], with_vectors=False)
            stamps.update({int(point.id): point.payload["stamp"] for point in points})
            if offset is None:
                return stamps

    def _send(self, space: Space, rows: Sequence[int], stamps: Mapping[int, str]) -> None:
        from qdrant_client import models

        points = [
            models.PointStruct(
                id=int(space.ids[row]),
                vector={kind: space.vectors[kind][row].tolist() for kind in KINDS},
                payload={"stamp": stamps[int(space.ids[row])]},
            )
            for row in rows
        ]
        self._client.upsert(self.collection, points)
