"""What `python -m intrinsic_lab.scenes` writes."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from intrinsic_lab.scenes import render_scenes
from intrinsic_lab.scenes.__main__ import DEMO_SEED, main
from intrinsic_lab.scenes.pictures import map_looks
from intrinsic_lab.training.folder_data import FolderData, read_picture
from PIL import Image


def test_render_writes_every_map_with_all_its_sixteen_bits(tmp_path, capsys):
    assert main(["render", "--seed", "11", "--size", "40", "--out", str(tmp_path)]) == 0
    maps, printed = render_scenes([11], 40, 40), capsys.readouterr().out
    for name, look in map_looks(maps).items():
        path = tmp_path / ("scene_11.png" if name == "image" else f"scene_11_{name}.png")
        read = read_picture(path).movedim(0, -1)
        assert (read - look[0]).abs().max() < 1 / 65535  # 8 bits would be 128 times as far off
        assert str(path) in printed
    about = json.loads((tmp_path / "scene_11.json").read_text())
    assert about["caption"] == maps.captions[0]
    nearest, farthest = about["depth_metres"]
    depth = nearest + (farthest - nearest) * read_picture(tmp_path / "scene_11_depth.png")[0]
    assert (depth - maps.depth_bhw1[0, ..., 0]).abs().max() < 1e-3
    assert not list(tmp_path.glob(".*"))


def test_a_rendered_folder_is_training_data(tmp_path):
    for seed in ("3", "4"):
        assert main(["render", "--seed", seed, "--size", "24", "--out", str(tmp_path)]) == 0
    for name in ("normal", "depth", "albedo", "shading"):
        assert len(FolderData(tmp_path, size=24).source(name)) == 2


def test_gallery_is_a_sheet_of_all_maps_with_text_below(tmp_path):
    path = tmp_path / "sheets" / "gallery.png"
    assert main(["gallery", "--seeds", "1", "7", "--size", "64", "--out", str(path)]) == 0
    sheet = numpy.asarray(Image.open(path).convert("RGB")).astype(int)
    expected = (render_scenes([1, 7], 64, 64).image_bhwc * 255).round().numpy()
    for row in range(2):
        top = 23 + row * (64 + 23)
        assert numpy.abs(sheet[top : top + 64, 6:70] - expected[row]).max() <= 1
        assert (sheet[top + 64 : top + 64 + 18, 6:200] < 128).any()  # the caption
    assert sheet.shape[1] == 6 + 7 * (64 + 6)


def test_the_bundled_demo_scene_is_the_picture_command_s_output(tmp_path):
    assert DEMO_SEED in range(1000)  # held out: nothing trains on it
    path = tmp_path / "demo.png"
    assert main(["picture", "--out", str(path)]) == 0
    bundled = Image.open(Path(__file__).resolve().parents[2] / "assets" / "demo_scene.png")
    difference = numpy.abs(numpy.asarray(bundled).astype(int) - numpy.asarray(Image.open(path)).astype(int))
    assert bundled.size == (512, 512) and (difference > 1).mean() < 1e-4


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["picture", "--out", "scene.bmp"], "name it .png or .jpg"),
        (["render", "--size", "0", "--out", "folder"], "both sides must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_said_and_nothing_is_left_behind(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("*"))


def test_looks_are_pictures_in_zero_to_one():
    looks = map_looks(render_scenes([2, 3], 20, 30))
    assert list(looks) == ["image", "albedo", "shading", "depth", "normal", "segmentation", "line"]
    for look in looks.values():
        assert look.shape[:3] == (2, 20, 30) and look.min() >= 0 and look.max() <= 1
    assert torch.equal(looks["depth"].amin((1, 2, 3)), torch.zeros(2)) and torch.equal(looks["depth"].amax((1, 2, 3)), torch.ones(2))
