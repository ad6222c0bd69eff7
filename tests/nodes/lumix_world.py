"""A tiny FLUX natively, random LumiX adapters for it, and ways to sample it: for the tests of LumiX in ComfyUI."""

from types import SimpleNamespace

import comfy.sample
import comfy.samplers
import diffusers
import folder_paths
import node_helpers
import pytest
import torch
from comfy_extras import nodes_custom_sampler
from intrinsic_lab.methods.lumix.design import MAP_NAMES, Design
from intrinsic_lab.methods.lumix.tensor_lora.config import AdapterConfig
from intrinsic_lab.methods.lumix.tensor_lora.file import file_state
from intrinsic_lab.methods.lumix.tensor_lora.layer import Adapter
from intrinsic_lab.nodes import lumix
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.tests.nodes.conftest import randn
from intrinsic_lab.tests.nodes.lumix_oracle import FluxOracle, dense
from safetensors.torch import save_file

STEPS, CFG, GUIDANCE, SEED = 4, 2.5, 3.5, 7
WIDTH, MAPS, COLOR = 32, len(MAP_NAMES), MAP_NAMES.index("color")
PIXELS = {"width": 96, "height": 64}


def config_of(lora="tensor", attention="query-broadcast", **changes):
    design = Design(attention, lora, changes.pop("maps", MAP_NAMES), changes.pop("adapt_query", False))
    sizes = {"width": WIDTH, "double_blocks": 2, "single_blocks": 2, "rank": 3, "other_rank": 2 if lora == "hybrid" else 0}
    return AdapterConfig(design, **{**sizes, **changes})


def write_adapter(path, config, seed=0):
    """A random adapter, strong enough to matter."""
    adapter = Adapter(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            size = 0.5 if name.endswith(("G3", "up")) else parameter.shape[-2] ** -0.5
            parameter.copy_(size * torch.randn(parameter.shape, generator=draw))
    tensors, header = file_state(adapter)
    save_file(tensors, path, header)
    return adapter


@pytest.fixture(scope="session", name="world")
def make_world(flux_folder):
    """The tiny FLUX natively, its prompts, and the adapter of the default design."""
    return SimpleNamespace(
        folder=flux_folder,
        model=load_pipeline(flux_folder, dtype=torch.float32, text_dtype=torch.float32).model,
        prompts=[(randn(1, 9, 32, seed=seed), randn(1, 32, seed=seed + 10)) for seed in (1, 2)],
    )


@pytest.fixture(autouse=True, name="lora_folder")
def make_lora_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    with torch.inference_mode():
        yield tmp_path


def conditions(world):
    return [[[context, {"pooled_output": pooled}]] for context, pooled in world.prompts]


def patched(model, folder, config=None, strength=1.0, **options):
    """The node's MODEL with a random adapter."""
    with torch.inference_mode(False):
        write_adapter(folder / "lumix.safetensors", config or config_of())
    return lumix.ApplyTensorLoRA.execute(model, "lumix.safetensors", strength, **options)[0]


def latents(model, **given):
    return lumix.MapLatents.execute(model, **PIXELS, batch_size=1, **given)[0]


def joint(model, world, latent=None, cfg=CFG, sampler="euler", steps=STEPS, prompts=None):
    """The Joint Sampler's batch, in the model's own latent scale."""
    settings = dict(steps=steps, guidance=GUIDANCE, cfg=cfg, sampler_name=sampler, seed=SEED)
    output = lumix.JointSampler.execute(model, *(prompts or conditions(world)), **PIXELS, latent=latent, **settings)
    return model.model.process_latent_in(output[5]["samples"])


def relative_error(one, other):
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def oracle_of(world, adapter, strength=1.0, blocks=None):
    """The oracle of an adapter; blocks: {(kind, number)} that are changed, None for all."""
    config, network = adapter.config, diffusers.FluxTransformer2DModel.from_pretrained(world.folder / "transformer")

    def deltas(kind, number, place):
        layer = getattr(getattr(adapter, f"{kind}_blocks")[number], place)
        outputs = 1 if place == "proj" else config.input_outputs
        return dense(layer.named_parameters(), config.design.lora, outputs, len(config.design.maps), WIDTH)

    return FluxOracle(network, config.design.attention, config.design.color_row, deltas, strength)


def wanted_by(oracle, world, latent, clean=None):
    noise = comfy.sample.prepare_noise(latent["samples"], SEED, latent["batch_index"])
    sigmas = lumix.MapSigmas.execute(latent, STEPS, lumix.PUBLISHED, 0.0)[0]
    return oracle.euler(noise, sigmas, *world.prompts, GUIDANCE, CFG, clean)


def advanced(model, latent, sigmas, prompts, cfg=CFG):
    """Core's SamplerCustomAdvanced on the parts."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*(node_helpers.conditioning_set_values(prompt, {"guidance": GUIDANCE}) for prompt in prompts))
    guider.set_cfg(cfg)
    noise, euler = nodes_custom_sampler.Noise_RandomNoise(SEED), comfy.samplers.sampler_object("euler")
    return nodes_custom_sampler.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, latent)[0]["samples"]
