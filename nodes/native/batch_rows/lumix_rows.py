"""Batches in which all maps of a picture are sampled together: the noise they share, and maps that are given.

Rows lie as `methods.rows` says. A map is given, and kept clean, where the latent's noise mask is 0 in its whole row: the network then sees
it without noise at t = 0 while the others are denoised (LumiX, disentangled timesteps).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ....methods.rows import Rows
from ..compiled import uncompiled
from .attention_calls import is_first_step
from .sampled_rows import note_rows, require_rows_kept, rows_of_forward, sampled_rows
from .shared_noise import sharing_noise

KEY = "intrinsic_lab.lumix"
_CLEAN = "intrinsic_lab.lumix.clean"


@dataclass(frozen=True)
class MapForward:
    """One forward of `network` over rows of maps. ran: what ran of the replaced blocks so far."""

    network: nn.Module
    rows: Rows
    ran: list = field(default_factory=list)


def running(options: Mapping) -> MapForward:
    """The forward that a block runs in, by its `transformer_options`. Raises ValueError where nobody told the network of it."""
    if KEY not in options:
        raise ValueError(
            "The network runs with patches that join maps and without what tells them which rows are which map: a node after Apply Tensor "
            "LoRA or Join Maps in Attention made this MODEL anew from parts (AnimateDiff's Unload does). Put that node before."
        )
    return options[KEY]


@dataclass(frozen=True)
class CleanRows:
    """Which rows of the sampled batch are given, and their latents in the model's scale."""

    rows: tuple[int, ...]
    latent_bchw: Tensor

    def among(self, chosen: tuple[int, ...]) -> "CleanRows":
        """The same, numbered as in a forward over the `chosen` rows of the batch."""
        there = [place for place, row in enumerate(chosen) if row in self.rows]
        return CleanRows(tuple(there), self.latent_bchw[[self.rows.index(chosen[place]) for place in there]])


def attach_rows(clone: ModelPatcher, maps: tuple[str, ...]) -> None:
    """Makes `clone` sample batches of these maps, in this order: it carries their names, shares their noise, keeps given ones clean."""
    clone.set_attachments(KEY, maps)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _sample)
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _remember_clean_rows)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _run_together(maps))
    note_rows(clone)


def maps_of(model: ModelPatcher) -> tuple[str, ...]:
    """The maps that a MODEL samples together, in the order of rows. Raises ValueError for a MODEL that samples single pictures."""
    maps = model.get_attachment(KEY)
    if maps is None:
        raise ValueError(
            "This MODEL samples single pictures, not maps together: put Apply Tensor LoRA or Join Maps in Attention before this node."
        )
    return maps


def require_map_batch(rows: int, maps: int) -> None:
    """Raises ValueError unless the rows can be `maps` maps of some pictures."""
    if rows % maps:
        raise ValueError(
            f"The latent has {rows} row{'s' * (rows != 1)}, but this MODEL samples {maps} maps together: use Make Map Latents, or connect "
            "the MODEL from before Apply Tensor LoRA."
        )


def _sample(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
    maps = len(executor.class_obj.model_patcher.get_attachment(KEY))
    require_map_batch(noise.shape[0], maps)
    require_rows_kept(executor.class_obj.model_options)
    per_map = noise.chunk(maps)
    if not all(torch.equal(per_map[0], other) for other in per_map[1:]):
        raise ValueError(
            f"The {maps} maps of this latent do not start from the same noise, as they must: use Make Map Latents (it sets batch_index), "
            "and noise that honours batch_index."
        )
    samples = executor(noise, latent_image, sharing_noise(sampler, copies=maps), sigmas, denoise_mask, *args, **kwargs)
    given = list(_given_rows(denoise_mask))
    # What went through the sampler and the latent's scale came back rounded.
    samples[given] = latent_image[given].to(samples)
    return samples


def _given_rows(denoise_mask: Tensor | None) -> tuple[int, ...]:
    if denoise_mask is None:
        return ()
    return tuple((denoise_mask.flatten(1).amax(1) == 0).nonzero().flatten().tolist())


def _remember_clean_rows(executor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *args, **kwargs):
    if rows := _given_rows(denoise_mask):
        # A copy of the options that lives as long as this sampling: nothing to undo.
        extra_args["model_options"]["transformer_options"][_CLEAN] = CleanRows(rows, latent_image[list(rows)])
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)


def _run_together(maps: tuple[str, ...]) -> Callable:
    def run(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        options = dict(transformer_options or {})
        rows = rows_of_forward(maps, x, options)
        if clean := options.get(_CLEAN):
            x, t = _with_clean_rows(x, t, rows.conds, clean.among(sampled_rows(x, options)))
        options[KEY] = forward = MapForward(uncompiled(executor.class_obj.diffusion_model), rows)
        denoised = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        # Later steps may be skipped by packs that cache; the first never is.
        if not forward.ran and is_first_step(options):
            raise ValueError(
                "Another node replaced the blocks in which the maps of this MODEL meet, so nothing would join them: put that node before "
                "Apply Tensor LoRA or Join Maps in Attention."
            )
        return denoised

    return run


def _with_clean_rows(x: Tensor, t: Tensor, conds: int, clean: CleanRows) -> tuple[Tensor, Tensor]:
    """x and sigma with given rows free of noise, for every condition."""
    if x.shape[2:] != clean.latent_bchw.shape[2:]:
        raise ValueError("Given maps and a conditioning area cannot be combined: remove the area (Conditioning Set Area), or use a mask.")
    x, t = x.clone(memory_format=torch.contiguous_format), t.expand(x.shape[0]).clone()
    rows = list(clean.rows)
    x.view(conds, -1, *x.shape[1:])[:, rows] = clean.latent_bchw.to(x)
    t.view(conds, -1)[:, rows] = 0
    return x, t
