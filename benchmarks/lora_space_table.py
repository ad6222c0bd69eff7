"""Do weights tell styles apart? Clustering and retrieval of LoRAs trained on the nano base, each style known.

    python -m intrinsic_lab.training.nano.styles          # makes the collection, resumes
    python -m intrinsic_lab.benchmarks.lora_space_table [--collection runs/styles]

Rows: the shipped pipeline, its index alone, the paper's raw A and B with PCA, singular values only, and features of pictures
that each LoRA paints; columns: the sub-network. The synthetic collections are in lora_space_synthetic.py.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

import numpy
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..methods.lora_space.agreement import Collection, as_markdown, clustering, ours, retrieval, scores, unit_centred
from ..methods.lora_space.baseline import RawSpace, singular_values
from ..methods.lora_space.gram import exact_cosines
from ..methods.lora_space.index import LoraIndex
from ..scenes import render_scenes
from ..training.atomic import write_atomically
from ..training.intrinsic_lora import SingleStepBase, load_base
from ..training.nano.styles import SIZE, content_caption, restyle, with_lora

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SUBNETWORKS = ("all", "attention", "feed_forward")
PICTURE_SCENES = range(0, 4)


def read_collection(folder: Path) -> Collection:
    """STYLE/STYLE_SEED_rRANK.safetensors below `folder`."""
    paths = sorted(path for path in folder.glob("*/*_r*.safetensors") if path.parent.name != "work")
    if not paths:
        raise SystemExit(f"{folder} holds no LoRAs: run python -m intrinsic_lab.training.nano.styles first.")
    styles = numpy.unique([path.parent.name for path in paths], return_inverse=True)[1]
    return Collection(paths, styles, numpy.array([int(path.stem.rsplit("_r", 1)[1]) for path in paths]))


def of_weights(collection: Collection, subnetwork: str, index: LoraIndex) -> dict[str, dict[str, float]]:
    """Every row that looks at weights."""
    rows = ours(collection, subnetwork, index)
    cosines = exact_cosines(collection.paths, collection.paths, subnetwork)
    rows["exact cosine of delta W"] = retrieval(cosines, collection) | clustering(_unit_embedding(cosines), collection)
    rows["raw A and B, PCA (the paper's form)"] = scores(RawSpace.fit(collection.paths, subnetwork).vectors, collection)
    spectra = [singular_values(path, subnetwork) for path in collection.paths]
    rows["singular values only"] = scores(
        unit_centred(numpy.stack([numpy.concatenate([s[name] for name in sorted(s)]) for s in spectra])), collection
    )
    return rows


def _unit_embedding(cosines: numpy.ndarray) -> numpy.ndarray:
    """Unit rows whose cosines are those given."""
    values, vectors = numpy.linalg.eigh((cosines + cosines.T) / 2)
    kept = values > values[-1] * 1e-9
    return vectors[:, kept] * numpy.sqrt(values[kept])


@torch.no_grad()
def painted(collection: Collection, base: SingleStepBase, cache: Path) -> Tensor:
    """Pictures [lora, scene, 3, SIZE, SIZE] that each LoRA paints over the same plain scenes from the same noise."""
    if cache.exists() and len(kept := load_file(cache)["pictures"]) == len(collection.paths):
        return kept
    maps = render_scenes(PICTURE_SCENES, SIZE, SIZE)
    plain = rearrange(maps.image_bhwc, "b h w c -> b c h w")
    captions = [content_caption(caption) for caption in maps.captions]
    pictures = torch.stack([restyle(base, with_lora(base, path), plain, captions, seed=0) for path in collection.paths])
    write_atomically(cache, lambda path: save_file({"pictures": pictures.contiguous()}, path))
    return pictures


@torch.no_grad()
def of_pictures(pictures: Tensor, base: SingleStepBase, collection: Collection) -> dict[str, dict[str, float]]:
    """Means and deviations over the picture, per channel, of VAE latents and of the UNet's middle block at t = 100."""
    middle: list[Tensor] = []
    hook = base.network.mid_block.register_forward_hook(lambda module, inputs, output: middle.append(output))
    text = base.embed("").expanded(pictures.shape[1]).context
    of_vae, of_unet = [], []
    for painted_by_one in pictures:
        latent = base.vae.encode(2 * painted_by_one - 1).latent_dist.mode() * base.vae.config.scaling_factor
        base.network(latent, 100, text)
        for features, kept in ((latent, of_vae), (middle.pop(), of_unet)):
            kept.append(torch.cat([features.mean((2, 3)), features.std((2, 3))], 1).flatten().numpy())
    hook.remove()
    rows = {"pictures, nano VAE": of_vae, "pictures, nano UNet": of_unet}
    return {name: scores(unit_centred(numpy.stack(features)), collection) for name, features in rows.items()}


def chance(collection: Collection) -> dict[str, float]:
    """What a random order scores."""
    random = numpy.random.default_rng(0).normal(size=(len(collection.paths), 64))
    return scores(random / numpy.linalg.norm(random, axis=1, keepdims=True), collection)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "assets" / "nano")
    parser.add_argument("--collection", type=Path, default=ROOT / "runs" / "styles")
    parser.add_argument("--no-pictures", action="store_true", help="leave out the rows that need pictures")
    arguments = parser.parse_args()
    collection = read_collection(arguments.collection)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, LoraIndex(Path(folder) / "index.sqlite") as index:
        summary = index.update([path.parent for path in collection.paths])
        if summary.problems or summary.embedded != len(collection.paths):
            raise SystemExit(f"the collection could not be read:\n{summary.text()}")
        for part in SUBNETWORKS:
            for method, values in of_weights(collection, part, index).items():
                rows.setdefault(method, {})[part] = values
    if not arguments.no_pictures:
        base = load_base(arguments.base)
        pictures = painted(collection, base, arguments.collection / "work" / "pictures.safetensors")
        for method, values in of_pictures(pictures, base, collection).items():
            rows[method] = {"-": values}
    rows["chance"] = {"-": chance(collection)}
    text = as_markdown(rows, collection)
    print(text)
    record = {"loras": len(collection.paths), "machine": f"{platform.machine()}, CPU, {os.cpu_count()} cores", "rows": rows}
    write_atomically(RESULTS / "lora_space_table.json", lambda path: path.write_text(json.dumps(record, indent=1)))
    write_atomically(RESULTS / "lora_space_table.md", lambda path: path.write_text(text + "\n"))


if __name__ == "__main__":
    main()
