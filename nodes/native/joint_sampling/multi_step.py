"""Intrinsic LoRA in many steps on ComfyUI's own samplers: what makes a MODEL ready for them, and all maps of a picture in one sampling."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....methods.intrinsic_lora.extract import Generator
from ....methods.intrinsic_lora.multi_step import AUGMENTED, Noise
from ....methods.intrinsic_lora.recipe import Recipe
from ..backbones import SINGLE_STEP, require
from ..loading.sampling import BETA_SCHEDULES
from .single_step import RowPrediction, encode_prompt, generator_of, join_rows

KEY = "intrinsic_lab.multi_step"
# Under which a conditioning carries a picture's latent in core (InstructPixToPixConditioning).
PICTURE_LATENT = "concat_latent_image"
# What core's instruct-pix2pix models say of themselves: the latent goes in as the VAE gives it.
_AS_IT_IS = SimpleNamespace(process_ip2p_image_in=lambda latent: latent)


class VelocitySampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The network predicts the velocity."""


class NoiseSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """The network predicts the noise."""


def model_sampling(noise: Noise) -> comfy.model_sampling.ModelSamplingDiscrete:
    """Core's object for a process of noise."""
    settings = {
        "beta_schedule": BETA_SCHEDULES[noise.betas],
        "linear_start": noise.first_beta,
        "linear_end": noise.last_beta,
        "timesteps": noise.timesteps,
        "zsnr": noise.zero_snr,
    }
    kind = VelocitySampling if noise.prediction == "v_prediction" else NoiseSampling
    return kind(SimpleNamespace(sampling_settings=settings))


def see_picture(model: ModelPatcher, noise: Noise) -> ModelPatcher:
    """A clone that any sampler runs as an augmented Intrinsic LoRA was trained: its noise, and the latents that conditionings carry."""
    clone = model.clone()
    clone.add_object_patch("model_sampling", model_sampling(noise))
    # Core takes further channels of single files for inpainting's.
    clone.add_object_patch("concat_keys", ())
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _hand_on_pictures)
    return clone


def _hand_on_pictures(executor, noise: Tensor, *arguments, **options) -> Tensor:
    """Makes of the picture in every conditioning what core's instruct-pix2pix models make of it."""
    guider = executor.class_obj
    for kind, conditions in guider.conds.items():
        guider.conds[kind] = [_with_picture(condition, noise, guider.model_patcher.load_device) for condition in conditions]
    return executor(noise, *arguments, **options)


def _with_picture(condition: dict, noise: Tensor, device: torch.device) -> dict:
    if condition.get(PICTURE_LATENT) is None:
        raise ValueError(
            "This MODEL makes maps of a picture, and a conditioning of the sampler has none: let positive and negative go through "
            "InstructPixToPixConditioning, or use Extract Maps in Steps."
        )
    latent = comfy.model_base.IP2P.concat_cond(_AS_IT_IS, concat_latent_image=condition[PICTURE_LATENT], noise=noise, device=device)
    return condition | {"model_conds": condition["model_conds"] | {"c_concat": comfy.conds.CONDNoiseShape(latent)}}


@dataclass(frozen=True)
class SamplingSettings:
    """As KSampler has them. denoise: of the naive method, which starts from the picture's latent. rescale: of RescaleCFG; 0: none."""

    seed: int
    steps: int
    cfg: float
    rescale: float
    sampler_name: str
    scheduler: str
    denoise: float


@dataclass(frozen=True)
class RowSampling(RowPrediction):
    """A sampling of all rows, which share one noise, so that neither other rows nor other frames change a map.

    negative: the empty prompt. on_step: called after each step.
    """

    negative: tuple[Tensor, dict]
    settings: SamplingSettings
    sees_picture: bool
    on_step: Callable[[], None]

    def together(self, latent_bchw: Tensor, rows: list[int]) -> Tensor:
        settings, guider = self.settings, self.guider(rows)
        conditions = join_rows(self.embeddings, rows), join_rows([self.negative], [0] * len(rows))
        guider.set_conds(*(node_helpers.conditioning_set_values(condition, {PICTURE_LATENT: latent_bchw}) for condition in conditions))
        guider.set_cfg(settings.cfg)
        sampler = comfy.samplers.KSampler(
            self.model,
            steps=settings.steps,
            device=self.model.load_device,
            sampler=settings.sampler_name,
            scheduler=settings.scheduler,
            denoise=1.0 if self.sees_picture else settings.denoise,
            model_options=guider.model_options,
        )
        output = guider.sample(
            comfy.sample.prepare_noise(latent_bchw[:1], settings.seed).expand(latent_bchw.shape),
            torch.zeros_like(latent_bchw) if self.sees_picture else latent_bchw,
            comfy.samplers.sampler_object(settings.sampler_name),
            sampler.sigmas,
            callback=lambda step, x0, x, total_steps: self.on_step(),
            disable_pbar=True,
            seed=settings.seed,
        )
        return output.to(comfy.model_management.intermediate_device())


def make_sampling_generator(
    model: ModelPatcher, clip, vae, recipes: Mapping[str, Recipe], settings: SamplingSettings, on_step: Callable[[], None]
) -> Generator:
    """As `single_step.make_generator`, with a sampling in the place of the one forward."""
    width = require(model, SINGLE_STEP).context_width(model)
    sampled = RowSampling(
        _rescaled(model, settings.rescale) if settings.rescale else model,
        tuple(recipes),
        [encode_prompt(clip, recipe.prompt, width) for recipe in recipes.values()],
        True,
        encode_prompt(clip, "", width),
        settings,
        next(iter(recipes.values())).method == AUGMENTED,
        on_step,
    )
    return generator_of(sampled, vae, recipes)


def _rescaled(model: ModelPatcher, share: float) -> ModelPatcher:
    # Core's node: the pack's import stays light.
    from comfy_extras.nodes_model_advanced import RescaleCFG

    return RescaleCFG().patch(model, share)[0]
