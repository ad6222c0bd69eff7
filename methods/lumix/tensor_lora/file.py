"""LumiX adapter files: safetensors under the published names.

    double_blocks.N.processor.kv_tt_lora.G1 [M, M, R]   .G2 [M, d, R, R]   .G3 [M, 2 d, R]
    double_blocks.N.processor.proj_tt_lora.G1, .G2, .G3 [M, d, R]
    single_blocks.N.processor. ... the same

Shapes tell M, R, d. The other structures of the design matrix have the layer's own parameters under `kv_separate_lora`, `kv_fused_lora` and
`kv_hybrid_lora` (and `proj_...`); an adapted query is written `qkv_..._lora`. The header may name what shapes cannot: `lumix.attention`
and `lumix.maps`; without it, the published attention and, for five maps, the published order.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ...lora.header import BadFile
from ...lora.weight_file import load_safetensors
from ..design import HYBRID, LORAS, MAP_NAMES, QUERY_BROADCAST, TENSOR, Design
from .config import AdapterConfig
from .layer import Adapter

Parsed = TypeVar("Parsed")
ATTENTION_ENTRY, MAPS_ENTRY = "lumix.attention", "lumix.maps"
_KIND_IN_FILE = {kind: "tt" if kind == TENSOR else kind for kind in LORAS}
_KEY = re.compile(r"(double|single)_blocks\.(\d+)\.processor\.(qkv|kv|proj)_(tt|separate|fused|hybrid)_lora\.(\w+)")
# Each structure's tensor that tells the number of maps, the width and the rank, and where.
_SIZES = {"tt": ("G2", 0, 1, 2), "separate": ("down", 1, 2, 3), "fused": ("down", 1, 2, 3), "hybrid": ("own_down", 1, 2, 3)}


def read_adapter(path: str | Path) -> Adapter:
    """A file as an `Adapter` in the file's precision. Raises ValueError, naming the file, what is wrong with it and what to do."""
    return read_file(Path(path), adapter_from_state)


def read_file(path: Path, parse: Callable[[Mapping[str, Tensor], Mapping[str, str]], Parsed]) -> Parsed:
    """What `parse` makes of a file's tensors and header. Raises ValueError as it does, naming the file."""
    try:
        tensors, metadata = load_safetensors(path)
    except BadFile as error:
        raise ValueError(f"{path.name} cannot be read as safetensors ({error}): it is missing, truncated or of another kind.") from None
    try:
        return parse(tensors, metadata)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def adapter_from_state(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Adapter:
    """State under the names above to an `Adapter`. Raises ValueError for anything missing, unknown, misshapen or not finite."""
    config = config_of_state(tensors, metadata or {})
    with torch.device("meta"):
        adapter = Adapter(config)
    wanted = {_file_key(name, config): parameter.shape for name, parameter in adapter.named_parameters()}
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ValueError(f"{len(missing)} of {len(wanted)} weights are missing (first: {missing[0]}): download or export it again.")
    for key, shape in wanted.items():
        tensor = tensors[key]
        if tensor.shape != shape:
            raise ValueError(f"{key} is {list(tensor.shape)}, the rest of the file asks for {list(shape)}: it is damaged, export it again.")
        if not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{key} holds values that are not finite numbers: the training diverged, use an earlier checkpoint.")
    # The file's own tensors: no second copy, the file's precision.
    state = {name: tensors[_file_key(name, config)] for name, _ in adapter.named_parameters()}
    adapter.load_state_dict(state, assign=True)
    return adapter


def config_of_state(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> AdapterConfig:
    """What the names and shapes of a file say about its adapter. Raises ValueError where they do not describe one."""
    keys = {key: _KEY.fullmatch(key) for key in tensors}
    known = [match for match in keys.values() if match]
    if unknown := [key for key, match in keys.items() if not match]:
        kind = "no LumiX weights" if not known else f"{len(unknown)} weights that LumiX does not know"
        raise ValueError(
            f"it holds {kind} (first: {unknown[0]}), names such as double_blocks.0.processor.kv_tt_lora.G1 are wanted: pick a LumiX file; "
            "ordinary LoRAs go through Load LoRA."
        )
    if not known:
        raise ValueError("it holds no weights: download or export it again.")
    # Of the first tensor of each name.
    shapes = {match[5]: tensors[match[0]].shape for match in reversed(known)}
    kinds, inputs = {match[4] for match in known}, {match[3] for match in known} - {"proj"}
    if len(kinds) > 1 or len(inputs) > 1:
        raise ValueError(f"it mixes {', '.join(sorted(kinds | inputs))} weights, one structure was expected: export it again.")
    kind = kinds.pop()
    name, at_maps, at_width, at_rank = _SIZES[kind]
    sizes = shapes.get(name, ())
    if len(sizes) <= at_rank:
        raise ValueError(f"its weights called {name}, which tell the number of maps, the width and the rank, are missing: export it again.")
    lora = next(lora for lora, in_file in _KIND_IN_FILE.items() if in_file == kind)
    other = shapes["other_down"][-1] if lora == HYBRID and "other_down" in shapes else 0
    design = Design(metadata.get(ATTENTION_ENTRY, QUERY_BROADCAST), lora, _maps(metadata, sizes[at_maps]), inputs == {"qkv"})
    counts = {part: max((int(match[2]) for match in known if match[1] == part), default=-1) + 1 for part in ("double", "single")}
    if max(counts.values()) > len(known):
        raise ValueError(f"it names block {max(counts.values()) - 1} and holds {len(known)} weights: it is damaged, export it again.")
    return AdapterConfig(design, sizes[at_width], counts["double"], counts["single"], sizes[at_rank], other)


def _maps(metadata: Mapping[str, str], count: int) -> tuple[str, ...]:
    named = tuple(name.strip() for name in metadata[MAPS_ENTRY].split(",")) if MAPS_ENTRY in metadata else MAP_NAMES
    if len(named) != count:
        raise ValueError(
            f"it holds weights for {count} maps, {len(named)} were expected ({', '.join(named)}): pick another file, or let its header "
            f"name the maps under {MAPS_ENTRY}."
        )
    return named


def file_state(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, header) of an adapter's file, for safetensors' `save`; the published format for the default design."""
    design = adapter.config.design
    tensors = {_file_key(name, adapter.config): tensor.detach().contiguous() for name, tensor in adapter.named_parameters()}
    return tensors, {ATTENTION_ENTRY: design.attention, MAPS_ENTRY: ",".join(design.maps), "format": "pt"}


def _file_key(parameter: str, config: AdapterConfig) -> str:
    """`double_blocks.0.input.G1` -> `double_blocks.0.processor.kv_tt_lora.G1`."""
    part, number, layer, name = parameter.split(".")
    projection = layer if layer == "proj" else "qkv" if config.design.adapt_query else "kv"
    return f"{part}.{number}.processor.{projection}_{_KIND_IN_FILE[config.design.lora]}_lora.{name}"
