"""A diffusers-format model folder -> native MODEL, CLIP and VAE, of any width (ComfyUI's own loaders know the published widths only)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import comfy.sd
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher

from ..backbones import BACKBONES, FAMILIES
from ..backbones.backbone import Family, LoadRequest
from ..paths import MODEL_INDEX
from .folder_files import ModelFolderError, PartConfig, describe, read_config, read_json
from .latent_format import latent_format_of
from .text_encoder import load_clip
from .vae import load_vae

# Of the families whose folders are read whole.
FAMILY_NAMES = {name: family.title for name, family in FAMILIES.items() if family.text is not None}


@dataclass(frozen=True)
class LoadedPipeline:
    """A model's native parts. `family`: a key of FAMILIES; `model`: a ComfyUI ModelPatcher, to be cloned before patching."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    family: str


def detect_family(folder: Path) -> str:
    """The model family (a key of FAMILIES) of a diffusers-format folder. Raises ModelFolderError for an unknown one."""
    if not os.path.isdir(folder):
        raise ModelFolderError(f"There is no folder {describe(folder)}: put the model there, or choose another one.")
    index = read_json(folder / MODEL_INDEX)
    with _damage_in_words(folder):
        return _family_of(folder, index)


@contextmanager
def _damage_in_words(folder: Path) -> Iterator[None]:
    """A config is anybody's: what a value of a wrong type comes to is said as what it is."""
    try:
        yield
    except ModelFolderError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, OSError) as error:
        raise ModelFolderError(
            f"{folder.name} is damaged ({type(error).__name__}: {error}): a config holds a value of a wrong kind; copy the folder again."
        ) from error


def _family_of(folder: Path, index: PartConfig) -> str:
    kind = "without a unet or transformer folder"
    for part in dict.fromkeys(backbone.part for backbone in BACKBONES):
        if os.path.isdir(folder / part):
            config = read_config(folder / part)
            families = (backbone.family_of(config) for backbone in BACKBONES if backbone.part == part)
            if (family := next(filter(None, families), None)) is not None:
                return family
            kind = config.get("_class_name", "")
            break
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
    family = FAMILIES[detect_family(folder)]
    with _damage_in_words(folder):
        return _load(folder, family, dtype, text_dtype, disable_dynamic)


def _load(folder: Path, family: Family, dtype: torch.dtype | None, text_dtype: torch.dtype | None, disable_dynamic: bool) -> LoadedPipeline:
    backbone = next(backbone for backbone in BACKBONES if family in backbone.families)
    if family.text is None:
        raise ModelFolderError(
            f"{folder.name} is a {family.title}, whose text encoder is not read from a folder: load its files with ComfyUI's own Load "
            "Diffusion Model, Load CLIP and Load VAE, and connect them in this node's place."
        )
    embeddings = folder_paths.get_folder_paths("embeddings")
    clip = load_clip(folder, family.title, family.text, embeddings, text_dtype, disable_dynamic)
    vae_config = read_config(folder / "vae")
    vae = load_vae(folder / "vae", vae_config)
    # A VAE of any published kind may come with any network.
    published_formats = dict.fromkeys(latent_format for backbone in BACKBONES for latent_format in backbone.latent_formats)
    latent_format = latent_format_of(vae_config, vae, published_formats)
    model = backbone.load(LoadRequest(folder, family, latent_format, dtype, disable_dynamic))
    for name, patcher in (("model", model), ("clip", clip.patcher), ("vae", vae.patcher)):
        patcher.cached_patcher_init = (_reload, (folder, dtype, text_dtype, name))
    return LoadedPipeline(model, clip, vae, family.name)


def _reload(
    folder: Path, dtype: torch.dtype | None, text_dtype: torch.dtype | None, name: str, disable_dynamic: bool = False
) -> ModelPatcher:
    """Untouched weights again, for ComfyUI's clones that may not share them (several GPUs, no dynamic memory)."""
    part = getattr(load_pipeline(folder, dtype=dtype, text_dtype=text_dtype, disable_dynamic=disable_dynamic), name)
    return part if name == "model" else part.patcher
