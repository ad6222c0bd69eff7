"""What learns when an Intrinsic LoRA is trained on a generator: two small matrices per adapted layer, and the file they go to."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...methods.intrinsic_lora.generators.adapter import generator_header, peft_state_dict, run_adapted
from ...methods.lora.layers import LoraLayer
from ..atomic import write_tensors


class LoraOn(nn.Module):
    """`module`, frozen, with trainable LoRA layers on the linear layers and convolutions `names`; they change nothing until trained.

    seed: of the layers' random halves. Raises ValueError if there is nothing to adapt.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], rank: int, seed: int):
        super().__init__()
        if not names or rank < 1:
            raise ValueError(f"{len(names)} layers and rank {rank}: a LoRA needs at least one layer to adapt and rank 1.")
        self.module, self.names = module.requires_grad_(False), tuple(names)
        draw = torch.Generator().manual_seed(seed)
        shapes = [tuple(module.get_parameter(f"{name}.weight").shape) for name in names]
        # As peft begins: uniform below one over the root of the width, and zero.
        self.down = nn.ParameterList((2 * torch.rand(rank, *wide, generator=draw) - 1) / math.sqrt(math.prod(wide)) for _, *wide in shapes)
        self.up = nn.ParameterList(torch.zeros(outputs, rank, *(1 for _ in wide[1:])) for outputs, *wide in shapes)

    def layers(self) -> dict[str, LoraLayer]:
        """The layers by name inside `module`, on the graph."""
        return {name: LoraLayer(down, up) for name, down, up in zip(self.names, self.down, self.up, strict=True)}

    def forward(self, *inputs) -> Tensor:
        return run_adapted(self.module, self.layers(), inputs)


def save_generator_lora(adapted: LoraOn, path: Path, kind: str, map_name: str, resolution: int, base: str, prefix: str = "") -> None:
    """Write the layers, as float16 and under `prefix` + their names, so that the nodes and peft load them; atomically."""
    state = peft_state_dict({f"{prefix}{name}": layer for name, layer in adapted.layers().items()}, torch.float16)
    write_tensors(path, state, generator_header(kind, map_name, resolution, base))
