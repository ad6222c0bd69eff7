"""LoRAs as a map: like lies near like. t-SNE (van der Maaten and Hinton, 2008) of the vectors of both sketches.

Up to LAID_OUT LoRAs are laid out exactly; of more as many are drawn at random, and the others take
their places among those they are nearest to.
"""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy
from PIL import Image, ImageDraw, ImageFont

from .clusters import cluster_vectors, landmarks, name_clusters
from .entries import Entry, Progress, Report
from .index import LoraIndex

LAID_OUT = 1_200
_ROUNDS, _EXAGGERATED = 400, 120
_PERPLEXITY = 12.0
_NEIGHBOURS = 5


@dataclass(frozen=True)
class Point:
    """A LoRA on the map. x, y: 0..1, y down. cluster: place in `LoraMap.clusters`."""

    entry: Entry
    x: float
    y: float
    cluster: int


@dataclass(frozen=True)
class Cluster:
    """x, y: above what its name is written, 0..1. color: "#rrggbb"."""

    label: str
    size: int
    x: float
    y: float
    color: str


@dataclass(frozen=True)
class LoraMap:
    """All embedded LoRAs of a family (and folder) on a plane, in clusters, the largest first."""

    family: str
    subnetwork: str
    points: tuple[Point, ...]
    clusters: tuple[Cluster, ...]

    def as_json(self) -> dict[str, Any]:
        points = [
            point.entry.as_json() | {"x": round(point.x, 5), "y": round(point.y, 5), "cluster": point.cluster} for point in self.points
        ]
        clusters = [asdict(cluster) for cluster in self.clusters]
        return {"family": self.family, "subnetwork": self.subnetwork, "points": points, "clusters": clusters}


def map_loras(
    index: LoraIndex,
    *,
    family: str | None = None,
    subnetwork: str = "all",
    folder: str | None = None,
    clusters: int | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> LoraMap:
    """The map of a family (None: the one with the most LoRAs). The same files and seed give the same map. report may raise to stop.

    Raises ValueError if the index holds no embedded LoRA of that family, sub-network and folder.
    """
    family = family or next(iter(index.families()), "")
    space = index.space(family, subnetwork)
    entries = {entry.id: entry for entry in index.entries(family=family, folder=folder)}
    # By name: ids depend on which file was read first.
    row_of = {int(number): row for row, number in enumerate(space.ids) if int(number) in entries}
    rows = [row_of[number] for number in sorted(row_of, key=lambda number: entries[number].name)]
    if not rows:
        where = f" in {folder}" if folder else ""
        raise ValueError(f"the index holds no {family or 'readable'} LoRA with {subnetwork} weights{where}: update the index first.")
    shown = [entries[int(space.ids[row])] for row in rows]
    vectors = space.joint[rows]
    places = layout(vectors, seed, report)
    labels = cluster_vectors(vectors, clusters, seed)
    names = name_clusters(shown, labels.tolist())
    points = tuple(
        Point(entry, float(x), float(y), int(label)) for entry, (x, y), label in zip(shown, places, labels, strict=True)
    )  # fmt: skip
    found = []
    for label, name in enumerate(names):
        members = places[labels == label]
        found.append(Cluster(name, len(members), float(numpy.median(members[:, 0])), float(members[:, 1].min()), _color(label)))
    return LoraMap(family, subnetwork, points, tuple(found))


def layout(vectors: numpy.ndarray, seed: int = 0, report: Report | None = None) -> numpy.ndarray:
    """Places [n, 2] in 0..1 of unit rows [n, d]."""
    chosen = landmarks(len(vectors), LAID_OUT, seed)
    sample = vectors[chosen]

    def progress(done: int) -> None:
        if report:
            report(Progress("layout", done, _ROUNDS))

    placed = _tsne(sample, progress) if len(sample) > 4 else _principal_plane(sample)
    if len(chosen) < len(vectors):
        placed = numpy.concatenate([_among(part, sample, placed) for part in numpy.array_split(vectors, len(vectors) // 1000 + 1)])
    low, high = placed.min(0), placed.max(0)
    # The same scale both ways, and a margin for the names.
    span = max(float((high - low).max()), 1e-12)
    return 0.5 + (placed - (low + high) / 2) / span * 0.9


def _among(vectors: numpy.ndarray, sample: numpy.ndarray, placed: numpy.ndarray) -> numpy.ndarray:
    cosines = vectors @ sample.T
    nearest = numpy.argpartition(-cosines, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    weights = numpy.maximum(numpy.take_along_axis(cosines, nearest, 1), 1e-3) ** 4
    # A landmark is its own nearest, and stays where it is.
    return (placed[nearest] * (weights / weights.sum(1, keepdims=True))[..., None]).sum(1)


def _principal_plane(vectors: numpy.ndarray) -> numpy.ndarray:
    centered = vectors - vectors.mean(0)
    left, lengths, right = numpy.linalg.svd(centered, full_matrices=False)
    plane = numpy.zeros((len(vectors), 2))
    kept = min(2, len(lengths))
    plane[:, :kept] = left[:, :kept] * lengths[:kept] * numpy.sign(right[numpy.arange(kept), numpy.abs(right[:kept]).argmax(1)])
    return plane


def _tsne(vectors: numpy.ndarray, progress: Callable[[int], None]) -> numpy.ndarray:
    """Exact t-SNE from the principal plane: [n, 2]."""
    likeness = _joint_probabilities(numpy.maximum(2 - 2 * vectors @ vectors.T, 0), min(_PERPLEXITY, (len(vectors) - 1) / 3))
    places = _principal_plane(vectors).astype(numpy.float32)
    # Twins would stay on one spot: equal places have no gradient between them.
    places = places / max(places.std(), 1e-12) * 1e-4 + numpy.random.default_rng(0).normal(0, 1e-6, places.shape).astype(numpy.float32)
    step, gains = numpy.zeros_like(places), numpy.ones_like(places)
    rate = max(len(places) / 12 / 4, 50)
    for round_ in range(_ROUNDS):
        early = round_ < _EXAGGERATED
        squares = (places**2).sum(1)
        kernel = 1 / (1 + numpy.maximum(squares[:, None] + squares[None] - 2 * places @ places.T, 0))
        numpy.fill_diagonal(kernel, 0)
        force = (likeness * (12 if early else 1) - kernel / kernel.sum()) * kernel
        gradient = 4 * (places * force.sum(1)[:, None] - force @ places)
        gains = numpy.where(numpy.sign(gradient) == numpy.sign(step), numpy.maximum(gains * 0.8, 0.01), gains + 0.2)
        step = (0.5 if early else 0.8) * step - rate * gains * gradient
        places = places + step
        progress(round_ + 1)
    return places.astype(numpy.float64)


def _joint_probabilities(distances: numpy.ndarray, perplexity: float) -> numpy.ndarray:
    """[n, n], sums to 1: Gaussian neighbourhoods whose widths are bisected, all rows at once, to the perplexity."""
    numpy.fill_diagonal(distances, numpy.inf)
    distances -= distances.min(1, keepdims=True)
    low, high = numpy.full(len(distances), 1e-3), numpy.full(len(distances), 1e6)
    for _ in range(40):
        beta = numpy.sqrt(low * high)
        weights = numpy.exp(-distances * beta[:, None])
        share = weights / weights.sum(1, keepdims=True)
        entropy = -(share * numpy.log(numpy.maximum(share, 1e-30))).sum(1)
        wide = entropy > numpy.log(perplexity)
        low, high = numpy.where(wide, beta, low), numpy.where(wide, high, beta)
    both = share + share.T
    return (both / both.sum()).astype(numpy.float32)


def _color(label: int) -> str:
    # Golden-ratio hues: neighbours in the list differ.
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.55 + 0.25 * (label // 8 % 2), 0.95 - 0.2 * (label // 16 % 2))
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def draw_map(lora_map: LoraMap, size: int = 1024, marked: Sequence[str] = ()) -> numpy.ndarray:
    """The map as a picture, uint8 [size, size, 3]. marked: names of LoRAs to ring and to name."""
    # Drawn twice as large, for smooth edges.
    canvas = Image.new("RGB", (2 * size, 2 * size), "#16181d")
    draw = ImageDraw.Draw(canvas)
    radius = 2 * size * float(numpy.clip(0.11 / max(len(lora_map.points), 1) ** 0.5, 0.0022, 0.009))
    for point in lora_map.points:
        _dot(draw, point.x * 2 * size, point.y * 2 * size, radius, fill=lora_map.clusters[point.cluster].color)
    canvas = canvas.resize((size, size), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas, "RGBA")
    taken: list[tuple[float, float, float, float]] = []
    for cluster in lora_map.clusters:
        _write(draw, size, cluster.x, cluster.y - 0.025, f"{cluster.label}  {cluster.size}", cluster.color, size // 48, taken)
    chosen = set(marked)
    for point in (point for point in lora_map.points if point.entry.name in chosen):
        _dot(draw, point.x * size, point.y * size, max(radius, 4), outline="#ffffff", width=2)
        _write(draw, size, point.x, point.y + 0.025, point.entry.name, "#ffffff", size // 64, taken)
    return numpy.asarray(canvas)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, **look: Any) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), **look)


def _write(draw: ImageDraw.ImageDraw, size: int, x: float, y: float, text: str, color: str, height: int, taken: list) -> None:
    """A label near (x, y), moved down past those that are there already, inside the picture."""
    font = ImageFont.load_default(max(height, 10))
    text = text if len(text) <= 40 else f"{text[:39]}…"
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, tall = right - left + 10, bottom - top + 8
    x0 = min(max(x * size - width / 2, 2), size - width - 2)
    y0 = min(max(y * size - tall / 2, 2), size - tall - 2)
    while any(x0 < other[2] and other[0] < x0 + width and y0 < other[3] and other[1] < y0 + tall for other in taken) and y0 < size - tall:
        y0 += tall / 2
    taken.append((x0, y0, x0 + width, y0 + tall))
    draw.rounded_rectangle((x0, y0, x0 + width, y0 + tall), 4, fill=(10, 11, 14, 190))
    draw.text((x0 + 5 - left, y0 + 4 - top), text, font=font, fill=color)
