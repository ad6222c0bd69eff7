"""IntrinsiX's released adapters on native FLUX, against the model written out in float64 with each row's own weights."""

import sys
from pathlib import Path

import comfy.sample
import diffusers
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from einops import rearrange
from intrinsic_lab.methods.lumix.intrinsix import MAPS, RowAdapter, read_map_adapter
from intrinsic_lab.methods.lumix.schedule import shift_by_tokens, shifted_sigmas
from intrinsic_lab.nodes import lumix
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.tests.nodes.lumix_oracle import FluxOracle, rotate, softmax_attention
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from lumix_world import (  # noqa: F401 - fixtures
    CFG,
    GUIDANCE,
    SEED,
    STEPS,
    WIDTH,
    conditions,
    joint,
    latents,
    make_lora_folder,
    make_world,
    relative_error,
    write_adapter,
)

RANK = 3


def random_file(path, double=2, single=2, width=WIDTH, seed=5):
    """As released, of random numbers that are strong enough to matter."""
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for part, count, projections in (("", double, ("to_q", "to_k", "to_v", "to_out.0")), ("single_", single, ("to_q", "to_k", "to_v"))):
        for block in range(count):
            for projection in projections:
                for row in range(3):
                    key = f"transformer.{part}transformer_blocks.{block}.attn.{projection}.{row}.lora_"
                    tensors[f"{key}down.weight"] = torch.randn(RANK, width, generator=draw) / width**0.5
                    tensors[f"{key}up.weight"] = 0.5 * torch.randn(width, RANK, generator=draw)
    save_file(tensors, path)
    return tensors


class IntrinsixOracle(FluxOracle):
    """Every row has weights of its own in q, k, v and out; images are shared as the released model does it, or as `attention` says."""

    def __init__(self, network, tensors, attention="image-sharing", strength=1.0):
        super().__init__(network, attention, None, None, strength)
        self.tensors = tensors

    def row(self, layer, x, kind, number, projection, row):
        key = f"transformer.{'single_' * (kind == 'single')}transformer_blocks.{number}.attn.{projection}.{row}.lora_"
        change = self.tensors.get(f"{key}up.weight")
        weight = (
            layer.weight if change is None else layer.weight + self.strength * change.double() @ self.tensors[f"{key}down.weight"].double()
        )
        return x @ weight.T + layer.bias

    def projections(self, attn, x, kind, number, heads):
        found = []
        for name, norm in (("to_q", attn.norm_q), ("to_k", attn.norm_k), ("to_v", lambda values: values)):
            rows = [self.row(getattr(attn, name), one, kind, number, name, row) for row, one in enumerate(x)]
            found.append([norm(rearrange(one, "token (head dim) -> head token dim", head=heads)) for one in rows])
        return found

    def project_out(self, layer, x, kind, number):
        # Of a single-stream block, the projection is shared with the feed-forward part and has no LoRA.
        return [self.row(layer, one, kind, number, "to_out.0", row) for row, one in enumerate(x)]

    def attend(self, queries, keys, values, text, cos, sin):
        if self.attention != "image-sharing":
            return super().attend(queries, keys, values, text, cos, sin)
        out, keys = [], [rotate(key, cos, sin) for key in keys]
        for row, query in enumerate(queries):
            key = torch.cat([keys[row][:, :text], *(other[:, text:] for other in keys)], dim=1)
            value = torch.cat([values[row][:, :text], *(other[:, text:] for other in values)], dim=1)
            attended = softmax_attention(rotate(query, cos, sin), key, value)
            out.append(rearrange(attended, "head token dim -> token (head dim)"))
        return out


def oracle(world, tensors, attention="image-sharing", strength=1.0):
    with torch.inference_mode(False):
        network = diffusers.FluxTransformer2DModel.from_pretrained(world.folder / "transformer")
        return IntrinsixOracle(network, tensors, attention, strength)


def wanted_by(found, world, latent):
    noise = comfy.sample.prepare_noise(latent["samples"], SEED, latent["batch_index"])
    height, width = (side // 2 for side in latent["samples"].shape[2:])
    sigmas = shifted_sigmas(STEPS, shift_by_tokens(height * width))
    return found.euler(noise, sigmas, *world.prompts, GUIDANCE, CFG)


def applied(world, strength=1.0, **options):
    return lumix.ApplyTensorLoRA.execute(world.model, "intrinsix.safetensors", strength, **options)[0]


def sampled(model, world, pictures=1):
    latent = lumix.MapLatents.execute(model, width=96, height=64, batch_size=pictures)[0]
    return joint(model, world, latent)


@pytest.mark.parametrize(("attention", "strength"), [("as trained", 1.0), ("as trained", 0.6), ("cross-intrinsic", 1.0), ("separate", 1.0)])
def test_guided_steps_equal_the_model_in_float64(attention, strength, world, lora_folder):
    tensors = random_file(lora_folder / "intrinsix.safetensors")
    model = applied(world, strength, attention=attention)
    latent = latents(model)
    assert latent["samples"].shape[0] == 3 and latent["intrinsic_lab_maps"] == ("albedo", "material", "normal")
    found = joint(model, world)
    kind = "image-sharing" if attention == "as trained" else attention
    assert relative_error(found, wanted_by(oracle(world, tensors, kind, strength), world, latent)) < 1e-4
    other = "cross-intrinsic" if kind != "cross-intrinsic" else "image-sharing"
    assert relative_error(found, wanted_by(oracle(world, tensors, other, strength), world, latent)) > 1e-3


def test_at_strength_0_rows_differ_by_nothing_and_are_told_apart_by_their_loras(world, lora_folder):
    random_file(lora_folder / "intrinsix.safetensors")
    plain, changed = (sampled(applied(world, strength), world) for strength in (0.0, 1.0))
    assert all(relative_error(row, plain[0]) < 1e-5 for row in plain)
    assert relative_error(changed[1], changed[0]) > 0.05 and relative_error(changed[2], changed[0]) > 0.05


def test_several_pictures_and_a_given_map_work_as_with_lumix(world, lora_folder):
    random_file(lora_folder / "intrinsix.safetensors")
    model = applied(world)
    alone, two = sampled(model, world), sampled(model, world, pictures=2)
    assert relative_error(two[::2], alone) < 1e-4
    kept = {"samples": torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(1))}
    latent = latents(model, normal=kept)
    output = lumix.JointSampler.execute(
        model, *conditions(world), 0, 0, steps=STEPS, guidance=GUIDANCE, cfg=CFG, sampler_name="euler", seed=SEED, latent=latent
    )
    assert torch.equal(output[4]["samples"], kept["samples"]) and output[6]["samples"].shape == (1, 16, 8, 12)
    assert isinstance(output[2], ExecutionBlocker) and "its maps are albedo, material, normal" in output[2].message


def test_cores_own_route_gives_the_same_where_a_patch_has_a_say(world, lora_folder):
    random_file(lora_folder / "intrinsix.safetensors")
    model, calls = applied(world), []

    def override(function, *args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    latent = latents(model)
    through = model.clone()
    through.model_options["transformer_options"]["optimized_attention_override"] = override
    assert relative_error(joint(through, world, latent), joint(model, world, latent)) < 1e-4 and calls


def test_material_is_roughness_and_metallic(world, lora_folder, flux_folder):
    random_file(lora_folder / "intrinsix.safetensors")
    vae = load_pipeline(flux_folder, dtype=torch.float32, text_dtype=torch.float32).vae
    model = applied(world)
    maps = lumix.JointSampler.execute(
        model, *conditions(world), 96, 64, steps=2, guidance=GUIDANCE, cfg=1.0, sampler_name="euler", seed=SEED
    )[5]
    split = lumix.SplitMaps.execute(maps).args
    assert [isinstance(one, ExecutionBlocker) for one in split] == [False, True, True, True, False, False]
    decoded = lumix.DecodeMaps.execute(maps, vae).args
    picture = vae.decode(split[5]["samples"])
    assert len(decoded) == 7 and [isinstance(one, ExecutionBlocker) for one in decoded] == [False, True, True, True, False, False, False]
    for values, channel in zip(decoded[5:], (0, 1), strict=True):
        assert values.shape == picture.shape and torch.equal(values, picture[..., [channel]].expand_as(picture))
    assert torch.allclose(decoded[4].norm(dim=-1), torch.ones(picture.shape[:3]), atol=1e-4)


def test_lumix_still_goes_by_its_own_noise_levels(world, lora_folder):
    with torch.inference_mode(False):
        from lumix_world import config_of

        write_adapter(lora_folder / "lumix.safetensors", config_of())
    model = lumix.ApplyTensorLoRA.execute(world.model, "lumix.safetensors", 1.0)[0]
    sigmas = lumix.lumix_sampling.joint_sigmas(model, latents(model), STEPS)
    assert torch.equal(sigmas, lumix.MapSigmas.execute(latents(model), STEPS, lumix.PUBLISHED, 0.0)[0])


def test_what_does_not_fit_is_refused_in_words(world, lora_folder):
    path = lora_folder / "intrinsix.safetensors"
    whole = random_file(path)
    with pytest.raises(ValueError, match=r"makes albedo, material, normal: there is no color whose queries"):
        applied(world, attention="query-broadcast")
    random_file(path, single=3)
    with pytest.raises(ValueError, match="2 double and 3 single blocks, this MODEL has"):
        applied(world)
    first = next(iter(whole))
    for change, words in (
        ({key: tensor for key, tensor in whole.items() if key != first}, "lacks 1 weights of IntrinsiX's three rows"),
        (whole | {"transformer.proj_out.lora_A.weight": torch.zeros(1)}, r"has 1 others \(first: proj_out"),
        (whole | {first.replace(".0.lora", ".3.lora"): whole[first].clone()}, "has 1 others"),
        (whole | {first: torch.zeros(RANK + 1, WIDTH)}, "is damaged|the rest of the file asks"),
        (whole | {first: torch.full((RANK, WIDTH), torch.nan)}, "not finite numbers"),
        ({key: tensor for key, tensor in whole.items() if ".0.lora" in key}, r"lacks \d+ weights"),
    ):
        save_file(change, path)
        with pytest.raises(ValueError, match=rf"intrinsix\.safetensors: .*({words})"):
            read_map_adapter(path)
    save_file(whole, path)
    adapter = read_map_adapter(path)
    assert isinstance(adapter, RowAdapter) and adapter.maps == MAPS and load_file(path).keys() == whole.keys()
