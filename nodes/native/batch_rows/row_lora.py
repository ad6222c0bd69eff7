"""One LoRA per row of the batch on a native Stable Diffusion UNet, without touching a module.

A clone of the MODEL carries its maps' LoRAs unmerged. While one forward of the UNet runs, forward hooks on exactly the target layers
add `scale * up(down(rows))` to the rows of each map, and are gone afterwards, also when the forward fails. Hooks see a layer's true input
and output, so merged LoRAs, core's bypass LoRAs, fp8 and partly loaded weights, and attention patches of other packs keep their effect;
and they reach every Linear and Conv2d, not only attention.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ....methods.intrinsic_lora.recipe import Recipe
from ....methods.lora.layers import LoraLayer
from ....methods.rows import labelled_slices, windows_per_row
from .sampled_rows import conditions_of, sampled_rows

KEY = "intrinsic_lab.row_lora"
# A linear layer or a convolution of the model; quantised ones are not always torch's.
Layer = Any


class LayerDelta(nn.Module):
    """`strength * scale * up(down(x))` with the geometry (stride, padding...) of the layer it belongs to."""

    def __init__(self, layer: LoraLayer, target: Layer, strength: float):
        super().__init__()
        # Files may write a 1x1 convolution as a matrix, or the reverse.
        kernel, one = (tuple(target.kernel_size), (1, 1)) if _is_conv2d(target) else ((), ())
        self.down = nn.Parameter(layer.down.reshape(*layer.down.shape[:2], *kernel), requires_grad=False)
        self.up = nn.Parameter(layer.up.reshape(*layer.up.shape[:2], *one), requires_grad=False)
        self.factor = layer.scale * strength
        self.geometry = dict(stride=target.stride, padding=target.padding, dilation=target.dilation) if kernel else None

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.down.to(x.device, x.dtype), self.up.to(x.device, x.dtype)
        if self.geometry is None:
            return F.linear(F.linear(x, down), up) * self.factor
        return F.conv2d(F.conv2d(x, down, **self.geometry), up) * self.factor


class PictureIn(nn.Module):
    """`strength * convolution(picture's latent)`, added to the convolution by which latents come in: together one of more channels."""

    def __init__(self, weight: Tensor, entry: Layer, strength: float):
        super().__init__()
        self.weight, self.strength = nn.Parameter(weight, requires_grad=False), strength
        self.geometry = dict(stride=entry.stride, padding=entry.padding, dilation=entry.dilation)

    def forward(self, picture_bchw: Tensor) -> Tensor:
        return F.conv2d(picture_bchw, self.weight.to(picture_bchw.device, picture_bchw.dtype), **self.geometry) * self.strength


def _is_linear(module: nn.Module | None) -> bool:
    # By attributes, not by class: quantised layers are not always subclasses of torch's.
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _is_conv2d(module: nn.Module | None) -> bool:
    return hasattr(module, "in_channels") and hasattr(module, "out_channels") and len(getattr(module, "kernel_size", ())) == 2


def _same_size(layer: LoraLayer, target: Layer) -> bool:
    """Whether the LoRA fits the layer's widths and kernel, whatever the number of trailing 1s."""
    if _is_conv2d(target):
        kernel = tuple(layer.down.shape[2:]) or (1, 1)
        wanted = (target.in_channels, target.out_channels, tuple(target.kernel_size))
        return target.groups == 1 and (layer.down.shape[1], layer.up.shape[0], kernel) == wanted
    return layer.down.shape[2:].numel() == 1 and (layer.down.shape[1], layer.up.shape[0]) == (target.in_features, target.out_features)


class MapAdapter(nn.Module):
    """One map's LoRA, bound to the layers of a UNet by their native names (`input_blocks.1.1.proj_in`).

    entry, picture_in: the convolution that latents come in by, and what an augmented one adds there.
    Raises ValueError when the LoRA was made for another UNet: layers that are not there, or of another width.
    """

    def __init__(self, layers: Mapping[str, LoraLayer], unet: nn.Module, native_names: Mapping[str, str], strength: float, source: str):
        super().__init__()
        self.deltas = nn.ModuleDict()
        self.entry: str = ""
        self.picture_in: PictureIn | None = None
        unknown, misfits = [], []
        for name, layer in layers.items():
            if not (layer.rank and math.isfinite(layer.scale)):
                raise ValueError(
                    f"{source} has a layer of rank {layer.rank} at the factor {layer.scale} ({name}): it is damaged, export it again."
                )
            native = native_names.get(name, name)
            target = _submodule(unet, native)
            if not (_is_linear(target) or _is_conv2d(target)):
                unknown.append(name)
            elif not _same_size(layer, target):
                misfits.append(f"{name} is {layer.up.shape[0]} x {layer.down.shape[1]}, the model's layer is {_describe(target)}")
            else:
                # ModuleDict allows no dots in its keys.
                self.deltas[native.replace(".", "/")] = LayerDelta(layer, target, strength)
        if unknown:
            raise ValueError(
                f"{source} was made for another model: {len(unknown)} of its {len(layers)} layers do not exist here (first: {unknown[0]}). "
                "Load the base model it was trained on."
            )
        if misfits:
            raise ValueError(
                f"{source} was made for a model of another width: {len(misfits)} of its {len(layers)} layers do not fit "
                f"(first: {misfits[0]}). Load the base model it was trained on."
            )

    def take_picture(self, unet: nn.Module, entry: str, weight: Tensor, strength: float) -> None:
        """From now on rows of this map need the picture's latent."""
        self.entry, self.picture_in = entry, PictureIn(weight, comfy.utils.get_attr(unet, entry), strength)

    def named_deltas(self) -> Iterator[tuple[str, LayerDelta]]:
        return ((name.replace("/", "."), delta) for name, delta in self.deltas.items() if isinstance(delta, LayerDelta))


def _submodule(root: nn.Module, name: str) -> Layer | None:
    try:
        return comfy.utils.get_attr(root, name)
    except AttributeError:
        return None


def _describe(target: Layer) -> str:
    if _is_conv2d(target):
        return f"{target.out_channels} x {target.in_channels}, kernel {tuple(target.kernel_size)}"
    return f"{target.out_features} x {target.in_features}"


@dataclass(frozen=True)
class CarriedMap:
    """A map whose LoRA a MODEL carries; patcher: the adapter, managed by core."""

    recipe: Recipe
    patcher: ModelPatcher


def carried_maps(model: ModelPatcher) -> dict[str, CarriedMap]:
    """Maps applied to this MODEL so far, in the order of application."""
    return dict(model.attachments.get(KEY, {}))


def carry(model: ModelPatcher, recipe: Recipe, adapter: MapAdapter) -> ModelPatcher:
    """A clone of `model` that carries one more map. Raises ValueError when it carries that map already."""
    maps = carried_maps(model)
    if recipe.map in maps:
        raise ValueError(f"This MODEL already carries a LoRA for '{recipe.map}': apply each map once, or choose another map for this file.")
    # A plain patcher also where core uses dynamic ones: the adapter's layers are ours, a few MB, and move as a whole.
    patcher = ModelPatcher(
        adapter, load_device=comfy.model_management.get_torch_device(), offload_device=comfy.model_management.unet_offload_device()
    )
    maps[recipe.map] = CarriedMap(recipe, patcher)
    clone = model.clone()
    clone.set_attachments(KEY, maps)
    clone.set_additional_models(KEY, [carried.patcher for carried in maps.values()])
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _wrapper({name: carried.patcher.model for name, carried in maps.items()}))
    return clone


def options_for_rows(model_options: dict, map_of_row: Sequence[str | None]) -> dict:
    """Model options under which row i of the latent batch runs with the LoRA of `map_of_row[i]`; None leaves a row to the base model."""
    return {**model_options, "transformer_options": {**model_options["transformer_options"], KEY: tuple(map_of_row)}}


def _wrapper(adapters: Mapping[str, MapAdapter]) -> Callable:
    def run_rows(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        options = transformer_options or {}
        map_of_row = _map_of_row(adapters, x, options)
        picture = None
        if any(adapter.picture_in is not None for adapter in adapters.values()):
            picture, c_concat = c_concat, None
        with hooked(executor.class_obj.diffusion_model, adapters, map_of_row, picture):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    return run_rows


def _map_of_row(adapters: Mapping[str, MapAdapter], x: Tensor, options: Mapping) -> tuple[str | None, ...]:
    assigned: Sequence[str | None] | None = options.get(KEY)
    if assigned is not None:
        return tuple(assigned[row] for row in sampled_rows(x, options, len(assigned))) * conditions_of(options)
    if len(adapters) > 1:
        raise ValueError(
            f"This MODEL carries unmerged LoRAs for several maps ({', '.join(adapters)}) and a sampler cannot know which row is which: "
            "use Extract Intrinsic Maps, or apply a single map."
        )
    return tuple(adapters) * x.shape[0]


@contextlib.contextmanager
def hooked(
    unet: nn.Module, adapters: Mapping[str, MapAdapter], map_of_row: Sequence[str | None], picture_bchw: Tensor | None = None
) -> Iterator[None]:
    """Adds each row's LoRA to the layers' outputs for the duration of the block, in which compiled models run eagerly.

    picture_bchw: latents of the rows' pictures, for adapters that take them.
    """
    parts: dict[str, list[tuple[slice, LayerDelta]]] = {}
    for name, rows in labelled_slices(map_of_row):
        for layer, delta in adapters[name].named_deltas():
            parts.setdefault(layer, []).append((rows, delta))
    handles = []
    try:
        for name, rows in labelled_slices(map_of_row):
            if (picture_in := adapters[name].picture_in) is not None and picture_bchw is not None:
                entry = comfy.utils.get_attr(unet, adapters[name].entry)
                handles.append(entry.register_forward_hook(_add_picture(rows, picture_in, picture_bchw)))
        for layer, layer_parts in parts.items():
            handles.append(comfy.utils.get_attr(unet, layer).register_forward_hook(_add_rows(layer, layer_parts, len(map_of_row))))
        with eager():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _add_rows(layer: str, parts: list[tuple[slice, LayerDelta]], rows: int) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x = args[0]
        windows = windows_per_row(f"Layer {layer}", x.shape[0], rows)
        for part, delta in parts:
            here = slice(part.start * windows, part.stop * windows)
            # In place: a Linear's or Conv2d's output belongs to nobody else yet.
            output[here] += delta(x[here]).to(output.dtype)
        return output

    return hook


def _add_picture(rows: slice, picture_in: PictureIn, picture_bchw: Tensor) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        output[rows] += picture_in(picture_bchw[rows].to(output))
        return output

    return hook


def eager():
    """Runs compiled models eagerly: torch.compile does not look at hooks added after compilation, and would silently leave the LoRA out."""
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
