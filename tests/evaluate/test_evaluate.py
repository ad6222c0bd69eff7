"""`python -m intrinsic_lab.evaluate` on made-up data sets, against numpy; resuming; what is said when something is wrong."""

import csv
import logging
import math

import numpy
import pytest
import torch
from intrinsic_lab.data import DATA_SETS, Judgement, MapData
from intrinsic_lab.evaluate import report
from intrinsic_lab.evaluate.__main__ import main
from intrinsic_lab.evaluate.measures import measure, whdr
from intrinsic_lab.evaluate.predictions import FolderPredictions, ModelPredictions
from intrinsic_lab.methods.maps import MAPS, linear_from_srgb
from intrinsic_lab.tests.data import tiny_sets
from intrinsic_lab.training.intrinsic_lora import IntrinsicLoraConfig, load_base, predict_maps, train_intrinsic_lora
from intrinsic_lab.training.loop import LoopConfig
from intrinsic_lab.training.set_data import SetData
from PIL import Image
from skimage.metrics import structural_similarity

SHAPE = (24, 32)


def predicted(folder, name, values):
    path = folder / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    numpy.save(path, values.astype(numpy.float32))


def rows_of(output):
    with (output / "pictures.csv").open(newline="") as file:
        return {row.pop("picture"): {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)}


def names_in(folder):
    return [path.relative_to(folder).as_posix().removesuffix(".png") for path in sorted(folder.rglob("*.png"))]


@pytest.fixture
def diode(tmp_path):
    """(folder, what was written, names) of five pictures."""
    written = tiny_sets.write_diode(tmp_path / "diode", pictures=5, shape=SHAPE)
    return tmp_path / "diode", written, names_in(tmp_path / "diode")


def arguments(folder, map_name, output, *more):
    return ["--data", f"diode:{folder}", "--map", map_name, "--output", str(output), *more]


@pytest.mark.parametrize("flat", [False, True])
def test_normals_on_diode_equal_numpy(diode, tmp_path, flat):
    folder, written, names = diode
    draw, wanted = tiny_sets.numbers(9), {}
    for name, truth in zip(names, written, strict=True):
        made = tiny_sets.unit_vectors(draw, SHAPE) * 3
        predicted(tmp_path / "made", name.replace("/", "_") if flat else name, made)
        known = truth["normal"].any(-1)
        a, b = made[known] / 3, truth["normal"][known]
        degrees = numpy.degrees(numpy.arccos((a * b).sum(-1).clip(-1, 1)))
        wanted[name] = [degrees.mean(), numpy.median(degrees), *(100 * (degrees < limit).mean() for limit in (11.25, 22.5, 30))]
        wanted[name] += [100 * numpy.abs(a - b).mean(), 0]
    assert main(arguments(folder, "normal", tmp_path / "out", "--predictions", str(tmp_path / "made"))) == 0
    rows = rows_of(tmp_path / "out")
    assert rows.keys() == wanted.keys()
    for name, row in rows.items():
        assert list(row) == ["mean_degrees", "median_degrees", "within_11.25", "within_22.5", "within_30", "l1_x100", "unpredicted"]
        assert list(row.values()) == pytest.approx(wanted[name], rel=1e-4, abs=1e-4)
    table = (tmp_path / "out" / "table.md").read_text()
    assert f"| mean angle, degrees (less is better) | {numpy.mean([row[0] for row in wanted.values()]):.4f} |" in table
    with Image.open(tmp_path / "out" / "sheet.jpg") as sheet:
        assert sheet.height == 3 * (report.HEIGHT + report.LINE + report.MARGIN)


@pytest.mark.parametrize("align", ["scale-and-shift", "scale", "metric"])
def test_depth_on_diode_equals_numpy(diode, tmp_path, align):
    folder, written, names = diode
    draw, wanted = tiny_sets.numbers(10), {}
    for name, truth in zip(names, written, strict=True):
        made = 0.7 * truth["depth"] + 0.3 + 0.4 * draw.random((*SHAPE, 1))
        # As MoGe has the sky: left out, and counted.
        made[0, :5], made[0, 5] = numpy.inf, numpy.nan
        predicted(tmp_path / "made", name, made)
        known = (truth["mask"] > 0) & numpy.isfinite(made[..., 0])
        p, r = made.astype(numpy.float32)[known][:, 0].astype(float), truth["depth"][known][:, 0].astype(float)
        columns = {"scale-and-shift": [p, numpy.ones_like(p)], "scale": [p]}.get(align)
        aligned = p if columns is None else numpy.stack(columns, 1) @ numpy.linalg.lstsq(numpy.stack(columns, 1), r, rcond=None)[0]
        ratio = numpy.maximum(aligned / r, r / aligned)
        wanted[name] = [numpy.abs(aligned / r - 1).mean(), numpy.sqrt(((aligned - r) ** 2).mean()), 100 * (ratio < 1.25).mean()]
        wanted[name].append(100 * (1 - known.sum() / (truth["mask"] > 0).sum()))
    assert max(row[-1] for row in wanted.values()) > 0
    assert main(arguments(folder, "depth", tmp_path / "out", "--predictions", str(tmp_path / "made"), "--align", align)) == 0
    for name, row in rows_of(tmp_path / "out").items():
        assert list(row) == ["abs_rel", "rmse", "delta1", "unpredicted"] and list(row.values()) == pytest.approx(wanted[name], rel=1e-6)
    assert f"depth after {align} alignment" in (tmp_path / "out" / "table.md").read_text()


def test_what_has_no_metres_or_other_ones_is_refused_for_metric_alignment(diode, tmp_path, caplog):
    folder, written, names = diode
    options = ["--predictions", str(tmp_path / "made"), "--align"]

    def said(output, *more):
        caplog.clear()
        assert main(arguments(folder, "depth", tmp_path / output, *options, *more)) == 2
        return caplog.text

    for factor, told in ((1000, "millimetres, divide them by 1000"), (0.001, "kilometres, multiply them by 1000")):
        for name, truth in zip(names, written, strict=True):
            predicted(tmp_path / "made", name, factor * truth["depth"])
        text = said(f"out{factor}", "metric")
        assert told in text and names[0] in text and "the reference's" in text
        # Where the scale is fitted, units do not matter.
        assert main(arguments(folder, "depth", tmp_path / f"scaled{factor}", *options, "scale")) == 0
    assert "depth that is near_bright has no metres" in said("bright", "metric", "--convention", "near_bright")
    for name, truth in zip(names, written, strict=True):
        (tmp_path / "made" / f"{name}.npy").unlink()
        tiny_sets.write_png(tmp_path / "made" / f"{name}.png", numpy.repeat(255 * truth["depth"] / 5, 3, -1))
    assert f"{names[0].split('/')[-1]}.png is a picture, which has no metres" in said("picture", "metric")
    assert main(arguments(folder, "depth", tmp_path / "fitted", *options, "scale-and-shift")) == 0


def test_a_colour_is_measured_as_numpy_and_scikit_image_do():
    draw = tiny_sets.numbers(11)
    reference, made = draw.random((40, 40, 3)), draw.random((40, 40, 3))
    whole = MapData(torch.from_numpy(reference), torch.ones(40, 40, dtype=torch.bool))
    scores = measure("albedo", torch.from_numpy(made), whole, "metric")
    assert list(scores) == ["rmse", "ssim", "lmse", "si_rmse"]
    assert scores["rmse"] == pytest.approx(numpy.sqrt(((made - reference) ** 2).mean()))
    scale = (made * reference).sum() / (made**2).sum()
    assert scores["si_rmse"] == pytest.approx(numpy.sqrt(((scale * made - reference) ** 2).mean()))
    similarity = structural_similarity(
        made, reference, channel_axis=-1, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert scores["ssim"] == pytest.approx(similarity, abs=1e-6)
    error = total = 0.0
    for top in range(0, 21, 10):
        for left in range(0, 21, 10):
            p, r = (values[top : top + 20, left : left + 20] for values in (made, reference))
            error += ((r - (p * r).sum() / (p**2).sum() * p) ** 2).sum()
            total += (r**2).sum()
    assert scores["lmse"] == pytest.approx(error / total)
    assert measure("albedo", torch.from_numpy(3 * reference), whole, "metric")["si_rmse"] == pytest.approx(0, abs=1e-9)


def test_metrics_of_known_numbers():
    mask = torch.ones(1, 2, dtype=torch.bool)
    normals = MapData(torch.tensor([[[0.0, 0, 1], [0, 0, 1]]]), mask)
    turned = torch.tensor([[[0.0, 0, 2], [math.sin(math.radians(25)), 0, math.cos(math.radians(25))]]])
    scores = measure("normal", turned, normals, "metric")
    assert scores["mean_degrees"] == pytest.approx(12.5, abs=1e-4) and scores["within_22.5"] == 50
    difference = math.sin(math.radians(25)) + 1 - math.cos(math.radians(25))
    assert scores["l1_x100"] == pytest.approx(100 * difference / 6, rel=1e-5)
    depths = MapData(torch.tensor([[[2.0], [4.0]]]), mask)
    assert measure("depth", torch.tensor([[[1.0], [2.0]]]), depths, "scale") == pytest.approx({"abs_rel": 0, "rmse": 0, "delta1": 100})
    metric = measure("depth", torch.tensor([[[1.0], [2.0]]]), depths, "metric")
    assert metric == pytest.approx({"abs_rel": 0.5, "rmse": math.sqrt(2.5), "delta1": 0})


def test_whdr_of_known_judgements():
    albedo = torch.tensor([[0.5, 0.52, 0.7]])[..., None].expand(1, 3, 3)
    left, middle, right = (0.1, 0.5), (0.5, 0.5), (0.99, 1.0)
    # Right: left is darker than right; middle is equal to left. Wrong: right darker than middle, left equal to right.
    said = [Judgement(left, right, "1", 2.0), Judgement(middle, left, "E", 1.0)]
    assert whdr(albedo, said) == 0
    assert whdr(albedo, [*said, Judgement(right, middle, "1", 0.5), Judgement(left, right, "E", 0.5)]) == pytest.approx(25)
    assert whdr(torch.zeros(1, 3, 3), said) == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match="nobody judged"):
        whdr(albedo, [])


def test_iiw_is_judged_by_whdr_alone(tmp_path, capsys):
    pixels = tiny_sets.write_iiw(tmp_path / "iiw")
    predicted(tmp_path / "made", "117", linear_from_srgb(torch.from_numpy(pixels)).numpy())
    options = ["--data", f"iiw:{tmp_path / 'iiw'}", "--map", "albedo", "--predictions", str(tmp_path / "made")]
    assert main([*options, "--output", str(tmp_path / "out")]) == 0
    # The picture itself: the judgement that the lighter point is darker (0.5 of 2.0) is missed.
    assert rows_of(tmp_path / "out") == {"117": {"whdr": pytest.approx(25)}}
    assert "WHDR, %" in capsys.readouterr().out and (tmp_path / "out" / "sheet.jpg").is_file()


def test_a_stopped_evaluation_goes_on_and_drops_a_line_that_was_cut_off(diode, tmp_path, caplog):
    folder, written, names = diode
    for name, truth in zip(names, written, strict=True):
        predicted(tmp_path / "made", name, truth["depth"] + 0.1 * tiny_sets.numbers(3).random((*SHAPE, 1)))
    whole, stopped = (arguments(folder, "depth", tmp_path / name, "--predictions", str(tmp_path / "made")) for name in ("whole", "stopped"))
    assert main(whole) == 0 and main([*stopped, "--limit", "3"]) == 0
    pictures = tmp_path / "stopped" / "pictures.csv"
    lines = pictures.read_text().splitlines()
    assert len(lines) == 4
    pictures.write_text("\n".join([*lines[:3], lines[3][:-4]]))
    # What was judged is not looked at again, but for the sheet's pictures.
    before = (tmp_path / "made" / f"{names[0]}.npy").read_bytes()
    predicted(tmp_path / "made", names[0], written[0]["depth"] * 0 + 1)
    assert main(stopped) == 0
    (tmp_path / "made" / f"{names[0]}.npy").write_bytes(before)
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")
    assert (tmp_path / "stopped" / "table.md").read_text() == (tmp_path / "whole" / "table.md").read_text()
    before = rows_of(tmp_path / "stopped")
    assert main([*stopped, "--align", "metric"]) == 2 and rows_of(tmp_path / "stopped") == before
    assert "holds an evaluation with another alignment: choose another output folder" in caplog.text
    # A file of an earlier version has no column for what is not predicted.
    pictures.write_text("\n".join(line.rsplit(",", 1)[0] for line in pictures.read_text().splitlines()) + "\n")
    assert main(stopped) == 2 and "by an earlier version" in caplog.text


def test_ctrl_c_keeps_what_was_judged(diode, tmp_path, caplog, monkeypatch):
    folder, written, names = diode
    for name, truth in zip(names, written, strict=True):
        predicted(tmp_path / "made", name, truth["depth"] + 0.1 * tiny_sets.numbers(3).random((*SHAPE, 1)))
    options = arguments(folder, "depth", tmp_path / "out", "--predictions", str(tmp_path / "made"))
    usual = FolderPredictions.predict

    def pressed(self, pair, picture_hw3):
        if pair.name == names[2]:
            raise KeyboardInterrupt
        return usual(self, pair, picture_hw3)

    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        patch.setattr(FolderPredictions, "predict", pressed)
        assert main(options) == 130
    assert "run the same command to go on" in caplog.text and list(rows_of(tmp_path / "out")) == names[:2]
    assert main(options) == 0 and list(rows_of(tmp_path / "out")) == names


def test_pictures_in_other_conventions_and_sizes_are_brought_to_the_reference(diode, tmp_path):
    folder, written, names = diode
    for name, truth in zip(names, written, strict=True):
        one_way = numpy.array([0.6, 0.3, 0.742], dtype=numpy.float32)
        truth["normal"][:] = one_way
        numpy.save(folder / f"{name}_normal.npy", truth["normal"])
        directx = numpy.rint(one_way * [1, -1, 1] * 127.5 + 127.5)
        tiny_sets.write_png(tmp_path / "made" / f"{name}.png", numpy.tile(directx, (SHAPE[0] // 2, SHAPE[1] // 2, 1)))
    options = ("--predictions", str(tmp_path / "made"))
    assert main(arguments(folder, "normal", tmp_path / "right", *options, "--convention", "directx")) == 0
    assert main(arguments(folder, "normal", tmp_path / "wrong", *options)) == 0
    right, wrong = (next(iter(rows_of(tmp_path / name).values()))["mean_degrees"] for name in ("right", "wrong"))
    assert right < 0.5 and wrong > 30


def test_pictures_without_anything_known_are_left_out(diode, tmp_path, caplog):
    folder, written, names = diode
    for name, truth in zip(names, written, strict=True):
        predicted(tmp_path / "made", name, truth["depth"] + tiny_sets.numbers(3).random((*SHAPE, 1)))
    numpy.save(folder / f"{names[1]}_depth_mask.npy", numpy.zeros(SHAPE))
    assert main(arguments(folder, "depth", tmp_path / "out", "--predictions", str(tmp_path / "made"))) == 0
    assert f"{names[1]} has nothing to judge" in caplog.text and len(rows_of(tmp_path / "out")) == 4


def test_what_is_wrong_is_told_in_words(diode, tmp_path, caplog):
    folder, written, names = diode
    made = tmp_path / "made"
    predicted(made, names[0], written[0]["depth"])
    for options, told in (
        (arguments(folder, "depth", tmp_path / "a", "--predictions", str(made)), f"no prediction for {names[1]}: wanted"),
        (arguments(folder, "depth", tmp_path / "b"), "give --predictions, or --base and --lora"),
        (arguments(folder, "albedo", tmp_path / "c", "--predictions", str(made)), "diode has no albedo: it holds normal, depth"),
        (["--data", str(folder), "--map", "depth", "--output", str(tmp_path / "d")], "name a data set before its folder, as diode:FOLDER"),
        (arguments(folder, "depth", tmp_path / "e", "--predictions", str(tmp_path / "no")), "the folder of predictions"),
        (
            arguments(folder, "depth", tmp_path / "h", "--predictions", str(made), "--convention", "directx"),
            "the convention is 'directx': depth has near_dark, near_bright",
        ),
    ):
        caplog.clear()
        assert main(options) == 2
        assert told in caplog.text and "Traceback" not in caplog.text
    # A folder without results does not remember what failed in it.
    assert main(arguments(folder, "depth", tmp_path / "h", "--predictions", str(made), "--limit", "1")) == 0
    predicted(made, names[0], numpy.full((*SHAPE, 1), numpy.nan))
    assert main(arguments(folder, "depth", tmp_path / "f", "--predictions", str(made))) == 2
    assert f"{names[0]}: the prediction is NaN or infinite wherever" in caplog.text
    predicted(made, names[0], written[0]["depth"][:10])
    assert main(arguments(folder, "depth", tmp_path / "g", "--predictions", str(made))) == 2
    assert "both must show the same view" in caplog.text


def test_the_intervals_hold_the_mean_as_often_as_they_say():
    draw = numpy.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = report.bootstrap(draw.normal(3, 1, 40), resamples=200)
        held += low <= 3 <= high
    assert 180 <= held <= 198
    assert report.bootstrap([2.0] * 5) == (2.0, 2.0)
    assert report.best_median_worst({name: {"x": value} for name, value in zip("abcde", (3, 1, 5, 2, 4), strict=True)}, "x") == [
        "b",
        "a",
        "c",
    ]


def test_a_model_with_a_lora_predicts_as_its_trainer_does(tiny_base, diode, tmp_path):
    """Merged weights against the adapter's own layers, on a picture of the trained size."""
    folder, _, names = diode
    loop = LoopConfig(tmp_path / "lora", 4, learning_rate=0.05)
    trained = train_intrinsic_lora(IntrinsicLoraConfig(tiny_base, "normal", loop, SetData("diode", folder, size=24), "wide", 4, 2))
    pair = DATA_SETS["diode"].pairs(folder, "normal")[0]
    picture = DATA_SETS["diode"].picture(pair)
    made = ModelPredictions(tiny_base, trained.weights, "normal", size=0).predict(pair, picture)
    text = trained.base.embed(MAPS["normal"].prompt)
    wanted = predict_maps(trained.base.network, trained.base.vae, text, picture.movedim(-1, 0)[None], "normal")[0]
    torch.testing.assert_close(made, wanted, rtol=0, atol=2e-4)
    untrained = load_base(tiny_base)
    without = predict_maps(untrained.network, untrained.vae, text, picture.movedim(-1, 0)[None], "normal")[0]
    assert (made - without).abs().mean() > 0.01
    model = ("--base", str(tiny_base), "--lora", str(trained.weights), "--size", "0")
    assert ModelPredictions(tiny_base, trained.weights, "normal").size == 24
    turned = ModelPredictions(tiny_base, trained.weights, "normal", "opencv", 0).predict(pair, picture)
    torch.testing.assert_close(turned, wanted * torch.tensor([1.0, -1.0, -1.0]), rtol=0, atol=2e-4)
    with pytest.raises(ValueError, match="makes normal, depth is to be judged"):
        ModelPredictions(tiny_base, trained.weights, "depth")
    assert main(arguments(folder, "normal", tmp_path / "out", *model)) == 0
    assert rows_of(tmp_path / "out").keys() == set(names)
    assert main(arguments(folder, "normal", tmp_path / "smaller", *model[:-1], "16", "--limit", "1")) == 0
