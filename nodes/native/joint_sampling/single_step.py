"""The single step of Intrinsic LoRA on ComfyUI's own sampling machinery: loading, offloading, interrupts and hooks are core's."""

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from einops import repeat
from torch import Tensor

from ....methods.intrinsic_lora.anchor import AnchoredForward
from ....methods.intrinsic_lora.extract import Generator
from ....methods.intrinsic_lora.recipe import READINGS, Recipe
from .. import vaes
from ..backbones import SINGLE_STEP, require
from ..backbones.backbone import ANCHOR
from ..batch_rows import row_lora
from ..interrupts import stopping_inside_model
from ..other_patches import named_where_they_fail

# Share of a device's memory that activations of one forward may take beside the weights.
ACTIVATION_SHARE = 0.6


class RawOutput(comfy.samplers.Sampler):
    """A sampler of one evaluation: each row at its own sigma, its map's latent read from the output as READINGS say."""

    def __init__(self, sigma_of_row: Tensor, reading_of_row: Sequence[str]):
        self.sigma_of_row, self.reading_of_row = sigma_of_row, reading_of_row

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        # Here both are in the model's own scale.
        raw = model_wrap(latent_image, self.sigma_of_row.to(latent_image.device), **extra_args)
        rows = zip(self.reading_of_row, raw, latent_image, strict=True)
        return torch.stack([READINGS[reading](output, picture) for reading, output, picture in rows])


class Unguided(comfy.samplers.CFGGuider):
    """Core's guider without guidance: the positive side as the network gives it. What patches attach to guidance finds none.

    Context windows are left out, too: rows do not meet, and memory is shared out by `RowPrediction`.
    """

    def __call__(self, x, timestep, model_options=None, seed=None):
        options = {name: value for name, value in (model_options or {}).items() if name != "context_handler"}
        [output] = comfy.samplers.calc_cond_batch(self.inner_model, [self.conds["positive"]], x, timestep, options)
        return output


def require_parts(model: ModelPatcher, vae) -> None:
    """Raises ValueError where the VAE cannot belong to the MODEL, in words instead of a size mismatch inside it."""
    wanted = model.get_model_object("latent_format").latent_channels
    if vae.latent_channels != wanted:
        raise ValueError(
            f"This VAE makes latents of {vae.latent_channels} channels, the MODEL takes {wanted}: connect the VAE that belongs to it."
        )


@dataclass(frozen=True)
class RowPrediction(ABC):
    """Map latents of pictures' latents with a map per row; where memory turns out not to suffice, in several parts.

    names, embeddings: of the maps. assign: whether rows get the MODEL's carried LoRAs (not for a merged LoRA).
    """

    model: ModelPatcher
    names: tuple[str, ...]
    embeddings: list[tuple[Tensor, dict]]
    assign: bool

    @abstractmethod
    def together(self, latent_bchw: Tensor, rows: list[int], anchors: Sequence[int]) -> Tensor:
        """All rows at once; row i belongs to map `rows[i]` and reads the keys of row `anchors[i]` too, if the prediction reads any."""

    def guider(self, rows: list[int], kind: type[comfy.samplers.CFGGuider] = comfy.samplers.CFGGuider) -> comfy.samplers.CFGGuider:
        """Core's, or another kind, each row with its map's LoRA."""
        guider = kind(self.model)
        if self.assign:
            guider.model_options = row_lora.options_for_rows(guider.model_options, [self.names[index] for index in rows])
        return guider

    def __call__(self, latent_bchw: Tensor, rows: list[int], anchor_of_row: Sequence[int] = ()) -> Tensor:
        """As `together`; without anchors each row reads its own keys."""
        anchors = tuple(anchor_of_row or range(len(rows)))
        try:
            return self.together(latent_bchw, rows, anchors)
        except comfy.model_management.OOM_EXCEPTION:
            middle = (len(rows) + 1) // 2
            above = list(range(middle, len(rows)))
            # Anchors of the second half that lie in the first are computed twice.
            above = sorted({anchors[row] for row in above} - set(above)) + above
            if len(rows) in (1, len(above)):
                raise
        # Outside the except block, which would keep the failed forward's tensors alive.
        logging.warning("Out of memory with %d rows in one forward, trying half.", len(rows))
        comfy.model_management.soft_empty_cache()
        first = self(latent_bchw[:middle], rows[:middle], anchors[:middle])
        second = self(latent_bchw[above], [rows[row] for row in above], [above.index(anchors[row]) for row in above])
        return torch.cat([first, second[middle - len(rows) :]])


@dataclass(frozen=True)
class RowForward(RowPrediction):
    """One forward of the network, or one for each length that the maps' prompts have, where text cannot be repeated.

    noise_levels: sigmas of the maps. readings: of the maps, of READINGS. joint_text: as `SingleStep` says. anchor_weight: of anchors'
    keys, 0 where the MODEL's self-attentions read none.
    """

    noise_levels: Tensor
    readings: tuple[str, ...]
    joint_text: bool = False
    anchor_weight: float = 0.0

    def together(self, latent_bchw: Tensor, rows: list[int], anchors: Sequence[int]) -> Tensor:
        if not self.joint_text:
            return self._forward(latent_bchw, rows, anchors)
        length_of_row = [self.embeddings[row][0].shape[1] for row in rows]
        made: dict[int, Tensor] = {}
        for length in sorted(set(length_of_row)):
            places = [place for place, found in enumerate(length_of_row) if found == length]
            output = self._forward(latent_bchw[places], [rows[place] for place in places], range(len(places)))
            made |= dict(zip(places, output, strict=True))
        return torch.stack([made[place] for place in range(len(rows))])

    def _forward(self, latent_bchw: Tensor, rows: list[int], anchors: Sequence[int]) -> Tensor:
        guider = self.guider(rows, Unguided)
        if self.anchor_weight:
            options = guider.model_options["transformer_options"] | {ANCHOR: AnchoredForward(tuple(anchors), self.anchor_weight)}
            guider.model_options = {**guider.model_options, "transformer_options": options}
        guider.inner_set_conds({"positive": join_rows(self.embeddings, rows)})
        sigma_of_row = self.noise_levels[rows]
        sigmas = torch.stack([sigma_of_row.max(), torch.zeros(())])
        with stopping_inside_model(self.model), named_where_they_fail(self.model, "The single step"):
            sampler, latent = RawOutput(sigma_of_row, [self.readings[row] for row in rows]), as_model_takes(self.model, latent_bchw)
            # Nothing is drawn, and patches that shuffle the noise (FreeNoise) want a seed to do so.
            output = guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=0)
        return output.view(latent_bchw.shape).to(comfy.model_management.intermediate_device())


def make_generator(model: ModelPatcher, clip, vae, recipes: Mapping[str, Recipe], assign: bool, anchor_weight: float = 0.0) -> Generator:
    """The Generator of `methods.intrinsic_lora.extract` on native objects.

    recipes: by map, in row order. assign, anchor_weight: as in `RowForward`. Nothing in it may refer to itself: a patched clone
    that waits for the garbage collector makes core collect all garbage at every load.
    """
    single_step = require(model, SINGLE_STEP)
    step_model = model.clone()
    step_model.add_object_patch("model_sampling", single_step.model_sampling(model))
    if anchor_weight:
        if single_step.attach_anchor is None:
            network = type(model.get_model_object("diffusion_model")).__name__
            raise ValueError(f"Frames cannot read an anchor frame in this MODEL ({network}), only in a UNet: set the anchor weight to 0.")
        single_step.attach_anchor(step_model)
    forward = RowForward(
        step_model,
        tuple(recipes),
        [encode_prompt(clip, recipe.prompt, single_step.context_width(model)) for recipe in recipes.values()],
        assign,
        single_step.noise_levels(step_model, torch.tensor([float(recipe.timestep) for recipe in recipes.values()])),
        tuple(recipe.reading for recipe in recipes.values()),
        single_step.joint_text,
        anchor_weight,
    )
    return generator_of(forward, vae, recipes, anchored=anchor_weight > 0)


def generator_of(predict: RowPrediction, vae, recipes: Mapping[str, Recipe], anchored: bool = False) -> Generator:
    """Around a prediction the VAE's both ends, which clamp nothing. anchored: whether rows read an anchor's keys."""
    to_own = {name: recipe.to_own for name, recipe in recipes.items() if recipe.to_own is not None}
    encode, decode = partial(vaes.encode_pictures, vae), partial(vaes.decode_pictures, unclamped(vae))
    return Generator(encode, predict, decode, int(vae.spacial_compression_encode()), to_own, predict if anchored else None)


def encode_prompt(clip, prompt: str, context_width: int | None) -> tuple[Tensor, dict]:
    # A CLIP with scheduled hooks gives a conditioning for each part of the schedule; the single step is its first moment.
    embedding, extra = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0]
    if context_width not in (None, embedding.shape[-1]):
        raise ValueError(
            f"This CLIP gives {embedding.shape[-1]} numbers a token, the MODEL takes {context_width}: connect the CLIP that belongs to it."
        )
    return embedding, extra


def join_rows(embeddings: list[tuple[Tensor, dict]], rows: list[int]) -> list:
    """One conditioning whose row i belongs to map `rows[i]`, so that core keeps all rows in one forward."""
    used = {row: embeddings[row][0] for row in rows}
    tokens = math.lcm(*(embedding.shape[1] for embedding in used.values()))
    # Repeating a prompt's tokens leaves cross-attention as it is (core pads the same way).
    padded = {row: repeat(text, "1 token dim -> (times token) dim", times=tokens // text.shape[1]) for row, text in used.items()}
    extra = dict(embeddings[rows[0]][1])
    for name in ("pooled_output", "attention_mask"):
        if extra.get(name) is not None:
            extra[name] = torch.cat([embeddings[row][1][name] for row in rows])
    return [[torch.stack([padded[row] for row in rows]), extra]]


def rows_per_forward(model: ModelPatcher, latent_height: int, latent_width: int) -> int:
    """How many rows one forward may take on this machine, at least 1; by core's own estimate of the memory per row."""
    channels = model.get_model_object("latent_format").latent_channels
    per_row = model.model.memory_required([1, channels, latent_height, latent_width])
    budget = ACTIVATION_SHARE * comfy.model_management.get_total_memory(model.load_device)
    return max(1, int(budget / max(per_row, 1)))


def as_model_takes(model: ModelPatcher, latent_bchw: Tensor) -> Tensor:
    """A picture's latent in as many dimensions as the MODEL's have: of Qwen-Image, a video of one frame."""
    return latent_bchw.unsqueeze(2) if model.get_model_object("latent_format").latent_dimensions == 3 else latent_bchw


def unclamped(vae):
    """A view of the VAE that decodes without clamping to 0..1; it shares the weights and the memory management."""
    probe = torch.tensor([-1.0, 1.0, 3.0])
    if not torch.equal(vae.process_output(probe.clone()), torch.tensor([0.0, 1.0, 1.0])):
        # Not the usual mapping, so not ours to replace.
        return vae
    view = copy.copy(vae)
    # In place, as core expects, and returned, as older versions expect.
    view.process_output = lambda image: image.add_(1.0).div_(2.0)
    return view


def interruptible(progress: Callable[[], None]) -> Callable[[], None]:
    """Reports progress and stops here if the user asked for it."""

    def after_forward() -> None:
        progress()
        comfy.model_management.throw_exception_if_processing_interrupted()

    return after_forward
