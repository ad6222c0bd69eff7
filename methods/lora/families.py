"""Which base model a LoRA was made for, from its header alone: shapes decide, metadata only chooses between families of one shape."""

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from .header import text_of

_NAMED = (
    (r"stable-diffusion-xl|sdxl|kohaku-xl|pony|illustrious", "sdxl"),
    (r"stable-diffusion-v?3|^sd3", "sd3"),
    (r"stable-diffusion-v?2|^sd_v2|^sd2", "sd2"),
    (r"stable-diffusion-v?1|^sd_v1|^sd1", "sd1"),
    (r"flux-?\.?2", "flux2"),
    (r"flux", "flux1"),
    (r"hunyuan-?_?video", "hunyuan-video"),
    (r"qwen-?_?image", "qwen-image"),
    (r"wan-?_?2|wan2", "wan"),
    (r"z-?_?image", "z-image"),
    (r"chroma", "chroma"),
    (r"lumina", "lumina"),
    (r"auraflow", "auraflow"),
    (r"pixart", "pixart"),
)
# Width of what the cross-attention reads, of UNets.
_UNETS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_TRANSFORMERS = {"flux": {3072: "flux1", 6144: "flux2"}, "sd3": {1536: "sd3", 2432: "sd3.5-large"}, "wan": {}, "dit": {}}


def named_family(metadata: Mapping[str, str]) -> str | None:
    """The family that the header names: `modelspec.architecture`, then `ss_base_model_version`; None if it names none."""
    for key in ("modelspec.architecture", "ss_base_model_version"):
        text = text_of(metadata, key).lower()
        if found := next((family for pattern, family in _NAMED if re.search(pattern, text)), None):
            return found
    return None


def base_family(widths: Mapping[str, int], metadata: Mapping[str, str]) -> str:
    """Family of a LoRA whose modules (canonical names) read vectors of these widths; "unknown-WIDTH" where nothing tells.

    A UNet of another width is "unet-WIDTH" and a transformer "flux-WIDTH", "dit-WIDTH"...: comparable among themselves only.
    """
    return _family(tuple(widths.items()), named_family(metadata))


@lru_cache(maxsize=256)
def _family(modules: tuple[tuple[str, int], ...], named: str | None) -> str:
    widths = dict(modules)
    unet = {name: width for name, width in widths.items() if re.match(r"(?:down|mid|up)_block", name)}
    if unet:
        return _unet_family(unet, widths, named)
    if found := _transformer_family(widths, named):
        return found
    encoders = {name[:3] for name in widths if name.startswith("te")}
    if encoders and len(encoders) == len({name[:3] for name in widths}):
        # Text encoders alone: two are SDXL's, one is told by its width.
        by_width = {768: "sd1", 1024: "sd2"}.get(_common(widths), f"text-{_common(widths)}")
        return named or ("sdxl" if encoders == {"te1", "te2"} else by_width)
    return named or f"unknown-{_common(widths)}"


def _common(widths: Mapping[str, int]) -> int:
    return Counter(widths.values()).most_common(1)[0][0]


def _unet_family(unet: Mapping[str, int], widths: Mapping[str, int], named: str | None) -> str:
    cross = Counter(width for name, width in unet.items() if re.search(r"attn2_to_[kv]$", name))
    if cross:
        width = cross.most_common(1)[0][0]
        return _UNETS.get(width, f"unet-{width}")
    if any(name.startswith("te2_") for name in widths) or any(re.search(r"transformer_blocks_[1-9]", name) for name in unet):
        return "sdxl"
    return named or f"unet-unknown-{max(unet.values())}"


def _transformer_family(widths: Mapping[str, int], named: str | None) -> str | None:
    names = " ".join(widths)
    blocks = {name: width for name, width in widths.items() if re.match(r"(?:\w+_)?blocks_\d+_|layers_\d+_", name)}
    if not blocks:
        return None
    width = min(value for value in blocks.values())
    if re.search(r"single_transformer_blocks_|(?:single|double)_blocks_", names):
        # Chroma has FLUX.1's shapes; HunyuanVideo has its width, one double and two single blocks more, and names of its own.
        if named in ("chroma", "hunyuan-video") and width == 3072:
            return named
        if width == 3072 and re.search(r"double_blocks_19_|img_mlp_fc1|img_attn_proj_|individual_token_refiner", names):
            return "hunyuan-video"
        return _TRANSFORMERS["flux"].get(width, f"flux-{width}")
    if re.search(r"joint_blocks_|transformer_blocks_\d+_attn_add_k_proj", names) and not named:
        return _TRANSFORMERS["sd3"].get(width, f"dit-{width}")
    return f"{named}-{width}" if named in ("wan",) else named or f"dit-{width}"
