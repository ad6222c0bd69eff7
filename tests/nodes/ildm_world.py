"""Tiny models of I-LDM's three families natively, random LoRAs for them, and ways to sample them: for the tests of I-LDM in ComfyUI."""

from pathlib import Path
from types import SimpleNamespace

import comfy.samplers
import diffusers
import folder_paths
import pytest
import torch
from comfy_extras import nodes_custom_sampler
from intrinsic_lab.methods.ildm import schedules
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.lora_file import kohya_state_dict
from intrinsic_lab.nodes import ildm
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.tests.nodes.conftest import randn
from safetensors.torch import save_file

import nodes as comfyui

STEPS, CFG, SEED = 3, 2.5, 7
FAMILIES = ("sd21", "sdxl", "pixart")
# The picture's sides in latent pixels: native PixArt refuses small ones.
SIDES = {"sd21": (16, 8), "sdxl": (16, 8), "pixart": (64, 48)}
PIXEL_WIDTH, PIXEL_HEIGHT = 384, 512


def network_of(folder):
    if (folder / "unet").is_dir():
        return diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    return diffusers.PixArtTransformer2DModel.from_pretrained(folder / "transformer")


def random_lora(network, seed, match=".attn1.to_"):
    """{module name: (down, up, scale)} of rank 3 on diffusers' names, strong enough to matter."""
    linear = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Linear) and match in name}
    draw = torch.Generator().manual_seed(seed)

    def half(rows, columns):
        return torch.randn(rows, columns, generator=draw) / columns**0.5

    return {name: (half(3, module.in_features), 0.5 * half(module.out_features, 3), 1.5) for name, module in linear.items()}


def save_lora(path, lora, family):
    if family == "pixart":
        state = {}
        for name, (down, up, scale) in lora.items():
            state |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
            state[f"base_model.model.{name}.alpha"] = torch.tensor(3 * scale)
    else:
        state = kohya_state_dict({name: LoraLayer(*parts) for name, parts in lora.items()})
    save_file(state, path)


@pytest.fixture(scope="session", name="worlds")
def make_worlds(sd21_folder, sdxl_folder, pixart_folder):
    """Each family natively, its conditioning, and the names its oracle needs."""
    folders = dict(zip(FAMILIES, (sd21_folder, sdxl_folder, pixart_folder), strict=True))
    made = {}

    def make(family):
        if family not in made:
            context_width = {"sd21": 32, "sdxl": 96, "pixart": 32}[family]
            made[family] = SimpleNamespace(
                family=family,
                folder=folders[family],
                model=load_pipeline(folders[family], dtype=torch.float32, text_dtype=torch.float32).model,
                contexts=[randn(1, 9, context_width, seed=seed) for seed in (1, 2)],
                pooled=[randn(1, 48, seed=seed) for seed in (3, 4)],
            )
        return made[family]

    return make


@pytest.fixture(autouse=True, name="lora_folder")
def make_lora_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    with torch.inference_mode():
        yield tmp_path


def native_conditions(world):
    """Positive and negative CONDITIONING."""
    made = []
    for context, pooled in zip(world.contexts, world.pooled, strict=True):
        extra = {"width": PIXEL_WIDTH, "height": PIXEL_HEIGHT}
        if world.family == "sdxl":
            extra["pooled_output"] = pooled
        made.append([[context, extra]])
    return made


def oracle_conditions(world):
    size = torch.tensor([[float(PIXEL_HEIGHT), PIXEL_WIDTH]])
    extras = {
        "sd21": [{}, {}],
        "sdxl": [
            {"text_embeds": pooled, "time_ids": torch.tensor([[PIXEL_HEIGHT, PIXEL_WIDTH, 0, 0, PIXEL_HEIGHT, PIXEL_WIDTH]])}
            for pooled in world.pooled
        ],
        "pixart": [{"resolution": size, "aspect_ratio": torch.tensor([[PIXEL_HEIGHT / PIXEL_WIDTH]])}] * 2,
    }[world.family]
    return list(zip(world.contexts, extras, strict=True))


def empty_latent(world, pairs=1):
    return {"samples": torch.zeros(pairs, 4, *SIDES[world.family])}


def joint_latent(world, pairs=1):
    return ildm.JointLatent.execute(empty_latent(world, pairs))[0]


def ksample(model, world, latent, cfg=CFG, sampler="euler", denoise=1.0, conditions=None):
    """What KSampler gives, in the model's own latent scale; conditions: positive and negative, the world's by default."""
    positive, negative = conditions or native_conditions(world)
    [result] = comfyui.common_ksampler(model, SEED, STEPS, cfg, sampler, "normal", positive, negative, latent, denoise)
    return model.model.process_latent_in(result["samples"])


def patched(world, schedule, lora=None, **options):
    """The node's MODEL; lora: as of `random_lora`, in a file of its own."""
    name = ildm.NO_LORA
    if lora is not None:
        [folder] = folder_paths.get_folder_paths("loras")
        save_lora(Path(folder) / "intrinsic.safetensors", lora, world.family)
        name = "intrinsic.safetensors"
    return ildm.CrossDomainAttention.execute(world.model, schedule, name, 1.0, **options)[0]


def rows_seen(model):
    """Numbers of rows of the network's forwards from now on."""
    rows = []
    model.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    return rows


def relative_error(one, other):
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def advanced_sample(model, world, latent, sampler):
    positive, negative = native_conditions(world)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(CFG)
    sigmas = comfy.samplers.calculate_sigmas(world.model.model.model_sampling, "normal", STEPS)
    noise = nodes_custom_sampler.Noise_RandomNoise(SEED)
    result = nodes_custom_sampler.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)
    return model.model.process_latent_in(result[0]["samples"])


# A native schedule, and the same as the oracle takes it.
SCHEDULES = {
    "drop": (
        schedules.drop_schedule(schedules.at_stages((1, 2)), 600),
        lambda index, stage, t: 1.0 if stage in (1, 2) and t <= 600 else 0.0,
    ),
    "drop by block": (
        schedules.drop_schedule(schedules.at_blocks((1,)), 900),
        lambda index, stage, t: 1.0 if index == 1 and t <= 900 else 0.0,
    ),
    "gaussian": (
        schedules.gaussian_schedule(0.8, 600, 300),
        lambda index, stage, t: 0.8 * torch.exp(torch.tensor(-((t - 600) ** 2) / 300**2, dtype=torch.float64)).item(),
    ),
    "one": (schedules.constant_schedule(1.0), lambda index, stage, t: 1.0),
    "zero": (schedules.constant_schedule(0.0), lambda index, stage, t: 0.0),
}
