"""A map that nobody has heard of: one entry in the table, and it is read from a folder, trained, extracted, compared and saved."""

import sys
from pathlib import Path

import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from intrinsic_lab.methods.maps import MAPS, MapKind, image_from_map
from intrinsic_lab.nodes import extract as extract_nodes
from intrinsic_lab.nodes import generators as generator_nodes
from intrinsic_lab.nodes import train as train_nodes
from intrinsic_lab.nodes.compare import CompareMaps
from intrinsic_lab.nodes.format_maps import FormatColor
from intrinsic_lab.scenes import render_scenes
from intrinsic_lab.scenes.pictures import save_picture
from intrinsic_lab.training.folder_data import FolderData
from intrinsic_lab.training.intrinsic_lora import IntrinsicLoraConfig, predict_maps, train_intrinsic_lora
from intrinsic_lab.training.intrinsic_lora.__main__ import build_parser
from intrinsic_lab.training.loop import LoopConfig
from intrinsic_lab.training.pairs import SceneData

sys.path.insert(0, str(Path(__file__).parent))
from extract_world import FOUR_MAPS, apply, both_worlds, extract, folders, maps_of

CURVATURE = MapKind(
    "curvature", "curvature", "How much a surface bends.", "Curvature as data, 0..1: 0 is flat; three equal channels.", "line_bhw1"
)
SCENES = range(2000, 2004)


@pytest.fixture(scope="module")
def nano_like(nano_folder):
    return both_worlds(nano_folder)


@pytest.fixture
def curvature(monkeypatch):
    monkeypatch.setitem(MAPS, "curvature", CURVATURE)
    return CURVATURE


def folder_of_curvature(folder: Path) -> FolderData:
    """Pictures and their curvature, of which a line drawing is the extreme."""
    maps = render_scenes(SCENES, 64, 64)
    for kind, pictures in (("image", maps.image_bhwc), ("curvature", maps.line_bhw1.expand(-1, -1, -1, 3))):
        (folder / kind).mkdir(parents=True)
        for number, picture in enumerate(pictures):
            save_picture(picture, folder / kind / f"{number}.png")
    return FolderData(folder, 64)


@pytest.mark.parametrize("name", ["curvature", "roughness", "metallic", "specular"])
def test_it_is_trained_extracted_and_compared(nano_like, curvature, folders, tmp_path, name):
    kind = MAPS[name]
    data = folder_of_curvature(tmp_path / "data") if name == "curvature" else SceneData(SCENES.start, len(SCENES), 64)
    with torch.inference_mode(False), torch.enable_grad():
        loop = LoopConfig(folders, steps=3, learning_rate=1e-2)
        trained = train_intrinsic_lora(IntrinsicLoraConfig(nano_like.folder, name, loop, data, "wide", rank=2, batch=2, loss="decoded"))
    assert trained.weights == folders / f"{name}.safetensors" and len(trained.history.losses) == 3

    pairs = data.source(name)
    image, exact = (pairs.read(which, [0, 1]).movedim(1, -1) for which in ("image", name))
    output = maps_of(extract(nano_like, apply(nano_like.model, name), image))
    found = output.pop(name)
    assert all(isinstance(values, ExecutionBlocker) and f"it has: {name}" in values.message for values in output.values())
    base = trained.base
    wanted = predict_maps(base.network, base.vae, base.embed(kind.prompt), image.movedim(-1, 1), name)
    assert (found - wanted).abs().max() < 1e-3
    untrained = maps_of(extract(nano_like, nano_like.model, image, merged_map=name))[name]
    assert (untrained - found).abs().max() > 0.01, "the training changed nothing"

    exact = kind.from_picture(exact)
    table, error, main = CompareMaps.execute(found, image_from_map(exact), name, "error", 0.0, "grey").result
    assert main == pytest.approx(((wanted - exact) ** 2).mean((1, 2, 3)).sqrt().mean().item(), abs=1e-3)
    assert table.startswith(f"{name}: 2 picture(s) of 64 x 64") and error.shape == (2, 64, 64, 3)


def test_every_node_and_command_offers_it(curvature):
    outputs = {
        node: [output.id or output.display_name for output in node.define_schema().outputs]
        for node in (extract_nodes.ExtractIntrinsicMaps, generator_nodes.ExtractMapsVQGAN, generator_nodes.SampleGAN)
    }
    assert all(names[-1] == "curvature" for names in outputs.values())
    for node in (extract_nodes.ApplyIntrinsicLoRA, extract_nodes.ExtractIntrinsicMaps, CompareMaps, train_nodes.TrainLoRA):
        [options] = [one.options for one in node.define_schema().inputs if one.id in ("map", "merged_map")]
        assert options[-1] == "curvature", node
    for node in (generator_nodes.LoadVQGAN, generator_nodes.LoadGAN):
        last = node.define_schema().inputs[-1]
        assert last.id == "curvature_lora" and last.optional and last.default == "none"
    [action] = [action for action in build_parser()._actions if action.dest == "map"]
    assert action.choices[-1] == "curvature"


def test_what_saved_graphs_know_by_number_keeps_its_place():
    outputs = [output.id for output in extract_nodes.ExtractIntrinsicMaps.define_schema().outputs]
    assert outputs[:5] == [*FOUR_MAPS, "latent"] and outputs[5:] == list(MAPS)[4:]
    assert [one.id for one in generator_nodes.ExtractMapsVQGAN.define_schema().outputs][:4] == list(FOUR_MAPS)
    assert [one.id for one in generator_nodes.SampleGAN.define_schema().outputs][:5] == ["image", *FOUR_MAPS]
    for node, first in ((generator_nodes.LoadVQGAN, "vqgan"), (generator_nodes.LoadGAN, "gan")):
        inputs = node.define_schema().inputs
        assert [one.id for one in inputs if not one.optional] == [first, *(f"{name}_lora" for name in FOUR_MAPS)]
        assert all(one.optional for one in inputs[5:])
    for node, before in ((extract_nodes.ApplyIntrinsicLoRA, ["auto"]), (extract_nodes.ExtractIntrinsicMaps, ["none"]), (CompareMaps, [])):
        [options] = [one.options for one in node.define_schema().inputs if one.id in ("map", "merged_map")]
        assert options[: len(before) + 4] == [*before, *FOUR_MAPS]


def test_help_pages_name_every_map():
    pages = Path(extract_nodes.__file__).parents[1] / "web" / "docs"
    nodes = ("ApplyLoRA", "ExtractMaps", "ExtractMapsVQGAN", "SampleGAN", "LoadVQGAN", "LoadGAN", "CompareMaps", "TrainLoRA")
    for node in nodes:
        text = (pages / f"IntrinsicLab{node}.md").read_text(encoding="utf-8")
        assert not [name for name in MAPS if name not in text], node


def test_a_map_of_one_channel_becomes_a_grey_picture():
    roughness = torch.rand(1, 4, 4, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 3)
    picture = FormatColor.execute(roughness, "linear", 0.0, True)[0]
    assert torch.equal(picture, roughness)
