"""IntrinsiX's released adapters (Kocsis et al. 2025): a LoRA of its own for each of three maps, which are rows of one batch of FLUX.1.

    transformer.transformer_blocks.N.attn.{to_q,to_k,to_v,to_out.0}.ROW.lora_down.weight [R, d]   .lora_up.weight [d, R]
    transformer.single_transformer_blocks.N.attn.{to_q,to_k,to_v}.ROW. ... the same

ROW counts `MAPS`. Each is an ordinary LoRA on its projection, factor 1: it acts before the norms of queries and keys, LumiX's after them.
The rows meet in attention by `IMAGE_SHARING`: in double-stream blocks, a row's queries read its own text and the images of all rows; in
single-stream blocks, all tokens of all rows.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..lora.spellings import split_prefix
from .design import IMAGE_SHARING, SEPARATE
from .tensor_lora.file import adapter_from_state, config_of_state, read_file
from .tensor_lora.layer import Adapter, PairedLayer

MATERIAL = "material"
MAPS = ("albedo", MATERIAL, "normal")
# The colour channels of a material's picture, by the names of the table of maps.
MATERIAL_CHANNELS = {"roughness": 0, "metallic": 1}
_INPUTS, _OUTPUT = ("to_q", "to_k", "to_v"), "to_out.0"
_KEY = re.compile(r"(single_)?transformer_blocks\.(\d+)\.attn\.(to_q|to_k|to_v|to_out\.0)\.(\d+)\.lora_(down|up)\.weight")


class RowBlock(nn.Module):
    """The updates of a block's projections: `input` of query, key and value; `proj` of the output, None in single-stream blocks."""

    def __init__(self, input_layer: PairedLayer, proj_layer: PairedLayer | None):
        super().__init__()
        self.input, self.proj = input_layer, proj_layer


class RowAdapter(nn.Module):
    """An adapter for a whole FLUX: `double_blocks[i]` and `single_blocks[i]` are `RowBlock`s."""

    maps, attention = MAPS, IMAGE_SHARING

    def __init__(self, width: int, double_blocks: Sequence[RowBlock], single_blocks: Sequence[RowBlock]):
        super().__init__()
        self.width, self.double_blocks, self.single_blocks = width, nn.ModuleList(double_blocks), nn.ModuleList(single_blocks)

    @property
    def size(self) -> tuple[int, int, int]:
        """Width, double and single blocks of its FLUX."""
        return self.width, len(self.double_blocks), len(self.single_blocks)


def read_map_adapter(path: Path) -> Adapter | RowAdapter:
    """A file of LumiX or IntrinsiX, ready for inference. Raises ValueError, naming the file, what is wrong with it and what to do."""
    return read_file(path, _adapter)


def width_in_header(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]) -> int | None:
    """Width of the FLUX that a file of LumiX or IntrinsiX belongs to; None for any other file. shapes: of its tensors, by name."""
    if rows := [shape for key, shape in shapes.items() if (match := _KEY.fullmatch(split_prefix(key)[0])) and match[5] == "down"]:
        return rows[0][-1]
    if not all("_lora." in key for key in shapes):
        return None
    try:
        return config_of_state({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, metadata).width
    except ValueError:
        return None


def _adapter(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Adapter | RowAdapter:
    if any(_KEY.fullmatch(split_prefix(key)[0]) for key in tensors):
        return row_adapter(tensors)
    return adapter_from_state(tensors, metadata).merge_()


def row_adapter(tensors: Mapping[str, Tensor]) -> RowAdapter:
    """State under the names above, in the file's precision. Raises ValueError for anything missing, unknown, misshapen or not finite."""
    named = {split_prefix(key)[0]: tensor for key, tensor in tensors.items()}
    known = {name: match for name in named if (match := _KEY.fullmatch(name))}
    counts = [max((int(match[2]) for match in known.values() if bool(match[1]) == single), default=-1) + 1 for single in (False, True)]
    first = next(named[name] for name, match in known.items() if match[5] == "down")
    if first.ndim != 2 or max(counts) > len(known):
        raise ValueError(f"its first weight is {list(first.shape)} in {counts} blocks: it is damaged, download it again.")
    rank, width = first.shape
    wanted: dict[str, tuple[int, int]] = {}
    for part, count, projections in (("", counts[0], (*_INPUTS, _OUTPUT)), ("single_", counts[1], _INPUTS)):
        for block in range(count):
            for projection in projections:
                for row in range(len(MAPS)):
                    key = f"{part}transformer_blocks.{block}.attn.{projection}.{row}.lora_"
                    wanted |= {f"{key}down.weight": (rank, width), f"{key}up.weight": (width, rank)}
    if wrong := sorted(wanted.keys() ^ named.keys()):
        missing = sum(name in wanted for name in wrong)
        raise ValueError(
            f"it lacks {missing} weights of IntrinsiX's three rows ({', '.join(MAPS)}) and has {len(wrong) - missing} others (first: "
            f"{wrong[0]}): download it again."
        )
    for name, shape in wanted.items():
        if named[name].shape != shape:
            raise ValueError(f"{name} is {list(named[name].shape)}, the rest of the file asks for {list(shape)}: it is damaged.")
        if not named[name].is_floating_point() or not torch.isfinite(named[name].float()).all():
            raise ValueError(f"{name} holds values that are not finite numbers: it is damaged, download it again.")

    def layer(block: str, projections: tuple[str, ...]) -> PairedLayer:
        def stacked(side: str) -> Tensor:
            keys = [[f"{block}.attn.{projection}.{row}.lora_{side}.weight" for row in range(len(MAPS))] for projection in projections]
            return torch.stack([torch.stack([named[key] for key in rows]) for rows in keys])

        with torch.device("meta"):
            paired = PairedLayer(SEPARATE, len(MAPS), width, width, len(projections), rank)
        paired.down = nn.Parameter(stacked("down").mT.contiguous(), requires_grad=False)
        paired.up = nn.Parameter(stacked("up"), requires_grad=False)
        return paired

    double = [RowBlock(layer(f"transformer_blocks.{n}", _INPUTS), layer(f"transformer_blocks.{n}", (_OUTPUT,))) for n in range(counts[0])]
    return RowAdapter(width, double, [RowBlock(layer(f"single_transformer_blocks.{n}", _INPUTS), None) for n in range(counts[1])])
