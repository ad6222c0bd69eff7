"""LumiX inside a diffusers network: rows are the maps of a picture, which meet in attention and in the adapter; only the adapter learns."""

import torch
from torch import Tensor, nn

from ...methods.lumix.design import Design
from ...methods.lumix.tensor_lora.config import AdapterConfig
from ...methods.lumix.tensor_lora.layer import Adapter
from ..backbones import map_flow_of
from ..backbones.backbone import TextEmbeddings


class MapDenoiser(nn.Module):
    """The maps of pictures in one forward of a frozen network. Puts the adapter into `transformer`, which then takes maps only."""

    def __init__(self, transformer: nn.Module, adapter: Adapter, guidance: float = 3.5):
        super().__init__()
        self.flow = map_flow_of(transformer)
        self.transformer, self.adapter, self.guidance = transformer.requires_grad_(False), adapter, guidance
        self.maps = len(adapter.config.design.maps)
        self.flow.join_maps(transformer, adapter)

    def forward(self, latent_gmchw: Tensor, time_gm: Tensor, text: TextEmbeddings) -> Tensor:
        """Velocity noise - latent `[group, map, c, h, w]`. time_gm: flow times 0..1, a map its own; text: of n = group texts."""
        rows, repeated = latent_gmchw.flatten(0, 1), text.repeated(self.maps)
        velocity = self.flow.predict_velocity(self.transformer, rows, time_gm.flatten(), repeated, self.guidance)
        return velocity.unflatten(0, latent_gmchw.shape[:2])


def make_adapter(transformer: nn.Module, design: Design, rank: int, other_rank: int, seed: int) -> Adapter:
    """An adapter that fits `transformer` and changes nothing until it is trained."""
    sizes = AdapterConfig(design, *map_flow_of(transformer).adapter_sizes(transformer), rank, other_rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Adapter(sizes)
