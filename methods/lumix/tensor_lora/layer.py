"""The four structures of an update across maps, as modules with one interface, and the two updates of a block.

A layer reads the tokens of all maps and gives one `Update` for each projection it adapts; an update is added to the projection's output,
not to its weight, because LumiX adds it to keys after their RMS norm.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from ....kernels.tensor_lora import expand_, merge_cores, shrink
from ..design import FUSED, HYBRID, TENSOR
from .config import AdapterConfig


@dataclass(frozen=True)
class Update:
    """What is to be added to a projection's output: scale * hidden[i] up[i]^T for every map i.

    hidden [(group,) map, token, rank]; up [map, d_out, rank]. The key's may be handed to `kernels.tensor_lora.norm_lora_rotary` instead.
    """

    hidden: Tensor
    up: Tensor
    scale: float

    def add_to_(self, out: Tensor) -> Tensor:
        """out [(group,) map, token, d_out] += the update, in place; returns `out`. Differentiable."""
        return expand_(out, self.hidden, self.up, self.scale)


class MapLayer(nn.Module, ABC):
    """An update from d_in channels of all maps to `outputs` times d_out channels of all maps. Starts at zero."""

    kind: str

    @abstractmethod
    def forward(self, x: Tensor, strength: float = 1.0) -> tuple[Update, ...]:
        """x [(group,) map, token, d_in] -> one update per output, in the order (query,) key, value."""


class TensorLayer(MapLayer):
    """Tensor LoRA: Y[i] = R^-1/2 sum_j sum_{u,r,q} G3[i,:,r] G1[i,j,q] G2[i,u,r,q] x[j,:,u] (LumiX, as released).

    G1 [map, map, R], G2 [map, d_in, R, R], G3 [map, outputs * d_out, R]; outputs share all but G3.
    """

    kind = "tt"

    def __init__(self, maps: int, d_in: int, d_out: int, outputs: int, rank: int):
        super().__init__()
        self.outputs, self.scale = outputs, rank**-0.5
        # So that hidden values have the variance of x at the start.
        self.G1 = nn.Parameter(torch.randn(maps, maps, rank) / (maps * rank) ** 0.5)
        self.G2 = nn.Parameter(torch.randn(maps, d_in, rank, rank) / d_in**0.5)
        self.G3 = nn.Parameter(torch.zeros(maps, outputs * d_out, rank))

    def forward(self, x: Tensor, strength: float = 1.0) -> tuple[Update, ...]:
        return MergedLayer.updates(x, merge_cores(self.G1, self.G2), self.G3, self.outputs, self.scale * strength)

    def merged(self) -> "MergedLayer":
        """The same update with its cores contracted once, for inference."""
        merged = merge_cores(self.G1.detach().float(), self.G2.detach().float()).to(self.G2.dtype)
        return MergedLayer(merged, self.G3.detach(), self.outputs, self.scale)


class MergedLayer(MapLayer):
    """Tensor LoRA with W[j,u,i,r] = sum_q G1[i,j,q] G2[i,u,r,q] in the place of G1 and G2; inference only."""

    kind = "tt"

    def __init__(self, merged: Tensor, g3: Tensor, outputs: int, scale: float):
        super().__init__()
        self.outputs, self.scale = outputs, scale
        self.W = nn.Parameter(merged, requires_grad=False)
        self.G3 = nn.Parameter(g3, requires_grad=False)

    @staticmethod
    def updates(x: Tensor, merged: Tensor, g3: Tensor, outputs: int, scale: float) -> tuple[Update, ...]:
        hidden = shrink(x, merged.to(x.device))
        return tuple(Update(hidden, up, scale) for up in g3.to(x.device).chunk(outputs, dim=1))

    def forward(self, x: Tensor, strength: float = 1.0) -> tuple[Update, ...]:
        return self.updates(x, self.W, self.G3, self.outputs, self.scale * strength)


class PairedLayer(MapLayer):
    """Ordinary LoRA for every map: scale = 1. down [outputs, map, d_in, R], up [outputs, map, d_out, R].

    "separate": map i reads itself, y[i] = up[i] down[i]^T x[i]. "fused": one factor over all maps, y[i] = up[i] sum_j down[j]^T x[j].
    """

    def __init__(self, kind: str, maps: int, d_in: int, d_out: int, outputs: int, rank: int):
        super().__init__()
        self.kind = kind
        self.down = nn.Parameter(torch.randn(outputs, maps, d_in, rank) / d_in**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, maps, d_out, rank))

    def forward(self, x: Tensor, strength: float = 1.0) -> tuple[Update, ...]:
        updates = []
        for down, up in zip(self.down.to(x), self.up.to(x), strict=True):
            hidden = x @ down
            if self.kind == FUSED:
                hidden = hidden.sum(dim=-3, keepdim=True).expand_as(hidden)
            updates.append(Update(hidden, up, strength))
        return tuple(updates)


class HybridLayer(MapLayer):
    """Rank R1 from a map to itself, rank R2 from every other map: scale = 1.

    own_down [outputs, map, d_in, R1], own_up [outputs, map, d_out, R1]; other_down [outputs, map, map - 1, d_in, R2], other_up [outputs,
    map, map - 1, d_out, R2]: output map first, then the other maps in order.
    """

    kind = HYBRID

    def __init__(self, maps: int, d_in: int, d_out: int, outputs: int, rank: int, other_rank: int):
        super().__init__()
        self.own_down = nn.Parameter(torch.randn(outputs, maps, d_in, rank) / d_in**0.5)
        self.own_up = nn.Parameter(torch.zeros(outputs, maps, d_out, rank))
        self.other_down = nn.Parameter(torch.randn(outputs, maps, maps - 1, d_in, other_rank) / d_in**0.5)
        self.other_up = nn.Parameter(torch.zeros(outputs, maps, maps - 1, d_out, other_rank))

    def forward(self, x: Tensor, strength: float = 1.0) -> tuple[Update, ...]:
        maps = x.shape[-3]
        others = [[j for j in range(maps) if j != i] for i in range(maps)]
        updates = []
        for weights in zip(self.own_down, self.own_up, self.other_down, self.other_up, strict=True):
            own_down, own_up, other_down, other_up = (weight.to(x) for weight in weights)
            hidden = [x @ own_down]
            # One column of `others` at a time: every map reads its k-th other map.
            for k, sources in enumerate(zip(*others, strict=True)):
                hidden.append(x[..., list(sources), :, :] @ other_down[:, k])
            up = torch.cat([own_up, rearrange(other_up, "map other d_out rank -> map d_out (other rank)")], dim=-1)
            updates.append(Update(torch.cat(hidden, dim=-1), up, strength))
        return tuple(updates)


def make_layer(config: AdapterConfig, outputs: int) -> MapLayer:
    """The update of `outputs` projections of one input in the structure that `config` names."""
    maps, width, rank = len(config.design.maps), config.width, config.rank
    if config.design.lora == TENSOR:
        return TensorLayer(maps, width, width, outputs, rank)
    if config.design.lora == HYBRID:
        return HybridLayer(maps, width, width, outputs, rank, config.other_rank)
    return PairedLayer(config.design.lora, maps, width, width, outputs, rank)


class BlockAdapter(nn.Module):
    """The two updates of a FLUX block.

    `input`: from the modulated input (double-stream: of image tokens; single-stream: of all tokens) to keys, after their RMS norm and
    before the rotary embedding, and to values; with adapt_query also to queries, as to keys.
    `proj`: from the output of the attention's output projection (double-stream: `img_attn.proj`; single-stream: `linear2`, which is
    diffusers' `proj_out`) to that same output.
    """

    def __init__(self, input_layer: MapLayer, proj_layer: MapLayer):
        super().__init__()
        self.input, self.proj = input_layer, proj_layer


class Adapter(nn.Module):
    """A LumiX adapter for a whole FLUX: `double_blocks[i]` and `single_blocks[i]` are `BlockAdapter`s."""

    def __init__(self, config: AdapterConfig):
        super().__init__()
        self.config = config

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(BlockAdapter(make_layer(config, config.input_outputs), make_layer(config, 1)) for _ in range(count))

        self.double_blocks, self.single_blocks = blocks(config.double_blocks), blocks(config.single_blocks)

    @property
    def maps(self) -> tuple[str, ...]:
        return self.config.design.maps

    @property
    def attention(self) -> str:
        return self.config.design.attention

    @property
    def size(self) -> tuple[int, int, int]:
        """Width, double and single blocks of its FLUX."""
        return self.config.width, self.config.double_blocks, self.config.single_blocks

    def merge_(self) -> "Adapter":
        """Contracts the cores of Tensor LoRA, in place, for inference; returns self. It cannot be saved or trained afterwards."""
        for block in (*self.double_blocks, *self.single_blocks):
            for name, layer in block.named_children():
                if isinstance(layer, TensorLayer):
                    setattr(block, name, layer.merged())
        return self.requires_grad_(False)
