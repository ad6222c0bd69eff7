"""The generators' trainers on tiny networks: they learn, resume exactly, and write what the nodes read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from intrinsic_lab.benchmarks.generators_table import lora_map, mean_map
from intrinsic_lab.methods.intrinsic_lora import generators
from intrinsic_lab.methods.intrinsic_lora.generators.adapter import target_names
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.scenes import render_scenes
from intrinsic_lab.tests.methods.alias_free_oracle import design, published
from intrinsic_lab.tests.methods.published_generators import write_module
from intrinsic_lab.tests.training.tiny_models import tiny_vqgan
from intrinsic_lab.training.generators import adversarial, gan_lora, nano, vqgan, vqgan_lora
from intrinsic_lab.training.generators.__main__ import main
from intrinsic_lab.training.generators.gan import Discriminator, GanTask
from intrinsic_lab.training.generators.lora import LoraOn
from intrinsic_lab.training.intrinsic_lora import IntrinsicLoraConfig, train_intrinsic_lora
from intrinsic_lab.training.loop import Interrupted, LoopConfig, step_generator, train
from intrinsic_lab.training.pairs import SceneData
from intrinsic_lab.training.scene_pictures import BUNDLED_MAPS, HELD_OUT_SEEDS, PicturePool, scene_data
from safetensors.torch import load_file

ASSETS = Path(__file__).parents[2] / "assets"
CONFIG = generators.StyleGanConfig(widths=(8, 8, 4), latent_dim=6, style_dim=5, mapping_layers=2)
SCENES = SceneData(count=8, size=16)


@pytest.fixture(scope="module")
def pool():
    torch.set_num_threads(1)
    return PicturePool.render(range(100_000, 100_032), 16, kinds=("image",))


def lora_config(folder, output, steps=4, **options):
    return vqgan_lora.VqganLoraConfig(
        folder, loop=LoopConfig(output, steps, 1e-2), **{"map": "normal", "data": SCENES, "batch": 2} | options
    )


@pytest.mark.parametrize(("map_name", "targets"), [("normal", "attention"), ("depth", "attention"), ("depth", "wide")])
def test_a_vqgan_lora_learns_and_touches_only_its_layers(vqgan_folder, tmp_path, map_name, targets):
    config = lora_config(vqgan_folder, tmp_path, 40, map=map_name, batch=4, targets=targets)
    task = vqgan_lora.VqganLoraTask(config, vqgan_lora.load_vqgan(vqgan_folder))
    before = {name: weight.clone() for name, weight in task.vqgan.state_dict().items()}
    losses = train(task, config.loop).losses
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert all(torch.equal(weight, before[name]) for name, weight in task.vqgan.state_dict().items())
    read = generators.read_generator_lora(config.weights, "vqgan", map_name)
    assert sorted(read.layers) == sorted(target_names(task.vqgan, "vqgan", targets)) and read.resolution == 16
    assert all(layer.rank == 8 and layer.up.abs().max() > 0 for layer in read.layers.values())
    generators.fit(task.vqgan, "vqgan", read.layers, "file")


def test_the_loss_is_that_of_the_map_which_the_nodes_decode(vqgan_folder, tmp_path):
    from intrinsic_lab.training.losses import picture_loss

    config = lora_config(vqgan_folder, tmp_path)
    task = vqgan_lora.VqganLoraTask(config, vqgan_lora.load_vqgan(vqgan_folder))
    for up in task.module.up:
        torch.nn.init.normal_(up)
    layers = {f"decoder.{name}": layer for name, layer in task.module.layers().items()}
    rows = torch.randint(len(SCENES), (2,), generator=step_generator(0, 0)).tolist()
    decoded = generators.decode(task.vqgan, generators.quantised(task.vqgan, 2 * SCENES.read("image", rows) - 1), layers)
    assert torch.equal(task.loss(task.module, step_generator(0, 0)), picture_loss("normal", decoded, 2 * SCENES.read("normal", rows) - 1))


def test_a_stopped_run_ends_with_the_same_file(vqgan_folder, tmp_path):
    vqgan_lora.train_vqgan_lora(lora_config(vqgan_folder, tmp_path / "whole"))

    def stop(step, loss, seconds_left):
        if step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        vqgan_lora.train_vqgan_lora(lora_config(vqgan_folder, tmp_path / "parts"), stop)
    vqgan_lora.train_vqgan_lora(lora_config(vqgan_folder, tmp_path / "parts"))
    whole, parts = (load_file(tmp_path / folder / "normal.safetensors") for folder in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(weight, parts[name]) for name, weight in whole.items())


def test_the_control_starts_from_other_weights(vqgan_folder):
    trained, random = (vqgan_lora.load_vqgan(vqgan_folder, init, seed=5) for init in ("trained", "random"))
    assert not torch.equal(trained.decoder.conv_in.weight, random.decoder.conv_in.weight)
    assert random.decoder.conv_in.weight.shape == trained.decoder.conv_in.weight.shape


def test_impossible_settings_are_refused_in_words(vqgan_folder, tmp_path):
    for wrong in ({"map": "line"}, {"init": "zero"}, {"rank": 0}, {"targets": "full"}):
        with pytest.raises(ValueError):
            lora_config(vqgan_folder, tmp_path, **wrong)
    with pytest.raises(ValueError, match="multiple of 2"):
        vqgan_lora.train_vqgan_lora(lora_config(vqgan_folder, tmp_path, data=replace(SCENES, size=17)))
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        vqgan_lora.load_vqgan(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="not the folder of a diffusers VQModel"):
        vqgan_lora.load_vqgan(tmp_path)
    with pytest.raises(ValueError, match="at least one layer"):
        LoraOn(torch.nn.Linear(2, 2), [], 8, 0)


def test_a_vqgan_learns_pictures_in_both_parts_and_uses_its_codes(pool, tmp_path):
    model = tiny_vqgan()
    vqgan.start_near_linear(model)
    first = train(vqgan.VqganTask(model, pool, 4, quantise=False), LoopConfig(tmp_path / "one", 40, 3e-3))
    vqgan.codebook_from_latents(model, pool.latents_input(0, slice(None)))
    second = train(vqgan.VqganTask(model, pool, 4, quantise=True), LoopConfig(tmp_path / "two", 20, 1e-3))
    assert sum(first.losses[-8:]) < 0.7 * sum(first.losses[:8]) and torch.isfinite(torch.tensor(second.losses)).all()
    report = vqgan.reconstruction_report(model, pool.latents_input(0, slice(None)))
    assert report["psnr"] > 10 and report["codes_used"] > 0.3
    assert vqgan_lora.load_vqgan(tmp_path / "two/vqgan").config.num_vq_embeddings == 64


def gradients(loss, module):
    return [g is not None and bool(g.abs().max() > 0) for g in torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)]


def test_each_player_sees_only_its_own_loss(pool):
    task = GanTask(CONFIG, pool, 4)
    real = pool.latents_input(0, slice(0, 4))
    draws = generators.draw(CONFIG, 0, 4)

    def made():
        return task.generator(task.generator.style(draws.z_bd), draws.noise)

    assert not any(gradients(adversarial.generator_loss(task.discriminator, made()), task.discriminator))
    assert not any(gradients(adversarial.discriminator_loss(task.discriminator, made(), real), task.generator))
    assert any(gradients(adversarial.generator_loss(task.discriminator, made()), task.generator))
    assert any(gradients(adversarial.discriminator_loss(task.discriminator, made(), real), task.discriminator))


def test_r1_is_the_squared_gradient_by_finite_differences():
    torch.manual_seed(0)
    weight = torch.randn(3 * 16)
    linear = lambda picture: picture.flatten(1) @ weight  # noqa: E731
    assert torch.allclose(adversarial.gradient_penalty(linear, torch.randn(5, 3, 4, 4)), weight.square().sum())


def test_a_gan_trains_both_players_and_writes_a_folder_that_loads(pool, tmp_path):
    torch.manual_seed(0)
    task = GanTask(CONFIG, pool, 4)
    before = [p.detach().clone() for p in task.module.parameters()]
    train(task, LoopConfig(tmp_path, 6, 1e-3, betas=(0.0, 0.99), weight_decay=0.0, ema_decay=0.5))
    unchanged = [n for (n, p), b in zip(task.module.named_parameters(), before, strict=True) if torch.equal(p, b)]
    assert not unchanged
    read = generators.load_gan(tmp_path / "gan")
    assert read.mean_style.abs().max() > 0 and generators.pictures(read, generators.draw(CONFIG, 0, 2)).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="pixels wide"):
        GanTask(generators.StyleGanConfig(), pool, 4)


def test_the_discriminator_gives_one_score_per_picture():
    assert Discriminator((8, 8, 4))(torch.randn(3, 3, 16, 16)).shape == (3,)


@pytest.mark.parametrize("kind", ["StyleGAN2", "StyleGAN-XL"])
def test_a_gan_lora_learns_from_the_teachers_labels(tiny_base, tmp_path, kind):
    torch.manual_seed(0)
    base = tmp_path / "gan"
    if kind == "StyleGAN2":
        generators.save_gan(generators.StyleGenerator(CONFIG), base)
    else:
        base = tmp_path / "gan.pkl"
        write_module(base, *published(design(16, 4, 4), classes=3, features=9))
    gan = generators.load_gan(base)
    taught = IntrinsicLoraConfig(tiny_base, "depth", LoopConfig(tmp_path / "teacher", 2, 1e-2), SceneData(count=4, size=32), batch=2)
    adapter = train_intrinsic_lora(taught).weights
    config = gan_lora.GanLoraConfig(base, "depth", LoopConfig(tmp_path / "lora", 60, 1e-2), tiny_base, adapter, pictures=6, teacher_size=32)
    labels = gan_lora.teacher_labels(config, gan)
    assert labels.shape == (6, 3, 16, 16) and labels.abs().max() <= 1.2
    losses = gan_lora.train_gan_lora(config).losses
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    read = generators.read_generator_lora(config.weights, "gan", "depth")
    generators.fit(gan, "gan", read.layers, "file")
    assert sorted(read.layers) == sorted(target_names(gan, "gan"))


def test_a_teachers_lora_merged_is_its_lora_applied(tiny_base, tmp_path):
    from intrinsic_lab.training.intrinsic_lora import load_base, map_latent

    config = IntrinsicLoraConfig(tiny_base, "depth", LoopConfig(tmp_path, 2, 1e-2), SceneData(count=4, size=32), kind="wide", batch=2)
    trained = train_intrinsic_lora(config)
    merged = load_base(tiny_base)
    gan_lora._merge(merged.network, trained.weights)
    latent, text = torch.randn(1, 4, 8, 8), merged.embed("depth map")
    with torch.no_grad():
        assert torch.allclose(map_latent(merged.network, latent, text), map_latent(trained.base.network, latent, text), atol=1e-4)


def test_the_command_line_trains_a_lora_and_explains_a_wrong_base(vqgan_folder, tmp_path, capsys):
    options = ["vqgan-lora", "--map", "shading", "--output", str(tmp_path / "out"), "--steps", "2", "--batch", "1", "--size", "16"]
    assert main(["--threads", "1", *options, "--base", str(vqgan_folder)]) == 0
    assert load_file(tmp_path / "out/shading.safetensors")
    assert json.loads((tmp_path / "out/config.json").read_text())["task"]["map"] == "shading"
    assert main([*options, "--base", str(tmp_path)]) == 2


def test_the_nano_recipe_runs_from_scenes_to_files_and_goes_on_where_it_was(tmp_path, monkeypatch):
    for name in ("AUTOENCODER", "VQGAN", "LORA"):
        monkeypatch.setattr(nano, name, replace(getattr(nano, name), steps=2))
    monkeypatch.setattr(nano, "SCENES", 8)
    runs, assets = tmp_path / "runs", tmp_path / "assets"
    command = ["--threads", "1", "nano", "--runs", str(runs), "--assets", str(assets), "--maps", "normal"]
    assert main(command) == 0
    record = json.loads((assets / "nano_vqgan/record.json").read_text())
    assert record["held_out"]["psnr"] > 0 and str(tmp_path) not in (assets / "nano_vqgan_normal.json").read_text()
    model = vqgan_lora.load_vqgan(assets / "nano_vqgan")
    lora = generators.read_generator_lora(assets / "nano_vqgan_normal.safetensors", "vqgan", "normal")
    generators.fit(model, "vqgan", lora.layers, "file")
    assert sum((assets / "nano_vqgan" / name).stat().st_size for name in ("diffusion_pytorch_model.safetensors",)) < 3e6
    written = (assets / "nano_vqgan/record.json").stat().st_mtime_ns
    assert main(command) == 0 and (assets / "nano_vqgan/record.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("map_name", BUNDLED_MAPS)
def test_the_bundled_vqgan_reads_every_map_of_unseen_scenes(map_name):
    scenes = render_scenes(HELD_OUT_SEEDS[:16], 64, 64)
    exact = scene_data(scenes, map_name)
    bundled = vqgan_lora.load_vqgan(ASSETS / nano.NAME), ASSETS / f"{nano.NAME}_{map_name}.safetensors"
    found, mean = lora_map(*bundled, map_name, scenes.image_bhwc), mean_map(map_name, 64, 100).expand_as(exact)
    evaluation = MAPS[map_name].evaluation
    assert evaluation.score(found, exact)[evaluation.main] < 0.85 * evaluation.score(mean, exact)[evaluation.main]
