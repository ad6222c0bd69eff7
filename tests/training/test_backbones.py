"""Trainers and nodes know the same kinds of networks."""

import json

import pytest
import torch
from intrinsic_lab.nodes.native import backbones as native
from intrinsic_lab.nodes.native.backbones.backbone import INTRINSIC_LORA, JOINT_LORA, TENSOR_LORA
from intrinsic_lab.training.backbones import BACKBONES, joint_denoising_of, map_flow_in, map_flow_of, single_step_in
from intrinsic_lab.training.backbones.backbone import TextEmbeddings


@pytest.mark.parametrize(
    ("trainer", "ability"), [(INTRINSIC_LORA, "single_step"), (JOINT_LORA, "joint_denoising"), (TENSOR_LORA, "map_flow")]
)
def test_nodes_offer_the_bases_that_trainers_take(trainer, ability):
    offered = {backbone.name for backbone in native.BACKBONES if any(trainer in family.trainers for family in backbone.families)}
    assert offered == {backbone.name for backbone in BACKBONES if getattr(backbone, ability) is not None}


def test_diffusers_classes_are_known_to_the_backbone_of_the_same_name():
    by_name = {backbone.name: backbone for backbone in native.BACKBONES}
    for backbone in BACKBONES:
        families = {family.name for family in by_name[backbone.name].families}
        assert by_name[backbone.name].family_of({"_class_name": backbone.network.__name__}) in families


def test_networks_that_a_trainer_does_not_know_are_refused_with_those_it_knows(tmp_path):
    with pytest.raises(ValueError, match=r"the base is a Linear: SD 1.x, SD 2.x, SDXL or PixArt-alpha was expected"):
        joint_denoising_of(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"the base is a Linear: FLUX.1 was expected"):
        map_flow_of(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"has no transformer folder: give a FLUX.1 model in diffusers format"):
        map_flow_in(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"has no unet or transformer folder: give a Stable Diffusion 1.x or 2.x, FLUX.1, SD 3 or 3.5, Qwen-Image, Z-Image, "
        r"FLUX.2 klein or Lumina 2 model in",
    ):
        single_step_in(tmp_path)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text(json.dumps({"_class_name": "PixArtTransformer2DModel"}))
    with pytest.raises(ValueError, match=r"is a PixArtTransformer2DModel, a FluxTransformer2DModel was expected"):
        map_flow_in(tmp_path)


def test_embeddings_are_chosen_repeated_and_joined_part_by_part():
    text = TextEmbeddings(torch.arange(6.0).view(2, 3, 1), pooled=torch.arange(2.0).view(2, 1))
    assert text.rows(torch.tensor([1, 1, 0])).pooled.flatten().tolist() == [1, 1, 0]
    repeated = text.repeated(2)
    assert repeated.pooled.flatten().tolist() == [0, 0, 1, 1] and repeated.mask is None
    assert torch.equal(repeated.context[1], text.context[0])
    joined = TextEmbeddings.joined([text, repeated])
    assert joined.pooled.flatten().tolist() == [0, 1, 0, 0, 1, 1] and joined.mask is None and joined.context.shape == (6, 3, 1)
