"""Every kind of network that trainers work on, one file each, and the one way to ask which kind a network or a folder is."""

import json
from pathlib import Path

from torch import nn

from .backbone import Backbone, JointDenoising, MapFlow
from .flux import FLUX
from .pixart import PIXART
from .unet import UNET

BACKBONES: tuple[Backbone, ...] = (UNET, PIXART, FLUX)


def joint_denoising_of(network: nn.Module, name: str = "the base") -> JointDenoising:
    """How I-LDM trains on a network. name: of its model, for errors. Raises ValueError for networks that it cannot train on."""
    able = [(backbone, backbone.joint_denoising) for backbone in BACKBONES if backbone.joint_denoising is not None]
    for backbone, joint_denoising in able:
        if isinstance(network, backbone.network):
            return joint_denoising
    raise ValueError(f"{name} is a {type(network).__name__}: {' or '.join(backbone.title for backbone, _ in able)} was expected.")


def map_flow_of(network: nn.Module) -> MapFlow:
    """How LumiX trains on a network. Raises ValueError for networks it does not know."""
    return _map_flow(type(network).__name__, "the network")


def map_flow_in(folder: Path) -> MapFlow:
    """How LumiX trains on the network of a diffusers folder. Raises ValueError for networks it does not know."""
    config = folder / "transformer" / "config.json"
    if not config.is_file():
        titles = " or ".join(backbone.title for backbone in BACKBONES if backbone.map_flow is not None)
        raise ValueError(f"{folder} has no transformer folder: give a {titles} model in diffusers format.")
    return _map_flow(json.loads(config.read_text(encoding="utf-8")).get("_class_name"), f"the transformer in {folder}")


def _map_flow(kind: str | None, what: str) -> MapFlow:
    able = {backbone.network.__name__: (backbone, backbone.map_flow) for backbone in BACKBONES if backbone.map_flow is not None}
    if kind not in able:
        titles = " or ".join(backbone.title for backbone, _ in able.values())
        raise ValueError(f"{what} is a {kind}, a {' or '.join(able)} was expected: give a {titles} model.")
    return able[kind][1]
