"""MODELs that sample all maps of a picture together: by LumiX's adapters, or by its attention alone."""

from collections.abc import Collection
from pathlib import Path
from weakref import WeakValueDictionary

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from ....methods.lumix.design import COLOR, QUERY_BROADCAST, color_row
from ....methods.lumix.intrinsix import RowAdapter, read_map_adapter
from ....methods.lumix.tensor_lora.layer import Adapter
from ..backbones import MAP_ADAPTER, MAP_ATTENTION, require
from ..backbones.backbone import TensorLora
from ..backbones.joint_attention import DOMAINS_KEY
from ..batch_rows.lumix_rows import KEY, attach_rows

# An adapter is read and its cores merged once, for as long as some MODEL uses it.
_adapters: WeakValueDictionary[tuple, ModelPatcher] = WeakValueDictionary()


def load_adapter(path: Path) -> ModelPatcher:
    """A file's adapter with merged cores, as a model that core manages. Raises ValueError as `read_map_adapter`."""
    state = path.stat()
    identity = (str(path), state.st_size, state.st_mtime_ns)
    patcher = _adapters.get(identity)
    if patcher is None:
        # A plain patcher also where core uses dynamic ones: these layers are ours, and move as a whole.
        load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        patcher = ModelPatcher(read_map_adapter(path), load_device=load, offload_device=offload)
        _adapters[identity] = patcher
    return patcher


def apply_adapter(
    model: ModelPatcher,
    path: Path,
    strength: float,
    attention: str | None,
    double_blocks: Collection[int] | None,
    single_blocks: Collection[int] | None,
) -> ModelPatcher:
    """A clone of a transformer MODEL that samples the file's maps together.

    attention: how they meet, None for what the file was trained with. double_blocks, single_blocks: numbers of the blocks to change, None
    for all; the others stay the base model's. Raises ValueError for other networks, widths and depths, and where maps meet already.
    """
    attach = require(model, MAP_ADAPTER)
    _require_single_pictures(model)
    patcher = load_adapter(path)
    adapter: Adapter | RowAdapter = patcher.model
    chosen = attention or adapter.attention
    if chosen == QUERY_BROADCAST and COLOR not in adapter.maps:
        raise ValueError(
            f"{path.name} makes {', '.join(adapter.maps)}: there is no {COLOR} whose queries they could share; choose another attention."
        )
    clone = model.clone()
    attach(clone, TensorLora(path.name, adapter, chosen, strength, double_blocks, single_blocks))
    attach_rows(clone, adapter.maps)
    clone.set_additional_models(KEY, [patcher])
    return clone


def join_maps(model: ModelPatcher, maps: tuple[str, ...], attention: str) -> ModelPatcher:
    """A clone of a MODEL whose rows are these maps, which meet in self-attention; no weights are added. Raises ValueError."""
    _require_single_pictures(model)
    color_row(maps)
    clone = model.clone()
    require(model, MAP_ATTENTION).attach(clone, attention)
    attach_rows(clone, maps)
    return clone


def _require_single_pictures(model: ModelPatcher) -> None:
    if model.get_attachment(KEY) is not None:
        raise ValueError("This MODEL samples maps together already: apply one adapter, or one joining of maps, once.")
    if model.get_attachment(DOMAINS_KEY) is not None:
        raise ValueError(
            "This MODEL samples pictures and intrinsics in pairs (Apply Cross-Domain Attention): connect the MODEL from before it."
        )
