"""The weights of a checkpoint file, by prefix. Pickles are read as data: nothing in them is run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from ...methods.lora.header import BadFile
from ...methods.lora.weight_file import Reader, read_header
from ...methods.pickled_weights import read_pickled

PICKLES = (".ckpt", ".pt", ".pth")
ENDINGS = (".safetensors", *PICKLES)
Shapes = Mapping[str, tuple[int, ...]]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """shapes: of every weight, by its name in the file. dtype: in which weights are handed out; those of safetensors are read only then."""

    path: Path
    shapes: Shapes
    dtype: torch.dtype = torch.float32
    _held: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def below(self, prefix: str) -> Shapes:
        """The shapes of a part, by names without the prefix."""
        return {name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)}

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """The weights of a part, by names without the prefix."""
        # Copies: a file's own bytes may lie where arithmetic takes another path.
        return {name.removeprefix(prefix): weight.to(self.dtype, copy=True) for name, weight in self._read(prefix)}

    def _read(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        names = [name for name in self.shapes if name.startswith(prefix)]
        if self._held:
            yield from ((name, self._held[name]) for name in names)
            return
        try:
            with Reader(self.path) as file:
                yield from ((name, file.any_tensor(name)) for name in names)
        except BadFile as error:
            raise ValueError(f"{self.path.name}: {error}") from None


def open_checkpoint(path: Path) -> Checkpoint:
    """A .safetensors, or a pickle of tensors (.ckpt). Raises ValueError that says what is wrong with the file."""
    if path.suffix in PICKLES:
        pickled = read_pickled(path)
        try:
            held = pickled.named_tensors()
        except ValueError as error:
            raise ValueError(f"in {path.name}, {error}") from None
        return Checkpoint(path, {name: tuple(weight.shape) for name, weight in held.items()}, _held=held)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} is no checkpoint: a file that ends in {', '.join(ENDINGS)}, or a diffusers folder, was expected.")
    try:
        layout = read_header(path).layout
        shapes = {name: layout.info(name, integers=True).form.shape for name in layout.tensors}
    except BadFile as error:
        raise ValueError(f"{path.name} is not a complete safetensors file ({error}): copy or download it again.") from None
    return Checkpoint(path, shapes)


def filled(build: Callable[[], Module], weights: Mapping[str, Tensor], path: Path, part: str) -> Module:
    """A network with these weights, for evaluation. Raises ValueError, naming file and part, where the two do not fit."""
    with init_empty_weights(include_buffers=False):
        module = build()
    expected = module.state_dict()
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape)
    for names, what in ((missing, "lacks"), (unknown, "holds unknown"), (wrong, "holds, in another shape than its other weights ask for,")):
        if names:
            raise ValueError(f"the {part} in {path.name} {what} {len(names)} weights ({names[0]}): it is damaged or of another kind.")
    module.load_state_dict(weights, strict=True, assign=True)
    return module.eval()


def count(shapes: Mapping[str, Any], pattern: str) -> int:
    """How many numbers, from 0 on, `pattern` with its {} has a weight for."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number
