"""Generators that are no diffusion models, with their LoRAs, in ComfyUI's memory management: found, loaded and run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ....methods.extras import extra
from ....methods.intrinsic_lora.generator_kinds import CLASSES, KIND_NAMES, PUBLISHED
from ....methods.maps import MAPS
from ..lora_library.files import BUNDLED_MARK, lora_path
from ..paths import BUNDLED, bundled_file, folder_fingerprint
from .folder_files import ModelFolderError, read_config, read_weights, rename, require_same_weights

# What reads and runs generators is imported where it is used: the pack loads with ComfyUI.
if TYPE_CHECKING:
    from ....methods.intrinsic_lora.generators import GeneratorLora

NO_LORA = "none"
PUBLISHED_AS = {"vqgan": "a published .ckpt with its .yaml", "gan": "a published .pt or .pkl"}
BUNDLED_FOLDERS = {"vqgan": {"nano VQGAN (bundled)": "nano_vqgan"}, "gan": {}}
# Names of the attention in files older than diffusers 0.12.
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator of a kind ("vqgan" or "gan") that core keeps in memory, and the LoRA of each map in the order of MAPS."""

    kind: str
    patcher: ModelPatcher
    loras: "Mapping[str, GeneratorLora]"

    @property
    def resolution(self) -> int | None:
        """Pixels the LoRAs were trained at, None where no file says."""
        return next((lora.resolution for lora in self.loras.values() if lora.resolution is not None), None)

    def layers_of_map(self) -> dict:
        return {name: lora.layers for name, lora in self.loras.items()}

    def to_device(self, memory_required: float) -> Any:
        """The generator, on the device core gives it, with room for `memory_required` bytes beside it."""
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory_required)
        return self.patcher.model.generator


class _Holder(nn.Module):
    """What core moves and counts; it sets attributes that diffusers' models do not allow."""

    def __init__(self, generator: nn.Module):
        super().__init__()
        self.generator = generator


def generator_paths(kind: str) -> dict[str, Path]:
    """Every generator of this kind, by the name a node shows: folders (bundled, in models/diffusers, models/vae), files in models/vae.

    A published VQGAN is offered where its yaml is beside it: other checkpoints in models/vae are no VQGANs. What a .pt or .pkl is, only
    reading it tells.
    """
    found = {shown: bundled_file(name) for shown, name in BUNDLED_FOLDERS[kind].items() if (BUNDLED / name / "config.json").is_file()}
    for category in ("diffusers", "vae"):
        for search_path in map(Path, folder_paths.get_folder_paths(category)):
            for config in sorted([*search_path.glob("*/config.json"), *search_path.glob("*/*/config.json")]):
                if _class_name(config) in CLASSES[kind]:
                    found.setdefault(f"{category}/{config.parent.relative_to(search_path).as_posix()}", config.parent)
    for search_path in map(Path, folder_paths.get_folder_paths("vae")):
        for file in sorted(path for depth in ("*", "*/*", "*/*/*") for path in search_path.glob(depth) if path.suffix in PUBLISHED[kind]):
            if kind == "gan" or _settings_file(file):
                found.setdefault(f"vae/{file.relative_to(search_path).as_posix()}", file)
    return found


def generator_fingerprint(path: Path) -> tuple:
    """Changes whenever a file of the generator does, without reading it."""
    if path.is_dir():
        return folder_fingerprint(path)
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in (path, _settings_file(path)) if file)


def _settings_file(checkpoint: Path) -> Path | None:
    from ....methods.intrinsic_lora.generators.taming import settings_file

    return settings_file(checkpoint)


def _class_name(config: Path) -> str | None:
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Not a config that anything could be loaded by.
        return None
    return content.get("_class_name") if isinstance(content, dict) else None


def bundled_loras(kind: str, map_name: str) -> dict[str, str]:
    """The pack's own LoRAs that make a map with a generator of this kind: see `files.lora_names`."""
    return {
        f"{shown.removesuffix(BUNDLED_MARK)}/{map_name}": f"{name}_{map_name}.safetensors" for shown, name in BUNDLED_FOLDERS[kind].items()
    }


def load_generator(kind: str, shown: str, lora_names: Mapping[str, str]) -> LoadedGenerator:
    """A generator and its LoRAs by the names nodes show. Raises ValueError for other names, and for files that do not fit."""
    from ....methods.intrinsic_lora.generators import fit, load_gan, read_generator_lora

    paths = generator_paths(kind)
    if shown not in paths:
        raise ValueError(
            f"There is no {KIND_NAMES[kind]} {shown!r} (offered: {', '.join(paths) or 'there is none yet'}). Put a folder whose "
            f"config.json says {' or '.join(CLASSES[kind])} into models/diffusers or models/vae, or {PUBLISHED_AS[kind]} into models/vae."
        )
    generator = load_gan(paths[shown]) if kind == "gan" else load_vqgan(paths[shown])
    loras = {}
    for name in MAPS:
        if (chosen := lora_names.get(name, NO_LORA)) != NO_LORA:
            loras[name] = read_generator_lora(lora_path(chosen, bundled_loras(kind, name)), kind, name)
            fit(generator, kind, loras[name].layers, chosen)
    # A plain patcher also where core uses dynamic ones: these layers are not core's, and move as a whole.
    patcher = ModelPatcher(
        _Holder(generator),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.vae_offload_device(),
    )
    return LoadedGenerator(kind, patcher, loras)


def load_vqgan(folder: Path) -> nn.Module:
    """A VQModel, float32 (looking up codes needs it), of a diffusers folder or a published checkpoint. Raises ValueError."""
    from ....methods.intrinsic_lora.generators.taming import load_taming

    VQModel = extra("diffusers", "A VQGAN").VQModel
    if folder.is_file():
        return load_taming(folder, VQModel.from_config)
    config = read_config(folder)
    if (channels := (config.get("in_channels", 3), config.get("out_channels", 3))) != (3, 3):
        raise ModelFolderError(f"The VQGAN in {folder.name} takes {channels[0]} channels and gives {channels[1]}, 3 were expected.")
    vqgan = VQModel.from_config(dict(config))
    weights = read_weights(folder)
    weights = rename(weights, {name: _new_name(name) for name in weights}, "VQGAN")
    expected = vqgan.state_dict()
    require_same_weights(expected, weights, "VQGAN")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise ModelFolderError(
            f"The VQGAN holds {len(unknown)} weights that its config does not call for (first: {unknown[0]}): config.json and the weights "
            "do not belong together."
        )
    vqgan.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return vqgan.requires_grad_(False).eval()


def _new_name(name: str) -> str:
    for old, new in _OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name


def pictures_per_forward(device: torch.device, pixels: int, bytes_per_pixel: float) -> int:
    """How many pictures one forward may take on a device, at least 1."""
    budget = 0.6 * comfy.model_management.get_total_memory(device)
    return max(1, int(budget / (pixels * bytes_per_pixel)))
