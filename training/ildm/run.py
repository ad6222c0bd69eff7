"""Training the LoRA of the intrinsic domain (I-LDM, eq. 5): both domains denoised side by side, only the LoRA learns."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor, nn

from ...methods.ildm.intrinsic_vae import INTRINSICS
from ...methods.lora.lora_file import read_lora
from ..atomic import write_tensors
from ..backbones import joint_denoising_of
from ..backbones.backbone import TextEmbeddings
from ..config import TrainerConfig, file_header
from ..intrinsic_lora.adapter import load_adapter, lora_layers
from ..intrinsic_lora.latents import downscale, encode_model_latents, latent_masks
from ..look import OnSample, with_looks
from ..loop import History, LoopConfig, Report, train
from ..losses import latent_loss
from ..pairs import IMAGE, MaskedSource, OnEncoded
from .adapter import add_joint_adapter
from .autoencoder import load_intrinsic_autoencoder
from .base import encode_captions, load_diffusion_base
from .data import INTRINSICS_KIND, JointFolderData, JointSceneData
from .look import joint_look, shown_joint_source


@dataclass(frozen=True)
class JointConfig(TrainerConfig):
    """One training. Rank and schedule-free exchange (w = 1) are the paper's; it does not say lambda (`balance`).

    base: a model (`bases`); intrinsic_vae: folder that `train_intrinsic_vae` wrote for it. empty_prompt: share of captions left out, for
    guidance. image_domain False: the paper's LoRA-only ablation, intrinsics alone. Raises ValueError for impossible values.
    """

    base: Path
    intrinsic_vae: Path
    loop: LoopConfig
    data: JointSceneData | JointFolderData = field(default_factory=JointSceneData)
    rank: int = 32
    batch: int = 4
    balance: float = 1.0
    empty_prompt: float = 0.1
    image_domain: bool = True
    save_dtype: str = "float32"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or self.batch < 1:
            raise ValueError(f"rank {self.rank}, batch {self.batch}: both must be at least 1.")
        if self.balance < 0 or not 0 <= self.empty_prompt <= 1:
            raise ValueError(f"balance {self.balance}, empty_prompt {self.empty_prompt}: at least 0, and a share of 0 to 1, are wanted.")
        self._require_choices(save_dtype=("float32", "float16"))

    @property
    def weights(self) -> Path:
        """Where the LoRA is written."""
        return self.loop.output / "ildm.safetensors"

    def metadata(self) -> dict[str, str]:
        """The LoRA file's header; names of folders only."""
        return file_header(
            method="i-ldm",
            base=self.base.name,
            intrinsic_vae=self.intrinsic_vae.name,
            rank=str(self.rank),
            resolution=str(self.data.size),
            intrinsics=", ".join(INTRINSICS),
            balance=str(self.balance),
        )


class JointDenoiser(nn.Module):
    """One forward over pictures followed by intrinsics (or intrinsics alone); `size`: of the pictures, in pixels."""

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        self.network, self.size, self.denoising = network, size, joint_denoising_of(network)

    def forward(self, noisy_bchw: Tensor, timestep_b: Tensor, text: TextEmbeddings) -> Tensor:
        conditions = self.denoising.conditions(self.network, text, self.size)
        output = self.network(noisy_bchw, timestep=timestep_b, return_dict=False, **conditions)[0]
        # PixArt also predicts a variance, in further channels.
        return output[:, : noisy_bchw.shape[1]]


@dataclass(frozen=True)
class JointLatents:
    """Means and deviations of the latents of pictures and of intrinsics, `[n, c, h, w]`, in the model's scale.

    mask_b1hw: bool, the latents all of whose intrinsics are known in all pixels; None: all of them are.
    """

    image: tuple[Tensor, Tensor]
    intrinsic: tuple[Tensor, Tensor]
    mask_b1hw: Tensor | None = None

    def draw(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Samples of both latents of some rows."""
        drawn = []
        for mean, deviation in (self.image, self.intrinsic):
            drawn.append(mean[rows] + deviation[rows] * torch.randn(mean[rows].shape, generator=generator))
        return drawn[0], drawn[1]


class JointTask:
    """A `loop.Task`. text: embeddings of every row's caption, and after them that of the empty prompt."""

    def __init__(self, config: JointConfig, denoiser: JointDenoiser, scheduler: DDPMScheduler, latents: JointLatents, text: TextEmbeddings):
        self.config, self.module, self.scheduler, self.latents, self.text = config, denoiser, scheduler, latents, text

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        config, count = self.config, len(self.latents.image[0])
        rows = torch.randint(count, (config.batch,), generator=draw)
        texts = torch.where(torch.rand(config.batch, generator=draw) < config.empty_prompt, count, rows)
        timestep = torch.randint(self.scheduler.config.num_train_timesteps, (config.batch,), generator=draw)
        image, intrinsic = self.latents.draw(rows, draw)
        # Independent noise for the two domains in training; sampling starts both from the same.
        image_noise, intrinsic_noise = torch.randn(image.shape, generator=draw), torch.randn(intrinsic.shape, generator=draw)
        if config.image_domain:
            clean, noise = torch.cat([image, intrinsic]), torch.cat([image_noise, intrinsic_noise])
            timestep, texts = timestep.repeat(2), texts.repeat(2)
        else:
            clean, noise = intrinsic, intrinsic_noise
        device = next(module.parameters()).device
        clean, noise, timestep = clean.to(device), noise.to(device), timestep.to(device)
        predicted = module(self.scheduler.add_noise(clean, noise, timestep), timestep, self.text.rows(texts).to(device))
        target = noise if self.scheduler.config.prediction_type == "epsilon" else self.scheduler.get_velocity(clean, noise, timestep)
        known = None if self.latents.mask_b1hw is None else self.latents.mask_b1hw[rows].to(device)
        if not config.image_domain:
            return config.balance * latent_loss(predicted, target, known)
        (predicted_image, predicted_intrinsic), (target_image, target_intrinsic) = predicted.chunk(2), target.chunk(2)
        return latent_loss(predicted_image, target_image) + config.balance * latent_loss(predicted_intrinsic, target_intrinsic, known)

    def save(self, folder: Path) -> None:
        save_joint_lora(self.module.network, self.config)


def save_joint_lora(network: nn.Module, config: JointConfig) -> None:
    """Write the LoRA in the keys ComfyUI's LoraLoader and diffusers or peft read for this kind of base, atomically."""
    state = joint_denoising_of(network).lora_state(lora_layers(network))
    dtype = getattr(torch, config.save_dtype)
    state = {key: tensor.to(dtype) for key, tensor in state.items()}
    write_tensors(config.weights, state, config.metadata())


@dataclass(frozen=True)
class TrainedJointLora:
    """weights: the LoRA file written."""

    weights: Path
    history: History


def _latent_format(vae: AutoencoderKL) -> tuple[int, float, float]:
    return vae.config.latent_channels, vae.config.scaling_factor, vae.config.shift_factor or 0.0


def train_joint_lora(
    config: JointConfig,
    *,
    start: Path | None = None,
    cache: Path | None = None,
    report: Report | None = None,
    on_encoded: OnEncoded | None = None,
    on_sample: OnSample | None = None,
) -> TrainedJointLora:
    """Train (or resume) the LoRA of the intrinsic domain and write it to `config.weights`.

    start: a LoRA file of the same layers and rank to begin from. cache: folder of encoded latents (the output folder by default).
    report: see `loop.train`. on_encoded: see `pairs.OnEncoded`. on_sample: see `look.OnSample`; only with pictures.
    Raises ValueError for bases, VAEs and data that do not fit together.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    source = config.data.source()
    base = load_diffusion_base(config.base)
    intrinsic_vae = load_intrinsic_autoencoder(config.intrinsic_vae)
    if (own := _latent_format(intrinsic_vae)) != (wanted := _latent_format(base.vae)):
        raise ValueError(
            f"the intrinsic VAE's latents have (channels, scaling, shift) {own}, the base's {wanted}: use the intrinsic VAE that was made "
            "from this base."
        )
    base.pipeline.to(state.device)
    with state.main_process_first():
        kept = cache or config.loop.output
        [image] = encode_model_latents(base.vae, source, (IMAGE,), kept, on_encoded).values()
        [intrinsic] = encode_model_latents(intrinsic_vae.to(state.device), source, (INTRINSICS_KIND,), kept, on_encoded).values()
        mask = latent_masks(source, INTRINSICS_KIND, downscale(intrinsic_vae), kept) if isinstance(source, MaskedSource) else None
        latents = JointLatents(image, intrinsic, mask)
    shown = shown_joint_source(source)
    text = encode_captions(base, [*source.captions, "", shown.captions[0]], on_encoded)
    add_joint_adapter(base.network, config.rank, config.loop.seed, config.image_domain)
    if start is not None:
        load_adapter(base.network, read_lora(start))
    if config.gradient_checkpointing:
        base.network.enable_gradient_checkpointing()
    denoiser = JointDenoiser(base.network, config.data.size)
    task = JointTask(config, denoiser, base.scheduler, latents, text)
    if on_sample is not None and config.image_domain:
        vaes, told = (base.vae, intrinsic_vae), text.rows(torch.tensor([-1]))
        report = with_looks(report, config.loop, denoiser, joint_look(denoiser, base.scheduler, vaes, shown, told), on_sample)
    history = train(task, config.loop, report=report, settings=config.task_settings())
    return TrainedJointLora(config.weights, history)
