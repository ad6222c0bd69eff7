"""The generators' nodes inside ComfyUI, on tiny random networks: a diffusers VQModel and a style-based generator."""

import sys
from pathlib import Path

import folder_paths
import pytest
import torch
import yaml
from comfy_execution.graph_utils import ExecutionBlocker
from diffusers import VQModel
from einops import rearrange
from intrinsic_lab.methods.intrinsic_lora import generators as methods
from intrinsic_lab.methods.intrinsic_lora.generators.adapter import generator_header, peft_state_dict, target_names
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.nodes import generators as nodes
from intrinsic_lab.nodes.native.loading import generators as native
from intrinsic_lab.training.generators.vqgan_lora import load_vqgan as load_for_training
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from alias_free_oracle import AliasFreeOracle, design, published
from published_generators import TINY, StyleGan2Oracle, TamingOracle, random_weights, rosinality_shapes, taming_shapes, write_module

NOTHING = {f"{name}_lora": "none" for name in MAPS}
CONFIG = methods.StyleGanConfig(widths=(8, 8, 4), latent_dim=6, style_dim=5, mapping_layers=2)


def write_lora(path, module, kind, map_name):
    draw = torch.Generator().manual_seed(4)
    layers = {}
    for name in target_names(module, kind):
        outputs, inputs = module.get_submodule(name).weight.shape
        layers[name] = LoraLayer(torch.randn(2, inputs, generator=draw), 0.3 * torch.randn(outputs, 2, generator=draw))
    save_file(peft_state_dict(layers), path, generator_header(kind, map_name, 16, "tiny"))
    return layers


@pytest.fixture
def world(tmp_path, monkeypatch):
    """models/vae with a VQGAN and one that is no VQGAN, models/diffusers with a GAN, models/loras with a LoRA for each."""
    for kind in ("vae", "diffusers", "loras"):
        (tmp_path / kind).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    monkeypatch.setattr(native, "BUNDLED_FOLDERS", {"vqgan": {}, "gan": {}})
    torch.manual_seed(0)
    vqgan = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=32,
        norm_num_groups=4,
    )
    torch.nn.init.normal_(vqgan.quantize.embedding.weight)
    vqgan.eval().save_pretrained(tmp_path / "vae/tiny")
    gan = methods.StyleGenerator(CONFIG).eval()
    gan.measure_mean_style(64)
    methods.save_gan(gan, tmp_path / "diffusers/faces/gan")
    (tmp_path / "vae/other").mkdir()
    (tmp_path / "vae/other/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (tmp_path / "vae/broken").mkdir()
    (tmp_path / "vae/broken/config.json").write_text("{")
    layers = {
        "vqgan": write_lora(tmp_path / "loras/vq_normal.safetensors", vqgan, "vqgan", "normal"),
        "gan": write_lora(tmp_path / "loras/gan_depth.safetensors", gan, "gan", "depth"),
    }
    return {"vqgan": vqgan, "gan": gan, "layers": layers, "folder": tmp_path}


@pytest.fixture(autouse=True)
def as_comfyui_runs_nodes(world):
    with torch.inference_mode():
        yield


def load_vqgan(**loras):
    return nodes.LoadVQGAN.execute("vae/tiny", **NOTHING | loras)[0]


def load_gan(**loras):
    return nodes.LoadGAN.execute("diffusers/faces/gan", **NOTHING | loras)[0]


def test_the_loaders_offer_what_the_folders_hold():
    assert list(native.generator_paths("vqgan")) == ["vae/tiny"]
    assert list(native.generator_paths("gan")) == ["diffusers/faces/gan"]
    for node in (nodes.LoadVQGAN, nodes.LoadGAN):
        assert all(entry.tooltip for entry in node.define_schema().inputs)


def test_a_graph_that_knows_four_maps_still_loads(world):
    """Saved before there were more."""
    first = {f"{name}_lora": "none" for name in list(MAPS)[:4]} | {"normal_lora": "vq_normal.safetensors"}
    assert list(nodes.LoadVQGAN.execute("vae/tiny", **first)[0].loras) == ["normal"]
    assert nodes.LoadVQGAN.fingerprint_inputs("vae/tiny", **first) == nodes.LoadVQGAN.fingerprint_inputs("vae/tiny", **NOTHING | first)


def test_other_names_are_refused(world):
    for name in ("vae/../vae/tiny", str(world["folder"] / "vae/tiny"), "vae/other", ""):
        with pytest.raises(ValueError, match="There is no VQGAN"):
            nodes.LoadVQGAN.execute(name, **NOTHING)
    with pytest.raises(FileNotFoundError):
        load_vqgan(normal_lora="../vae/tiny/diffusion_pytorch_model.safetensors")


def test_vqgan_maps_equal_diffusers_with_the_lora_merged(world):
    image = torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(1))
    loaded = load_vqgan(normal_lora="vq_normal.safetensors")
    output = nodes.ExtractMapsVQGAN.execute(loaded, image, 1.0, 0, False)
    merged = world["vqgan"]
    with torch.no_grad():
        for name, layer in world["layers"]["vqgan"].items():
            merged.get_submodule(name).weight += layer.up @ layer.down
        picture = rearrange(merged(rearrange(2 * image - 1, "b h w c -> b c h w")).sample, "b c h w -> b h w c") / 2 + 0.5
    wanted = MAPS["normal"].from_picture(picture)
    assert output[0].shape == (2, 16, 24, 3) and (output[0] - wanted).abs().max() < 1e-3
    assert all(isinstance(blocked, ExecutionBlocker) and "No LoRA was chosen" in blocked.message for blocked in output.args[1:])
    assert output.ui.as_dict()["images"]


def test_vqgan_works_at_its_own_size_and_gives_the_pictures_size_back(world):
    loaded = load_vqgan(normal_lora="vq_normal.safetensors")
    assert loaded.resolution == 16
    image = torch.rand(1, 37, 50, 3)
    small = nodes.ExtractMapsVQGAN.execute(loaded, image, 1.0, -1, True)[0]
    own = nodes.ExtractMapsVQGAN.execute(loaded, image, 1.0, 0, False)[0]
    assert small.shape == own.shape == (1, 37, 50, 3) and not torch.allclose(small, own)
    grey = nodes.ExtractMapsVQGAN.execute(loaded, image[..., :1], 1.0, -1, False)[0]
    assert grey.shape == (1, 37, 50, 3)


def test_strength_0_reads_the_reconstruction_and_leaves_the_model_as_it_was(world):
    image = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    loaded = load_vqgan(normal_lora="vq_normal.safetensors")
    nodes.ExtractMapsVQGAN.execute(loaded, image, 1.0, 0, False)
    zero = nodes.ExtractMapsVQGAN.execute(loaded, image, 0.0, 0, False)[0]
    reconstruction = world["vqgan"](rearrange(2 * image - 1, "b h w c -> b c h w")).sample
    wanted = MAPS["normal"].from_picture(rearrange(reconstruction, "b c h w -> b h w c") / 2 + 0.5)
    assert (zero - wanted).abs().max() < 1e-4


def test_core_manages_the_memory(world):
    import comfy.model_management as management

    loaded = load_vqgan(normal_lora="vq_normal.safetensors")
    nodes.ExtractMapsVQGAN.execute(loaded, torch.rand(1, 16, 16, 3), 1.0, 0, False)
    assert any(entry.model is loaded.patcher for entry in management.current_loaded_models)
    assert loaded.patcher.model_size() >= sum(p.numel() * 4 for p in world["vqgan"].parameters())


def test_an_interrupt_ends_the_work(world):
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    try:
        with pytest.raises(management.InterruptProcessingException):
            nodes.SampleGAN.execute(load_gan(), 0, 1, 1.0, 1.0)
    finally:
        management.interrupt_current_processing(False)


def test_a_seed_gives_the_same_picture_and_aligned_maps(world):
    loaded = load_gan(depth_lora="gan_depth.safetensors")
    image, normal, depth, *_ = nodes.SampleGAN.execute(loaded, 3, 2, 0.7, 1.0).args
    again = nodes.SampleGAN.execute(loaded, 3, 2, 0.7, 1.0).args
    assert torch.equal(image, again[0]) and torch.equal(depth, again[2])
    assert image.shape == depth.shape == (2, 16, 16, 3) and image.min() >= 0 and image.max() <= 1
    assert torch.equal(depth[..., 0], depth[..., 2]) and isinstance(normal, ExecutionBlocker)
    draws = methods.draw(CONFIG, 3, 2)
    wanted = methods.pictures(world["gan"], draws, 0.7, world["layers"]["gan"])
    assert (depth[..., 0] - (wanted / 2 + 0.5).mean(1)).abs().max() < 1e-4
    assert not torch.equal(image, nodes.SampleGAN.execute(loaded, 4, 2, 0.7, 1.0)[0])
    unchanged = nodes.SampleGAN.execute(loaded, 3, 2, 0.7, 0.0).args
    assert torch.equal(unchanged[0], image)
    plain = rearrange(methods.pictures(world["gan"], draws, 0.7) / 2 + 0.5, "b c h w -> b h w c")
    assert torch.allclose(image, plain.clamp(0, 1), atol=1e-5)


def test_every_64_bit_seed_works(world):
    image = nodes.SampleGAN.execute(load_gan(), 0xFFFFFFFFFFFFFFFF, 1, 1.0, 1.0)[0]
    assert torch.isfinite(image).all()


def write_taming(folder):
    """A published VQGAN beside a checkpoint that is none."""
    weights = random_weights(taming_shapes(TINY))
    torch.save({"state_dict": weights}, folder / "faces.ckpt")
    torch.save({"state_dict": {}}, folder / "kl-f8.ckpt")
    model = {"target": "taming.models.vqgan.VQModel", "params": TINY}
    (folder / "faces.yaml").write_text(yaml.safe_dump({"model": model}))
    return weights


def test_a_published_vqgan_is_offered_extracts_maps_and_can_be_trained(world):
    weights = write_taming(world["folder"] / "vae")
    assert list(native.generator_paths("vqgan")) == ["vae/tiny", "vae/faces.ckpt"]
    with torch.inference_mode(False):
        vqgan = load_for_training(world["folder"] / "vae/faces.ckpt")
    layers = write_lora(world["folder"] / "loras/faces_depth.safetensors", vqgan, "vqgan", "depth")
    chosen = NOTHING | {"depth_lora": "faces_depth.safetensors"}
    states = [nodes.LoadVQGAN.fingerprint_inputs("vae/faces.ckpt", **chosen)]
    for file in ("faces.ckpt", "faces.yaml"):
        (world["folder"] / "vae" / file).touch()
        states.append(nodes.LoadVQGAN.fingerprint_inputs("vae/faces.ckpt", **chosen))
    assert len(set(states)) == 3
    loaded = nodes.LoadVQGAN.execute("vae/faces.ckpt", **chosen)[0]
    image = torch.rand(1, 16, 24, 3, generator=torch.Generator().manual_seed(1))
    plain = nodes.ExtractMapsVQGAN.execute(loaded, image, 0.0, 0, False)[1]
    wanted = TamingOracle(TINY, weights)(rearrange(2 * image - 1, "b h w c -> b c h w")).mean(1) / 2 + 0.5
    assert (plain[..., 0].double() - wanted).abs().max() < 1e-4
    adapted = nodes.ExtractMapsVQGAN.execute(loaded, image, 1.0, 0, False)[1]
    for name, layer in layers.items():
        vqgan.get_submodule(name).weight.data += layer.up @ layer.down
    merged = vqgan(rearrange(2 * image - 1, "b h w c -> b c h w")).sample.mean(1) / 2 + 0.5
    assert (adapted[..., 0] - merged).abs().max() < 1e-3 and (adapted - plain).abs().max() > 0.01
    with torch.inference_mode(False):
        fresh = load_for_training(world["folder"] / "vae/faces.ckpt", "random", 1)
    assert fresh.config == vqgan.config and not torch.equal(fresh.decoder.conv_in.weight, vqgan.decoder.conv_in.weight)


def test_a_published_stylegan2_is_offered_and_sampled(world):
    weights = random_weights(rosinality_shapes((6, 5, 4), style=7, latent=8, mapping=2))
    torch.save({"g_ema": weights, "latent_avg": torch.zeros(7)}, world["folder"] / "vae/ffhq.pt")
    (world["folder"] / "vae/notes.pkl").write_bytes(b"text")
    assert list(native.generator_paths("gan")) == ["diffusers/faces/gan", "vae/ffhq.pt", "vae/notes.pkl"]
    loaded = nodes.LoadGAN.execute("vae/ffhq.pt", **NOTHING)[0]
    image = nodes.SampleGAN.execute(loaded, 3, 1, 1.0, 1.0)[0]
    draws, oracle = methods.draw(loaded.patcher.model.generator.config, 3, 1), StyleGan2Oracle(weights)
    wanted = oracle(oracle.style(draws.z_bd[0]), [noise[0, 0] for noise in draws.noise]) / 2 + 0.5
    assert image.shape == (1, 16, 16, 3) and (rearrange(image[0], "h w c -> c h w").double() - wanted.clamp(0, 1)).abs().max() < 1e-4
    assert image.std() > 0.01, "not all of it is clamped"
    state = nodes.LoadGAN.fingerprint_inputs("vae/ffhq.pt", **NOTHING)
    (world["folder"] / "vae/ffhq.pt").touch()
    assert nodes.LoadGAN.fingerprint_inputs("vae/ffhq.pt", **NOTHING) != state
    with pytest.raises(ValueError, match=r"notes\.pkl is no whole pickle"):
        nodes.LoadGAN.execute("vae/notes.pkl", **NOTHING)


def test_a_stylegan_xl_makes_the_chosen_class_with_its_maps(world):
    """As a published file and as a folder of ours."""
    layers = design(32, 6, 8)
    weights = published(layers, classes=4, features=9)
    write_module(world["folder"] / "vae/imagenet.pkl", *weights)
    generator = methods.load_gan(world["folder"] / "vae/imagenet.pkl")
    methods.save_gan(generator, world["folder"] / "vae/imagenet")
    assert list(native.generator_paths("gan")) == ["diffusers/faces/gan", "vae/imagenet", "vae/imagenet.pkl"]
    changed = write_lora(world["folder"] / "loras/xl_depth.safetensors", generator, "gan", "depth")
    chosen = NOTHING | {"depth_lora": "xl_depth.safetensors"}
    loaded, folder = (nodes.LoadGAN.execute(f"vae/{name}", **chosen)[0] for name in ("imagenet.pkl", "imagenet"))
    image, _, depth, *_ = nodes.SampleGAN.execute(loaded, 3, 2, 0.7, 1.0, class_index=2).args
    oracle = AliasFreeOracle(layers, *weights)
    draws = methods.draw(generator.config, 3, 2, 2)
    wanted = oracle(oracle.style(draws.z_bd[1], 2, 0.7)) / 2 + 0.5
    assert image.shape == (2, 32, 32, 3) and (rearrange(image[1], "h w c -> c h w").double() - wanted.clamp(0, 1)).abs().max() < 1e-4
    adapted = methods.pictures(generator, draws, 0.7, changed) / 2 + 0.5
    assert (depth[..., 0] - adapted.mean(1)).abs().max() < 1e-4 and (depth[..., 0] - image.mean(-1)).abs().max() > 0.01
    assert torch.allclose(nodes.SampleGAN.execute(folder, 3, 2, 0.7, 1.0, class_index=2)[0], image, atol=1e-5)
    drawn = nodes.SampleGAN.execute(loaded, 3, 8, 0.7, 1.0)[0]
    assert torch.equal(drawn, nodes.SampleGAN.execute(loaded, 3, 8, 0.7, 1.0, -1)[0]) and not torch.allclose(drawn[:2], image, atol=1e-3)
    for gan, index, words in ((loaded, 4, "its classes are 0 to 3"), (load_gan(), 0, "it has none")):
        with pytest.raises(ValueError, match=f"class {index} was chosen .*{words}"):
            nodes.SampleGAN.execute(gan, 3, 1, 0.7, 1.0, class_index=index)


def test_a_lora_in_the_wrong_place_is_refused_in_words(world):
    with pytest.raises(ValueError, match="choose it as 'normal'"):
        load_vqgan(depth_lora="vq_normal.safetensors")
    with pytest.raises(ValueError, match="is a LoRA for a VQGAN"):
        load_gan(normal_lora="vq_normal.safetensors")
    with pytest.raises(ValueError, match="without a LoRA"):
        nodes.ExtractMapsVQGAN.execute(load_vqgan(), torch.rand(1, 16, 16, 3), 1.0, 0, False)


def test_replaced_files_are_loaded_anew(world):
    def state():
        return nodes.LoadVQGAN.fingerprint_inputs("vae/tiny", **NOTHING | {"normal_lora": "vq_normal.safetensors"})

    first = state()
    assert state() == first
    (world["folder"] / "loras/vq_normal.safetensors").touch()
    second = state()
    (world["folder"] / "vae/tiny/config.json").touch()
    assert len({first, second, state()}) == 3
    assert nodes.LoadVQGAN.fingerprint_inputs("vae/tiny", **NOTHING | {"normal_lora": "gone.safetensors"}) != first


def test_damaged_vqgan_folders_are_refused_in_words(world):
    part = world["folder"] / "vae/tiny"
    whole = (part / "diffusion_pytorch_model.safetensors").read_bytes()
    (part / "diffusion_pytorch_model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(native.ModelFolderError, match="not a complete safetensors file"):
        load_vqgan()
    state = dict(world["vqgan"].state_dict())
    del state["post_quant_conv.bias"]
    save_file(state, part / "diffusion_pytorch_model.safetensors")
    with pytest.raises(native.ModelFolderError, match="lacks 1 weights"):
        load_vqgan()
    save_file(world["vqgan"].state_dict() | {"more": torch.zeros(1)}, part / "diffusion_pytorch_model.safetensors")
    with pytest.raises(native.ModelFolderError, match="does not call for"):
        load_vqgan()


def test_names_of_old_diffusers_files_are_understood(world):
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = {}
    for name, weight in world["vqgan"].state_dict().items():
        for new, former in old.items():
            name = name.replace(new, former)
        state[name] = weight
    save_file(state, world["folder"] / "vae/tiny/diffusion_pytorch_model.safetensors")
    loaded = load_vqgan().patcher.model.generator.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in world["vqgan"].state_dict().items())
