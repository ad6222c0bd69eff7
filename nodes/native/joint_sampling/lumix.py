"""MODELs that sample all maps of a picture together: LumiX's adapters on FLUX.1, and its attention alone on FLUX.1 and Stable Diffusion."""

from collections.abc import Collection
from pathlib import Path
from weakref import WeakValueDictionary

import comfy.model_management
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher

from ....methods.lumix.tensor_lora.file import read_adapter
from ....methods.lumix.tensor_lora.layer import Adapter
from ..backbones import lumix_flux, lumix_unet
from ..batch_rows.lumix_rows import KEY, attach_rows

# An adapter is read and its cores merged once, for as long as some MODEL uses it.
_adapters: WeakValueDictionary[tuple, ModelPatcher] = WeakValueDictionary()


def load_adapter(path: Path) -> ModelPatcher:
    """A file's adapter with merged cores, as a model that core manages. Raises ValueError as `read_adapter`."""
    state = path.stat()
    identity = (str(path), state.st_size, state.st_mtime_ns)
    patcher = _adapters.get(identity)
    if patcher is None:
        # A plain patcher also where core uses dynamic ones: these layers are ours, and move as a whole.
        load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        patcher = ModelPatcher(read_adapter(path).merge_(), load_device=load, offload_device=offload)
        _adapters[identity] = patcher
    return patcher


def apply_adapter(
    model: ModelPatcher, path: Path, strength: float, way: str | None, double: Collection[int] | None, single: Collection[int] | None
) -> ModelPatcher:
    """A clone of a FLUX.1 MODEL that samples the file's maps together.

    way: how they attend, None for what the file was trained with. double, single: numbers of the blocks to change, None for all; the
    others stay the base model's. Raises ValueError for other networks, widths and depths, and where maps meet already.
    """
    network = lumix_flux.require_flux(model)
    _require_single_pictures(model)
    patcher = load_adapter(path)
    adapter: Adapter = patcher.model
    depth = {"double": len(network.double_blocks), "single": len(network.single_blocks)}
    _require_same_size(adapter, network, depth, path.name)
    numbers = {kind: _block_numbers(chosen, depth[kind], kind) for kind, chosen in (("double", double), ("single", single))}
    clone = model.clone()
    lumix_flux.attach(clone, way or adapter.config.design.attention, adapter, strength, numbers)
    attach_rows(clone, adapter.config.design.maps)
    clone.set_additional_models(KEY, [patcher])
    return clone


def join_maps(model: ModelPatcher, maps: tuple[str, ...], way: str) -> ModelPatcher:
    """A clone of a FLUX.1 or Stable Diffusion MODEL whose rows are these maps, which meet in self-attention; no weights are added."""
    _require_single_pictures(model)
    network = model.get_model_object("diffusion_model")
    clone = model.clone()
    if isinstance(network, UNetModel):
        lumix_unet.attach(clone, network, way)
    elif isinstance(network, Flux):
        lumix_flux.require_flux(model)
        numbers = {"double": range(len(network.double_blocks)), "single": range(len(network.single_blocks))}
        lumix_flux.attach(clone, way, None, 0.0, numbers)
    else:
        raise ValueError(
            f"This MODEL is a {type(model.model).__name__} ({type(network).__name__}): maps can meet in FLUX.1 and in Stable Diffusion "
            "UNets (SD 1.x, SD 2.x, SDXL); load one of those."
        )
    attach_rows(clone, maps)
    return clone


def _require_single_pictures(model: ModelPatcher) -> None:
    if model.get_attachment(KEY) is not None:
        raise ValueError("This MODEL samples maps together already: apply one adapter, or one joining of maps, once.")


def _require_same_size(adapter: Adapter, network: Flux, depth: dict[str, int], name: str) -> None:
    config = adapter.config
    found = (config.width, config.double_blocks, config.single_blocks)
    wanted = (network.hidden_size, depth["double"], depth["single"])
    if found != wanted:
        raise ValueError(
            "{} was trained on a FLUX of width {} with {} double and {} single blocks, this MODEL has width {}, {} and {}: load the base "
            "model it belongs to.".format(name, *found, *wanted)
        )


def _block_numbers(chosen: Collection[int] | None, depth: int, kind: str) -> Collection[int]:
    if chosen is None:
        return range(depth)
    if beyond := sorted(number for number in chosen if not 0 <= number < depth):
        raise ValueError(f"There is no {kind} block {beyond[0]}: this MODEL has {depth}, numbered 0 to {depth - 1}.")
    return chosen
