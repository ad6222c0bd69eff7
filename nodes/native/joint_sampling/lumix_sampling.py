"""Latents of maps that are sampled together, and the sampling itself, from core's own parts."""

from collections.abc import Callable, Mapping

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import node_helpers
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ....methods.lumix.design import MAP_NAMES
from ..backbones import MAP_ATTENTION, require
from ..batch_rows.lumix_rows import maps_of, require_map_batch

# Names of a latent's maps, in the order of rows; samplers hand it on.
MAPS_ENTRY = "intrinsic_lab_maps"


def map_latents(model: ModelPatcher, width: int, height: int, pictures: int, given: Mapping[str, dict]) -> dict:
    """A LATENT for all maps of `pictures` pictures: empty, or of the size and number of the given maps.

    given: LATENTs by map name; they are kept as they are, or where their own noise mask is 0. Rows lie map by map, and rows of one picture
    share their noise. Raises ValueError for maps the MODEL does not have and for latents of different shapes.
    """
    maps = maps_of(model)
    if unknown := sorted(given.keys() - set(maps)):
        raise ValueError(f"This MODEL has no {unknown[0]}; its maps are {', '.join(maps)}: disconnect the others.")
    latent_format = model.get_model_object("latent_format")
    scale = getattr(latent_format, "spacial_downscale_ratio", 8)
    shape = (pictures, latent_format.latent_channels, height // scale, width // scale)
    samples = {name: latent["samples"] for name, latent in given.items()}
    for name, tensor in samples.items():
        shape = tuple(next(iter(samples.values())).shape)
        if tuple(tensor.shape) != shape or shape[1] != latent_format.latent_channels:
            raise ValueError(
                f"The latent of {name} is {list(tensor.shape)}: all given maps must be of one size, with {latent_format.latent_channels} "
                f"channels (the first is {list(shape)}); encode them at one size with this model's VAE."
            )
    empty = torch.zeros(shape)
    latent = {"samples": torch.cat([samples.get(name, empty) for name in maps]), "batch_index": list(range(shape[0])) * len(maps)}
    if given:
        mask = torch.cat([_mask(given.get(name), shape) for name in maps])
        # Of a model for videos (Qwen-Image) core would take rows of a mask for frames.
        latent["noise_mask"] = mask.unsqueeze(2) if latent_format.latent_dimensions == 3 else mask
    return {**latent, MAPS_ENTRY: maps}


def _mask(given: dict | None, shape: tuple[int, ...]) -> Tensor:
    """[picture, 1, height, width]: 1 where a map is to be sampled."""
    pictures, *_, height, width = shape
    if given is None:
        return torch.ones(pictures, 1, height, width)
    mask = given.get("noise_mask")
    if mask is None:
        return torch.zeros(pictures, 1, height, width)
    mask = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]).float(), (height, width), mode="bilinear")
    return comfy.utils.repeat_to_batch_size(mask, pictures)


def split_maps(latent: dict) -> dict[str, dict]:
    """LATENTs by map name out of one whose rows lie map by map. Raises ValueError for a number of rows that cannot be maps."""
    maps = latent.get(MAPS_ENTRY, MAP_NAMES)
    samples = latent["samples"]
    if samples.shape[0] % len(maps):
        raise ValueError(
            f"This latent has {samples.shape[0]} rows, a multiple of {len(maps)} ({', '.join(maps)}) was expected: connect what a sampler "
            "made of Make Map Latents."
        )
    return {name: {"samples": part} for name, part in zip(maps, samples.chunk(len(maps)), strict=True)}


def joint_sigmas(model: ModelPatcher, latent: dict, steps: int) -> Tensor:
    """The noise levels that maps are sampled at on the MODEL's backbone."""
    own_sigmas = require(model, MAP_ATTENTION).sigmas
    if own_sigmas is not None:
        return own_sigmas(maps_of(model), latent, steps)
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def sample_jointly(
    model: ModelPatcher, positive: list, negative: list, latent: dict, steps: int, guidance: float, cfg: float, sampler_name: str, seed: int
) -> dict:
    """What SamplerCustomAdvanced makes of CFGGuider, FluxGuidance, RandomNoise and `joint_sigmas`, with previews of all maps."""
    maps = maps_of(model)
    require_map_batch(latent["samples"].shape[0], len(maps))
    for name, condition in (("positive", positive), ("negative", negative)):
        _require_text(model, condition, name)
    conditions = [node_helpers.conditioning_set_values(condition, {"guidance": guidance}) for condition in (positive, negative)]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conditions)
    guider.set_cfg(cfg)
    start = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    samples = guider.sample(
        comfy.sample.prepare_noise(start, seed, latent.get("batch_index")),
        start,
        comfy.samplers.sampler_object(sampler_name),
        joint_sigmas(model, latent, steps),
        denoise_mask=latent.get("noise_mask"),
        callback=side_by_side(latent_preview.prepare_callback(model, steps), len(maps)),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": samples.to(comfy.model_management.intermediate_device()), MAPS_ENTRY: maps}


def _require_text(model: ModelPatcher, conditioning: list, name: str) -> None:
    """Raises ValueError for texts of another model's CLIP."""
    settings = model.model.model_config.unet_config
    width, pooled_width = settings.get("context_in_dim") or settings.get("context_dim"), settings.get("vec_in_dim")
    for text, extra in conditioning:
        pooled = extra.get("pooled_output")
        if (width and text.shape[-1] != width) or (pooled_width and pooled is not None and pooled.shape[-1] != pooled_width):
            raise ValueError(
                f"{name} gives {text.shape[-1]} numbers a token, the MODEL takes {width}: encode the text with the CLIP that belongs to it."
            )


def side_by_side(callback: Callable, maps: int) -> Callable:
    """A sampler's callback that sees the maps of the first picture as one wide latent, for one preview of all of them."""

    def shown(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        wide = rearrange(x0, "(map picture) channel ... width -> picture channel ... (map width)", map=maps)
        callback(step, wide[:1], x, total_steps)

    return shown
