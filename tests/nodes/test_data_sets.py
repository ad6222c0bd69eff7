"""Data sets in the graph: the same pictures and numbers as on the command line."""

import csv

import folder_paths
import numpy
import pytest
import torch
from intrinsic_lab.evaluate.__main__ import main
from intrinsic_lab.nodes.data_sets import BUNDLED, BUNDLED_FOLDER, DATA, NODES, USUAL, EvaluateMaps, LoadDataSet
from intrinsic_lab.nodes.native.paths import bundled_file
from intrinsic_lab.tests.data import tiny_sets
from intrinsic_lab.tools.comfyui_source import ROOT

SHAPES = ((24, 32), (32, 24), (40, 48))


@pytest.fixture
def diode(tmp_path, monkeypatch):
    """A made-up DIODE in ComfyUI's input, whose pictures differ in size, and predictions as files and as tensors; (folder, tensors)."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    folder, draw, made = tmp_path / "input" / "my diode", tiny_sets.numbers(4), {"depth": [], "normal": []}
    for number, shape in enumerate(SHAPES):
        [truth] = tiny_sets.write_diode(tmp_path / str(number), pictures=1, shape=shape)
        source = tmp_path / str(number) / "val/indoors/scene_00019/scan_00180"
        place = folder / f"val/indoors/scene_00019/scan_0018{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        source.rename(place)
        name = "00010_indoors_000_010"
        half = draw.random((shape[0] // 2, shape[1] // 2, 1)).astype(numpy.float32)
        for map_name, values in (("depth", 1 + half), ("normal", tiny_sets.unit_vectors(draw, shape))):
            file = tmp_path / map_name / place.relative_to(folder) / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            numpy.save(file, values)
            made[map_name].append(torch.from_numpy(values)[None])
        assert truth["depth"].shape[:2] == shape
    return folder, made


def loaded(map_name, first=0, count=0, folder="my diode"):
    return LoadDataSet.execute("diode", folder, map_name, USUAL, first, count).args


def evaluated(map_name, predictions, read, align="scale-and-shift", convention=DATA, name="one"):
    images, references, masks, names = read
    arguments = {"image": images, "mask": masks, "picture_name": names}
    return EvaluateMaps.execute(predictions, references, [map_name], [convention], [align], [name], **arguments).args


@pytest.mark.parametrize(("map_name", "align"), [("normal", "scale-and-shift"), ("depth", "scale-and-shift"), ("depth", "metric")])
def test_the_graph_gives_the_command_lines_numbers(diode, tmp_path, map_name, align):
    folder, made = diode
    table, sheet, main_metric = evaluated(map_name, made[map_name], loaded(map_name), align)
    options = ["--map", map_name, "--align", align, "--predictions", str(tmp_path / map_name), "--output", str(tmp_path / "out")]
    assert main(["--data", f"diode:{folder}", *options]) == 0
    written = tmp_path / "output/intrinsic_lab/evaluation/one"
    assert (written / "pictures.csv").read_text() == (tmp_path / "out" / "pictures.csv").read_text()
    # The lines of metrics, below title and settings.
    assert (written / "table.md").read_text().splitlines()[4:] == (tmp_path / "out" / "table.md").read_text().splitlines()[4:]
    with (written / "pictures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and main_metric == pytest.approx(numpy.mean([float(row[list(row)[1]]) for row in rows]))
    assert table == (written / "table.md").read_text() and sheet.ndim == 4 and (written / "sheet.jpg").is_file()


def test_pictures_in_other_conventions_are_read_and_lists_that_do_not_fit_are_refused(diode):
    read = loaded("normal")
    exact = [reference / 2 + 0.5 for reference in read[1]]
    directx = [picture * torch.tensor([1.0, -1.0, 1.0]) + torch.tensor([0.0, 1.0, 0.0]) for picture in exact]
    for convention, pictures in (("opengl", exact), ("directx", directx)):
        assert evaluated("normal", pictures, read, convention=convention)[2] == pytest.approx(0, abs=1e-3)
    assert evaluated("normal", exact, read, convention="directx")[2] > 20
    with pytest.raises(ValueError, match="the convention is near_bright, normal has data, opengl"):
        evaluated("normal", exact, read, convention="near_bright")
    with pytest.raises(ValueError, match="2 predictions came with 3 references"):
        evaluated("normal", exact[:2], read)
    with pytest.raises(ValueError, match=r"scene_00019/scan_00180/.*both must show the same view"):
        evaluated("normal", exact[::-1], read)
    masks = [mask[:, 1:] for mask in read[2]]
    with pytest.raises(ValueError, match=r"the mask of indoors?|the mask of val/.* is 32 x 23, its reference 32 x 24"):
        evaluated("normal", read[1], (read[0], read[1], masks, read[3]))
    with pytest.raises(ValueError, match="masks are empty"):
        evaluated("normal", read[1], (read[0], read[1], [0 * mask for mask in read[2]], read[3]))


def test_parts_of_a_set_are_chosen_and_what_is_missing_is_told(diode):
    folder, _ = diode
    names = loaded("depth")[3]
    assert loaded("depth", 1, 1)[3] == names[1:2] and loaded("depth", 2, 0)[3] == names[2:]
    with pytest.raises(ValueError, match="first is 3, the data set has 3 pictures"):
        loaded("depth", 3)
    with pytest.raises(ValueError, match="diode has no albedo: it holds normal, depth"):
        loaded("albedo")
    with pytest.raises(ValueError, match="There is no data folder"):
        loaded("depth", folder="../my diode")
    before = LoadDataSet.fingerprint_inputs("diode", "my diode", "depth", USUAL, 0, 0)
    numpy.save(next(folder.rglob("*_depth.npy")), numpy.ones((24, 32, 1), dtype=numpy.float32) * 2)
    assert LoadDataSet.fingerprint_inputs("diode", "my diode", "depth", USUAL, 0, 0) != before


def test_the_bundled_rooms_are_those_of_the_renderer():
    from intrinsic_lab.scenes import render_scenes
    from intrinsic_lab.training.scene_pictures import HELD_OUT_SEEDS

    images, normals, masks, names = loaded("normal", folder=BUNDLED)
    assert len(names) == 4 and sum(file.stat().st_size for file in bundled_file(BUNDLED_FOLDER).rglob("*.*")) < 2**20
    maps = render_scenes([HELD_OUT_SEEDS.start + 1], 96, 96)
    assert torch.allclose(images[1], maps.image_bhwc, atol=0.003)
    assert torch.allclose(normals[1], maps.normal_bhwc * masks[1][..., None], atol=1e-5)


def test_both_nodes_have_tooltips_and_a_help_page():
    for node in NODES:
        declared = node.define_schema()
        assert all(one.tooltip for one in (*declared.inputs, *declared.outputs)), declared.node_id
        page = (ROOT / "web/docs" / f"{declared.node_id}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {declared.display_name}\n")
        assert all(f"`{one.id if one in declared.inputs else one.display_name}`" in page for one in (*declared.inputs, *declared.outputs))
