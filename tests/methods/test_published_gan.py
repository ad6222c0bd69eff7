"""Published StyleGAN2 files: equal to the network written out in float64 over the published names, and never run."""

import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from intrinsic_lab.methods.intrinsic_lora.generators import Draws, StyleGanConfig, draw, load_gan, pictures, save_gan
from intrinsic_lab.methods.intrinsic_lora.generators.adapter import target_names
from intrinsic_lab.methods.intrinsic_lora.generators.published_gan import convert, nvidia_name, rosinality_name
from intrinsic_lab.methods.intrinsic_lora.generators.style_gan import StyleGenerator
from intrinsic_lab.methods.lora.layers import LoraLayer

sys.path.insert(0, str(Path(__file__).parent))
from published_generators import StyleGan2Oracle, as_nvidia, random_weights, rosinality_shapes, write_module

TINY = {"widths": (6, 5, 4), "style": 7, "latent": 8, "mapping": 3}
FILTER = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8] * 2)


def weights_of(sizes=TINY):
    """As trained: the mapping network's are kept a hundred times larger."""
    weights = random_weights(rosinality_shapes(**sizes))
    return {name: weight * (100 if name.startswith("style.") else 1) for name, weight in weights.items()}


def write_rosinality(path, weights, mean=None):
    """As its converter and its trainer write it: `latent_avg` or the training's state and options."""
    buffers = {"noises.noise_0": torch.randn(1, 1, 4, 4), "convs.0.conv.blur.kernel": 4 * FILTER, "to_rgbs.0.upsample.kernel": 4 * FILTER}
    content = {"g_ema": OrderedDict(weights | buffers)}
    content |= {"args": Namespace(size=16), "d_optim": {"state": {}}} if mean is None else {"latent_avg": mean}
    torch.save(content, path, _use_new_zipfile_serialization=mean is None)


def write_nvidia(path, weights, mean, **more):
    buffers = {"mapping.w_avg": mean, "synthesis.b8.conv0.resample_filter": FILTER, "synthesis.b8.conv0.noise_const": torch.randn(8, 8)}
    write_module(path, {**as_nvidia(weights), **buffers, **more})


@pytest.fixture(params=["rosinality", "nvidia"])
def published(request, tmp_path):
    """(file, its oracle, its mean style) of a network in one layout."""
    weights, mean = weights_of(), torch.randn(7, generator=torch.Generator().manual_seed(9))
    if request.param == "rosinality":
        write_rosinality(tmp_path / "gan.pt", weights, mean)
        return tmp_path / "gan.pt", StyleGan2Oracle(weights), mean
    write_nvidia(tmp_path / "gan.pkl", weights, mean)
    return tmp_path / "gan.pkl", StyleGan2Oracle(weights, constants=False), mean


@pytest.mark.parametrize("truncation", [1.0, 0.6])
def test_a_published_network_equals_itself_written_out(published, truncation):
    path, oracle, mean = published
    generator = load_gan(path)
    assert generator.config == StyleGanConfig((6, 5, 4), 8, 7, 3, filtered=True)
    draws = draw(generator.config, 3, 2)
    found = pictures(generator.double(), Draws(draws.z_bd.double(), tuple(n.double() for n in draws.noise)), truncation)
    for row in range(2):
        w = mean.double() + truncation * (oracle.style(draws.z_bd[row]) - mean.double())
        torch.testing.assert_close(found[row], oracle(w, [noise[row, 0] for noise in draws.noise]), rtol=1e-5, atol=1e-5)
    assert not path.with_suffix(".witness").exists(), "source in the file ran"


def test_a_lora_on_the_affine_layers_acts_as_on_the_weights_of_the_network_written_out(tmp_path):
    """eq. 3 on w -> s: the published weight is the acting one times the root of its width."""
    weights, mean = weights_of(), torch.zeros(7)
    write_rosinality(tmp_path / "gan.pt", weights, mean)
    generator = load_gan(tmp_path / "gan.pt").double()
    noise = torch.Generator().manual_seed(2)
    layers = {}
    for name in target_names(generator, "gan"):
        outputs, inputs = generator.get_submodule(name).weight.shape
        layers[name] = LoraLayer(torch.randn(2, inputs, generator=noise), torch.randn(outputs, 2, generator=noise), 0.3)
    assert len(layers) == 5 + 3
    published = {"convolutions.0": "conv1", "to_picture.0": "to_rgb1"}
    published |= {f"convolutions.{number}": f"convs.{number - 1}" for number in range(1, 5)}
    published |= {f"to_picture.{number}": f"to_rgbs.{number - 1}" for number in (1, 2)}
    changed = dict(weights)
    for name, layer in layers.items():
        change = layer.scale * layer.up.double() @ layer.down.double() * 7**0.5
        target = f"{published[name.removesuffix('.affine')]}.conv.modulation.weight"
        changed[target] = changed[target].double() + change
    draws = draw(generator.config, 3, 1)
    found = pictures(generator, Draws(draws.z_bd.double(), tuple(n.double() for n in draws.noise)), 1.0, layers)[0]
    wanted = StyleGan2Oracle(changed)(StyleGan2Oracle(weights).style(draws.z_bd[0]), [n[0, 0] for n in draws.noise])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


WIDTHS = {
    "FFHQ 1024 (config F)": (512, 512, 512, 512, 512, 256, 128, 64, 32),
    "FFHQ 1024 (config E)": (512, 512, 512, 512, 256, 128, 64, 32, 16),
    "256 pixels, FFHQ and LSUN bedrooms": (512, 512, 512, 512, 512, 256, 128),
    "256 pixels, half as wide": (512, 512, 512, 512, 256, 128, 64),
}


@pytest.mark.parametrize("network", WIDTHS)
def test_published_sizes_fit_the_generator(network):
    """At their true size, without their numbers."""
    shapes = rosinality_shapes(WIDTHS[network])
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        generator = StyleGenerator(StyleGanConfig(WIDTHS[network], 512, 512, 8, filtered=True))
    wanted = {name: weight.shape for name, weight in generator.state_dict().items()}
    wanted.pop("mean_style")
    for layout, names, scaled in ((weights, rosinality_name, True), (as_nvidia(weights), nvidia_name, False)):
        config, found = convert({names(name): weight for name, weight in layout.items()}, scaled)
        assert config == generator.config and config.resolution == 4 * 2 ** (len(WIDTHS[network]) - 1)
        assert {name: weight.shape for name, weight in found.items()} == wanted


def test_a_training_checkpoint_without_a_mean_style_gets_it_measured(tmp_path):
    write_rosinality(tmp_path / "550000.pt", weights := weights_of())
    generator = load_gan(tmp_path / "550000.pt")
    z = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0))
    wanted = torch.stack([StyleGan2Oracle(weights).style(row) for row in z[:512]]).mean(0)
    assert (generator.mean_style.double() - wanted).norm() < 0.15 * wanted.norm()


def test_a_published_generator_survives_our_own_folder(tmp_path):
    write_rosinality(tmp_path / "gan.pt", weights_of(), torch.zeros(7))
    generator = load_gan(tmp_path / "gan.pt")
    save_gan(generator, tmp_path / "folder")
    again = load_gan(tmp_path / "folder")
    draws = draw(generator.config, 0, 1)
    assert again.config == generator.config and torch.allclose(pictures(again, draws), pictures(generator, draws), atol=1e-5)


def test_wrong_files_are_told_in_words(tmp_path):
    weights, mean = weights_of(), torch.zeros(7)
    path = tmp_path / "gan.pt"
    for change, words in (
        ({"convs.9.conv.weight": torch.zeros(1)}, "lacks|has no"),
        ({"synthesis.weight": torch.zeros(1)}, r"holds synthesis\.weight, which StyleGAN2 does not have"),
        ({"to_rgbs.1.bias": None}, "str|NoneType"),
        ({"convs.1.conv.blur.kernel": torch.ones(4, 4)}, r"is not the filter \[1, 3, 3, 1\]"),
        ({"convs.0.activate.bias": torch.full((5,), torch.nan)}, "not finite"),
        ({"convs.0.activate.bias": torch.zeros(9)}, r"\[9\], \[5\] was expected"),
        ({"conv1.noise.weight": torch.zeros(4)}, r"gan\.pt"),
    ):
        write_rosinality(path, weights | change, mean)
        with pytest.raises(ValueError, match=words):
            load_gan(path)
    for content in ({"state_dict": {}}, [1], {"g_ema": 3}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"gan\.pt holds neither 'g_ema'"):
            load_gan(path)
    path = tmp_path / "gan.pkl"
    for more, words in (
        ({"mapping.embed.weight": torch.zeros(3, 3)}, r"no mapping\.embed\.bias, which a generator of classes needs"),
        ({"synthesis.L0_36_512.affine.weight": torch.zeros(3, 3)}, "which StyleGAN2 does not have"),
    ):
        write_nvidia(path, weights, mean, **more)
        with pytest.raises(ValueError, match=words):
            load_gan(path)
    path.write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match=r"gan\.pkl is no whole pickle"):
        load_gan(path)
