"""Every public data set out of a made-up folder in its exact layout: values, masks, and what is said when a folder is not right."""

import csv
import json
import sys

import h5py
import numpy
import pytest
import torch
from intrinsic_lab.data import DATA_SETS, named_set, require_same_size
from intrinsic_lab.data.hypersim import CAMERAS, SPLITS, planar_depth
from intrinsic_lab.methods.maps import linear_from_srgb
from intrinsic_lab.tests.data import tiny_sets
from scipy.io import savemat

HEIGHT, WIDTH = tiny_sets.HEIGHT, tiny_sets.WIDTH


def read(name, folder, map_name, split="", row=0):
    kind = DATA_SETS[name]
    pair = kind.pairs(folder, map_name, split)[row]
    picture, data = kind.picture(pair), kind.read(pair, map_name)
    require_same_size(pair, picture, data)
    assert data.mask_hw.dtype == torch.bool and data.values_hwc.dtype == torch.float32
    assert torch.isfinite(data.values_hwc).all() and not data.values_hwc[~data.mask_hw].any()
    return picture.numpy(), data.values_hwc.numpy(), data.mask_hw.numpy()


def test_diode_is_metres_and_normals_under_their_masks(tmp_path):
    written = tiny_sets.write_diode(tmp_path)
    assert len(DATA_SETS["diode"].pairs(tmp_path, "depth")) == 2
    for row, wanted in enumerate(written):
        picture, depth, mask = read("diode", tmp_path, "depth", row=row)
        assert numpy.allclose(picture, wanted["image"], atol=1e-7)
        assert numpy.array_equal(depth, wanted["depth"]) and numpy.array_equal(mask, wanted["mask"] > 0)
        _, normal, known = read("diode", tmp_path, "normal", row=row)
        assert numpy.allclose(normal, wanted["normal"], atol=1e-6) and numpy.array_equal(known, wanted["normal"].any(-1))


def test_arap_is_linear_and_its_shading_is_light_over_albedo(tmp_path):
    written = tiny_sets.write_arap(tmp_path)
    assert [pair.name for pair in DATA_SETS["arap"].pairs(tmp_path, "albedo")] == ["alley", "kitchen_light0", "kitchen_light1"]
    picture, albedo, _ = read("arap", tmp_path, "albedo")
    assert numpy.allclose(albedo, written["alley_albedo"]) and numpy.allclose(linear(picture), written["alley"], atol=1e-6)
    _, shading, mask = read("arap", tmp_path, "shading")
    assert mask.all() and numpy.allclose(shading * albedo, written["alley"], atol=1e-6)
    for light in range(2):
        picture, albedo, _ = read("arap", tmp_path, "albedo", row=1 + light)
        _, shading, mask = read("arap", tmp_path, "shading", row=1 + light)
        assert numpy.allclose(albedo, written["albedo"] / numpy.percentile(written["albedo"], 99.9), rtol=1e-5)
        # One factor to what is shown, up to where it is cut.
        made, shown = albedo * shading, linear(picture)
        assert mask.all() and numpy.allclose(made.clip(0, 1), shown, atol=1e-5)
        assert numpy.allclose(made / written[f"light{light}"], (made / written[f"light{light}"])[0, 0, 0], rtol=1e-4)
        assert numpy.percentile(made @ [0.3, 0.59, 0.11], 90) == pytest.approx(0.8**2.2, rel=1e-4)


def linear(picture_hw3):
    return linear_from_srgb(torch.from_numpy(picture_hw3)).numpy()


def test_hypersims_distance_becomes_depth_along_the_axis(tmp_path):
    distance = tiny_sets.write_hypersim(tmp_path)["distance"]
    _, depth, mask = read("hypersim", tmp_path, "depth")
    # 60 degrees across: the focal length in pixels.
    focal = WIDTH / 2 / numpy.tan(numpy.radians(30))
    for y, x in ((0, 0), (5, 11), (HEIGHT - 1, WIDTH - 1)):
        ray = numpy.array([x + 0.5 - WIDTH / 2, HEIGHT / 2 - y - 0.5, focal])
        assert depth[y, x, 0] == pytest.approx(distance[y, x] * focal / numpy.linalg.norm(ray), rel=1e-5)
    assert not mask[2, 3] and mask.sum() == mask.size - 1


def test_hypersims_own_cameras_are_used_where_their_table_is(tmp_path):
    distance = tiny_sets.write_hypersim(tmp_path)["distance"]
    matrix = numpy.array([[0.7, 0, 0.1], [0, 0.5, -0.2], [0, 0.05, -1]])
    with (tmp_path / CAMERAS).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["scene_name", *(f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3))])
        table.writerow(["ai_001_001", *matrix.ravel()])
    _, depth, _ = read("hypersim", tmp_path, "depth")
    ray = matrix @ [2 * 4.5 / WIDTH - 1, 1 - 2 * 1.5 / HEIGHT, 1]
    assert depth[1, 4, 0] == pytest.approx(distance[1, 4] * -ray[2] / numpy.linalg.norm(ray), rel=1e-5)


def test_a_plane_seen_straight_on_has_one_depth():
    v, u = numpy.mgrid[0:9, 0:15]
    focal = 15 / 2 / numpy.tan(numpy.radians(30))
    distance = 3 * numpy.sqrt(((u + 0.5 - 7.5) / focal) ** 2 + ((v + 0.5 - 4.5) / focal) ** 2 + 1)
    assert numpy.allclose(planar_depth(distance), 3)


def test_hypersims_picture_is_tone_mapped_and_made_of_its_maps(tmp_path):
    written = tiny_sets.write_hypersim(tmp_path)
    picture, albedo, known = read("hypersim", tmp_path, "albedo")
    light = written["color"]
    brightness = 0.3 * light[..., 0] + 0.59 * light[..., 1] + 0.11 * light[..., 2]
    shown = (light * 0.8**2.2 / numpy.percentile(brightness, 90)).clip(0, 1) ** (1 / 2.2)
    assert numpy.allclose(picture, shown, atol=1e-5)
    assert not known[0, 0] and known.sum() == known.size - 1
    shading, specular = (read("hypersim", tmp_path, name)[1] for name in ("shading", "specular"))
    made, inside = albedo * shading + specular, known & (picture < 1).all(-1)
    assert numpy.allclose(made[inside], picture[inside] ** 2.2, atol=5e-3)
    assert numpy.allclose(read("hypersim", tmp_path, "normal")[1], written["normal"], atol=1e-3)


def test_hypersim_by_its_preview_and_by_its_split(tmp_path):
    tiny_sets.write_hypersim(tmp_path)
    (tmp_path / "ai_001_001/images/scene_cam_00_final_hdf5/frame.0007.color.hdf5").unlink()
    assert numpy.allclose(read("hypersim", tmp_path, "normal")[0], 100 / 255, atol=0.01)
    with pytest.raises(ValueError, match=r"color.hdf5 is missing: shading is scaled as the picture's light"):
        read("hypersim", tmp_path, "shading")
    with pytest.raises(ValueError, match=f"{SPLITS} is missing"):
        read("hypersim", tmp_path, "normal", "test")
    header = "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name\n"
    (tmp_path / SPLITS).write_text(header + "ai_001_001,cam_00,7,True,,test\nai_001_001,cam_00,8,True,,train\n")
    assert [pair.name for pair in DATA_SETS["hypersim"].pairs(tmp_path, "normal", "test")] == ["ai_001_001/scene_cam_00/frame.0007"]


def test_nyuv2_is_turned_upright_and_split(tmp_path):
    written = tiny_sets.write_nyuv2(tmp_path)
    assert [pair.row for pair in DATA_SETS["nyuv2"].pairs(tmp_path, "depth", "test")] == [1, 2]
    picture, depth, mask = read("nyuv2", tmp_path, "depth", "test", 1)
    assert numpy.allclose(picture, written["images"][2] / 255, atol=1e-6)
    assert numpy.array_equal(depth[..., 0], written["depths"][2]) and mask.all()
    splits = tmp_path / "splits.mat"
    savemat(splits, {"trainNdxs": numpy.array([[1]])})
    with pytest.raises(ValueError, match="has no list of test pictures"):
        DATA_SETS["nyuv2"].pairs(tmp_path, "depth", "test")
    splits.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"splits\.mat"):
        DATA_SETS["nyuv2"].pairs(tmp_path, "depth", "test")
    splits.unlink()
    with pytest.raises(ValueError, match=r"splits\.mat is missing"):
        DATA_SETS["nyuv2"].pairs(tmp_path, "depth", "test")
    assert len(DATA_SETS["nyuv2"].pairs(tmp_path, "depth")) == 3


def test_interiorverse_is_linear_and_its_material_two_maps(tmp_path, caplog):
    written = tiny_sets.write_interiorverse(tmp_path)
    inside = written["mask"] > 0.5
    picture, roughness, mask = read("interiorverse", tmp_path, "roughness", "test")
    assert numpy.allclose(linear_from_srgb(torch.from_numpy(picture)).numpy(), written["im"].clip(0, 1), atol=1e-5)
    assert numpy.array_equal(mask, inside) and numpy.allclose(roughness[inside][:, 0], written["material"][inside][:, 0])
    assert numpy.allclose(read("interiorverse", tmp_path, "metallic")[1][inside][:, 0], written["material"][inside][:, 1])
    assert numpy.allclose(read("interiorverse", tmp_path, "depth")[1][inside][:, 0], written["depth"][inside])
    assert numpy.allclose(read("interiorverse", tmp_path, "normal")[1][inside], written["normal"][inside], atol=1e-5)
    _, albedo, known = read("interiorverse", tmp_path, "albedo")
    assert "000_albedo.exr is NaN or infinite at 1 of 192 pixels: they do not count" in caplog.text
    inside[4, 5] = False
    assert numpy.array_equal(known, inside) and numpy.allclose(albedo[inside], written["albedo"][inside])


def test_mit_keeps_16_bits_of_linear_values(tmp_path):
    written = tiny_sets.write_mit(tmp_path)
    picture, albedo, mask = read("mit", tmp_path, "albedo")
    inside = written["mask"] > 0
    assert numpy.array_equal(mask, inside)
    assert numpy.allclose(linear_from_srgb(torch.from_numpy(picture)).numpy(), written["diffuse"], atol=1e-5)
    assert numpy.allclose(albedo[inside], written["reflectance"][inside], atol=1e-6)
    assert numpy.allclose(read("mit", tmp_path, "shading")[1][inside], written["shading"][inside], atol=1e-6)


def test_iiw_gives_judgements_of_opaque_points(tmp_path):
    tiny_sets.write_iiw(tmp_path)
    kind = DATA_SETS["iiw"]
    (pair,) = kind.pairs(tmp_path, "albedo")
    said = kind.judgements(pair)
    assert [(one.darker, one.weight) for one in said] == [("1", 0.9), ("1", 0.5), ("E", 0.6)]
    assert said[0].first == (0.2, 0.5) and said[0].second == (0.8, 0.5)
    pair.map.write_text('{"intrinsic_points": 3}')
    with pytest.raises(ValueError, match="holds no judgements as IIW writes them"):
        kind.judgements(pair)


@pytest.mark.parametrize("away", [False, True])
def test_scannets_normals_face_the_viewer_whichever_axes_they_came_in(tmp_path, away):
    wanted = tiny_sets.write_scannet(tmp_path, away)
    _, normal, mask = read("scannet", tmp_path, "normal")
    assert not mask[3, 3] and mask.sum() == mask.size - 1
    assert numpy.abs(normal - wanted)[mask].max() < 0.01


def test_a_folder_of_ones_own_has_metres_where_they_are_written(tmp_path):
    draw = tiny_sets.numbers()
    pixels = draw.integers(0, 256, (HEIGHT, WIDTH, 3))
    tiny_sets.write_png(tmp_path / "image/a.png", pixels)
    grey = numpy.repeat(draw.integers(0, 256, (HEIGHT, WIDTH, 1)), 3, -1)
    tiny_sets.write_png(tmp_path / "depth/a.png", grey)
    tiny_sets.write_png(tmp_path / "albedo/a.png", pixels)
    tiny_sets.write_png(tmp_path / "mask/a.png", numpy.where(grey > 60, 255, 0))
    _, relative, mask = read("folder", tmp_path, "depth")
    inside = grey[..., 0] > 60
    assert numpy.array_equal(mask, inside) and numpy.allclose(relative[inside][:, 0], 1 + grey[inside][:, 0] / 255)
    (tmp_path / "about").mkdir()
    (tmp_path / "about/a.json").write_text(json.dumps({"depth_metres": [2.0, 7.0]}))
    assert numpy.allclose(read("folder", tmp_path, "depth")[1][inside][:, 0], 2 + 5 * grey[inside][:, 0] / 255)
    linear = linear_from_srgb(torch.from_numpy(pixels / 255)).numpy()
    assert numpy.allclose(read("folder", tmp_path, "albedo")[1][inside], linear[inside], atol=1e-5)


def test_a_set_is_named_before_its_folder():
    kind, folder = named_set("diode:/data/a:b")
    assert kind.name == "diode" and str(folder) == "/data/a:b"
    assert named_set("/data/diode") is None and named_set("C:/data") is None


@pytest.mark.parametrize("name", DATA_SETS)
def test_an_empty_or_missing_folder_is_told_with_the_layout(tmp_path, name):
    kind = DATA_SETS[name]
    with pytest.raises(ValueError, match="does not exist"):
        kind.pairs(tmp_path / "nowhere", kind.maps[0])
    with pytest.raises(ValueError, match="wanted "):
        kind.pairs(tmp_path, kind.maps[0])
    with pytest.raises(ValueError, match=f"{name} has no split 'half': choose"):
        kind.pairs(tmp_path, kind.maps[0], "half")
    with pytest.raises(ValueError, match=f"{name} has no line: it holds"):
        kind.pairs(tmp_path, "line")


def test_an_exr_with_nan_is_told_once_and_does_not_count(tmp_path, caplog):
    tiny_sets.write_interiorverse(tmp_path)
    _, albedo, mask = read("interiorverse", tmp_path, "albedo")
    read("interiorverse", tmp_path, "albedo")
    assert not mask[4, 5] and not albedo[4, 5].any()
    assert caplog.text.count(f"000_albedo.exr is NaN or infinite at 1 of {HEIGHT * WIDTH} pixels: they do not count") == 1


def test_half_a_data_set_is_told_by_example(tmp_path, caplog):
    tiny_sets.write_diode(tmp_path)
    first, second = sorted(tmp_path.rglob("*_normal.npy"))
    second.unlink()
    assert len(DATA_SETS["diode"].pairs(tmp_path, "normal")) == 1
    assert f"1 of 2 pictures have no normal and are left out: {second}" in caplog.text
    first.unlink()
    with pytest.raises(ValueError, match=r"holds 2 pictures of diode but no normal: .*scan_00180.*_normal.npy is missing"):
        DATA_SETS["diode"].pairs(tmp_path, "normal")
    # A folder too deep: what is wanted, and what is there.
    with pytest.raises(ValueError, match=r"wanted val/indoors/scene_00019/.*, there is indoors\."):
        DATA_SETS["diode"].pairs(tmp_path / "val", "normal")
    min(tmp_path.rglob("*_depth_mask.npy")).unlink()
    with pytest.raises(ValueError, match=r"depth_mask\.npy is missing"):
        read("diode", tmp_path, "depth")


def test_masks_of_another_size_and_millimetres_and_broken_files_are_told(tmp_path):
    tiny_sets.write_diode(tmp_path, pictures=1)
    mask, depth = next(tmp_path.rglob("*_depth_mask.npy")), next(tmp_path.rglob("*_depth.npy"))
    kept = numpy.load(mask)
    numpy.save(mask, kept[:, :10])
    with pytest.raises(ValueError, match=f"is {WIDTH} x {HEIGHT}, its mask 10 x {HEIGHT}: both must have one size"):
        read("diode", tmp_path, "depth")
    numpy.save(mask, kept)
    metres = numpy.load(depth)
    numpy.save(depth, 1000 * metres)
    with pytest.raises(ValueError, match=r"the median depth of .* is \d{4}.*: metres are wanted, these look like millimetres"):
        read("diode", tmp_path, "depth")
    numpy.save(depth, metres[..., [0, 0]])
    with pytest.raises(ValueError, match=r"has the shape \[12, 16, 2\] of float32: numbers \[height, width, 1\] are wanted"):
        read("diode", tmp_path, "depth")
    numpy.save(depth, numpy.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read as a NumPy array"):
        read("diode", tmp_path, "depth")
    numpy.save(depth, metres[:6])
    numpy.save(mask, kept[:6])
    with pytest.raises(ValueError, match="a pair must show the same pixels"):
        read("diode", tmp_path, "depth")


def test_truncated_hdf5_and_exr_are_told(tmp_path):
    tiny_sets.write_hypersim(tmp_path)
    path = next(tmp_path.rglob("*normal_cam.hdf5"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"normal_cam\.hdf5 cannot be read as HDF5"):
        read("hypersim", tmp_path, "normal")
    with h5py.File(path, "w") as file:
        file["other"] = [1.0]
    with pytest.raises(ValueError, match=r"normal_cam\.hdf5 cannot be read as HDF5"):
        read("hypersim", tmp_path, "normal")
    tiny_sets.write_interiorverse(tmp_path)
    path = next(tmp_path.rglob("000_albedo.exr"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"000_albedo\.exr cannot be read as EXR"):
        read("interiorverse", tmp_path, "albedo")


def test_tables_and_numbers_of_another_kind_are_told(tmp_path):
    """Hypersim's tables with other columns or no numbers, arrays of another shape, a list of pictures that are not there."""
    tiny_sets.write_hypersim(tmp_path)
    columns = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
    for name, text, split, words in (
        (CAMERAS, "scene\nai_001_001\n", "", f"{CAMERAS} has no column scene_name: copy the published table"),
        (CAMERAS, ",".join(["scene_name", *columns]) + "\nai_001_001" + ",x" * 9 + "\n", "", f"{CAMERAS} holds no cameras"),
        (SPLITS, "scene_name,frame\nai_001_001,7\n", "test", f"{SPLITS} has no column camera_name"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=words):
            read("hypersim", tmp_path, "depth", split)
        (tmp_path / name).unlink()
    path = next(tmp_path.rglob("*.normal_cam.hdf5"))
    for values, words in ((numpy.ones((3, 4)), r"shape \[3, 4\] of float64: numbers \[height, width, 3\]"), (["a"], "of object: numbers")):
        with h5py.File(path, "w") as file:
            file["dataset"] = values
        with pytest.raises(ValueError, match=words):
            read("hypersim", tmp_path, "normal")
    tiny_sets.write_nyuv2(tmp_path)
    savemat(tmp_path / "splits.mat", {"testNdxs": numpy.array([[1], [900]])})
    with pytest.raises(ValueError, match=r"splits\.mat names picture 900, .*labeled\.mat holds 3"):
        DATA_SETS["nyuv2"].pairs(tmp_path, "depth", "test")
    for name in ("image/a.png", "depth/a.png"):
        tiny_sets.write_png(tmp_path / name, numpy.ones((4, 4, 3)))
    (tmp_path / "about").mkdir()
    for said in ("[]", '{"depth_metres": [5]}', '{"depth_metres": [9, 2]}'):
        (tmp_path / "about/a.json").write_text(said)
        with pytest.raises(ValueError, match=r"about/a\.json does not say which metres black and white are"):
            read("folder", tmp_path, "depth")


def test_a_missing_library_is_told_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"")
    with pytest.raises(ValueError, match=r"h5py, which is not installed .* `pip install"):
        DATA_SETS["nyuv2"].pairs(tmp_path, "depth")
