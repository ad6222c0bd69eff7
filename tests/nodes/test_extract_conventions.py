"""What Extract promises about its maps is true of files that learnt them in another convention."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from intrinsic_lab.methods import metrics
from intrinsic_lab.methods.lora.lora_file import read_lora
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.nodes.extract import ApplyIntrinsicLoRA
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.scenes import render_scenes
from intrinsic_lab.scenes.pictures import save_picture
from intrinsic_lab.training.folder_data import FolderData
from intrinsic_lab.training.intrinsic_lora import IntrinsicLoraConfig, train_intrinsic_lora
from intrinsic_lab.training.loop import LoopConfig

sys.path.insert(0, str(Path(__file__).parent))
from extract_world import ATTENTION, extract, folders, maps_of, peft_unet, save_lora, tiny

NANO = Path(__file__).parents[2] / "assets" / "nano"
Y_AND_Z_TURNED = torch.tensor([1.0, -1.0, -1.0])


def published_layout(trained: Path, name: str) -> Path:
    """A trained file's layers under the keys of diffusers' old attention processors, pickled and without a header."""
    state = {}
    for module, layer in read_lora(trained).layers.items():
        attention, projection = module.removesuffix(".0").rsplit(".", 1)
        key = f"{attention}.processor.{projection}_lora"
        state |= {f"{key}.down.weight": layer.down, f"{key}.up.weight": layer.up * layer.scale}
    path = trained.with_name(name)
    torch.save(state, path)
    return path


def learnt_as_drawn(folder: Path, name: str, image_bhwc: torch.Tensor, pictures_bhw3: torch.Tensor) -> Path:
    """A LoRA on the nano base that has learnt to draw these pictures, whatever they mean: no convention is told to the trainer."""
    for kind, pictures in (("image", image_bhwc), (name, pictures_bhw3)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            save_picture(picture, folder / kind / f"{number}.png")
    loop = LoopConfig(folder / "run", steps=100, learning_rate=5e-3)
    config = IntrinsicLoraConfig(NANO, name, loop, FolderData(folder, image_bhwc.shape[1]), rank=8, batch=len(image_bhwc))
    with torch.inference_mode(False), torch.enable_grad():
        return train_intrinsic_lora(config).weights


@pytest.mark.slow
def test_files_like_the_published_ones_give_the_exact_scenes_axes_by_auto(folders, tmp_path, caplog):
    """Trained on opencv normals and near-bright depth, written in the published key layout."""
    exact = render_scenes(range(2000, 2002), 64, 64)
    drawn = {"normal": (exact.normal_bhwc * Y_AND_Z_TURNED + 1) / 2, "depth": 1 - MAPS["depth"].to_picture(exact.depth_bhw1)}
    native = load_pipeline(NANO, dtype=torch.float32, text_dtype=torch.float32)
    nano = SimpleNamespace(clip=native.clip, native_vae=native.vae)
    for name, pictures in drawn.items():
        file = published_layout(learnt_as_drawn(tmp_path / name, name, exact.image_bhwc, pictures), f"{name}.bin")
        file.rename(folders / file.name)

    def maps(**conventions):
        model = native.model
        for name in drawn:
            model = ApplyIntrinsicLoRA.execute(model, f"{name}.bin", name, 1.0, conventions.get(name, "auto"))[0]
        return maps_of(extract(nano, model, exact.image_bhwc))

    def angle(normal):
        return metrics.NORMAL.metrics(normal, exact.normal_bhwc, None)["mean_degrees"].mean().item()

    def agreement(depth):
        return torch.corrcoef(torch.stack([depth[..., 0].flatten(), exact.depth_bhw1.flatten()]))[0, 1].item()

    with caplog.at_level(logging.INFO):
        found = maps()
    assert (
        "normal.bin: normal: opencv (x right, y down, z away), as in the published files: keys of old attention processors" in caplog.text
    )
    assert "depth.bin: depth: near_bright (near is bright), as in the published files: keys of old attention processors" in caplog.text
    assert angle(found["normal"]) < 30 and agreement(found["depth"]) > 0.85
    unturned = maps(normal="opengl", depth="near_dark")
    perfect = angle(exact.normal_bhwc * Y_AND_Z_TURNED)
    assert angle(unturned["normal"]) > perfect - 15 > 120 and agreement(unturned["depth"]) < -0.85


@pytest.mark.parametrize(
    "settings",
    [{}, {"mirrored_average": True}, {"tile_size": 32, "tile_overlap": 8}, {"processing_resolution": 40, "mirrored_average": True}],
)
def test_every_way_of_extracting_brings_maps_to_the_packs_convention(tiny, folders, settings):
    for seed, name in enumerate(("normal", "depth")):
        save_lora(folders, name, peft_unet(tiny, ATTENTION, seed)[1])

    def maps(**conventions):
        model = tiny.model
        for name in ("normal", "depth"):
            model = ApplyIntrinsicLoRA.execute(model, f"{name}.safetensors", "auto", 1.0, conventions.get(name, "auto"))[0]
        return extract(tiny, model, image, **settings)

    image = torch.rand(1, 48, 56, 3)
    own, other = maps(), maps(normal="opencv", depth="near_bright")
    assert (other[0] - own[0] * Y_AND_Z_TURNED).abs().max() < 1e-4
    assert (other[1] - (1 - own[1])).abs().max() < 1e-4 * own[1].abs().max().clamp(min=1)
    assert torch.equal(other[4]["samples"], own[4]["samples"]), "latents are the network's own"


def test_a_linear_albedo_comes_out_as_it_was_drawn(tiny, folders):
    save_lora(folders, "albedo", peft_unet(tiny, ATTENTION, seed=0)[1], convention="linear")
    image = torch.rand(1, 32, 32, 3)
    by_header, as_srgb = (
        extract(tiny, ApplyIntrinsicLoRA.execute(tiny.model, "albedo.safetensors", "auto", 1.0, convention)[0], image)[2]
        for convention in ("auto", "srgb")
    )
    assert (MAPS["albedo"].from_picture(by_header) - as_srgb).abs().max() < 1e-4 * as_srgb.abs().max().clamp(min=1)


def test_the_node_says_what_it_took_and_graphs_without_the_input_run(tiny, folders):
    save_lora(folders, "normal", peft_unet(tiny, ATTENTION, seed=0)[1])
    output = ApplyIntrinsicLoRA.execute(model=tiny.model, lora_name="normal.safetensors", map="auto", strength=1.0)
    [text] = output.ui.as_dict()["text"]
    assert text == "normal: opengl (x right, y up, z to the viewer), as this pack's trainer learns it."
    last = ApplyIntrinsicLoRA.define_schema().inputs[-1]
    assert last.id == "convention" and last.optional and last.default == last.options[0] == "auto"


def test_a_convention_of_another_map_is_refused(tiny, folders):
    save_lora(folders, "depth", peft_unet(tiny, ATTENTION, seed=0)[1])
    with pytest.raises(
        ValueError, match=r"depth.safetensors came with the convention 'opencv', the map depth is one of near_dark, near_bright"
    ):
        ApplyIntrinsicLoRA.execute(tiny.model, "depth.safetensors", "auto", 1.0, "opencv")
