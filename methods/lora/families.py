"""Which base model a LoRA was made for, from its header alone: names and shapes of all its modules decide, metadata only between equals.

UNets are told by what their cross-attention reads. Transformers are looked up in `structures.json`, which says what modules of each family
there are, of which shapes, and how many blocks (`python -m intrinsic_lab.benchmarks.lora_formats_table --structures` writes it, from
ComfyUI's own model classes). What agrees with none is grouped by a fingerprint of its structure.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

from .formats.base import Sizes
from .header import text_of
from .names import fused_rows

_NAMED = (
    (r"stable-diffusion-xl|sdxl|kohaku-xl|pony|illustrious|noobai|kolors", "sdxl"),
    (r"stable-diffusion-v?3\.5.*medium|sd3\.?5.*medium", "sd3.5-medium"),
    (r"stable-diffusion-v?3|^sd3", "sd3"),
    (r"stable-diffusion-v?2|^sd_v2|^sd2", "sd2"),
    (r"stable-diffusion-v?1|^sd_v1|^sd1", "sd1"),
    (r"chroma", "chroma"),
    (r"klein.*4b", "flux2-klein-4b"),
    (r"klein.*9b", "flux2-klein-9b"),
    (r"flux-?\.?2", "flux2"),
    (r"flux", "flux1"),
    (r"hunyuan-?_?video", "hunyuan-video"),
    (r"qwen-?_?image", "qwen-image"),
    (r"ltx-?_?2", "ltx-2"),
    (r"ltx", "ltx"),
    (r"anima", "anima"),
    (r"cosmos", "cosmos-2"),
)
# Told by the base model's file name or title: the same layers, trained so far that people keep them apart.
_VARIANTS = (
    (r"pony", "pony"),
    (r"illustrious|(?:^|[^a-z])ilxl|wai-?_?(?:nsfw-?_?)?ill", "illustrious"),
    (r"noob-?_?ai|noobxl", "noobai"),
    (r"kolors", "kolors"),
    (r"animagine", "animagine"),
    (r"kontext", "kontext"),
    (r"flux[^/]*fill", "fill"),
    (r"schnell", "schnell"),
    (r"qwen[^/]*edit", "edit"),
    (r"frame-?_?pack", "framepack"),
    (r"high-?_?noise", "high noise"),
    (r"low-?_?noise", "low noise"),
    (r"i2v", "i2v"),
)
_TITLES = ("ss_sd_model_name", "modelspec.title", "ss_base_model_version", "modelspec.architecture", "ss_output_name", "base_model")
# Width of what the cross-attention reads, of UNets.
_UNETS = {768: "sd1", 1024: "sd2", 1280: "sdxl-refiner", 2048: "sdxl"}
_UNET = re.compile(r"(?:down|up)_blocks_\d+_(?:attentions|resnets|downsamplers|upsamplers)_|mid_block_(?:attentions|resnets)_")
_BLOCK = re.compile(r"([a-zA-Z_]+?)_(\d+)_")


def named_family(metadata: Mapping[str, str]) -> str | None:
    """The family that the header names: `modelspec.architecture`, then `ss_base_model_version`; None if it names none."""
    for key in ("modelspec.architecture", "ss_base_model_version"):
        text = text_of(metadata, key).lower()
        if found := next((family for pattern, family in _NAMED if re.search(pattern, text)), None):
            return found
    return None


def variant_of(metadata: Mapping[str, str]) -> str:
    """What people call the base model within its family ("pony", "kontext", "high noise"...); "" if the header does not say."""
    for key in _TITLES:
        text = text_of(metadata, key).lower()
        if found := next((name for pattern, name in _VARIANTS if re.search(pattern, text)), None):
            return found
    return ""


def base_family(sizes: Mapping[str, Sizes], metadata: Mapping[str, str]) -> str:
    """Family of a LoRA with modules (canonical names) of these sizes. What no table has is "unet-WIDTH", or "unknown-FINGERPRINT":
    comparable among themselves only."""
    return _family(tuple(sizes.items()), named_family(metadata))


@lru_cache(maxsize=256)
def _family(modules: tuple[tuple[str, Sizes], ...], named: str | None) -> str:
    sizes = dict(modules)
    encoders = {name[:4]: size for name, size in modules if re.match(r"te\d_", name)}
    network = {name: size for name, size in modules if name[:4] not in encoders}
    if not network:
        return _encoders_family(encoders, sizes, named)
    if unet := {name: size for name, size in network.items() if _UNET.match(name)}:
        return _unet_family(unet, encoders, named)
    return _transformer_family(network, named) or _fingerprint(network)


def _encoders_family(encoders: Collection[str], sizes: Mapping[str, Sizes], named: str | None) -> str:
    """Of text encoders alone: T5 beside CLIP is SD 3's or FLUX.1's, two CLIPs are SDXL's, one is told by its width."""
    known = {"te1_te2_te3_": "sd3", "te1_te3_": "flux1", "te1_te2_": "sdxl"}
    width = Counter(size.width for size in sizes.values()).most_common(1)[0][0]
    alone = {"te1_": {768: "sd1", 1024: "sd2"}.get(width), "te2_": "sdxl"}
    return named or (known | alone).get("".join(sorted(encoders))) or f"text-{width}"


def _unet_family(unet: Mapping[str, Sizes], encoders: Collection[str], named: str | None) -> str:
    if cross := Counter(size.width for name, size in unet.items() if re.search(r"attn2_to_[kv]$", name)):
        width = cross.most_common(1)[0][0]
        return _UNETS.get(width, f"unet-{width}")
    if "te2_" in encoders or any(re.search(r"transformer_blocks_[1-9]", name) for name in unet):
        return "sdxl"
    # SDXL's first level and its fourth have no attention, or are not there.
    fours = any(re.match(r"(?:down|up)_blocks_3_|down_blocks_0_attentions_", name) for name in unet)
    if named and not (fours and named == "sdxl"):
        return named
    return f"unet-unknown-{max(size.width for size in unet.values())}"


@lru_cache(maxsize=1)
def _structures() -> dict[str, dict]:
    """family -> {"depths": stack of blocks -> how many, "modules": pattern of a name -> its shapes, [out, width] each}."""
    return json.loads((Path(__file__).parent / "structures.json").read_text())


def patterns_of(sizes: Mapping[str, Sizes]) -> dict[str, set[tuple[int, int]]]:
    """Name without its numbers -> shapes (rows, columns), of the modules and of what is fused in them."""
    found: dict[str, set[tuple[int, int]]] = {}
    for name, size in sizes.items():
        for piece, start, stop in fused_rows(name, size.out, size.width):
            found.setdefault(re.sub(r"\d+", "N", piece), set()).add((stop - start, size.width))
    return found


def depths_of(names: Collection[str]) -> dict[str, int]:
    """Stack of blocks -> the largest number of a block, plus 1."""
    depths: Counter[str] = Counter()
    for name in names:
        if match := _BLOCK.match(name):
            depths[match[1]] = max(depths[match[1]], int(match[2]) + 1)
    return depths


def _transformer_family(network: Mapping[str, Sizes], named: str | None) -> str | None:
    """The family that most patterns agree with; of equals the one whose blocks are as many, the named one, the first of the table."""
    pieces = {piece for name, size in network.items() for piece, *_ in fused_rows(name, size.out, size.width)}
    patterns, depths = patterns_of(network), depths_of(pieces)
    best: tuple[list, str | None] = ([], None)
    for family, structure in _structures().items():
        known = structure["modules"]
        agreeing = sum(all(_fits(shape, known[pattern]) for shape in shapes) for pattern, shapes in patterns.items() if pattern in known)
        against = sum(pattern in known for pattern in patterns) - agreeing
        too_many = any(depths.get(stack, 0) > count for stack, count in structure["depths"].items())
        whole = sum(depths.get(stack) == count for stack, count in structure["depths"].items())
        # Shapes that contradict weigh as much as those that agree: Cosmos Predict 2 in diffusers has LTX's names and most of its shapes.
        if 2 * (agreeing - against) <= len(patterns):
            continue
        score = [agreeing, -against, not too_many, whole, family == named, _is_whole(family, known, patterns, network)]
        if score > best[0]:
            best = score, family
    return best[1]


def _fits(shape: tuple[int, int], known: list[list[int]]) -> bool:
    """Biases and factors know their rows alone."""
    return any(shape[0] == out and shape[1] in (width, 0, 1) for out, width in known)


def _is_whole(family: str, known: Mapping[str, list], patterns: Collection[str], network: Collection[str]) -> bool:
    """Whether the file has all that Chroma's blocks have and FLUX.1's have more of, as trainers write it who train all that there is."""
    blocks = {pattern for pattern in known if re.match(r"(?:single_)?transformer_blocks_N_(?!.*norm_)", pattern)}
    return family == "chroma" and blocks <= set(patterns) and any(name.startswith("double_blocks_") for name in network)


def _fingerprint(network: Mapping[str, Sizes]) -> str:
    """Of the names of the stacks of blocks and the commonest width, so that files with other targets, depths, fusions still agree."""
    pieces = [(piece, size.width) for name, size in network.items() for piece, *_ in fused_rows(name, size.out, size.width)]
    names = [piece for piece, _ in pieces]
    stacks = sorted(depths_of(names)) or sorted({re.sub(r"\d+", "N", name) for name in names})
    width = Counter(width for _, width in pieces).most_common(1)[0][0]
    return f"unknown-{hashlib.blake2b(f'{stacks} {width}'.encode(), digest_size=3).hexdigest()}"
