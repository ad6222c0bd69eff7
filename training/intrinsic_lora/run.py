"""I-LoRA training: one forward pass at t = 999 turns a picture's latent into its map's latent; or many steps (`denoising`)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor, nn

from ...methods.intrinsic_lora.multi_step import AUGMENTED, SINGLE
from ...methods.intrinsic_lora.recipe import READINGS
from ...methods.lora.lora_file import read_lora
from ...methods.maps import MAPS
from ..backbones import denoiser_of, single_step_of
from ..backbones.backbone import SingleStepBase, TextEmbeddings
from ..config import require_size
from ..look import OnSample, with_looks
from ..loop import History, Report, train
from ..losses import latent_loss, picture_loss
from ..pairs import MaskedSource, OnEncoded, PairSource
from .adapter import add_adapter, load_adapter, save_lora
from .config import IntrinsicLoraConfig
from .denoising import Denoising
from .latents import LatentPairs, downscale, vae_latents
from .look import map_look
from .noise import noise_for
from .predict import load_base
from .probe import save_probe
from .widened import pix2pix_weight, widen


class IntrinsicLoraTask:
    """A `loop.Task`: `module` is the network with its adapter."""

    def __init__(self, config: IntrinsicLoraConfig, network: ModelMixin, vae: AutoencoderKL, text: TextEmbeddings, pairs: LatentPairs):
        self.module, self.config, self.vae, self.text, self.pairs = network, config, vae, text, pairs
        # Of the network itself: what the loop hands to `loss` may be wrapped.
        self.single_step = single_step_of(network)
        self.source: PairSource = config.data.source(config.map)
        self.denoising = None if config.method == SINGLE else Denoising(network, vae, noise_for(config.base, config.method))

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        if self.denoising is not None:
            return self.denoising.loss(module, self.pairs, self.config.batch, self.text, draw)
        device = self.text.context.device
        rows, latent, target = self.pairs.draw(self.config.batch, draw)
        latent = latent.to(device)
        predicted = READINGS[self.config.reading](self.single_step.raw_output(module, latent, self.text), latent)
        if self.config.loss == "latent":
            known = self.pairs.mask_b1hw
            return latent_loss(predicted, target.to(device), None if known is None else known[rows].to(device))
        decoded = self.vae.decode(vae_latents(self.vae, predicted)).sample
        mask = self.source.masks(rows).to(device) if isinstance(self.source, MaskedSource) else None
        return picture_loss(self.config.map, decoded, 2 * self.source.read(self.config.map, rows).to(device) - 1, mask)

    def save(self, folder: Path) -> None:
        if self.config.kind == "full":
            self.module.save_pretrained(folder / self.config.weights.name)
        elif self.config.kind == "probe":
            save_probe(self.module, self.config.weights, self.config.metadata())
        else:
            save_lora(self.module, self.config.weights, self.config.metadata(), getattr(torch, self.config.save_dtype))


@dataclass(frozen=True)
class TrainedIntrinsicLora:
    """base: with the trained network (averaged weights where there is an average); weights: the file or folder written."""

    base: SingleStepBase
    weights: Path
    history: History


def train_intrinsic_lora(
    config: IntrinsicLoraConfig,
    *,
    start: Path | None = None,
    pairs: LatentPairs | None = None,
    cache: Path | None = None,
    report: Report | None = None,
    on_encoded: OnEncoded | None = None,
    on_sample: OnSample | None = None,
) -> TrainedIntrinsicLora:
    """Train (or resume) one I-LoRA and write it to `config.weights`.

    start: a LoRA file of this kind and rank to begin from. pairs: latents encoded before, of the same data; else they are encoded and
    kept in `cache` (the output folder by default), so that a resumed run and runs that share a cache encode nothing twice. report: see
    `loop.train`. on_encoded: see `pairs.OnEncoded`. on_sample: see `look.OnSample`.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    source = config.data.source(config.map)
    base = load_base(config.base, config.init, config.loop.seed)
    require_size(config.data.size, downscale(base.vae) * single_step_of(base.network).patch)
    if config.method != SINGLE:
        denoiser_of(base.network)
    base.to(state.device)
    add_adapter(base.network, config.kind, config.rank, config.loop.seed, config.layers)
    if start is not None:
        load_adapter(base.network, read_lora(start))
    elif config.method == AUGMENTED:
        taken = config.picture_channels
        widen(base.network, None if taken is None else pix2pix_weight(taken, base.vae.config.latent_channels))
    if config.picture_channels is not None:
        base.network.conv_in.of_picture.requires_grad_(False)
    # Convolutions run a fifth faster in this layout; the weights stay the same.
    base.network.to(memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        base.network.enable_gradient_checkpointing()
    if pairs is None:
        # Of several processes the first encodes, the others read what it kept.
        with state.main_process_first():
            pairs = LatentPairs.encode(base.vae, source, config.map, cache or config.loop.output, on_encoded)
    if len(pairs) != len(source):
        raise ValueError(f"{len(pairs)} encoded pairs came for {len(source)} pictures: encode them from the same data.")
    text = base.embed(MAPS[config.map].prompt).to(state.device)
    task = IntrinsicLoraTask(config, base.network, base.vae, text, pairs)
    if on_sample is not None:
        report = with_looks(report, config.loop, base.network, map_look(config, base, text), on_sample)
    history = train(task, config.loop, report=report, settings=config.task_settings())
    return TrainedIntrinsicLora(base, config.weights, history)
