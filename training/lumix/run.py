"""LumiX training: flow matching of all maps of a picture at once, every map at a timestep of its own; only the adapter learns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ...methods.extras import extra
from ...methods.lumix.design import KINDS
from ...methods.lumix.tensor_lora.file import file_state, read_adapter
from ..atomic import write_tensors
from ..backbones import map_flow_in
from ..backbones.backbone import TextEmbeddings
from ..config import require_size
from ..intrinsic_lora.latents import downscale, encode_model_latents, latent_masks
from ..look import OnSample, shown_source, with_looks
from ..loop import History, Report, train
from ..losses import draw_times
from ..pairs import IMAGE, Aligned, CaptionedSource, OnEncoded
from .config import LumixConfig
from .data import map_source
from .look import maps_look
from .network import MapDenoiser, make_adapter


@dataclass(frozen=True)
class MapLatents:
    """Mean and deviation of the latents of every map, in the design's order, `[map, n, c, h, w]` in the model's scale.

    mask: `[map, n, 1, h, w]` bool, the latents all of whose pixels are known; None: all of them are.
    """

    mean: Tensor
    deviation: Tensor
    mask: Tensor | None = None

    @classmethod
    def encode(
        cls, vae: AutoencoderKL, source: CaptionedSource, maps: Sequence[str], cache: Path, on_encoded: OnEncoded | None = None
    ) -> "MapLatents":
        """Encode all of `source`; `cache`: a folder to keep the latents in, and to find them."""
        kinds = [KINDS[name] for name in maps]
        encoded = encode_model_latents(vae, source, kinds, cache, on_encoded)
        means, deviations = zip(*encoded.values(), strict=True)
        mask = _known(source, kinds, downscale(vae), cache) if isinstance(source, Aligned) and source.masked else None
        return cls(torch.stack(means), torch.stack(deviations), mask)

    def __len__(self) -> int:
        return self.mean.shape[1]

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the latents of some rows, `[group, map, c, h, w]`."""
        mean = self.mean[:, rows]
        return (mean + self.deviation[:, rows] * torch.randn(mean.shape, generator=generator)).transpose(0, 1)

    def known(self, rows: Tensor) -> Tensor | None:
        """The mask of some rows, `[group, map, 1, h, w]`."""
        return None if self.mask is None else self.mask[:, rows].transpose(0, 1)


def _known(source: Aligned, kinds: Sequence[str], factor: int, cache: Path) -> Tensor:
    """The masks of all kinds; of the picture everything is known."""
    masks = {kind: latent_masks(source.of(kind), kind, factor, cache) for kind in kinds if kind != IMAGE}
    whole = torch.ones_like(next(iter(masks.values())))
    return torch.stack([masks.get(kind, whole) for kind in kinds])


class LumixTask:
    """A `loop.Task`. text: of every row's caption, and after them of the empty prompt."""

    def __init__(self, config: LumixConfig, denoiser: MapDenoiser, latents: MapLatents, text: TextEmbeddings):
        self.config, self.module, self.latents, self.text = config, denoiser, latents, text

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        config, count, shape = self.config, len(self.latents), (self.config.batch, len(self.config.design.maps))
        rows = torch.randint(count, (config.batch,), generator=draw)
        texts = torch.where(torch.rand(config.batch, generator=draw) < config.empty_prompt, count, rows)
        clean = self.latents.draw(rows, draw)
        # One noise for all maps of a picture, as sampling starts.
        noise = torch.randn(clean[:, :1].shape, generator=draw).expand_as(clean)
        time = draw_times(shape[0] * shape[1], draw).view(shape)
        given = torch.rand(shape, generator=draw) < config.clean_share
        # Nothing could be learnt from a picture whose maps are all given.
        given &= ~given.all(dim=1, keepdim=True)
        time = time.masked_fill(given, 0.0)
        device = next(module.parameters()).device
        clean, noise, time, learnt = clean.to(device), noise.to(device), time.to(device), (~given).to(device)
        noisy = torch.lerp(clean, noise, time[:, :, None, None, None])
        error = module(noisy, time, self.text.rows(texts).to(device)).float() - (noise - clean)
        known = self.latents.known(rows)
        if known is None:
            return error.square().mean(dim=(2, 3, 4))[learnt].mean()
        counted = known.to(device) & learnt[:, :, None, None, None]
        return (error.square().mean(dim=2, keepdim=True) * counted).sum() / counted.sum().clamp(min=1)

    def save(self, folder: Path) -> None:
        """Write the adapter in the published format."""
        tensors, header = file_state(self.module.adapter)
        state = {key: tensor.cpu().to(getattr(torch, self.config.save_dtype)) for key, tensor in tensors.items()}
        write_tensors(self.config.weights, state, header | self.config.metadata())


def make_optimizer(config: LumixConfig) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None:
    """What `loop.train` takes: None for its own AdamW. Raises ValueError where Prodigy is not installed."""
    if config.optimizer == "adamw":
        return None
    Prodigy = extra("prodigyopt", "The optimizer prodigy").Prodigy
    loop = config.loop
    return lambda parameters: Prodigy(parameters, lr=loop.learning_rate, betas=loop.betas, weight_decay=loop.weight_decay)


@dataclass(frozen=True)
class TrainedLumix:
    """denoiser: with the trained adapter (averaged where there is an average); weights: the file written."""

    denoiser: MapDenoiser
    weights: Path
    history: History


def train_lumix(
    config: LumixConfig,
    *,
    start: Path | None = None,
    cache: Path | None = None,
    report: Report | None = None,
    on_encoded: OnEncoded | None = None,
    on_sample: OnSample | None = None,
) -> TrainedLumix:
    """Train (or resume) one adapter and write it to `config.weights`.

    start: an adapter file of the same design to begin from. cache: folder of encoded latents (the output folder by default).
    report: see `loop.train`. on_encoded: see `pairs.OnEncoded`. on_sample: see `look.OnSample`.
    Raises ValueError for bases and data that do not fit.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    source = map_source(config.data, config.design.maps)
    flow = map_flow_in(config.base)
    base = flow.load(config.base, getattr(torch, config.base_dtype))
    require_size(config.data.size, downscale(base.vae) * flow.patch)
    optimizer = make_optimizer(config)
    shown = shown_source(source)
    text = flow.encode_texts(config.base, [*source.captions, "", shown.captions[0]], config.text_tokens, state.device, on_encoded)
    # Of several processes the first encodes, the others read what it kept.
    with state.main_process_first():
        kept = cache or config.loop.output
        latents = MapLatents.encode(base.vae.to(state.device), source, config.design.maps, kept, on_encoded)
    base.vae.to("cpu")
    adapter = make_adapter(base.transformer, config.design, config.rank, config.other_rank, config.loop.seed)
    if start is not None:
        begun = read_adapter(start).float()
        if begun.config != adapter.config:
            raise ValueError(f"{start.name} is an adapter of another design ({begun.config}, not {adapter.config}): start with its own.")
        adapter = begun.train()
    denoiser = MapDenoiser(base.transformer.to(state.device), adapter.to(state.device), config.guidance)
    if config.gradient_checkpointing:
        base.transformer.enable_gradient_checkpointing()
    task = LumixTask(config, denoiser, latents, text)
    if on_sample is not None:
        told = text.rows(torch.tensor([-1]))
        look = maps_look(denoiser, config.design, base.vae, shown, latents.mean.shape[2:], told)
        report = with_looks(report, config.loop, denoiser, look, on_sample)
    history = train(task, config.loop, optimizer=optimizer, report=report, settings=config.task_settings())
    return TrainedLumix(denoiser, config.weights, history)
