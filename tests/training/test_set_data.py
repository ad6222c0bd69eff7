"""Learning from public data sets: squares, masks in the losses, and how many pairs are taken."""

import json
from argparse import Namespace

import numpy
import pytest
import torch
from intrinsic_lab.methods.maps import normal_from_picture
from intrinsic_lab.tests.data import tiny_sets
from intrinsic_lab.training import command_line
from intrinsic_lab.training.folder_data import FewPairs, FolderData, few_rows
from intrinsic_lab.training.generators.vqgan_lora import VqganLoraConfig, train_vqgan_lora
from intrinsic_lab.training.intrinsic_lora.__main__ import build_parser, config_from, main
from intrinsic_lab.training.loop import LoopConfig
from intrinsic_lab.training.losses import latent_loss, picture_loss
from intrinsic_lab.training.pairs import MaskedSource
from intrinsic_lab.training.set_data import SetData
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional


def test_a_square_of_a_set_equals_its_crop_where_nothing_is_resized(tmp_path):
    (written,) = tiny_sets.write_diode(tmp_path, pictures=1)
    source = SetData("diode", tmp_path, size=12).source("normal")
    assert isinstance(source, MaskedSource)
    crop = slice(2, 14)
    known = written["normal"][:, crop].any(-1)
    assert torch.equal(source.read("image", [0])[0].movedim(0, -1), torch.from_numpy(written["image"][:, crop]))
    assert numpy.array_equal(source.masks([0])[0, 0].numpy(), known)
    picture = source.read("normal", [0])[0].movedim(0, -1)
    assert not picture[~torch.from_numpy(known)].any()
    assert numpy.allclose(normal_from_picture(picture)[known].numpy(), written["normal"][:, crop][known], atol=1e-5)


def test_depth_is_cut_at_its_99th_percentile_and_stretched_over_what_is_known(tmp_path):
    (written,) = tiny_sets.write_diode(tmp_path, pictures=1, shape=(40, 40))
    path = next(tmp_path.rglob("*_depth.npy"))
    depth, known = written["depth"][..., 0], written["mask"] > 0
    first = tuple(numpy.argwhere(known)[0])
    depth[first] = 300
    numpy.save(path, depth)
    picture = SetData("diode", tmp_path, size=40).source("depth").read("depth", [0])[0, 0].numpy()
    farthest = numpy.sort(depth[known])[round(0.99 * known.sum()) - 1]
    nearest = depth[known].min()
    wanted = (depth.clip(None, farthest) - nearest) / (farthest - nearest)
    assert numpy.allclose(picture[known], wanted[known], atol=1e-5) and not picture[~known].any()


def test_a_smaller_pixel_counts_only_if_all_of_it_is_known(tmp_path):
    (written,) = tiny_sets.write_diode(tmp_path, pictures=1, shape=(32, 32))
    written["normal"][:] = (0, 0, 1)
    written["normal"][:, 16:] = 0
    numpy.save(next(tmp_path.rglob("*_normal.npy")), written["normal"])
    source = SetData("diode", tmp_path, size=8).source("normal")
    mask = source.masks([0])[0, 0]
    assert mask[:, :3].all() and not mask[:, 4:].any()
    # No unknown zero was mixed in.
    assert torch.allclose(source.read("normal", [0])[0].movedim(0, -1)[mask], torch.tensor([0.5, 0.5, 1.0]), atol=1e-5)


@pytest.mark.parametrize("map_name", ["normal", "albedo"])
def test_masked_losses_are_those_of_the_known_pixels_alone(map_name):
    draw = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(2, 3, 6, 5, generator=draw) * 2 - 1 for _ in range(2))
    mask = torch.rand(2, 1, 6, 5, generator=draw) > 0.4
    inside = mask.expand(2, 3, 6, 5)
    known = [values.movedim(1, -1)[inside.movedim(1, -1)].reshape(1, -1, 3).movedim(-1, 1)[..., None] for values in (prediction, target)]
    torch.testing.assert_close(picture_loss(map_name, prediction, target, mask), picture_loss(map_name, *known))
    torch.testing.assert_close(latent_loss(prediction, target, mask), functional.mse_loss(prediction[inside], target[inside]))
    prediction.requires_grad_(True)
    broken = torch.where(inside, target, torch.nan)
    for loss in (picture_loss(map_name, prediction, torch.where(inside, broken, 0), mask), latent_loss(prediction, target, mask)):
        (gradient,) = torch.autograd.grad(loss, prediction)
        assert not gradient[~inside].any() and gradient[inside].abs().sum() > 0
    assert latent_loss(prediction, target, torch.zeros_like(mask)) == 0


@pytest.mark.parametrize("loss", ["latent", "decoded"])
def test_the_trainer_learns_nothing_of_unknown_pixels(tiny_base, tmp_path, loss):
    """Other values where nothing is known: the same weights, to the bit."""
    weights = []
    for filled in (0.0, 7.0):
        folder, output = tmp_path / f"data-{filled}", tmp_path / f"out-{filled}"
        tiny_sets.write_diode(folder, shape=(32, 32))
        for path in folder.rglob("*_depth.npy"):
            depth, known = numpy.load(path), numpy.ones((32, 32))
            known[:, 12:] = 0
            numpy.save(path, numpy.where(known[..., None] > 0, depth + 1, filled))
            numpy.save(path.with_name(f"{path.stem}_mask.npy"), known)
        options = f"--base {tiny_base} --map depth --data diode:{folder} --split val --size 32 --rank 4 --steps 3 --batch 2 --loss {loss}"
        assert main([*options.split(), "--output", str(output), "--learning-rate", "0.01"]) == 0
        weights.append(load_file(output / "depth.safetensors"))
        masks = [load_file(path)["mask"] for path in output.glob("masks-depth-*.safetensors")]
        assert len(masks) == 1 and masks[0].shape == (2, 1, 8, 8)
        assert masks[0][..., :3].all() and not masks[0][..., 3:].any()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with safe_open(tmp_path / "out-7.0" / "depth.safetensors", "pt") as file:
        data = json.loads(file.metadata()["intrinsic_lab.config"])["data"]
    assert data["name"] == "diode" and data["folder"] == "data-7.0"


def test_a_vqgan_learns_nothing_of_unknown_pixels(vqgan_folder, tmp_path):
    losses = []
    for filled in (0.0, 9.0):
        folder = tmp_path / f"data-{filled}"
        tiny_sets.write_diode(folder, shape=(16, 16))
        for path in folder.rglob("*_depth.npy"):
            numpy.save(path, numpy.where(numpy.load(path.with_name(f"{path.stem}_mask.npy"))[..., None] > 0, numpy.load(path), filled))
        loop = LoopConfig(tmp_path / f"out-{filled}", 3, 1e-2)
        losses.append(train_vqgan_lora(VqganLoraConfig(vqgan_folder, "depth", loop, SetData("diode", folder, size=16), batch=2)).losses)
    assert losses[0] == losses[1]


def test_the_command_line_names_sets_and_limits_pairs(tmp_path):
    base = f"--base {tmp_path} --map normal --output {tmp_path} --seed 5"
    data = config_from(
        build_parser().parse_args(f"{base} --data diode:{tmp_path} --split train --scenes 7 --labels 3 --size 64".split())
    ).data
    assert data == SetData("diode", tmp_path, "train", 64, count=7, labels=3, seed=5)
    data = config_from(build_parser().parse_args(f"{base} --data {tmp_path} --scenes 7 --normals directx".split())).data
    assert data == FewPairs(tmp_path, normals="directx", count=7, seed=5)
    assert config_from(build_parser().parse_args(f"{base} --data {tmp_path}".split())).data == FolderData(tmp_path)
    with pytest.raises(ValueError, match="--labels draws from the pairs of --data"):
        config_from(build_parser().parse_args(f"{base} --labels 3".split()))
    with pytest.raises(ValueError, match=r"this trainer learns from folders, not from diode:"):
        command_line.data_from(Namespace(data=f"diode:{tmp_path}"))


def test_scenes_with_a_folder_limits_the_pairs_and_labels_are_drawn_by_seed(tmp_path):
    for number in range(6):
        for kind in ("image", "depth", "albedo"):
            tiny_sets.write_png(tmp_path / kind / f"{number}.png", numpy.full((8, 8, 3), 10 * number))

    def names(data: FolderData) -> list[str]:
        return [path.stem for path in data.source("depth").pictures]

    assert names(FewPairs(tmp_path, 8, count=2)) == ["0", "1"]
    drawn = [names(FewPairs(tmp_path, 8, labels=3, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 3
    aligned = FewPairs(tmp_path, 8, labels=3).aligned(["depth", "albedo"])
    assert [path.stem for path in aligned.pictures] == drawn[0] == [path.stem for path in aligned.maps["albedo"].maps]
    with pytest.raises(ValueError, match="9 labels were asked for, there are 6 pairs"):
        FewPairs(tmp_path, 8, labels=9).source("depth")
    assert few_rows(4, 0, 0, 0) == [0, 1, 2, 3]


def test_judgements_and_unknown_sets_are_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="iiw holds judgements and no maps"):
        SetData("iiw", tmp_path)
    with pytest.raises(ValueError, match="there is no data set 'coco': choose diode"):
        SetData("coco", tmp_path)
