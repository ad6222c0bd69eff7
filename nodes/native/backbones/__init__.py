"""Every kind of network the pack works on, one file or folder each, and the one way to ask which kind a MODEL is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from comfy.model_patcher import ModelPatcher

from ....methods.ildm.schedules import Block
from ..compiled import uncompiled
from .backbone import Backbone, Family
from .flux import FLUX
from .pixart import PIXART
from .unet import UNET

BACKBONES: tuple[Backbone, ...] = (UNET, PIXART, FLUX)
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
MAP_ADAPTER = Ability(lambda backbone: backbone.attach_tensor_lora, ": LumiX adapters belong to {}; load FLUX.1-dev.")


def require(model: ModelPatcher, ability: Ability[Answer]) -> Answer:
    """What the MODEL's backbone has for `ability`. Raises ValueError, naming the backbones that have it, for every other MODEL."""
    network = uncompiled(model.get_model_object("diffusion_model"))
    able = [(backbone, answer) for backbone in BACKBONES if (answer := ability.of(backbone)) is not None]
    for backbone, answer in able:
        if backbone.matches(network):
            return answer
    titles = " and ".join(backbone.title for backbone, _ in able)
    raise ValueError(f"This MODEL is a {type(model.model).__name__} ({type(network).__name__}){ability.refusal.format(titles)}")


def families_for(trainer: str) -> tuple[str, ...]:
    """Names of the families that a trainer (one of `backbone.TRAINERS`) takes as a base."""
    return tuple(name for name, family in FAMILIES.items() if trainer in family.trainers)
