"""Do the nearest LoRAs belong to the query's cluster? On made-up shelves with known clusters, in the two regimes that real ones mix:

    python -m intrinsic_lab.benchmarks.lora_space_synthetic [--sizes 100 500 1000] [--seeds 0 1 2]

- shared: all LoRAs of a shelf work in the same subspaces, D = U C V^T; a cluster shares C; each file hides it behind a random
  refactorisation B R, R^-1 A. (Training that starts from one A, or from the same data.)
- own A: every LoRA has a random A of its own, as kohya and peft draw it, and B = G A^T with the cluster's gradient G.

32 layers of 320..1280, ranks 4, 8, 16 and 32 mixed, 10 LoRAs per cluster, noise as strong as the signal, fp16 kohya files. Rows: the
paper's form (raw A and B, PCA, calibrated), the exact Gram matrix of the changes, each sketch alone, and what ships (both sketches, PCA,
the best 50 re-ranked exactly) through the index and `find_similar`. Top-1, and hit@5: any of the first five in the query's cluster.
"""

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean

import numpy
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..methods.lora.layers import LoraLayer
from ..methods.lora.lora_file import kohya_state_dict
from ..methods.lora_space.index import LoraIndex
from ..methods.lora_space.search import find_similar
from ..methods.lora_space.sketch import KINDS, SKETCH_VERSION, unit
from ..tools.console import format_table
from ..training.atomic import write_atomically

RESULTS = Path(__file__).resolve().parent / "results"
KEPT = RESULTS.parents[1] / "runs" / "lora_space_synthetic"
DIMENSIONS = (320, 640, 1280)
LAYERS = [(DIMENSIONS[index % 3], DIMENSIONS[index // 3 % 3]) for index in range(32)]
RANKS = (4, 8, 16, 32)
PER_CLUSTER = 10
SIGNAL_RANK = 8
QUERIES = 100
REGIMES = ("shared", "own A")


Lora = list[tuple[Tensor, Tensor]]
"""(up [out, r], down [r, in]) of every layer, fp16."""


class Shelf:
    """A made-up shelf: `lora(i)` is drawn from (regime, seed, i) alone. labels [n]: clusters."""

    def __init__(self, regime: str, count: int, seed: int) -> None:
        self.regime, self.seed = regime, seed
        self.labels = numpy.arange(count) % max(count // PER_CLUSTER, 1)
        self._bases = [(_normal(seed, 1, layer, out, 32), _normal(seed, 2, layer, width, 32)) for layer, (out, width) in enumerate(LAYERS)]

    def lora(self, number: int) -> Lora:
        cluster = int(self.labels[number])
        rank = RANKS[int(torch.randint(4, (1,), generator=_generator(self.seed, 3, number)))]
        make = self._shared if self.regime == "shared" else self._own
        factors = (make(layer, cluster, number, rank) for layer in range(len(LAYERS)))
        return [(up.half(), down.half()) for up, down in factors]

    def _shared(self, layer: int, cluster: int, number: int, rank: int) -> tuple[Tensor, Tensor]:
        left, right = self._bases[layer]
        coupling = (_normal(self.seed, 4, layer, cluster, 32, 32) + _normal(self.seed, 5, layer, number, 32, 32))[:rank, :rank]
        rotation, _ = torch.linalg.qr(_normal(self.seed, 6, layer, number, rank, rank))
        hidden = rotation * torch.exp(0.5 * _normal(self.seed, 7, layer, number, rank))
        return left[:, :rank] @ coupling @ hidden * 0.01, torch.linalg.inv(hidden) @ right[:, :rank].T * 0.01

    def _own(self, layer: int, cluster: int, number: int, rank: int) -> tuple[Tensor, Tensor]:
        out, width = LAYERS[layer]
        down = (torch.rand(rank, width, generator=_generator(self.seed, 8, layer, number)) * 2 - 1) / width**0.5
        gradient = [
            (_normal(self.seed, step, layer, who, out, SIGNAL_RANK), _normal(self.seed, step + 1, layer, who, SIGNAL_RANK, width))
            for step, who in ((9, cluster), (11, number))
        ]
        return sum(one @ (other @ down.T) for one, other in gradient) * 1e-3, down


def _generator(*key: int) -> torch.Generator:
    mixed = int(numpy.random.SeedSequence(key).generate_state(1, numpy.uint64)[0])
    return torch.Generator().manual_seed(mixed)


def _normal(*key: int) -> Tensor:
    """Normal numbers of the shape that ends the key: two sides, or one where the key is (seed, 7, layer, number, side)."""
    shape = key[-1:] if key[1] == 7 else key[-2:]
    return torch.randn(*shape, generator=_generator(*key))


def write_shelf(loras: list[Lora], folder: Path) -> list[Path]:
    """The shelf as kohya files, in the order of its numbers."""
    paths = []
    for number, lora in enumerate(loras):
        paths.append(folder / f"{number:05}.safetensors")
        layers = {_layer_name(layer): LoraLayer(down, up) for layer, (up, down) in enumerate(lora)}
        save_file(kohya_state_dict(layers), paths[-1])
    return paths


def _layer_name(layer: int) -> str:
    block, place = divmod(layer, 4)
    return f"down_blocks.0.attentions.0.transformer_blocks.{block}.attn1.{('to_q', 'to_k', 'to_v', 'to_out.0')[place]}"


def hits(order: numpy.ndarray, queries: numpy.ndarray, labels: numpy.ndarray) -> tuple[float, float]:
    """(top-1, hit@5) of rows of neighbours [q, 5 or more], best first, the query not among them."""
    right = labels[order[:, :5]] == labels[queries][:, None]
    return float(right[:, 0].mean()), float(right.any(1).mean())


def nearest(vectors: numpy.ndarray, queries: numpy.ndarray) -> numpy.ndarray:
    """The five nearest rows of each query, by cosine (unit rows)."""
    cosines = vectors[queries] @ vectors.T
    cosines[numpy.arange(len(queries)), queries] = -numpy.inf
    return numpy.argsort(-cosines, axis=1)[:, :5]


def exact_cosines(loras: list[Lora], queries: numpy.ndarray) -> numpy.ndarray:
    """Cosines [q, n] of the changes: layer by layer, all LoRAs side by side, in rank space."""
    owner = torch.cat([torch.full((lora[0][1].shape[0],), number) for number, lora in enumerate(loras)])
    asked = torch.isin(owner, torch.from_numpy(queries))
    total, squares = torch.zeros(len(loras), len(loras)), torch.zeros(len(loras))
    for layer in range(len(LAYERS)):
        factors = [(lora[layer][0].float(), lora[layer][1].float()) for lora in loras]
        up, down = torch.cat([one for one, _ in factors], 1), torch.cat([other for _, other in factors])
        products = (up[:, asked].T @ up) * (down[asked] @ down.T)
        summed = torch.zeros(len(products), len(loras)).index_add_(1, owner, products)
        total.index_add_(0, owner[asked], summed)
        squares += torch.tensor([float(((one.T @ one) * (other @ other.T)).sum()) for one, other in factors])
    norms = squares.sqrt()
    return (total / (norms[:, None] * norms[None]))[torch.from_numpy(queries)].numpy()


def raw_vectors(loras: list[Lora], dimensions: int = 256) -> numpy.ndarray:
    """`baseline.RawSpace.fit(...).vectors` without holding all the flattened files at once: PCA by their Gram matrix, layer by layer.

    A file of rank r is zero in the columns after r: those are multiplied only among the files that have them.
    """
    ranks = numpy.array([lora[0][0].shape[1] for lora in loras])
    total = torch.zeros(len(loras), len(loras), dtype=torch.float64)
    for first, last in pairwise((0, *RANKS)):
        members = torch.from_numpy(numpy.flatnonzero(ranks >= last))
        gram = torch.zeros(len(members), len(members), dtype=torch.float64)
        for layer in range(len(LAYERS) if len(members) else 0):
            factors = [loras[number][layer] for number in members.tolist()]
            rows = torch.stack([torch.cat([up[:, first:last].flatten(), down[first:last].flatten()]) for up, down in factors]).float()
            gram += rows @ rows.T
        total[members[:, None], members] += gram
    center = torch.eye(len(loras), dtype=torch.float64) - 1 / len(loras)
    values, vectors = torch.linalg.eigh(center @ total @ center)
    kept = values > values[-1] * 1e-7
    return unit((vectors[:, kept] * values[kept].sqrt())[:, -dimensions:].numpy())


def measure(regime: str, count: int, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """{row: {top-1, hit@5, seconds}} of one shelf."""
    shelf = Shelf(regime, count, seed)
    loras = [shelf.lora(number) for number in range(count)]
    paths = write_shelf(loras, folder)
    queries = numpy.sort(numpy.random.default_rng(seed).choice(count, min(count, QUERIES), replace=False))
    rows = {}

    def row(name: str, order: numpy.ndarray, since: float) -> None:
        top_1, hit_5 = hits(order, queries, shelf.labels)
        rows[name] = {"top-1": top_1, "hit@5": hit_5, "seconds": round(time.perf_counter() - since, 1)}

    start = time.perf_counter()
    row("raw A, B + PCA (the paper's form)", nearest(raw_vectors(loras), queries), start)
    start = time.perf_counter()
    cosines = exact_cosines(loras, queries)
    cosines[numpy.arange(len(queries)), queries] = -numpy.inf
    row("exact Gram of the changes", numpy.argsort(-cosines, axis=1)[:, :5], start)
    del loras
    start = time.perf_counter()
    with LoraIndex(folder / "index.sqlite") as index:
        index.update([folder])
        (family,) = index.families()
        space = index.space(family)
        numbers = {entry.id: int(Path(entry.path).stem) for entry in index.entries()}
        order = numpy.argsort([numbers[int(one)] for one in space.ids])
        for kind in KINDS:
            row(f"{kind.replace('_', '-')} sketch", nearest(space.vectors[kind][order], queries), start)
        row("both sketches, no re-rank", nearest(space.joint[order], queries), start)
        start = time.perf_counter()
        found = [[numbers[match.entry.id] for match in find_similar(index, [paths[query]], k=5)] for query in queries]
        row("shipped: both sketches, best 50 exact", numpy.array(found), start)
    return rows


def kept_rows(regime: str, count: int, seed: int, kept: Path) -> dict[str, dict[str, float]]:
    """`measure`, once: a shelf that was measured before is read back."""
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(regime, count, seed, Path(folder)) | {"load": {"load": os.getloadavg()[0]}}
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda path: path.write_text(json.dumps(rows)))
    return {row: values for row, values in json.loads(kept.read_text()).items() if row != "load"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 500, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=REGIMES)
    parser.add_argument(
        "--kept", type=Path, default=RESULTS.parents[1] / "runs" / "lora_space_synthetic", help="scores, one file per shelf"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    load, found = os.getloadavg()[0], {}
    for seed in options.seeds:
        for count in sorted(options.sizes, reverse=True):
            for regime in options.regimes:
                kept = options.kept / f"{SKETCH_VERSION}-{regime.replace(' ', '-')}-{count}-{seed}.json"
                for row, values in kept_rows(regime, count, seed, kept).items():
                    found.setdefault((regime, count, row), []).append(values)
                logging.info("%s, n = %d, seed %d", regime, count, seed)
    table = [
        {"regime": regime, "n": count, "embedding": row} | {key: round(mean(one[key] for one in values), 3) for key in ("top-1", "hit@5")}
        for (regime, count, row), values in sorted(found.items(), key=lambda item: (item[0][0], item[0][1]))
    ]
    print(format_table(table))
    shipped = [one for one in table if one["embedding"].startswith("shipped") and one["n"] == max(options.sizes)]
    print("; ".join(f"shipped, {one['regime']}, n = {one['n']}: top-1 {one['top-1']:.3f} (wanted 0.98)" for one in shipped))
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load_before": round(load, 1)}
    record = {"machine": machine, "seeds": options.seeds, "queries": QUERIES, "rows": table}
    result = Path(os.environ.get("INTRINSIC_LAB_RESULT") or RESULTS / "lora_space_synthetic.json")
    write_atomically(result, lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    write_atomically(RESULTS / "lora_space_synthetic.md", lambda path: path.write_text(format_table(table) + "\n"))


if __name__ == "__main__":
    main()
