"""A look at I-LDM's trainings: a scene's intrinsics rebuilt by the VAE; a picture and its intrinsics, made of a scene's caption."""

from collections.abc import Callable, Mapping

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from einops import rearrange
from torch import Tensor, nn

from ...methods.formats import picture_of
from ...methods.ildm.intrinsic_vae import split_intrinsics
from ..backbones.backbone import TextEmbeddings
from ..intrinsic_lora.latents import vae_latents
from ..look import Sample, looked_at, shown_source
from ..pairs import IMAGE
from .data import INTRINSICS_KIND, JointScenes, JointSource

# Enough to see what is learnt: a look shall cost little.
STEPS = 12


def shown_joint_source(source: JointSource) -> JointSource:
    """See `look.shown_source`."""
    return JointScenes(shown_source(source.scenes)) if isinstance(source, JointScenes) else source


def rebuilt_look(vae: AutoencoderKL, source: JointSource) -> Callable[[], Sample]:
    """What shows the intrinsics of the shown scene, through the VAE and back."""
    true_bchw = 2 * shown_joint_source(source).read(INTRINSICS_KIND, [0]) - 1

    def look() -> Sample:
        rebuilt = vae.decode(vae.encode(true_bchw.to(vae.device, vae.dtype)).latent_dist.mode()).sample
        return [_named("{} so far", intrinsic_pictures(rebuilt)), _named("true {}", intrinsic_pictures(true_bchw))]

    return look


def joint_look(
    denoiser: nn.Module,
    scheduler: DDPMScheduler,
    vaes: tuple[AutoencoderKL, AutoencoderKL],
    shown: JointSource,
    text: TextEmbeddings,
) -> Callable[[], Sample]:
    """What shows the picture and its intrinsics that are sampled together for the shown scene's caption, above those of the scene.

    vaes: of pictures and of intrinsics. shown: see `shown_joint_source`. text: of its caption, n = 1. Both domains start from the same
    noise; there is no guidance.
    """
    image_bchw, intrinsics_bchw = shown.read(IMAGE, [0]), 2 * shown.read(INTRINSICS_KIND, [0]) - 1
    with torch.no_grad():
        encoded = vaes[0].encode((2 * image_bchw - 1).to(vaes[0].device, vaes[0].dtype)).latent_dist.mode()
    sampler = DDIMScheduler.from_config(scheduler.config, clip_sample=False, timestep_spacing="trailing")
    both = text.repeated(2).to(encoded.device)

    def look() -> Sample:
        noise = torch.randn(encoded.shape, generator=torch.Generator().manual_seed(0))
        latent = noise.expand(2, -1, -1, -1).to(encoded.device)
        sampler.set_timesteps(STEPS)
        for timestep in sampler.timesteps:
            output = denoiser(latent, timestep.expand(2).to(latent.device), both).float()
            latent = sampler.step(output, timestep, latent).prev_sample
        image, intrinsics = (vae.decode(vae_latents(vae, row)).sample for vae, row in zip(vaes, latent.split(1), strict=True))
        learnt = {IMAGE: _image(image), **intrinsic_pictures(intrinsics)}
        true = {IMAGE: _image(2 * image_bchw - 1), **intrinsic_pictures(intrinsics_bchw)}
        return [_named("{} so far", learnt), _named("true {}", true)]

    return look


def intrinsic_pictures(joined_1chw: Tensor) -> dict[str, Tensor]:
    """An intrinsic VAE's channels, -1..1, as pictures to look at."""
    joined = rearrange(joined_1chw.float().cpu(), "b c h w -> b h w c")
    return {name: picture_of(name, data)[0] for name, data in split_intrinsics(joined).items()}


def _image(pixels_1chw: Tensor) -> Tensor:
    return looked_at(IMAGE, rearrange(pixels_1chw.float().cpu(), "b c h w -> b h w c") / 2 + 0.5)


def _named(label: str, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {label.format("picture" if name == IMAGE else name): picture for name, picture in pictures.items()}
