"""Learning from public data sets: squares, masks in the losses, and how many pairs are taken."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import DDPMScheduler
from intrinsic_lab.methods.ildm.intrinsic_vae import channel_slice
from intrinsic_lab.methods.lumix.design import Design
from intrinsic_lab.methods.maps import normal_from_picture
from intrinsic_lab.tests.data import tiny_sets
from intrinsic_lab.training.backbones.backbone import TextEmbeddings
from intrinsic_lab.training.folder_data import FewPairs, FolderData, few_rows
from intrinsic_lab.training.generators.vqgan_lora import VqganLoraConfig, train_vqgan_lora
from intrinsic_lab.training.ildm import IntrinsicVaeConfig, IntrinsicVaeTask, JointConfig, JointFolderData, JointTask
from intrinsic_lab.training.ildm import __main__ as ildm_main
from intrinsic_lab.training.ildm.autoencoder import widened_vae
from intrinsic_lab.training.ildm.data import held
from intrinsic_lab.training.ildm.run import JointLatents
from intrinsic_lab.training.intrinsic_lora.__main__ import build_parser, config_from, main
from intrinsic_lab.training.loop import LoopConfig
from intrinsic_lab.training.losses import latent_loss, picture_loss
from intrinsic_lab.training.lumix import __main__ as lumix_main
from intrinsic_lab.training.lumix.config import LumixConfig
from intrinsic_lab.training.lumix.data import map_source
from intrinsic_lab.training.lumix.run import LumixTask, MapLatents
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
    for options, words in (
        ("--labels 3", "--labels draws from the pairs of --data"),
        (f"--data diode:{tmp_path} --normals opencv", "--normals opencv is of a plain folder's files: diode has its own convention"),
        (f"--data {tmp_path} --split val", "but --split val is a part of a data set: write NAME:FOLDER, NAME one of diode"),
        (f"--data dyode:{tmp_path}", "dyode:.*, but it names no data set: write NAME:FOLDER"),
    ):
        with pytest.raises(ValueError, match=words):
            config_from(build_parser().parse_args(f"{base} {options}".split()))


class Nothing(torch.nn.Module):
    """Predicts zero, whatever comes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, latents, *conditions):
        return 0 * latents * self.weight


def test_tensor_and_joint_loras_learn_nothing_of_latents_that_are_not_known():
    draw = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 2, 4, 6, 6, generator=draw)
    known = torch.rand(3, 2, 1, 6, 6, generator=draw) > 0.4
    text = TextEmbeddings(torch.zeros(3, 1, 1))
    design = Design(maps=("color", "depth", "normal"))
    lumix = LumixConfig(Path("base"), LoopConfig(Path("out"), 1), SetData("diode", Path("data"), size=8), design, batch=4)
    joint = JointConfig(Path("base"), Path("vae"), LoopConfig(Path("out"), 1), batch=4)

    def losses(latents, mask):
        lumix_latents = MapLatents(latents, torch.zeros_like(latents), mask)
        pair = [(latents[kind], torch.zeros_like(latents[kind])) for kind in (0, 1)]
        joint_latents = JointLatents(*pair, None if mask is None else mask[1])
        tasks = LumixTask(lumix, Nothing(), lumix_latents, text), JointTask(joint, Nothing(), DDPMScheduler(), joint_latents, text)
        return [float(task.loss(task.module, torch.Generator().manual_seed(1))) for task in tasks]

    # Nothing predicted: LumiX's error is noise - latent; I-LDM's is the noise alone, whose mean the mask changes.
    whole, some = losses(mean, None), losses(mean, known)
    assert losses(torch.where(known, mean, 100.0), known)[0] == pytest.approx(some[0], rel=1e-5)
    assert losses(torch.where(known, mean, 100.0), None)[0] > 10 * whole[0]
    assert losses(torch.where(known, 100.0, mean), known)[0] > 10 * some[0]
    assert losses(mean, torch.ones_like(known)) == pytest.approx(whole, rel=1e-5) and abs(some[1] - whole[1]) > 1e-4


def test_pictures_with_all_maps_come_out_of_a_set_in_one_order(tmp_path):
    tiny_sets.write_hypersim(tmp_path)
    source = map_source(SetData("hypersim", tmp_path, size=12), ("albedo", "irradiance", "color", "depth", "normal"))
    assert len(source) == 1 and source.captions == ("",) and set(source.maps) == {"albedo", "shading", "depth", "normal"}
    assert not source.of("depth").masks([0])[0, 0, 2, 1] and source.of("shading").masks([0]).all()
    folder = tmp_path / "diode"
    tiny_sets.write_diode(folder, pictures=5)
    next(folder.rglob("scan_00182/*_normal.npy")).unlink()
    aligned = SetData("diode", folder, size=8, labels=3, seed=2).aligned(["depth", "normal"])
    names = [[pair.name for pair in pairs.pairs] for pairs in aligned.maps.values()]
    assert names[0] == names[1] and len(names[0]) == 3 and not any("scan_00182" in name for name in names[0])
    with pytest.raises(ValueError, match="diode has no shading: it holds normal, depth"):
        map_source(SetData("diode", folder), ("color", "irradiance"))


def test_the_intrinsic_vae_is_asked_for_what_is_known(tiny_base, tmp_path):
    tiny_sets.write_diode(tmp_path, shape=(16, 16))
    for path in tmp_path.rglob("*_depth_mask.npy"):
        numpy.save(path, numpy.load(path) * 0)
    data = SetData("diode", tmp_path, size=16)
    assert held(data) == ("depth", "normal")
    source = JointFolderData(data, held(data)).source()
    known, joined = source.known([0, 1]), source.read("intrinsics", [0, 1])
    assert isinstance(source, MaskedSource) and not source.masks([0]).any()
    assert not known[:, channel_slice("depth")].any() and known[:, channel_slice("line")].all()
    assert torch.equal(known[0, channel_slice("normal")], source.pairs.of("normal").masks([0])[0].expand(3, -1, -1))
    # In the VAE's range: zero where nothing is known, and for intrinsics that the set has none of.
    assert (joined[~known] == 0.5).all() and (joined[:, channel_slice("line")] == 0.5).all()
    config = IntrinsicVaeConfig(tiny_base, LoopConfig(tmp_path / "out", 1), JointFolderData(data, held(data)))
    task = IntrinsicVaeTask(config, widened_vae(tiny_base), source)
    task.loss(task.module, torch.Generator().manual_seed(0)).backward()
    gradient = task.module.vae.decoder.conv_out.weight.grad
    assert not gradient[channel_slice("depth")].any() and gradient[channel_slice("normal")].any()


def test_lumix_and_ildm_train_on_a_set_by_command(flux_base, tiny_base, tmp_path):
    tiny_sets.write_diode(tmp_path / "data", pictures=3, shape=(16, 16))
    data = f"--data diode:{tmp_path / 'data'} --size 16 --labels 2 --steps 2 --rank 2"
    lumix = f"--base {flux_base} --output {tmp_path / 'lumix'} --maps color depth normal --text-tokens 8 {data}"
    assert lumix_main.main(lumix.split()) == 0
    [cached] = (tmp_path / "lumix").glob("masks-depth-*.safetensors")
    assert load_file(cached)["mask"].shape == (2, 1, 8, 8) and (tmp_path / "lumix" / "lumix.safetensors").is_file()
    vae = f"vae --base {tiny_base} --output {tmp_path / 'vae'} {data.replace(' --rank 2', '')}"
    assert ildm_main.main(vae.split()) == 0
    lora = f"lora --base {tiny_base} --intrinsic-vae {tmp_path / 'vae' / 'intrinsic_vae'} --output {tmp_path / 'lora'} {data}"
    assert ildm_main.main(lora.split()) == 0
    [cached] = (tmp_path / "lora").glob("masks-intrinsics-*.safetensors")
    assert load_file(cached)["mask"].shape == (2, 1, 4, 4)


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
