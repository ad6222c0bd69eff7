"""Maps that meet in the self-attention of a Stable Diffusion UNet, by core's own patches."""

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from einops import rearrange, repeat
from torch import Tensor

from ....methods.lumix.attention import attend_maps
from ....methods.lumix.design import CROSS_INTRINSIC, QUERY_BROADCAST
from ..batch_rows.lumix_rows import KEY, MapRows
from .cross_domain_unet import block_addresses


def attach(clone: ModelPatcher, unet: UNetModel, way: str) -> None:
    """Joins maps in every self-attention of `clone`; way: of `methods.lumix.design.ATTENTIONS`.

    The query is broadcast before its projection, which goes with every other patch. Cross-intrinsic attention is a replacement: raises
    ValueError where another one sits.
    """
    if way == CROSS_INTRINSIC:
        _replace(clone, unet)
    else:
        clone.set_model_attn1_patch(_broadcast if way == QUERY_BROADCAST else _note)


def _note(query: Tensor, key: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    options[KEY].ran.append(options.get("block"))
    return query, key, value


def _broadcast(query: Tensor, key: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """attn1_patch: every map's query is made from the colour map's tokens."""
    rows: MapRows = options[KEY]
    rows.ran.append(options.get("block"))
    return rows.join(repeat(rows.of_color(query), "group ... -> group map ...", map=rows.maps)), key, value


def _replace(clone: ModelPatcher, unet: UNetModel) -> None:
    taken = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn1", {})
    if taken:
        raise ValueError(
            f"Another node already replaces self-attention of this MODEL ({len(taken)} blocks, first {next(iter(taken))}), and "
            "cross-intrinsic attention would do so too: remove one of them, or choose query-broadcast."
        )
    for part, number in dict.fromkeys((part, number) for part, number, _ in block_addresses(unet)):
        clone.set_model_attn1_replace(_cross_intrinsic, part, number)


def _cross_intrinsic(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """attn1 replacement: queries of every map on the keys of all of them."""
    rows: MapRows = options[KEY]
    rows.ran.append(options.get("block"))
    grouped = [
        rearrange(rows.split(x), "group map token (head dim) -> group map head token dim", head=options["n_heads"])
        for x in (query, key, value)
    ]
    out = rows.join(attend_maps(CROSS_INTRINSIC, *grouped))
    return rearrange(out, "row head token dim -> row token (head dim)")
