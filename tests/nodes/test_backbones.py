"""The table of backbones: what it says of published networks is true of core's own, and what it does not know is refused."""

from types import SimpleNamespace

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from intrinsic_lab.nodes import ildm
from intrinsic_lab.nodes.native import backbones
from intrinsic_lab.nodes.native.backbones import BACKBONES, FAMILIES, LAYOUTS, MAP_ATTENTION, SINGLE_STEP, families_for, require
from intrinsic_lab.nodes.native.backbones.backbone import INTRINSIC_LORA, JOINT_LORA, TENSOR_LORA, TRAINERS, Backbone, MapAttention
from intrinsic_lab.nodes.native.backbones.unet.attention import block_addresses
from intrinsic_lab.nodes.native.batch_rows.lumix_rows import maps_of
from intrinsic_lab.nodes.native.joint_sampling.lumix import join_maps
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.nodes.native.paths import bundled_file

# Of core's UNetModel, as its detection finds them in published checkpoints.
COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "use_spatial_transformer": True,
    "legacy": False,
    "context_dim": 768,
}
PUBLISHED = {
    "SD 1.5 / SD 2.1": COMMON
    | {
        "num_heads": 8,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
    },
    "SDXL": COMMON
    | {
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "num_head_channels": 64,
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "use_linear_in_transformer": True,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
        "context_dim": 2048,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_are_those_of_core_s_networks(name):
    unet = UNetModel(**PUBLISHED[name], device="meta", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    assert tuple(block_addresses(unet).values()) == LAYOUTS[name]


def test_the_bundled_network_is_drawn_as_it_is():
    network = load_pipeline(bundled_file("nano")).model.get_model_object("diffusion_model")
    assert tuple(block_addresses(network).values()) == ildm.PREVIEWS["nano"]


def test_previews_reach_the_front_end_with_the_stages_of_their_blocks():
    inputs = {field.id: field for field in ildm.DropSchedule.define_schema().inputs}
    declared = inputs["preview_model"].as_dict()["layouts"]
    assert list(declared)[:4] == ["SD 1.5 / SD 2.1", "SDXL", "PixArt-alpha", "nano"]
    assert declared == {name: [block.stage for block in blocks] for name, blocks in ildm.PREVIEWS.items()}
    counts = {name: len(stages) for name, stages in declared.items()}
    assert list(counts.values())[:4] == [16, 70, 28, 10] and (counts["FLUX.1"], counts["Qwen-Image"], counts["SD 3.5 medium"]) == (
        57,
        60,
        37,
    )


def test_every_name_is_there_once_and_trainers_offer_the_families_they_were_made_for():
    assert len({backbone.name for backbone in BACKBONES}) == len(BACKBONES)
    assert len(FAMILIES) == sum(len(backbone.families) for backbone in BACKBONES)
    offered = {trainer: families_for(trainer) for trainer in TRAINERS}
    assert offered == {
        INTRINSIC_LORA: ("sd15", "sd21", "flux", "flux2_klein", "sd3", "qwen_image", "z_image", "lumina2"),
        JOINT_LORA: ("sd15", "sd21", "sdxl", "pixart"),
        TENSOR_LORA: ("flux",),
    }


def test_a_network_of_no_backbone_is_refused_with_the_names_of_those_that_can():
    model = SimpleNamespace(model=torch.nn.Module(), get_model_object=lambda name: torch.nn.Linear(1, 1))
    with pytest.raises(
        ValueError, match=r"This MODEL is a Module \(Linear\): maps can meet in Stable Diffusion .* and Z-Image and Lumina 2; load"
    ):
        require(model, MAP_ATTENTION)


def test_a_backbone_nobody_has_heard_of_is_used_once_it_is_in_the_table(monkeypatch):
    class Network(torch.nn.Linear):
        pass

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.diffusion_model = Network(1, 1)

    cpu = torch.device("cpu")
    model, attached = ModelPatcher(Model(), load_device=cpu, offload_device=cpu), []
    with pytest.raises(ValueError, match=r"This MODEL is a Model \(Network\): maps can meet in"):
        join_maps(model, ("color", "depth"), "separate")
    unheard_of = Backbone(
        name="unheard_of",
        title="Unheard-of",
        matches=lambda network: isinstance(network, Network),
        part="transformer",
        family_of=lambda config: None,
        families=(),
        load=lambda request: model,
        latent_formats=(),
        layouts={},
        map_attention=MapAttention(lambda clone, attention: attached.append((clone, attention))),
    )
    monkeypatch.setattr(backbones, "BACKBONES", (*BACKBONES, unheard_of))
    clone = join_maps(model, ("color", "depth"), "separate")
    assert attached == [(clone, "separate")] and clone is not model and maps_of(clone) == ("color", "depth")
    with pytest.raises(ValueError, match="Intrinsic LoRA works on Stable Diffusion UNets"):
        require(model, SINGLE_STEP)
