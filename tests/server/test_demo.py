"""`make demo`: a picture in, its maps as files out, of a ComfyUI that it starts and stops itself."""

import re
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from intrinsic_lab.scenes import render_scenes
from intrinsic_lab.scenes.pictures import save_picture
from intrinsic_lab.tools import demo
from intrinsic_lab.training.folder_data import read_picture
from PIL import Image

HEIGHT, WIDTH = 96, 160
MAPS = ("normal", "depth", "albedo", "shading")


@pytest.mark.slow
def test_a_picture_becomes_16_bit_maps_float_maps_and_a_sheet_and_the_server_is_gone(tmp_path):
    maps = render_scenes([5], HEIGHT, WIDTH)
    save_picture(maps.image_bhwc[0], tmp_path / "my photo.jpg")
    command = [sys.executable, "-m", "intrinsic_lab.tools.demo", "--image", tmp_path / "my photo.jpg", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()} - {".done.json"}
    assert names == {f"{name}{ending}" for name in MAPS for ending in (".png", ".exr")} | {"contact_sheet.png"}
    pictures = {name: read_picture(tmp_path / "out" / f"{name}.png") for name in MAPS}
    for name, picture in pictures.items():
        assert picture.shape == (3, HEIGHT, WIDTH), name
        # More values than 8 bits have.
        assert len(np.unique((picture * 65535).round().numpy())) > 256, name
    # Right, not only there: the colours of the normals are those of the scene's exact ones.
    wanted = (maps.normal_bhwc[0] + 1) / 2
    assert (pictures["normal"].movedim(0, -1) - wanted).abs().mean() < 0.15
    assert (pictures["depth"][0, :8].mean() - pictures["depth"][0, -8:].mean()) < 0, "near is bright, and the floor in front is near"
    assert Image.open(tmp_path / "out" / "contact_sheet.png").size == (5 * 640, 384)
    # Progress and times are told, and nobody answers any more.
    assert done.stdout.count("maps of photos are coarse") == 1
    assert "Extract Intrinsic Maps" in done.stdout and re.search(r"Done in [\d.]+ s", done.stdout)
    [url] = re.findall(r"(http://127\.0\.0\.1:\d+) \(", done.stdout)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/system_stats", timeout=5)


def test_the_sheet_has_a_row_for_each_picture_and_what_is_missing_leaves_no_gap(tmp_path):
    colors = {"scene": "red", "photograph": "lime"}
    for name, color in colors.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (60, 30) if name == "scene" else (30, 30), color).save(tmp_path / f"{name}.png")
        Image.new("RGB", (30, 30), "blue").save(tmp_path / name / "depth.png")
    extracted = {tmp_path / f"{name}.png": tmp_path / name for name in colors}
    sheet = Image.open(demo.contact_sheet(extracted, ["normal", "depth"], tmp_path / "sheet.png"))
    tall = demo.SHEET_HEIGHT
    assert sheet.size == (3 * tall, 2 * tall)
    places = [(tall, tall - 9), (2 * tall + 9, tall - 9), (9, 2 * tall - 9), (tall + 9, 2 * tall - 9), (2 * tall + 9, 2 * tall - 9)]
    red, blue, lime, nothing = (255, 0, 0), (0, 0, 255), (0, 255, 0), (0, 0, 0)
    assert [sheet.getpixel(place) for place in places] == [red, blue, lime, blue, nothing]


def test_the_bundled_photograph_is_scikit_images():
    from skimage import data

    exact, bundled = data.camera(), np.asarray(Image.open(demo.PHOTOGRAPH).convert("L"))
    assert bundled.shape == exact.shape and np.abs(bundled.astype(float) - exact).mean() < 4
