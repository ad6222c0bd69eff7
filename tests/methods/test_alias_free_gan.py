"""StyleGAN3 and StyleGAN-XL: equal to the network written out in float64 over the published names, and as equivariant as the paper says."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from intrinsic_lab.methods.intrinsic_lora.generators import AliasFreeGenerator, Draws, draw, load_gan, pictures, save_gan
from intrinsic_lab.methods.intrinsic_lora.generators.adapter import target_names
from intrinsic_lab.methods.intrinsic_lora.generators.published_alias_free import convert_alias_free
from intrinsic_lab.methods.lora.layers import LoraLayer

sys.path.insert(0, str(Path(__file__).parent))
from alias_free_oracle import AliasFreeOracle, design, published
from published_generators import StyleGan2Oracle, as_nvidia, random_weights, rosinality_shapes, write_module

KINDS = {
    "StyleGAN-XL": ({}, {"classes": 4, "features": 9}),
    "StyleGAN3-R of one-hot classes": ({"radial": True}, {"classes": 3}),
    "StyleGAN3-T": ({}, {}),
}


def written(path, kind):
    """The oracle of a made-up file of a kind."""
    layers, weights = KINDS[kind]
    layers = design(32, 6, 8, **layers)
    tensors, attributes = published(layers, **weights)
    write_module(path, tensors, attributes)
    return AliasFreeOracle(layers, tensors, attributes)


def in_double(draws):
    return Draws(draws.z_bd.double(), (), draws.classes_b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_network_equals_itself_written_out_and_runs_nothing(kind, tmp_path):
    oracle = written(tmp_path / "gan.pkl", kind)
    generator = load_gan(tmp_path / "gan.pkl")
    save_gan(generator, tmp_path / "folder")
    again = load_gan(tmp_path / "folder")
    kept = generator.state_dict()
    assert again.config == generator.config and all(torch.equal(kept[name], weight) for name, weight in again.state_dict().items())
    draws = draw(generator.config, 3, 2)
    found = pictures(generator.double(), in_double(draws), 0.7)
    for row in range(2):
        number = None if draws.classes_b is None else int(draws.classes_b[row])
        torch.testing.assert_close(found[row], oracle(oracle.style(draws.z_bd[row], number, 0.7)), rtol=1e-5, atol=1e-6)
    assert found.std() > 0.01 and generator.config.resolution == 32
    assert not (tmp_path / "gan.witness").exists(), "source in the file ran"


def test_a_class_is_chosen_or_drawn_and_truncation_0_is_its_own_mean(tmp_path):
    oracle = written(tmp_path / "gan.pkl", "StyleGAN-XL")
    generator = load_gan(tmp_path / "gan.pkl")
    config = generator.config
    assert (config.classes, config.class_dim, config.latent_dim) == (4, 6, 6), "rows of classes that the generator has not are left out"
    one, many, chosen = draw(config, 5, 1), draw(config, 5, 40), draw(config, 5, 40, 2)
    assert torch.equal(one.z_bd, many.z_bd[:1]) and one.classes_b == many.classes_b[0]
    assert torch.equal(chosen.z_bd, many.z_bd) and set(chosen.classes_b.tolist()) == {2} and set(many.classes_b.tolist()) == {0, 1, 2, 3}
    assert torch.equal(many[3:5].to("cpu").classes_b, many.classes_b[3:5]) and len([*many.split(16)][2].classes_b) == 8
    assert torch.equal(generator.style(chosen.z_bd[:1], 0.0, chosen.classes_b[:1])[0], oracle.weights["mapping.w_avg"][2].float())
    for index in (4, -2):
        with pytest.raises(ValueError, match=f"class {index} was chosen of a generator: its classes are 0 to 3"):
            draw(config, 5, 1, index)
    with pytest.raises(ValueError, match="it has none"):
        draw(replace(config, classes=0, class_dim=0), 5, 1, 0)


def test_a_lora_changes_the_affine_layers_from_w_to_styles_alone(tmp_path):
    oracle = written(tmp_path / "gan.pkl", "StyleGAN-XL")
    generator, noise, layers = load_gan(tmp_path / "gan.pkl").double(), torch.Generator().manual_seed(2), {}
    assert target_names(generator, "gan") == [f"layers.{number}.affine" for number in range(7)]
    draws = draw(generator.config, 3, 1)
    w = oracle.style(draws.z_bd[0], int(draws.classes_b[0]))
    for layer in oracle.layers:
        inputs, outputs = 5, layer.inputs
        change = LoraLayer(torch.randn(2, inputs, generator=noise), torch.randn(outputs, 2, generator=noise), 0.3)
        layers[f"layers.{oracle.layers.index(layer)}.affine"] = change
        # The published weight is the acting one times the root of its width.
        oracle.weights[f"synthesis.{layer.name}.affine.weight"] += change.scale * change.up.double() @ change.down.double() * inputs**0.5
    torch.testing.assert_close(pictures(generator, in_double(draws), 1.0, layers)[0], oracle(w), rtol=1e-4, atol=1e-5)


def generator_of(layers, **weights):
    config, state = convert_alias_free(*published(layers, **weights))
    generator = AliasFreeGenerator(config).requires_grad_(False)
    generator.load_state_dict(state)
    generator.features.placement.weight.zero_()
    return generator


def placed(generator, w, cosine=1.0, sine=0.0, shift_x=0.0, shift_y=0.0):
    generator.features.placement.bias.copy_(torch.tensor([cosine, sine, shift_x, shift_y]))
    return generator(w)


def translation_equivariance(generator):
    """EQ-T in dB (Karras et al. 2021, section E.1): shifted input features against shifted pictures, of -1..1, where both are known."""
    w = torch.randn(2, generator.config.style_dim, generator=torch.Generator().manual_seed(1))
    picture, side, errors = placed(generator, w), generator.config.resolution, []
    scale = 0.5 / picture.std()
    for x, y in ((1, 0), (0, -3), (8, 5)):
        error = scale * (placed(generator, w, shift_x=x / side, shift_y=y / side) - picture.roll((y, x), (2, 3)))
        errors.append(error[:, :, 8:-8, 8:-8].square().mean())
    return 10 * math.log10(2**2 / torch.stack(errors).mean())


@pytest.mark.parametrize("radial", [False, True])
def test_the_whole_network_is_equivariant_to_shifts_by_its_filters(radial):
    """What the paper's design is for. Short filters, as StyleGAN2 has, alias."""
    generator = generator_of(design(64, 8, 8, radial=radial))
    assert translation_equivariance(generator) > 65
    for layer in generator.layers[:-1]:
        for kernel in (layer.up_filter, layer.down_filter):
            short = torch.zeros(len(kernel))
            short[len(kernel) // 2 - 2 : len(kernel) // 2 + 2] = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
            kernel.copy_(short if kernel.ndim == 1 else torch.outer(short, short))
    assert translation_equivariance(generator) < 50


def test_turned_features_make_turned_pictures():
    """All layers have one centre: half a turn, with the kernels turned too; a quarter turn where convolutions are 1 x 1."""
    w = torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    generator = generator_of(design(32, 6, 8, radial=True))
    straight = placed(generator, w)
    torch.testing.assert_close(placed(generator, w, 0.0, 2.0), straight.rot90(1, (2, 3)), rtol=1e-4, atol=1e-5)
    generator = generator_of(design(32, 6, 8))
    straight = placed(generator, w)
    for layer in generator.layers:
        layer.weight.data = layer.weight.flip(2, 3)
    torch.testing.assert_close(placed(generator, w, -1.0), straight.flip(2, 3), rtol=1e-4, atol=1e-5)


def test_published_sizes_fit():
    """At their true sizes, without their numbers."""
    large = design(1024, 14, 512, 32768)
    printed = "L0_36_512 L1_36_512 L2_52_512 L3_52_512 L4_84_512 L5_148_512 L6_148_512 L7_276_323 L8_276_203 L9_532_128 L10_1044_81 "
    printed += "L11_1044_51 L12_1044_32 L13_1024_32 L14_1024_3"
    assert [layer.name for layer in large] == printed.split(), "as published files print it"
    # StyleGAN-XL: the stem of 16 pixels without its last three layers, and a head of seven and the last for 32 pixels.
    head = [replace(layer, name=f"L{8 + number}{layer.name[2:]}") for number, layer in enumerate(design(32, 7, 1024, 65536))]
    stacked = design(16, 10, 1024, 65536)[:8] + head
    for layers, sides in ((large, 1024), (design(256, 14, 1024, 65536, radial=True), 256), (stacked, 32)):
        tensors, attributes = published(layers, latent=64, style=512, classes=1000, features=320, seed=None)
        config, state = convert_alias_free(tensors, attributes)
        with torch.device("meta"):
            wanted = AliasFreeGenerator(config).state_dict()
        assert {name: weight.shape for name, weight in state.items()} == {name: weight.shape for name, weight in wanted.items()}
        assert config.resolution == sides and tensors["mapping.embed_proj.weight"].numel() + 64 == 20_544, "as a published one prints it"


def test_a_stylegan2_of_classes_is_its_network_written_out(tmp_path):
    """The embedding stands beside z; the mean of w is one for all classes."""
    weights = random_weights(rosinality_shapes((6, 5), style=7, latent=15, mapping=2))
    weights |= {name: 100 * weight for name, weight in weights.items() if name.startswith("style.")}
    draw_of = torch.Generator().manual_seed(5)
    embed, bias, mean = (torch.randn(shape, generator=draw_of) for shape in ((7, 3), (7,), (7,)))
    more = {"mapping.embed.weight": embed, "mapping.embed.bias": bias, "mapping.w_avg": mean}
    write_module(tmp_path / "gan.pkl", as_nvidia(weights) | more)
    generator = load_gan(tmp_path / "gan.pkl")
    assert (generator.config.latent_dim, generator.config.classes, generator.config.class_dim) == (8, 3, 7)
    save_gan(generator, tmp_path / "folder")
    draws = draw(generator.config, 3, 1, 2)
    oracle = StyleGan2Oracle(weights, constants=False)
    z, embedded = draws.z_bd[0], embed[:, 2] / 3**0.5 + bias
    w = oracle.style(torch.cat([z / z.square().mean().sqrt(), embedded / embedded.square().mean().sqrt()]))
    wanted = oracle(mean + 0.6 * (w - mean), [noise[0, 0] for noise in draws.noise])
    for each in (generator, load_gan(tmp_path / "folder")):
        torch.testing.assert_close(pictures(each, draws, 0.6)[0].double(), wanted, rtol=1e-3, atol=1e-4)


def test_wrong_files_are_told_in_words(tmp_path):
    path = tmp_path / "gan.pkl"
    layers = design(32, 6, 8)
    tensors, attributes = published(layers, classes=4, features=9)
    first, last = (f"synthesis.{layer.name}" for layer in (layers[0], layers[-1]))
    nan = torch.full_like(tensors[f"{first}.bias"], torch.nan)
    for change, said, words in (
        ({f"{first}.bias": None}, {}, r"gan\.pkl lacks 1 weights .*layers\.0\.bias"),
        ({f"{first}.bias": nan}, {}, r"layers\.0\.bias is not finite"),
        ({f"{first}.up_filter": torch.arange(12) / 66}, {}, r"layers\.0\.up_filter is not symmetric"),
        ({f"{first}.up_filter": None}, {}, r"layer 0 has filters of \(0, 12\) taps .*a filter is wanted exactly where"),
        ({f"{first}.up_filter": torch.ones(5000) / 5000}, {}, "whole numbers from 0 to 64"),
        ({f"{last}.weight": None}, {}, r"it has no whole layers\.6\.weight"),
        ({"synthesis.L0_40_8.bias": torch.zeros(8)}, {}, "L0, L1 and so on were expected, each once"),
        ({"synthesis.L99_32_8.bias": torch.zeros(8)}, {}, "L0, L1 and so on"),
        ({"synthesis.input.transform": 2 * torch.eye(3)}, {}, "not that of a published file"),
        ({"mapping.w_avg": None}, {}, "lacks 1 weights .*mean_style"),
        ({"mapping.embed.weight": None}, {}, r"no mapping\.embed\.weight"),
        ({"synthesis.b4.const": torch.zeros(1)}, {}, r"holds synthesis\.b4\.const, which StyleGAN3 and StyleGAN-XL do not have"),
        ({}, {"synthesis.output_scale": None}, r"does not say synthesis\.output_scale"),
        ({}, {"mapping.embed_proj.activation": "tanh"}, "'linear' or 'lrelu' were expected"),
        ({}, {f"{first}.padding": [1, 1, 1, 1]}, "L0_36_8 has padding .* it is another network"),
        ({}, {f"{first}.up_factor": 4}, "L0_36_8 has up_factor 4, 2 was expected"),
    ):
        kept = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
        write_module(path, kept, attributes | said)
        with pytest.raises(ValueError, match=words):
            load_gan(path)


def test_numbers_of_a_config_bound_the_work(tmp_path):
    generator = generator_of(design(32, 6, 8), classes=3)
    save_gan(generator, tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["_class_name"] == "IntrinsicLabAliasFreeGenerator"
    for change, words in (
        ({"sides": [36, 36, 52, 52, 52, 32, 48]}, "power of two"),
        ({"sides": [36] * 6 + [2**20]}, "whole numbers from 1 to 1044"),
        ({"sides": [1044] * 5 + [1024] * 2, "widths": [8192] * 6 + [3]}, "numbers at once"),
        ({"widths": [8, 3]}, "each with a width"),
        ({"sides": [36] * 99}, "99 layers: 2 to 64"),
        ({"classes": 10**9}, "classes of 5 numbers"),
        ({"class_dim": 0}, "3 classes of 0 numbers"),
        ({"kernel": 5}, "a kernel of 1 or 3"),
        ({"mapping_layers": 10**9}, "mapping network"),
        ({"depth": 3}, "choose another folder"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(said | change))
        with pytest.raises(ValueError, match=words):
            load_gan(tmp_path)
