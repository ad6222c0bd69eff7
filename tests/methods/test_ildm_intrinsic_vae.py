"""What goes into an intrinsic VAE, what comes out, and how it is made from a base VAE (diffusers is the oracle)."""

import pytest
import torch
from intrinsic_lab.methods.ildm.intrinsic_vae import (
    INTRINSICS,
    TOTAL_CHANNELS,
    channel_slice,
    intrinsics_from_pictures,
    join_intrinsics,
    split_intrinsics,
    widen,
    zero_masked,
)


def some_maps(size=16):
    draw = torch.Generator().manual_seed(0)
    depth = torch.rand(2, size, size, 1, generator=draw)
    depth[:, 0, 0], depth[:, -1, -1] = 0, 1
    return {
        "depth": depth,
        "normal": torch.nn.functional.normalize(torch.randn(2, size, size, 3, generator=draw), dim=-1),
        "segmentation": torch.rand(2, size, size, 3, generator=draw),
        "line": (torch.rand(2, size, size, 1, generator=draw) > 0.9).float(),
    }


def test_channels_are_those_of_the_paper():
    assert {name: intrinsic.channels for name, intrinsic in INTRINSICS.items()} == {"depth": 1, "normal": 3, "segmentation": 3, "line": 1}
    assert [channel_slice(name) for name in INTRINSICS] == [slice(0, 1), slice(1, 4), slice(4, 7), slice(7, 8)]


def test_data_survives_joining_and_splitting():
    maps = some_maps()
    joined = join_intrinsics(maps)
    assert joined.shape == (2, 16, 16, TOTAL_CHANNELS) and joined.abs().max() <= 1
    for name, values in split_intrinsics(joined).items():
        torch.testing.assert_close(values, maps[name])


def test_metres_become_relative_depth_and_missing_intrinsics_are_zero():
    joined = join_intrinsics({"depth": 3 + 7 * some_maps()["depth"]})
    torch.testing.assert_close(joined[..., :1], 2 * some_maps()["depth"] - 1)
    assert joined[..., 1:].count_nonzero() == 0


def test_pictures_of_maps_give_the_same_channels_as_the_maps():
    maps = some_maps()
    pictures = {name: values.expand(-1, -1, -1, 3) for name, values in maps.items()} | {"normal": (maps["normal"] + 1) / 2}
    torch.testing.assert_close(intrinsics_from_pictures(pictures), join_intrinsics(maps))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: join_intrinsics({}), "at least one of depth"),
        (lambda: join_intrinsics({"albedo": torch.zeros(1, 2, 2, 3)}), "albedo"),
        (lambda: join_intrinsics({"depth": torch.zeros(1, 2, 2, 1), "line": torch.zeros(1, 2, 3, 1)}), "one size"),
        (lambda: split_intrinsics(torch.zeros(1, 2, 2, 3)), "3 channels"),
        (lambda: widen({"encoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}, {}), "3 colours"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_each_intrinsic_is_zeroed_as_a_whole_one_time_in_ten():
    joined = torch.ones(4000, TOTAL_CHANNELS, 1, 1)
    masked = zero_masked(joined, 0.1, torch.Generator().manual_seed(0))
    zero = torch.stack([(masked[:, channel_slice(name)] == 0).flatten(1).float().mean(1) for name in INTRINSICS], 1)
    assert set(zero.unique().tolist()) == {0.0, 1.0}
    assert ((zero.mean(0) - 0.1).abs() < 0.02).all()
    assert abs((zero[:, 0] * zero[:, 1]).mean().item() - 0.01) < 0.01, "intrinsics are left out independently"
    assert torch.equal(zero_masked(joined, 0.1, torch.Generator().manual_seed(0)), masked)


def test_a_widened_vae_starts_as_the_bases_view_of_grey_pictures():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    options = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(32, 32))
    base = AutoencoderKL(**options, layers_per_block=1, latent_channels=4).eval()
    weights, config = widen(base.state_dict(), dict(base.config))
    vae = AutoencoderKL.from_config(config).eval()
    vae.load_state_dict(weights)
    assert vae.config.in_channels == vae.config.out_channels == TOTAL_CHANNELS
    grey = torch.rand(2, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        latent, wanted = (
            vae.encode(grey.expand(-1, 8, -1, -1)).latent_dist.mode(),
            base.encode(grey.expand(-1, 3, -1, -1)).latent_dist.mode(),
        )
        torch.testing.assert_close(latent, wanted, atol=1e-5, rtol=1e-4)
        decoded, colors = vae.decode(latent).sample, base.decode(latent).sample
    for name in ("normal", "segmentation"):
        torch.testing.assert_close(decoded[:, channel_slice(name)], colors, atol=1e-5, rtol=1e-4)
    for name in ("depth", "line"):
        torch.testing.assert_close(decoded[:, channel_slice(name)], colors.mean(1, keepdim=True), atol=1e-5, rtol=1e-4)
