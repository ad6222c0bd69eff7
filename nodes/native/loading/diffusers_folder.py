"""A diffusers-format model folder -> native MODEL, CLIP and VAE, of any width (ComfyUI's own loaders know the published widths only)."""

from dataclasses import dataclass
from pathlib import Path

import comfy.sd
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher

from ..paths import MODEL_INDEX
from .folder_files import ModelFolderError, describe, read_config, read_json
from .latent_format import latent_format_of
from .sampling import read_diffusion_schedule, read_flow_schedule
from .text_encoder import load_clip
from .transformer import load_flux, load_pixart
from .unet import load_unet
from .vae import load_vae

FAMILY_NAMES = {"sd15": "SD 1.5", "sd21": "SD 2.1", "sdxl": "SDXL", "pixart": "PixArt-alpha", "flux": "FLUX.1"}
TRANSFORMERS = {"PixArtTransformer2DModel": "pixart", "Transformer2DModel": "pixart", "FluxTransformer2DModel": "flux"}


@dataclass(frozen=True)
class LoadedPipeline:
    """A model's native parts. `family`: a key of FAMILY_NAMES; `model`: a ComfyUI ModelPatcher, to be cloned before patching."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    family: str


def detect_family(folder: Path) -> str:
    """The model family (a key of FAMILY_NAMES) of a diffusers-format folder. Raises ModelFolderError for an unknown one."""
    if not folder.is_dir():
        raise ModelFolderError(f"There is no folder {describe(folder)}: put the model there, or choose another one.")
    index = read_json(folder / MODEL_INDEX)
    if (folder / "unet").is_dir():
        config = read_config(folder / "unet")
        kind = config.get("_class_name", "UNet2DConditionModel")
        if kind == "UNet2DConditionModel":
            if config.get("addition_embed_type") == "text_time":
                return "sdxl"
            # As in ComfyUI's own detection, linear projections around attention tell SD 2 from SD 1.
            return "sd21" if config.get("use_linear_projection", False) else "sd15"
    elif (folder / "transformer").is_dir():
        kind = read_config(folder / "transformer").get("_class_name", "")
        if kind in TRANSFORMERS:
            return TRANSFORMERS[kind]
    else:
        kind = "without a unet or transformer folder"
    raise ModelFolderError(
        f"{folder.name} is a {index.get('_class_name', 'model')} ({kind}); one of {', '.join(FAMILY_NAMES.values())} was expected. "
        "Use ComfyUI's own loader for other models."
    )


def load_pipeline(
    folder: Path, *, dtype: torch.dtype | None = None, text_dtype: torch.dtype | None = None, disable_dynamic: bool = False
) -> LoadedPipeline:
    """Load a diffusers-format folder as ComfyUI's own MODEL, CLIP and VAE.

    dtype, text_dtype: in which the weights of the diffusion model and of the text encoders are kept; None leaves the choice to ComfyUI.
    disable_dynamic: hold weights without ComfyUI's dynamic memory; ComfyUI asks for it when it needs a plain copy.
    Only safetensors are read. Raises ModelFolderError (a ValueError) that names the file, what was expected and what to do.
    """
    folder = Path(folder)
    family = detect_family(folder)
    clip = load_clip(folder, family, folder_paths.get_folder_paths("embeddings"), text_dtype, disable_dynamic)
    vae_config = read_config(folder / "vae")
    vae = load_vae(folder / "vae", vae_config)
    latent_format = latent_format_of(vae_config, vae)
    if family == "flux":
        schedule = read_flow_schedule(folder / "scheduler")
        model = load_flux(folder / "transformer", schedule, latent_format, dtype, disable_dynamic)
    elif family == "pixart":
        schedule = read_diffusion_schedule(folder / "scheduler")
        model = load_pixart(folder / "transformer", schedule, latent_format, dtype, disable_dynamic)
    else:
        schedule = read_diffusion_schedule(folder / "scheduler")
        model = load_unet(folder / "unet", family, schedule, latent_format, dtype, disable_dynamic)
    for name, patcher in (("model", model), ("clip", clip.patcher), ("vae", vae.patcher)):
        patcher.cached_patcher_init = (_reload, (folder, dtype, text_dtype, name))
    return LoadedPipeline(model, clip, vae, family)


def _reload(
    folder: Path, dtype: torch.dtype | None, text_dtype: torch.dtype | None, name: str, disable_dynamic: bool = False
) -> ModelPatcher:
    """Untouched weights again, for ComfyUI's clones that may not share them (several GPUs, no dynamic memory)."""
    part = getattr(load_pipeline(folder, dtype=dtype, text_dtype=text_dtype, disable_dynamic=disable_dynamic), name)
    return part if name == "model" else part.patcher
