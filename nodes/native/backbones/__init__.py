"""Every kind of network the pack works on, one file or folder each, and the one way to ask which kind a MODEL is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from comfy.model_patcher import ModelPatcher

from ....methods.ildm.schedules import Block
from ..compiled import uncompiled
from .backbone import Backbone, Family
from .flux import FLUX
from .flux.flux2 import FLUX2
from .pixart import PIXART
from .qwen_image import QWEN_IMAGE
from .sd3 import SD3
from .unet import UNET
from .z_image import Z_IMAGE

BACKBONES: tuple[Backbone, ...] = (UNET, PIXART, FLUX, FLUX2, SD3, QWEN_IMAGE, Z_IMAGE)
FAMILIES: dict[str, Family] = {family.name: family for backbone in BACKBONES for family in backbone.families}
# Self-attentions of published models, by the name that schedule previews show.
LAYOUTS: dict[str, tuple[Block, ...]] = {name: blocks for backbone in BACKBONES for name, blocks in backbone.layouts.items()}

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Ability(Generic[Answer]):
    """Something that a method needs a backbone for. refusal: goes on after "This MODEL is a ...", with {} for the titles that have it."""

    of: Callable[[Backbone], Answer | None]
    refusal: str


SINGLE_STEP = Ability(lambda backbone: backbone.single_step, "; Intrinsic LoRA works on {}: load one of those.")
MULTI_STEP = Ability(lambda backbone: backbone.multi_step, "; Intrinsic LoRA in steps works on {}: load one of those.")
CROSS_DOMAIN = Ability(lambda backbone: backbone.cross_domain, "; cross-domain attention works on {}: load one of those.")
MAP_ATTENTION = Ability(lambda backbone: backbone.map_attention, ": maps can meet in {}; load one of those.")
MAP_ADAPTER = Ability(
    lambda backbone: backbone.attach_tensor_lora, ": LumiX adapters belong to {}; load the model that the file was trained on."
)


def known(model: ModelPatcher, ability: Ability[Answer]) -> Answer | None:
    """What the MODEL's backbone has for `ability`; None where it has nothing, or is of no kind known here."""
    network = uncompiled(model.get_model_object("diffusion_model"))
    return next((ability.of(backbone) for backbone in BACKBONES if backbone.matches(network)), None)


def require(model: ModelPatcher, ability: Ability[Answer]) -> Answer:
    """What the MODEL's backbone has for `ability`. Raises ValueError, naming the backbones that have it, for every other MODEL."""
    if (answer := known(model, ability)) is not None:
        return answer
    network = uncompiled(model.get_model_object("diffusion_model"))
    *most, last = (backbone.title for backbone in BACKBONES if ability.of(backbone) is not None)
    titles = " and ".join(part for part in (", ".join(most), last) if part)
    raise ValueError(f"This MODEL is a {type(model.model).__name__} ({type(network).__name__}){ability.refusal.format(titles)}")


def families_for(trainer: str) -> tuple[str, ...]:
    """Names of the families that a trainer (one of `backbone.TRAINERS`) takes as a base."""
    return tuple(name for name, family in FAMILIES.items() if trainer in family.trainers)
