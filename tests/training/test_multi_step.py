"""The multi-step methods of the I-LoRA trainer on a tiny random base."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from intrinsic_lab.methods.intrinsic_lora.multi_step import Noise, noise_of
from intrinsic_lab.methods.lora.lora_file import read_lora
from intrinsic_lab.training.intrinsic_lora import (
    IntrinsicLoraConfig,
    LatentPairs,
    add_adapter,
    load_adapter,
    load_base,
    noise_for,
    predict_maps_in_steps,
    train_intrinsic_lora,
)
from intrinsic_lab.training.intrinsic_lora.__main__ import build_parser, config_from, main
from intrinsic_lab.training.intrinsic_lora.run import IntrinsicLoraTask
from intrinsic_lab.training.intrinsic_lora.widened import pix2pix_weight, widen
from intrinsic_lab.training.loop import Interrupted, LoopConfig, step_generator
from intrinsic_lab.training.pairs import SceneData
from safetensors.torch import load_file, save_file

SCENES = SceneData(count=6, size=32)


def config_of(base: Path, output: Path, method: str, steps: int = 4, **options) -> IntrinsicLoraConfig:
    loop = LoopConfig(output, steps, learning_rate=1e-2, ema_decay=0.9, checkpoint_every=2)
    return IntrinsicLoraConfig(base, "normal", loop, SCENES, rank=4, batch=3, method=method, **options)


@pytest.fixture(scope="module")
def pairs(tiny_base):
    return LatentPairs.encode(load_base(tiny_base).vae, SCENES, "normal")


def alphas(noise: Noise) -> torch.Tensor:
    """Cumulative products in float64, from the definition (Lin et al. 2024, algorithm 1, for zero SNR)."""
    ends = (noise.first_beta, noise.last_beta)
    root = noise.betas == "scaled_linear"
    betas = torch.linspace(*(end**0.5 if root else end for end in ends), noise.timesteps, dtype=torch.float64)
    level = (1 - (betas**2 if root else betas)).cumprod(0).sqrt()
    if noise.zero_snr:
        level = (level - level[-1]) * level[0] / (level[0] - level[-1])
    return level**2


@pytest.mark.parametrize("method", ["multi", "augmented"])
def test_loss_and_gradients_are_those_of_a_plain_statement_in_float64(tiny_base, pairs, tmp_path, method):
    config, base = config_of(tiny_base, tmp_path, method, kind="wide"), load_base(tiny_base)
    add_adapter(base.network, "wide", 4, 0)
    if method == "augmented":
        widen(base.network, 0.1 * torch.randn(32, 4, 3, 3, generator=torch.Generator().manual_seed(3)))
    network = base.network.double()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    noise = noise_for(tiny_base, method)
    assert noise == (
        Noise("v_prediction", "linear", 0.0001, 0.02) if method == "augmented" else Noise("epsilon", "linear", 0.0001, 0.02, zero_snr=False)
    )
    text = base.embed("surface normal").to(dtype=torch.float64)
    mask = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2)) > 0.3
    double = LatentPairs(pairs.image_bchw.double(), pairs.map_mean_bchw.double(), pairs.map_std_bchw.double(), mask)
    found = IntrinsicLoraTask(config, network, base.vae.double(), text, double).loss(network, step_generator(0, 5))
    # The same numbers, drawn in the same order.
    draw = step_generator(0, 5)
    rows, picture, clean = double.draw(3, draw)
    drawn = torch.randn(clean.shape, generator=draw)
    timestep = torch.randint(1000, (3,), generator=draw)
    signal = alphas(noise)[timestep].view(3, 1, 1, 1)
    noisy = signal.sqrt() * clean + (1 - signal).sqrt() * drawn
    target = drawn if method == "multi" else signal.sqrt() * drawn - (1 - signal).sqrt() * clean
    # The VAE's own scale: what the model's is divided by.
    seen = noisy if method == "multi" else torch.cat([noisy, picture / 0.5], 1)
    error = (network(seen, timestep, text.expanded(3).context).sample - target) ** 2
    plain = (error.mean(1, keepdim=True) * mask[rows]).sum() / mask[rows].sum()
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = [torch.autograd.grad(loss, learning, retain_graph=True) for loss in (found, plain)]
    # diffusers keeps its schedule, and the loss is taken, in float32.
    assert found.item() == pytest.approx(plain.item(), rel=1e-5)
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max() + 1e-9


def test_an_augmented_file_holds_all_that_it_needs_and_a_run_resumes_exactly(tiny_base, pairs, tmp_path):
    whole = train_intrinsic_lora(config_of(tiny_base, tmp_path / "whole", "augmented", kind="wide"), pairs=pairs)
    config = config_of(tiny_base, tmp_path / "cut", "augmented", kind="wide")

    def stop_at_2(step, loss, left):
        if step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_intrinsic_lora(config, pairs=pairs, report=stop_at_2)
    resumed = train_intrinsic_lora(config, pairs=pairs)
    first, second = load_file(whole.weights), load_file(resumed.weights)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    file = read_lora(whole.weights)
    header = {key.removeprefix("intrinsic_lab."): value for key, value in file.metadata.items()}
    assert header["method"] == "augmented" and "timestep" not in header and header["convention"] == "opengl"
    assert noise_of(header, "it") == Noise("v_prediction", "linear", 0.0001, 0.02)
    # The first convolution's LoRA is that of the base's own channels: it fits the plain model.
    assert file.layers["conv_in"].down.shape == (4, 4, 3, 3) and file.picture_in.shape == (32, 4, 3, 3)
    assert file.picture_in.abs().max() > 0
    base = load_base(tiny_base)
    add_adapter(base.network, "wide", 4, 0)
    load_adapter(base.network, file)
    pictures = torch.rand(2, 3, 32, 32)
    options = {"steps": 3, "batch": 1}
    noise = noise_for(tiny_base, "augmented")
    maps, again = (predict_maps_in_steps(one, noise, pictures, "normal", **options) for one in (whole.base, base))
    assert torch.allclose(maps, again, atol=1e-4) and maps.shape == (2, 32, 32, 3)
    with pytest.raises(ValueError, match="30 x 32 pixels"):
        predict_maps_in_steps(base, noise, pictures[..., :30], "normal")
    with pytest.raises(ValueError, match="0 steps, batch 8 and strength 2"):
        predict_maps_in_steps(base, noise, pictures, "normal", steps=0, strength=2)


def test_the_picture_s_channels_of_an_instruct_pix2pix_model_are_taken_and_stay(tiny_base, pairs, tmp_path):
    weight = torch.randn(32, 8, 3, 3)
    folder, checkpoint, pickled = tmp_path / "pix2pix", tmp_path / "pix2pix.safetensors", tmp_path / "pix2pix.ckpt"
    (folder / "unet").mkdir(parents=True)
    save_file({"conv_in.weight": weight}, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    key = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({key: weight.half()}, checkpoint)
    torch.save({"state_dict": {key: weight}}, pickled)
    assert torch.equal(pix2pix_weight(folder, 4), weight[:, 4:]) and torch.equal(pix2pix_weight(pickled, 4), weight[:, 4:])
    config = config_of(tiny_base, tmp_path / "run", "augmented", picture_channels=checkpoint)
    file = read_lora(train_intrinsic_lora(config, pairs=pairs).weights)
    assert torch.equal(file.picture_in, weight[:, 4:].half().float())
    assert str(tmp_path) not in json.dumps(file.metadata)
    for channels, words in ((9, "takes 9 input channels.*inpainting"), (4, "takes 4 input channels.*make a plain model")):
        save_file({"conv_in.weight": torch.zeros(32, channels, 3, 3)}, tmp_path / f"{channels}.safetensors")
        with pytest.raises(ValueError, match=words):
            train_intrinsic_lora(replace(config, picture_channels=tmp_path / f"{channels}.safetensors"), pairs=pairs)
    save_file({"conv_in.weight": torch.zeros(64, 8, 3, 3)}, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="this base needs"):
        train_intrinsic_lora(replace(config, picture_channels=tmp_path / "wide.safetensors"), pairs=pairs)
    save_file({"other": weight}, tmp_path / "other.safetensors")
    for path, words in ((tmp_path / "other.safetensors", "holds no conv_in.weight"), (tmp_path / "run", "no checkpoint: give an instruct")):
        with pytest.raises(ValueError, match=words):
            pix2pix_weight(path, 4)


def test_settings_that_make_no_sense_are_refused_and_a_single_step_keeps_its_old_checkpoints(tiny_base, tmp_path, caplog):
    for method, wrong, words in (
        ("guessed", {}, "method is 'guessed': choose single, multi, augmented"),
        ("multi", {"loss": "decoded"}, "which denoises latents"),
        ("augmented", {"kind": "full"}, "learns a LoRA"),
        ("multi", {"picture_channels": tmp_path}, "only 'augmented' has such channels"),
    ):
        with pytest.raises(ValueError, match=words):
            config_of(tiny_base, tmp_path, method, **wrong)
    assert not {"method", "picture_channels"} & config_of(tiny_base, tmp_path, "single").task_settings().keys()
    words = ["--base", str(tiny_base), "--map", "normal", "--output", str(tmp_path / "out"), "--method", "augmented"]
    config = config_from(build_parser().parse_args([*words, "--picture-channels", str(tmp_path / "nowhere")]))
    assert (config.method, config.picture_channels) == ("augmented", tmp_path / "nowhere")
    assert main([*words, "--kind", "full"]) == 2 and "which learns a LoRA" in caplog.text
