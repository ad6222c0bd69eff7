"""Linear probing: the network stays as it is, and what its self-attentions say is read by one linear layer.

The baseline of I-LoRA (appendix C.1), after Chen et al. 2023 ("Beyond Surface Statistics", section 3), who read the outputs of one
self-attention at a time, brought to the picture's size. Here one probe reads all of them, and says the latent of the map, so that
probe, LoRA and full fine-tuning have the same loss and the same decoder.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ..atomic import write_tensors
from ..backbones import single_step_of
from ..backbones.backbone import Probe, SingleStep


class LinearProbe(nn.Module):
    """Stands where a network's last layer stood, whose input it only asks for its size.

    Of every self-attention's output [b, token, width], a linear map to `channels`, brought to that size (bilinear: the same as a linear map
    of what was brought to it); and their sum, `[b, channels, h, w]`. It begins as 0.
    """

    def __init__(self, attentions: Sequence[Attention], channels: int):
        super().__init__()
        readouts = [nn.Linear(attention.to_out[0].out_features, channels, bias=False) for attention in attentions]
        for readout in readouts:
            nn.init.zeros_(readout.weight)
        self.readouts = nn.ModuleList(readouts)
        self.bias = nn.Parameter(torch.zeros(channels))
        self._said: dict[int, Tensor] = {}
        for place, attention in enumerate(attentions):
            attention.register_forward_hook(partial(self._listen, place))

    def _listen(self, place: int, attention: nn.Module, inputs: tuple, tokens: Tensor) -> None:
        self._said[place] = tokens

    def forward(self, last_bchw: Tensor) -> Tensor:
        height, width = last_bchw.shape[-2:]
        total = self.bias[:, None, None]
        for place, readout in enumerate(self.readouts):
            tokens = readout(self._said.pop(place))
            grid = rearrange(tokens, "b (h w) c -> b c h w", h=_rows(tokens.shape[1], height, width))
            total = total + functional.interpolate(grid, (height, width), mode="bilinear")
        return total


def _rows(tokens: int, height: int, width: int) -> int:
    """Of the grid that the tokens of a stage are: every stage has half the side of the one before, rounded up."""
    while height * width > tokens:
        height, width = (height + 1) // 2, (width + 1) // 2
    return height


def add_probe(network: ModelMixin, single_step: SingleStep) -> None:
    """Put a `LinearProbe` into a frozen network, in place. Raises ValueError for a network that none reads."""
    known = _known(single_step)
    attentions = [module for name, module in network.named_modules() if re.fullmatch(known.self_attentions, name)]
    last = network.get_submodule(known.output)
    probe = LinearProbe(attentions, last.out_channels).to(last.weight.device)
    setattr(network, known.output, probe)


def _known(single_step: SingleStep) -> Probe:
    if single_step.probe is None:
        raise ValueError(f"a linear probe reads a UNet's self-attentions, {single_step.models} came: choose a LoRA kind, or a UNet.")
    return single_step.probe


def save_probe(network: ModelMixin, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a network's probe, atomically: what `load_probe` reads."""
    probe = network.get_submodule(_known(single_step_of(network)).output)
    write_tensors(path, {name: tensor.detach().float().cpu().contiguous() for name, tensor in probe.state_dict().items()}, metadata)


def load_probe(network: ModelMixin, path: Path) -> None:
    """Put the probe of a file into a network, in place. Raises ValueError, naming the file, where the two do not fit."""
    single_step = single_step_of(network)
    add_probe(network, single_step)
    probe, state = network.get_submodule(_known(single_step).output), load_file(path)
    own = {name: tensor.shape for name, tensor in probe.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in state.items()}:
        raise ValueError(f"{path.name} is no linear probe of this base: pick the base that it was trained on.")
    probe.load_state_dict(state)
