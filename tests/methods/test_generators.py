"""Style-based generator, VQGAN and LoRA on them, against plain references and peft, on tiny random networks."""

import copy
import json

import pytest
import torch
from einops import rearrange
from intrinsic_lab.methods.intrinsic_lora import generators
from intrinsic_lab.methods.intrinsic_lora.extract import ExtractSettings, extract
from intrinsic_lab.methods.intrinsic_lora.generators import adapter, gan_file, style_gan
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.maps import MAPS
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

CONFIG = generators.StyleGanConfig(widths=(8, 8, 4), latent_dim=6, style_dim=5, mapping_layers=2)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def gan():
    torch.manual_seed(0)
    generator = generators.StyleGenerator(CONFIG)
    for layer in generator.convolutions:
        torch.nn.init.constant_(layer.noise_strength, 0.3)
    generator.measure_mean_style(64)
    return generator.requires_grad_(False).eval()


@pytest.fixture(params=["group", "spatial"])
def vqgan(request):
    from diffusers import VQModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")}
    model = VQModel(
        **blocks,
        # Spatial normalisation has 32 groups whatever the config says.
        block_out_channels=(8, 16) if request.param == "group" else (32, 32),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=32,
        norm_num_groups=4,
        norm_type=request.param,
    )
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model.requires_grad_(False).eval()


def random_layers(module, kind, targets="", rank=2):
    layers = {}
    for index, name in enumerate(adapter.target_names(module, kind, targets)):
        outputs, *inputs = module.get_submodule(name).weight.shape
        up = noise(outputs, rank, *(1 for _ in inputs[1:]), seed=index + 100)
        layers[name] = LoraLayer(0.3 * noise(rank, *inputs, seed=index), 0.3 * up, 0.5)
    return layers


@pytest.mark.parametrize("demodulate", [True, False])
def test_a_modulated_convolution_is_the_papers_equations_written_out(demodulate):
    x, weight, style = noise(3, 5, 6, 7), noise(4, 5, 3, 3, seed=1), noise(3, 5, seed=2)
    rows = []
    for row in range(3):
        scaled = weight * style[row][None, :, None, None]
        if demodulate:
            scaled = scaled / torch.sqrt(scaled.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        rows.append(functional.conv2d(x[row : row + 1], scaled, padding=1))
    assert torch.allclose(style_gan.modulated_convolution(x, weight, style, demodulate), torch.cat(rows), atol=1e-5)


def test_a_demodulated_layer_keeps_unit_variance():
    output = style_gan.modulated_convolution(noise(4, 32, 32, 32), noise(16, 32, 3, 3, seed=1), 5 * noise(4, 32, seed=2))
    assert (output[:, :, 1:-1, 1:-1].std((0, 2, 3)) - 1).abs().max() < 0.15


def test_a_seed_is_a_picture_whatever_the_batch(gan):
    one, three = (generators.draw(CONFIG, 7, batch) for batch in (1, 3))
    assert torch.equal(one.z_bd, three.z_bd[:1]) and all(torch.equal(a, b[:1]) for a, b in zip(one.noise, three.noise, strict=True))
    assert generators.pictures(gan, three).shape == (3, 3, 16, 16)
    assert torch.allclose(generators.pictures(gan, one), generators.pictures(gan, three)[:1], atol=1e-5)
    assert torch.equal(generators.pictures(gan, three), generators.pictures(gan, three))
    assert not torch.equal(generators.draw(CONFIG, 8, 1).z_bd, one.z_bd)


def test_noise_and_latent_both_reach_the_picture(gan):
    draws, other = generators.draw(CONFIG, 1, 1), generators.draw(CONFIG, 2, 1)
    picture = generators.pictures(gan, draws)
    assert not torch.allclose(picture, generators.pictures(gan, generators.Draws(draws.z_bd, other.noise)))
    assert not torch.allclose(picture, generators.pictures(gan, generators.Draws(other.z_bd, draws.noise)))


def test_truncation_0_is_the_mean_style_and_1_the_mapping_network(gan):
    z = noise(2, 6)
    w = z / z.square().mean(1, keepdim=True).sqrt()
    for layer in gan.mapping:
        w = functional.leaky_relu(w @ layer.weight.T + layer.bias, 0.2) * 2**0.5
    assert torch.allclose(gan.style(z), w, atol=1e-5)
    assert torch.equal(gan.style(z, 0.0), gan.mean_style.expand(2, -1))
    assert torch.allclose(gan.style(z, 0.5), (w + gan.mean_style) / 2, atol=1e-5)


def test_strength_0_and_no_layers_are_the_base_bit_for_bit(gan, vqgan):
    draws = generators.draw(CONFIG, 0, 2)
    base, layers = generators.pictures(gan, draws), random_layers(gan, "gan")
    assert torch.equal(generators.pictures(gan, draws, 1.0, layers, 0.0), base)
    assert not torch.allclose(generators.pictures(gan, draws, 1.0, layers), base)
    assert torch.equal(generators.pictures(gan, draws), base), "the module stayed as it was"
    picture = noise(2, 3, 16, 16).clamp(-1, 1)
    codes, layers = generators.quantised(vqgan, picture), random_layers(vqgan, "vqgan")
    own = vqgan(picture).sample
    assert torch.equal(generators.decode(vqgan, codes), own)
    assert torch.equal(generators.decode(vqgan, codes, layers, 0.0), own)
    assert not torch.allclose(generators.decode(vqgan, codes, layers), own)


def test_only_the_papers_layers_are_adapted(gan, vqgan):
    assert adapter.target_names(gan, "gan") == [f"convolutions.{i}.affine" for i in range(5)] + [f"to_picture.{i}.affine" for i in range(3)]
    attention = adapter.target_names(vqgan, "vqgan")
    assert len(attention) == 4 * 3 and all(name.startswith("decoder.") and ".attentions." in name for name in attention)
    weights = adapter.adapted_weights(vqgan, random_layers(vqgan, "vqgan"))
    assert weights.keys() == {f"{name}.weight" for name in attention}


def test_wide_adapts_every_convolution_on_the_pictures_way_through_the_decoder_too(vqgan):
    wide = set(adapter.target_names(vqgan, "vqgan", "wide"))
    convolutions = {name for name, module in vqgan.decoder.named_modules() if isinstance(module, nn.Conv2d) and ".conv_y" not in name}
    expected = {f"decoder.{name}" for name in convolutions if not name.endswith("conv_b")}
    assert wide - set(adapter.target_names(vqgan, "vqgan")) == expected and {"decoder.conv_in", "decoder.conv_out"} < expected
    generators.fit(vqgan, "vqgan", random_layers(vqgan, "vqgan", "wide"), "file")


@pytest.mark.parametrize("targets", ["attention", "wide"])
def test_a_vqgan_lora_means_what_peft_means_by_it(vqgan, tmp_path, targets):
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    vqgan = copy.deepcopy(vqgan)
    layers = random_layers(vqgan, "vqgan", targets)
    save_file(adapter.peft_state_dict(layers), tmp_path / "lora.safetensors", adapter.generator_header("vqgan", "depth", 64, "tiny"))
    read = generators.read_generator_lora(tmp_path / "lora.safetensors", "vqgan", "depth")
    picture = noise(1, 3, 16, 16).clamp(-1, 1)
    ours = generators.decode(vqgan, generators.quantised(vqgan, picture), read.layers)
    assert read.resolution == 64 and torch.allclose(ours, generators.decode(vqgan, generators.quantised(vqgan, picture), layers), atol=1e-5)
    peft_model = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=list(layers)), vqgan)
    result = set_peft_model_state_dict(peft_model, load_file(tmp_path / "lora.safetensors"))
    assert not result.unexpected_keys
    assert torch.allclose(peft_model(picture).sample, ours, atol=1e-4)


def test_vqgan_maps_are_data_at_the_pictures_size_in_one_encoding(vqgan):
    layers = random_layers(vqgan, "vqgan")
    of_map = {"normal": layers, "depth": {}, "albedo": layers}
    image = torch.rand(2, 21, 18, 3, generator=torch.Generator().manual_seed(3))
    maps = extract(image, list(of_map), generators.vqgan_generator(vqgan, of_map), ExtractSettings(16)).maps
    assert {name: tuple(values.shape) for name, values in maps.items()} == {n: (2, 21, 18, MAPS[n].channels) for n in of_map}
    assert torch.allclose(maps["normal"].norm(dim=-1), torch.ones(2, 21, 18), atol=1e-4)
    whole = image[:, :16, :16]
    plain = extract(whole, ["depth"], generators.vqgan_generator(vqgan, {"depth": {}}), ExtractSettings(0)).maps["depth"]
    expected = vqgan(rearrange(2 * whole - 1, "b h w c -> b c h w")).sample / 2 + 0.5
    assert torch.allclose(plain[..., 0], expected.mean(1), atol=1e-4)


def test_gan_maps_come_from_the_same_draws_and_are_data(gan):
    layers, draws = random_layers(gan, "gan"), generators.draw(CONFIG, 5, 2)
    made = dict(generators.map_pictures(gan, draws, {"normal": layers, "depth": {}}, 0.7))
    assert list(made) == [None, "normal", "depth"]
    picture = rearrange(generators.pictures(gan, draws, 0.7), "b c h w -> b h w c") / 2 + 0.5
    assert torch.equal(made[None], picture.clamp(0, 1))
    assert torch.equal(made["depth"], picture.mean(-1, keepdim=True)), "without layers the map is the picture's own reading"
    assert torch.allclose(made["normal"].norm(dim=-1), torch.ones(2, 16, 16), atol=1e-5)


def test_a_gan_folder_reads_back_and_bad_ones_are_refused_in_words(gan, tmp_path):
    generators.save_gan(gan, tmp_path)
    read = generators.load_gan(tmp_path)
    draws = generators.draw(CONFIG, 0, 1)
    kept = gan.state_dict()
    assert read.config == CONFIG and all(torch.equal(weight, kept[name]) for name, weight in read.state_dict().items())
    # Another place in memory may change the order of a sum.
    assert torch.allclose(generators.pictures(read, draws, 0.5), generators.pictures(gan, draws, 0.5), atol=1e-5)
    path, config = tmp_path / gan_file.WEIGHTS_FILE, tmp_path / gan_file.CONFIG_FILE
    whole, said = load_file(path), json.loads(config.read_text())

    def refused(match, weights=None, settings=None):
        save_file(whole if weights is None else weights, path)
        config.write_text(json.dumps(said if settings is None else settings))
        with pytest.raises(ValueError, match=match):
            generators.load_gan(tmp_path)

    refused("lacks 1 weights", {name: weight for name, weight in whole.items() if name != "constant"})
    refused("do not belong together", whole | {"constant": torch.zeros(1, 4, 4, 4)})
    refused("not finite", whole | {"mean_style": torch.full((5,), float("nan"))})
    refused("choose another folder", settings={"_class_name": "VQModel"})
    refused("choose another folder", settings=said | {"depth": 4})
    refused("whole numbers", settings=said | {"style_dim": -5})
    refused("whole numbers", settings=said | {"widths": "8"})
    config.write_text(json.dumps(said))
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="no complete safetensors"):
        generators.load_gan(tmp_path)
    path.unlink()
    (tmp_path / "stylegan2.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"stylegan2\.pkl is no part of such a folder: a published file is chosen by itself"):
        generators.load_gan(tmp_path)


def test_a_lora_of_another_map_kind_or_model_is_refused(gan, vqgan, tmp_path):
    path = tmp_path / "lora.safetensors"
    layers = random_layers(gan, "gan")
    save_file(adapter.peft_state_dict(layers), path, adapter.generator_header("gan", "normal", 64, "tiny"))
    with pytest.raises(ValueError, match="choose it as 'normal'"):
        generators.read_generator_lora(path, "gan", "depth")
    with pytest.raises(ValueError, match="is a LoRA for a GAN"):
        generators.read_generator_lora(path, "vqgan", "normal")
    header = adapter.generator_header("gan", "normal", 64, "tiny")
    assert header["intrinsic_lab.convention"] == "opengl"
    save_file(adapter.peft_state_dict(layers), path, header | {"intrinsic_lab.convention": "opencv"})
    with pytest.raises(ValueError, match="has learnt normal as 'opencv', a generator's LoRA must have learnt 'opengl'"):
        generators.read_generator_lora(path, "gan", "normal")
    save_file(adapter.peft_state_dict(layers), path, {"intrinsic_lab.map": "normal"})
    with pytest.raises(ValueError, match="is a LoRA for a diffusion model"):
        generators.read_generator_lora(path, "gan", "normal")
    save_file(adapter.peft_state_dict(layers), path)
    assert generators.read_generator_lora(path, "gan", "depth").layers.keys() == layers.keys(), "a file without a header is taken as asked"
    generators.fit(gan, "gan", layers, "file")
    with pytest.raises(ValueError, match="another model"):
        generators.fit(vqgan, "vqgan", layers, "file")
    with pytest.raises(ValueError, match="another model"):
        generators.fit(gan, "gan", {"mapping.0": LoraLayer(noise(2, 6), noise(5, 2))}, "file")
    with pytest.raises(ValueError, match="another width"):
        generators.fit(gan, "gan", {"convolutions.0.affine": LoraLayer(noise(2, 9), noise(8, 2))}, "file")
