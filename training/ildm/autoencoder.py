"""Training the intrinsic VAE (I-LDM, section 3.2): the base's VAE, widened, fine-tuned with intrinsics left out at random."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from ...methods.ildm.intrinsic_vae import TOTAL_CHANNELS, channel_slice, widen, zero_masked
from ..autoencoder import reconstruction_loss
from ..bases import base_at
from ..config import TrainerConfig
from ..look import OnSample, with_looks
from ..loop import History, LoopConfig, Report, train
from .data import INTRINSICS_KIND, JointFolderData, JointSceneData, JointSet, JointSource
from .look import rebuilt_look


@dataclass(frozen=True)
class IntrinsicVaeConfig(TrainerConfig):
    """One training. base: whose VAE is widened (`bases`). zero_mask: how often each intrinsic is left out (the paper's 0.1).

    kl: weight of the divergence from a unit Gaussian, as in latent diffusion's own autoencoders. lines: weight of the line drawing's
    squared error, beside the absolute one, for which the best answer to a thin line of uncertain place is no line. decoder_of: an
    intrinsic VAE to go on from, by its decoder alone: its latents, and LoRAs trained on them, stay valid. Raises ValueError for
    impossible values.
    """

    base: Path
    loop: LoopConfig
    data: JointSceneData | JointFolderData = field(default_factory=JointSceneData)
    batch: int = 4
    zero_mask: float = 0.1
    kl: float = 1e-6
    lines: float = 1.0
    decoder_of: Path | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or min(self.kl, self.lines) < 0 or not 0 <= self.zero_mask < 1:
            raise ValueError(
                f"batch {self.batch}, kl {self.kl}, lines {self.lines}, zero_mask {self.zero_mask}: wanted are a batch of at least 1, kl "
                "and lines of at least 0, and a zero_mask of 0 to below 1."
            )

    @property
    def weights(self) -> Path:
        """The folder that is written: put it into the base's folder, or into ComfyUI's models/vae."""
        return self.loop.output / "intrinsic_vae"


class IntrinsicVaeTask:
    """A `loop.Task`: all intrinsics are to be rebuilt, also those that were zeroed on the way in.

    The paper does not say whether a zeroed intrinsic is to come back; asking for it makes the latent hold what the others tell of it.
    """

    def __init__(self, config: IntrinsicVaeConfig, vae: AutoencoderKL, source: JointSource):
        self.config, self.module, self.source = config, _Autoencoder(vae), source
        if config.decoder_of is not None:
            for part in (vae.encoder, vae.quant_conv):
                if part is not None:
                    part.requires_grad_(False)

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.source), (self.config.batch,), generator=draw).tolist()
        target = 2 * self.source.read(INTRINSICS_KIND, rows) - 1
        masked = zero_masked(target, self.config.zero_mask, draw)
        device = next(module.parameters()).device
        output, kl = module(masked.to(device), draw)
        output, target, line = output.float(), target.to(device), channel_slice("line")
        if isinstance(self.source, JointSet):
            # What equals its target adds nothing.
            output = torch.where(self.source.known(rows).to(device), output, target)
        lines = functional.mse_loss(output[:, line], target[:, line])
        return reconstruction_loss(output, target) + self.config.lines * lines + self.config.kl * kl

    def save(self, folder: Path) -> None:
        self.module.vae.save_pretrained(self.config.weights)


class _Autoencoder(nn.Module):
    """Encoding and decoding in one forward, as wrappers for several devices want it."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, pixels_bchw: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(pixels_bchw).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=draw).to(posterior.mean)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, kl


def widened_vae(base: Path) -> AutoencoderKL:
    """The base's VAE, widened to all intrinsics. Raises ValueError for a base without one."""
    vae = base_at(base).module(AutoencoderKL, "vae")
    weights, config = widen(vae.state_dict(), dict(vae.config))
    wide = AutoencoderKL.from_config(config)
    wide.load_state_dict(weights)
    return wide


def load_intrinsic_autoencoder(folder: Path) -> AutoencoderKL:
    """The intrinsic VAE in float32, frozen. Raises ValueError for a VAE of another number of channels."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no VAE in diffusers format: make one with Train Intrinsic VAE, or on the command line.")
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True).float()
    if vae.config.in_channels != TOTAL_CHANNELS:
        raise ValueError(f"the VAE in {folder} takes {vae.config.in_channels} channels, an intrinsic VAE {TOTAL_CHANNELS}: choose another.")
    return vae.requires_grad_(False).eval()


def train_intrinsic_vae(
    config: IntrinsicVaeConfig, *, report: Report | None = None, on_sample: OnSample | None = None
) -> tuple[AutoencoderKL, History]:
    """Train (or resume) the intrinsic VAE of a base and write it to `config.weights`.

    report: see `loop.train`. on_sample: see `look.OnSample`.
    """
    vae = widened_vae(config.base) if config.decoder_of is None else load_intrinsic_autoencoder(config.decoder_of).requires_grad_(True)
    source = config.data.source()
    task = IntrinsicVaeTask(config, vae, source)
    if on_sample is not None:
        report = with_looks(report, config.loop, task.module, rebuilt_look(vae, source), on_sample)
    history = train(task, config.loop, report=report, settings=config.task_settings())
    return task.module.vae, history
