"""How a LoRA file's map is read: by its header, by what published files are known by, by choice."""

import pytest
import torch
from intrinsic_lab.methods.intrinsic_lora.recipe import conventions, recipe_of
from intrinsic_lab.methods.lora.lora_file import parse_lora
from intrinsic_lab.methods.maps import MAPS

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
# Stable Diffusion 1.5's transformer blocks: where, and how wide.
BLOCKS = {
    **{f"down_blocks.{level}.attentions.{index}": (320, 640, 1280)[level] for level in range(3) for index in range(2)},
    "mid_block.attentions.0": 1280,
    **{f"up_blocks.{level}.attentions.{index}": (1280, 640, 320)[level - 1] for level in range(1, 4) for index in range(3)},
}


def published(rank=8, text_width=768, key="{block}.transformer_blocks.0.{attention}.processor.{projection}_lora"):
    """The tensors of a published file, on a key of one's own; they take no memory."""
    tensors = {}
    for block, width in BLOCKS.items():
        for attention in ("attn1", "attn2"):
            for projection in PROJECTIONS:
                reads = text_width if attention == "attn2" and projection in ("to_k", "to_v") else width
                name = key.format(block=block, attention=attention, projection=projection)
                tensors[f"{name}.down.weight"] = torch.zeros(1).expand(rank, reads)
                tensors[f"{name}.up.weight"] = torch.zeros(1).expand(width, rank)
    return tensors


RENAMED = "unet.{block}.transformer_blocks.0.{attention}.{projection}.lora"


def test_the_layout_of_the_published_files_has_their_numbers():
    tensors = published()
    assert len(tensors) == 256 and sum(tensor.numel() for tensor in tensors.values()) == 1_594_368


@pytest.mark.parametrize(("key", "metadata"), [(None, {}), (RENAMED, {}), (RENAMED, {"format": "pt"})])
@pytest.mark.parametrize(
    ("map_name", "convention"), [("normal", "opencv"), ("depth", "near_bright"), ("albedo", "srgb"), ("shading", "srgb"), ("metallic", "")]
)
def test_published_files_and_renamed_copies_are_known(key, metadata, map_name, convention):
    lora = parse_lora(published(key=key) if key else published(), metadata)
    recipe = recipe_of(lora, "file", map_name)
    assert recipe.convention == convention
    if convention:
        mark = "rank 8 on all attention layers of SD 1.5" if key else "keys of old attention processors"
        assert recipe.in_words.startswith(f"{map_name}: {convention} (")
        assert recipe.in_words.endswith(f", as in the published files: {mark}, no header.")


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (published(rank=4, key=RENAMED), {}),
        (published(text_width=1024, key=RENAMED), {}),
        (published(key=RENAMED), {"ss_network_dim": "8"}),
        (published(), {"intrinsic_lab.map": "normal"}),
        (published(), {"intrinsic_lab.map": "depth"}),
    ],
)
def test_other_files_are_read_in_the_packs_convention(tensors, metadata):
    recipe = recipe_of(parse_lora(tensors, metadata), "file", "normal")
    assert recipe.convention == "opengl" and recipe.to_own is None


def test_the_header_says_it_for_its_own_map_and_a_choice_overrides_it():
    metadata = {"intrinsic_lab.map": "normal", "intrinsic_lab.convention": "directx"}
    lora = parse_lora(published(), metadata)
    assert recipe_of(lora, "file").convention == recipe_of(lora, "file", "normal").convention == "directx"
    assert recipe_of(lora, "file").in_words == "normal: directx (x right, y down, z to the viewer), says the file's header."
    assert recipe_of(lora, "file", convention="opengl").to_own is None
    assert recipe_of(lora, "file", "depth").convention == "near_dark"
    assert recipe_of(lora, "file", "depth", "near_bright").convention == "near_bright"


@pytest.mark.parametrize(
    ("map_name", "chosen", "header", "message"),
    [
        ("normal", "near_dark", {}, "file came with the convention 'near_dark', the map normal is one of opengl, directx, opencv"),
        ("roughness", "linear", {}, "the map roughness has no conventions to choose from"),
        ("auto", "auto", {"map": "depth", "convention": "upside_down"}, "the convention 'upside_down', the map depth is one of near_dark"),
    ],
)
def test_conventions_that_a_map_does_not_have_are_refused(map_name, chosen, header, message):
    lora = parse_lora(published(), {f"intrinsic_lab.{key}": value for key, value in header.items()})
    with pytest.raises(ValueError, match=message):
        recipe_of(lora, "file", map_name, chosen)


def test_all_conventions_are_offered_once():
    assert conventions() == ["opengl", "directx", "opencv", "near_dark", "near_bright", "srgb", "linear"]


def test_pictures_are_brought_to_the_packs_data():
    def data(map_name, convention, *pixel):
        lora = parse_lora(published())
        to_own = recipe_of(lora, "file", map_name, convention).to_own
        return MAPS[map_name].from_picture(to_own(torch.tensor(pixel).reshape(1, 1, 1, 3))).flatten().tolist()

    # A floor, and a wall in front, as Omnidata draws them.
    assert data("normal", "opencv", 0.5, 0.0, 0.5) == pytest.approx([0, 1, 0], abs=1e-6)
    assert data("normal", "opencv", 0.5, 0.5, 0.0) == pytest.approx([0, 0, 1], abs=1e-6)
    assert data("normal", "directx", 0.8, 0.1, 0.5) == pytest.approx([0.6, 0.8, 0], abs=1e-6)
    assert data("depth", "near_bright", 0.75, 0.75, 0.75) == pytest.approx([0.25])
    # What a decoder draws beyond 0..1 stays.
    assert data("depth", "near_bright", 1.25, 1.25, 1.25) == pytest.approx([-0.25])
    assert data("albedo", "linear", -0.25, 0.5, 1.5) == pytest.approx([-0.25, 0.5, 1.5], abs=1e-5)
