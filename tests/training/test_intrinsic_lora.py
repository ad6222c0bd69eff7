"""The I-LoRA trainer on a tiny random base: it learns, resumes exactly, and writes what ComfyUI and diffusers read."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.methods.maps.losses import normal_loss
from intrinsic_lab.scenes import render_scenes
from intrinsic_lab.training.checkpoint import CHECKPOINT
from intrinsic_lab.training.folder_data import FolderData
from intrinsic_lab.training.intrinsic_lora import (
    IntrinsicLoraConfig,
    LatentPairs,
    add_adapter,
    load_base,
    lora_layers,
    predict_maps,
    train_intrinsic_lora,
)
from intrinsic_lab.training.intrinsic_lora.run import IntrinsicLoraTask
from intrinsic_lab.training.loop import Interrupted, LoopConfig, step_generator
from intrinsic_lab.training.pairs import SceneData
from intrinsic_lab.training.scene_pictures import HELD_OUT_SEEDS
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

SCENES = SceneData(count=12, size=32)


def config_of(base: Path, output: Path, *, steps: int = 3, loop: dict | None = None, **options) -> IntrinsicLoraConfig:
    settings = {"map": "normal", "data": SCENES, "rank": 4, "batch": 2} | options
    return IntrinsicLoraConfig(base, loop=LoopConfig(output, steps, **{"learning_rate": 1e-2} | (loop or {})), **settings)


@pytest.fixture(scope="module")
def pairs(tiny_base):
    return LatentPairs.encode(load_base(tiny_base).vae, SCENES, "normal")


@pytest.fixture(scope="module")
def wide(tiny_base, pairs, tmp_path_factory):
    """A trained LoRA on every kind of layer."""
    return train_intrinsic_lora(config_of(tiny_base, tmp_path_factory.mktemp("wide"), steps=5, kind="wide"), pairs=pairs)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "loss"), [("attention", "latent"), ("wide", "latent"), ("full", "latent"), ("wide", "decoded")])
def test_training_lowers_the_loss(tiny_base, pairs, tmp_path, kind, loss):
    losses = train_intrinsic_lora(config_of(tiny_base, tmp_path, steps=25, kind=kind, loss=loss), pairs=pairs).history.losses
    assert len(losses) == 25
    assert sum(losses[-6:]) < 0.95 * sum(losses[:6])


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_written_file_holds_the_trained_weights(tiny_base, pairs, tmp_path, ema_decay):
    start = load_base(tiny_base).network
    config = config_of(tiny_base, tmp_path, loop={"ema_decay": ema_decay})
    trained = train_intrinsic_lora(config, pairs=pairs)
    layers = lora_layers(trained.base.network)
    # Four projections of self- and of cross-attention in each of the four transformers.
    assert len(layers) == 4 * 8 and all(layer.rank == 4 and layer.scale == 1 for layer in layers.values())
    assert all(layer.up.abs().max() > 0 for layer in layers.values())
    state = load_file(trained.weights)
    for name, layer in layers.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        assert torch.equal(state[f"{key}.lora_down.weight"], layer.down) and torch.equal(state[f"{key}.lora_up.weight"], layer.up)
        assert state[f"{key}.alpha"] == 4
    kept = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    written = kept["average"] if ema_decay else kept["parameters"]
    assert torch.equal(written[0], next(p for p in trained.base.network.parameters() if p.requires_grad))
    frozen = dict(start.named_parameters())
    for name, parameter in trained.base.network.named_parameters():
        assert "lora_" in name or torch.equal(parameter, frozen[name.replace(".base_layer", "")])


def test_the_file_says_what_it_is(wide):
    with safe_open(wide.weights, "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata.pop("intrinsic_lab.config"))
    assert metadata == {
        "intrinsic_lab.base": "tiny",
        "intrinsic_lab.convention": "opengl",
        "intrinsic_lab.map": "normal",
        "intrinsic_lab.prompt": "surface normal",
        "intrinsic_lab.rank": "4",
        "intrinsic_lab.resolution": "32",
        "intrinsic_lab.timestep": "999",
    }
    assert config["kind"] == "wide" and config["data"]["count"] == 12 and config["loop"]["steps"] == 5
    assert str(wide.weights.parent) not in json.dumps(config)


def test_wide_reaches_every_layer_but_the_time_embedding(tiny_base):
    unet = load_base(tiny_base).network
    names = {name for name, module in unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}
    add_adapter(unet, "wide", 2, 0)
    assert names - lora_layers(unet).keys() == {"time_embedding.linear_1", "time_embedding.linear_2"}


def test_an_untrained_adapter_changes_nothing(tiny_base):
    unet = load_base(tiny_base).network
    inputs = noise(1, 4, 8, 8), 999, noise(1, 77, 32)
    before = unet(*inputs).sample
    add_adapter(unet, "wide", 4, 0)
    assert torch.equal(unet(*inputs).sample, before)


def test_diffusers_loads_the_file_with_the_same_output(tiny_base, wide):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    plain = pipeline.unet(noise(2, 4, 8, 8), 999, noise(2, 77, 32)).sample
    pipeline.load_lora_weights(wide.weights.parent, weight_name=wide.weights.name)
    output = pipeline.unet(noise(2, 4, 8, 8), 999, noise(2, 77, 32)).sample
    torch.testing.assert_close(output, wide.base.network(noise(2, 4, 8, 8), 999, noise(2, 77, 32)).sample, rtol=0, atol=1e-5)
    assert (output - plain).abs().max() > 0.1


def test_comfyui_loads_the_file_with_the_output_of_diffusers(tiny_base, wide, monkeypatch):
    """Core's LoraLoader on the native model: what a ComfyUI user does with the file."""
    pytest.importorskip("comfy.sd")
    import folder_paths
    from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline

    from nodes import LoraLoader

    inputs = noise(2, 4, 8, 8), torch.tensor([999, 999]), noise(2, 77, 32)
    native = load_pipeline(tiny_base, dtype=torch.float32)
    plain = native.model.model.diffusion_model(inputs[0], inputs[1], context=inputs[2])
    endings = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(wide.weights.parent)], endings))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    model, _ = LoraLoader().load_lora(native.model, native.clip, wide.weights.name, 1.0, 0.0)
    assert len(model.patches) == len(lora_layers(wide.base.network))
    model.patch_model()
    output = model.model.diffusion_model(inputs[0], inputs[1], context=inputs[2])
    model.unpatch_model()
    torch.testing.assert_close(output, wide.base.network(*inputs).sample, rtol=0, atol=1e-4)
    assert (output - plain).abs().max() > 0.1


def test_predicted_maps_equal_the_published_recipe_written_out(tiny_base, wide):
    pictures = render_scenes([5, 6, 7], 32, 32).image_bhwc
    pictures_bchw = rearrange(pictures, "b h w c -> b c h w")
    base = wide.base
    text = base.embed("surface normal")
    predicted = predict_maps(base.network, base.vae, text, pictures_bchw, "normal", batch=2)
    tokens = base.tokenizer(["surface normal"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(text.context, base.text_encoder(tokens).last_hidden_state)
    with torch.no_grad():
        latent = base.vae.encode(pictures_bchw * 2 - 1).latent_dist.mean * 0.5
        raw = base.vae.decode(base.network(latent, 999, text.expanded(3).context).sample / 0.5).sample
    vectors = rearrange(raw, "b c h w -> b h w c")
    torch.testing.assert_close(predicted, vectors / vectors.norm(dim=-1, keepdim=True), rtol=0, atol=1e-4)
    depth = predict_maps(base.network, base.vae, text, pictures_bchw, "depth")
    torch.testing.assert_close(depth, vectors.mean(-1, keepdim=True) / 2 + 0.5, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="34 x 30 pixels came, both sides must be multiples of 4"):
        predict_maps(base.network, base.vae, text, torch.zeros(1, 3, 30, 34), "normal")


def test_a_vae_with_a_shift_is_trained_on_the_latents_that_the_nodes_give_the_model(tiny_base, pairs):
    base = load_base(tiny_base)
    base.vae.register_to_config(shift_factor=0.25)
    shifted = LatentPairs.encode(base.vae, SCENES, "normal")
    torch.testing.assert_close(shifted.image_bchw, pairs.image_bchw - 0.25 * 0.5)
    torch.testing.assert_close(shifted.map_mean_bchw, pairs.map_mean_bchw - 0.25 * 0.5)
    assert torch.equal(shifted.map_std_bchw, pairs.map_std_bchw)
    pictures, text = rearrange(render_scenes([5], 32, 32).image_bhwc, "b h w c -> b c h w"), base.embed("depth map")
    with torch.no_grad():
        latent = (base.vae.encode(pictures * 2 - 1).latent_dist.mean - 0.25) * 0.5
        raw = base.vae.decode(base.network(latent, 999, text.context).sample / 0.5 + 0.25).sample
    predicted = predict_maps(base.network, base.vae, text, pictures, "depth")
    torch.testing.assert_close(predicted[..., 0], raw.mean(1) / 2 + 0.5, rtol=0, atol=1e-5)


def test_losses_of_a_step_equal_the_paper_written_out(tiny_base, pairs, tmp_path):
    base = load_base(tiny_base)
    text = base.embed(MAPS["normal"].prompt)
    config = config_of(tiny_base, tmp_path, batch=3)
    latent = IntrinsicLoraTask(config, base.network, base.vae, text, pairs)
    decoded = IntrinsicLoraTask(replace(config, loss="decoded"), base.network, base.vae, text, pairs)
    rows = torch.randint(12, (3,), generator=step_generator(0, 8)).tolist()
    maps = render_scenes([SCENES.first_seed + row for row in rows], 32, 32)
    with torch.no_grad():
        image = base.vae.encode(rearrange(maps.image_bhwc, "b h w c -> b c h w") * 2 - 1).latent_dist.mean * 0.5
        output = base.network(image, 999, text.expanded(3).context).sample
        posterior = base.vae.encode(rearrange(maps.normal_bhwc, "b h w c -> b c h w")).latent_dist
        error = ((output - posterior.mean * 0.5) ** 2).mean() + (posterior.std * 0.5).square().mean()
        # The sampled target scatters around its mean: the expectation is met within a few percent.
        assert latent.loss(base.network, step_generator(0, 8)).item() == pytest.approx(error.item(), rel=0.1)
        pixels = normal_loss(base.vae.decode(output / 0.5).sample, rearrange(maps.normal_bhwc, "b h w c -> b c h w"))
        assert decoded.loss(base.network, step_generator(0, 8)).item() == pytest.approx(pixels.item(), rel=1e-4)


def test_encoding_is_told_as_it_goes_and_can_be_ended(tmp_path, tiny_base):
    vae, told = load_base(tiny_base).vae, []
    LatentPairs.encode(vae, SCENES, "normal", tmp_path, lambda *progress: told.append(progress))
    assert [kind for kind, done, total in told if done == total == len(SCENES)] == ["image", "normal"]
    told.clear()
    LatentPairs.encode(vae, SCENES, "normal", tmp_path, lambda *progress: told.append(progress))
    assert not told, "nothing is encoded twice"

    def end(kind, done, total):
        raise Interrupted

    config = IntrinsicLoraConfig(tiny_base, "depth", LoopConfig(tmp_path / "ended", 1), SCENES)
    with pytest.raises(Interrupted):
        train_intrinsic_lora(config, on_encoded=end)
    assert not list((tmp_path / "ended").glob("*"))


def test_looks_show_a_held_out_scene_and_changes_nothing_of_the_run(tiny_base, pairs, tmp_path):
    losses, shown, said = [], [], []
    for look in (shown.append, None):
        config = config_of(tiny_base, tmp_path / str(look is None), steps=5, loop={"checkpoint_every": 2})
        trained = train_intrinsic_lora(config, pairs=pairs, report=lambda *told: said.append(told), on_sample=look)
        losses.append(trained.history.losses)
    # The first checkpoint and the last step; between them as there is time.
    assert losses[0] == losses[1] and 2 <= len(shown) <= 3 and len(said) == 10
    exact = render_scenes([HELD_OUT_SEEDS.start], 32, 32)
    [sample] = shown[-1]
    picture, learnt, true = (sample[name] for name in ("picture", "learnt so far", "true"))
    assert torch.allclose(picture, exact.image_bhwc[0], atol=1e-6)
    assert torch.allclose(true, exact.normal_bhwc[0] / 2 + 0.5, atol=1e-5)
    text = trained.base.embed(MAPS["normal"].prompt)
    now = predict_maps(trained.base.network, trained.base.vae, text, rearrange(exact.image_bhwc, "b h w c -> b c h w"), "normal")
    assert (learnt - (now[0] / 2 + 0.5)).abs().max() < 1e-3 < (learnt - shown[0][0]["learnt so far"]).abs().max()


def test_latents_are_encoded_once_and_read_back(tiny_base, pairs, tmp_path, caplog):
    caplog.set_level("INFO")
    vae = load_base(tiny_base).vae
    first = LatentPairs.encode(vae, SCENES, "normal", tmp_path)
    assert torch.equal(first.map_mean_bchw, pairs.map_mean_bchw) and len(list(tmp_path.iterdir())) == 2
    assert caplog.text.count("encoded 12 of 12") == 2
    again = LatentPairs.encode(vae, SCENES, "normal", tmp_path)
    assert all(torch.equal(getattr(again, name), getattr(pairs, name)) for name in ("image_bchw", "map_mean_bchw", "map_std_bchw"))
    LatentPairs.encode(vae, SCENES, "depth", tmp_path)
    assert caplog.text.count("encoded 12 of 12") == 3, "the picture's latents serve every map"
    with torch.no_grad():
        vae.encoder.conv_in.weight += 0.1
    assert not torch.equal(LatentPairs.encode(vae, SCENES, "normal", tmp_path).image_bchw, pairs.image_bchw)
    next(tmp_path.glob("latents-depth-*")).write_bytes(b"torn")
    LatentPairs.encode(load_base(tiny_base).vae, SCENES, "depth", tmp_path)
    assert "is damaged: encoding again" in caplog.text


def test_a_random_base_differs_from_the_trained_one_and_depends_on_the_seed(tiny_base):
    trained, one, same, two = (
        load_base(tiny_base, *how).network.conv_in.weight for how in ((), ("random", 1), ("random", 1), ("random", 2))
    )
    assert torch.equal(one, same) and not torch.equal(one, two) and not torch.equal(one, trained)


def test_a_full_fine_tune_is_written_as_a_diffusers_unet(tiny_base, pairs, tmp_path):
    from diffusers import UNet2DConditionModel

    trained = train_intrinsic_lora(config_of(tiny_base, tmp_path, kind="full", loop={"learning_rate": 1e-3}), pairs=pairs)
    loaded = UNet2DConditionModel.from_pretrained(trained.weights)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trained.base.network.parameters(), strict=True))
    assert not torch.equal(loaded.conv_in.weight, load_base(tiny_base).network.conv_in.weight)


@pytest.mark.parametrize("options", [{"mixed_precision": "bf16"}, {"accumulation": 2}])
def test_mixed_precision_and_accumulation_train_too(tiny_base, pairs, tmp_path, options):
    config = config_of(tiny_base, tmp_path, loop=options, gradient_checkpointing=True, save_dtype="float16")
    trained = train_intrinsic_lora(config, pairs=pairs)
    assert len(trained.history.losses) == 3
    assert (
        load_file(trained.weights)["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight"].dtype == torch.float16
    )


@pytest.mark.parametrize("loss", ["latent", "decoded"])
def test_a_folder_of_pictures_and_maps_trains_as_the_scenes_it_was_written_from(tiny_base, tmp_path, loss):
    data = SceneData(count=3, size=32)
    for kind in ("image", "albedo"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for row, picture in enumerate(data.read(kind, range(3))):
            Image.fromarray((picture * 255).round().byte().movedim(0, -1).numpy()).save(tmp_path / "data" / kind / f"{row}.png")
    scenes = train_intrinsic_lora(config_of(tiny_base, tmp_path / "scenes", map="albedo", data=data, loss=loss))
    folder = train_intrinsic_lora(
        config_of(tiny_base, tmp_path / "folder", map="albedo", data=FolderData(tmp_path / "data", 32), loss=loss)
    )
    # They differ by the rounding to 8 bits alone.
    assert folder.history.losses == pytest.approx(scenes.history.losses, rel=0.02)
    with safe_open(folder.weights, "pt") as file:
        assert json.loads(file.metadata()["intrinsic_lab.config"])["data"]["folder"] == "data"


def test_a_killed_run_resumes_to_the_same_weights(tiny_base, pairs, tmp_path, start_trainer):
    """SIGKILL in the middle of training, in a process of its own."""
    loop = {"checkpoint_every": 3, "ema_decay": 0.9, "schedule": "cosine", "warmup": 5, "learning_rate": 1e-2}
    whole = train_intrinsic_lora(config_of(tiny_base, tmp_path / "whole", steps=24, loop=loop), pairs=pairs)
    config = config_of(tiny_base, tmp_path / "killed", steps=24, loop=loop)
    options = "--map normal --scenes 12 --size 32 --steps 24 --rank 4 --batch 2 --threads 1 --log-every 1"
    options += " --learning-rate 1e-2 --checkpoint-every 3 --ema-decay 0.9 --schedule cosine --warmup 5"
    process = start_trainer(tiny_base, config.loop.output, options)
    said = []
    for line in process.stdout:
        said.append(line)
        if "step 8 " in line:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(30) == -signal.SIGKILL, "".join(said)
    kept = torch.load(config.loop.output / CHECKPOINT, weights_only=True)["step"]
    assert 6 <= kept < 24 and not config.weights.exists()
    resumed = train_intrinsic_lora(config)
    assert resumed.history.losses == whole.history.losses
    first, second = load_file(whole.weights), load_file(resumed.weights)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on files")
def test_a_full_disk_is_told_in_words_and_leaves_the_old_checkpoint(tiny_base, tmp_path, start_trainer):
    """A limit on the size of files stands in for the disk: the latents fit, a checkpoint does not."""
    options = "--map normal --scenes 2 --size 32 --rank 4 --batch 1 --threads 1"
    first = start_trainer(tiny_base, tmp_path, f"{options} --steps 2")
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 0, said
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limited = start_trainer(
        tiny_base, tmp_path, f"{options} --steps 4", launcher=("bash", "-c", 'ulimit -f 20; exec "$0" "$@"', sys.executable)
    )
    said, _ = limited.communicate(timeout=120)
    assert limited.returncode == 2 and "Traceback" not in said, said
    assert f"{tmp_path / CHECKPOINT} could not be written" in said and "free some disk space" in said
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys() and len(before[CHECKPOINT]) > 20 * 1024
    assert all(after[name] == before[name] for name in before if name != "config.json")


def test_resuming_with_another_map_or_rank_is_refused(tiny_base, pairs, tmp_path):
    train_intrinsic_lora(config_of(tiny_base, tmp_path), pairs=pairs)
    with pytest.raises(ValueError, match=r"belongs to a run with other settings .rank was 4, now 2"):
        train_intrinsic_lora(config_of(tiny_base, tmp_path, rank=2), pairs=pairs)
    with pytest.raises(ValueError, match="map was normal, now depth"):
        train_intrinsic_lora(config_of(tiny_base, tmp_path, map="depth"), pairs=pairs)


def test_wrong_settings_are_told_clearly(tiny_base, pairs, tmp_path):
    for wrong in ({"map": "colour"}, {"kind": "lokr"}, {"loss": "l1"}, {"init": "zero"}, {"rank": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            config_of(tiny_base, tmp_path, **wrong)
    with pytest.raises(ValueError, match="has no unet or transformer folder: give a Stable Diffusion"):
        train_intrinsic_lora(config_of(tmp_path, tmp_path), pairs=pairs)
    with pytest.raises(ValueError, match="held out for judging"):
        train_intrinsic_lora(config_of(tiny_base, tmp_path, data=SceneData(first_seed=990, count=20, size=32)))
    with pytest.raises(ValueError, match="12 encoded pairs came for 5 pictures"):
        train_intrinsic_lora(config_of(tiny_base, tmp_path, data=SceneData(count=5, size=32)), pairs=pairs)
    with pytest.raises(ValueError, match=r"is 30 pixels, this base needs a multiple of 4"):
        train_intrinsic_lora(config_of(tiny_base, tmp_path, data=SceneData(count=5, size=30)))
    assert not list(tmp_path.iterdir())


def test_the_command_line_tells_errors_without_a_trace_and_knows_every_setting(tiny_base, tmp_path, capsys, caplog):
    from intrinsic_lab.training.intrinsic_lora.__main__ import build_parser, config_from, main

    words = ["--base", str(tiny_base), "--map", "normal", "--output", str(tmp_path / "out"), "--data", str(tmp_path / "nowhere")]
    assert main(words) == 2
    assert "nowhere does not exist" in caplog.text and "Traceback" not in caplog.text
    config = config_from(build_parser().parse_args([*words, "--size", "64", "--normals", "directx", "--steps", "7", "--init", "random"]))
    assert (config.data.size, config.data.normals, config.loop.steps, config.init) == (64, "directx", 7, "random")
    assert config_from(build_parser().parse_args(words[:-2])).data == SceneData()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "accelerate launch" in capsys.readouterr().out


_TWO_PROCESSES = """
import os, sys, torch
from pathlib import Path
from intrinsic_lab.training.loop import LoopConfig, train

class Task:
    module = torch.nn.Linear(3, 1)
    def loss(self, module, draw):
        x = torch.rand(4, 3, generator=draw)
        return (module(x) - x.sum(1, keepdim=True)).square().mean()
    def save(self, folder):
        torch.save(list(self.module.parameters()), folder / "weights.pt")

torch.nn.init.ones_(Task.module.weight), torch.nn.init.ones_(Task.module.bias)
steps, seconds = int(sys.argv[2]), sys.argv[3:]
# The second process has time enough.
minutes = float(seconds[0]) / 60 if seconds and os.environ["RANK"] == "0" else 60 if seconds else None
train(Task(), LoopConfig(Path(sys.argv[1]), steps, learning_rate=1e-2, clip_norm=1e9, minutes=minutes))
"""


def train_in_two_processes(folder: Path, *arguments: str) -> dict:
    """Runs the script above; returns its loss.json."""
    script = folder / "run.py"
    script.write_text(_TWO_PROCESSES)
    # Without a GPU the processes meet over gloo.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*accelerate_launch(), str(script), str(folder / "out"), *arguments]
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said, _ = process.communicate(timeout=200)
    finally:
        # The launcher's children too, should it hang.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    return json.loads((folder / "out/loss.json").read_text())


def accelerate_launch() -> tuple[str, ...]:
    """The command that starts what follows it in two processes, and its settings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    return sys.executable, "-m", "accelerate.commands.launch", *settings.split(), "--main_process_port", str(port)


@pytest.mark.slow
def test_accelerate_launch_trains_one_lora_in_two_processes(tiny_base, pairs, tmp_path, start_trainer):
    options = "--map normal --scenes 12 --size 32 --steps 3 --rank 4 --batch 2 --threads 1 --log-every 1 --learning-rate 1e-2 --loss latent"
    process = start_trainer(tiny_base, tmp_path, options, launcher=accelerate_launch())
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    # The first process encodes the pictures and the maps, writes and reports; the other one only helps.
    assert said.count("encoded 12 of 12") == 2 and said.count("step 3 ") == 1 and said.count("written:") == 1
    base = load_base(tiny_base)
    task = IntrinsicLoraTask(config_of(tiny_base, tmp_path), base.network, base.vae, base.embed(MAPS["normal"].prompt), pairs)
    with torch.no_grad():
        first = [task.loss(base.network, step_generator(0, 0, process)).item() for process in (0, 1)]
    losses = json.loads((tmp_path / "loss.json").read_text())["losses"]
    assert len(losses) == 3 and losses[0] == pytest.approx(sum(first) / 2, rel=1e-5) and abs(first[0] - first[1]) > 1e-3
    assert any(tensor.abs().max() > 0 for name, tensor in load_file(tmp_path / "normal.safetensors").items() if "lora_up" in name)


@pytest.mark.slow
def test_accelerate_launch_averages_the_gradients_of_its_processes(tmp_path):
    kept = train_in_two_processes(tmp_path, "5")
    module = torch.nn.Linear(3, 1)
    torch.nn.init.ones_(module.weight), torch.nn.init.ones_(module.bias)
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
    losses = []
    for step in range(5):
        batches = [torch.rand(4, 3, generator=step_generator(0, step, process)) for process in (0, 1)]
        loss = torch.stack([(module(x) - x.sum(1, keepdim=True)).square().mean() for x in batches]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    for value, wanted in zip(torch.load(tmp_path / "out/weights.pt", weights_only=True), module.parameters(), strict=True):
        torch.testing.assert_close(value, wanted.detach(), rtol=0, atol=1e-6)
    assert kept["losses"] == pytest.approx(losses, abs=1e-6)


@pytest.mark.slow
def test_two_processes_end_together_when_the_time_of_one_is_over(tmp_path):
    kept = train_in_two_processes(tmp_path, "1000000000", "0.5")
    assert kept["loss_steps"][-1] == torch.load(tmp_path / "out" / CHECKPOINT, weights_only=True)["step"] and kept["seconds"] < 10
