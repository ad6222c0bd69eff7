"""Rows that meet on the transformers of 2026: I-LDM's exchange, LumiX's attentions and Tensor LoRA, against float64 equations."""

import comfy.sample
import comfy.samplers
import diffusers
import pytest
import torch
import torch.nn.functional as F
from intrinsic_lab.methods.ildm import schedules
from intrinsic_lab.methods.lumix.design import MAP_NAMES, Design
from intrinsic_lab.methods.lumix.tensor_lora.config import AdapterConfig
from intrinsic_lab.nodes import ildm, lumix
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.tests.nodes import flow_world
from intrinsic_lab.tests.nodes.conftest import randn
from intrinsic_lab.tests.nodes.flow_oracle import (
    DOUBLE,
    SINGLE,
    TEXT,
    FlowOracle,
    changed_rows,
    joint_domains,
    joint_maps,
    roles,
    ungrouped,
    updated_maps,
)
from intrinsic_lab.tests.nodes.ildm_world import make_lora_folder, random_lora, relative_error, save_lora  # noqa: F401 - a fixture
from intrinsic_lab.tests.nodes.lumix_oracle import dense
from intrinsic_lab.tests.nodes.lumix_world import write_adapter

import nodes as comfyui

STEPS, CFG, SEED, COLOR = 3, 2.5, 7, MAP_NAMES.index("color")
NAMES = ("flux", *flow_world.TINY)


def _flux1(network, latent, time, context, pooled):
    rows, columns = flow_world._grid(*(side // 2 for side in latent.shape[2:]))
    ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
    guidance = torch.full_like(time, 3.5)
    out = network(flow_world._tokens(latent), context, pooled, time, ids, torch.zeros(context.shape[1], 3), guidance)
    return flow_world._picture(out.sample, latent)


class World:
    """A tiny transformer natively and by diffusers, and its prompts."""

    def __init__(self, name, folder, flux_folder):
        self.name = name
        if name == "flux":
            self.network = diffusers.FluxTransformer2DModel.from_pretrained(flux_folder / "transformer")
            self.model = load_pipeline(flux_folder, dtype=torch.float32, text_dtype=torch.float32).model
            text, self.channels, pooled, self.velocity = 32, 16, 32, _flux1
        else:
            folder.mkdir()
            self.network, self.model, tiny = flow_world.build(name, folder), flow_world.load(name, folder), flow_world.TINY[name]
            text, self.channels, pooled, self.velocity = tiny.text, tiny.channels, tiny.pooled, tiny.velocity
        self.network = self.network.double()
        self.prompts = [(randn(1, 9, text, seed=seed), randn(1, pooled, seed=seed + 10) if pooled else None) for seed in (1, 2)]

    @property
    def conditions(self):
        return [[[context, {} if pooled is None else {"pooled_output": pooled}]] for context, pooled in self.prompts]

    def oracle(self, attend):
        return FlowOracle(self.name, self.network, self.velocity, attend)

    def oracle_prompts(self):
        # ComfyUI pads FLUX.2's text with zeros before it, to 512 tokens.
        pad = 512 - 9 if self.name == "flux2" else 0
        return [(F.pad(context, (0, 0, pad, 0)), pooled) for context, pooled in self.prompts]

    def empty(self, rows=1):
        return {"samples": torch.zeros(rows, self.channels, 8, 12)}

    def sample(self, model, latent, conditions=None, cfg=CFG, denoise=1.0):
        """Of KSampler, in the model's own scale, [row, channel, height, width]."""
        [result] = comfyui.common_ksampler(model, SEED, STEPS, cfg, "euler", "normal", *(conditions or self.conditions), latent, denoise)
        found = model.model.process_latent_in(result["samples"])
        return found[:, :, 0] if found.ndim == 5 else found

    def start(self, latent):
        """Noise and noise levels of `sample`."""
        noise = comfy.sample.prepare_noise(latent["samples"], SEED, latent["batch_index"])
        sigmas = comfy.samplers.calculate_sigmas(self.model.model.model_sampling, "normal", STEPS)
        return noise, sigmas


@pytest.fixture(scope="module", name="worlds")
def make_worlds(tmp_path_factory, flux_folder):
    made = {}

    def find(name):
        if name not in made:
            made[name] = World(name, tmp_path_factory.mktemp("joint") / name, flux_folder)
        return made[name]

    return find


def attended(world):
    """Roles of the attentions over the picture, in order."""
    return [role for role in roles(world.name, world.network.config) if role != TEXT]


def intrinsic_lora(world):
    match = ("attn.to_", "attn2.to_", "attention.to_")
    lora = {name: parts for part in match for name, parts in random_lora(world.network, 5, part).items()}
    return {name: parts for name, parts in lora.items() if "context_refiner" not in name}


@pytest.mark.parametrize("name", NAMES)
def test_three_guided_steps_of_cross_domain_attention_equal_the_equations_in_float64(name, worlds, lora_folder):
    world, pairs = worlds(name), 2 if name == "sd35" else 1
    with torch.inference_mode(False):
        lora = intrinsic_lora(world)
    save_lora(lora_folder / "intrinsic.safetensors", lora, "pixart")
    # By block and by time, and in some blocks at some times nothing.
    places = len(attended(world))
    native = schedules.restricted(schedules.gaussian_schedule(0.8, 600, 400), schedules.at_blocks(range(1, places)))
    model = ildm.CrossDomainAttention.execute(world.model, native, "intrinsic.safetensors", 1.0)[0]
    latent = ildm.JointLatent.execute(world.empty(pairs))[0]
    found = world.sample(model, latent)
    now = {}

    def w(index):
        return 0.8 * torch.exp(torch.tensor(-((max(now["t"], 0) - 600) ** 2) / 400**2, dtype=torch.float64)).item() * (index > 0)

    oracle = world.oracle(joint_domains(w, pairs))
    noise, sigmas = world.start(latent)
    with changed_rows(world.network, lora, slice(pairs, None)):
        wanted = oracle.euler(noise, sigmas, world.oracle_prompts(), CFG, on_step=lambda t: now.update(t=t))
    assert oracle.calls == 2 * STEPS * places
    assert relative_error(found[:pairs], wanted[:pairs]) < 1e-4
    assert relative_error(found[pairs:], wanted[pairs:]) < 1e-4
    # It is the exchange that was compared.
    apart = world.sample(world.model, latent)
    assert relative_error(found[:pairs], apart[:pairs]) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_zero_weight_leaves_the_picture_bit_identical_and_the_model_as_it_was(name, worlds, lora_folder):
    world = worlds(name)
    with torch.inference_mode(False):
        save_lora(lora_folder / "intrinsic.safetensors", intrinsic_lora(world), "pixart")
    latent = ildm.JointLatent.execute(world.empty(2))[0]
    base = world.sample(world.model, latent)
    model = ildm.CrossDomainAttention.execute(world.model, schedules.constant_schedule(0.0), "intrinsic.safetensors", 1.0)[0]
    found = world.sample(model, latent)
    assert torch.equal(found[:2], base[:2])
    assert relative_error(found[2:], base[2:]) > 1e-3
    # A clone leaves nothing behind, not even where a forward fails.
    armed = []
    failing = ildm.CrossDomainAttention.execute(world.model, lambda block, t: 1 / (not armed), "intrinsic.safetensors", 1.0)[0]
    armed.append(True)
    with pytest.raises(ZeroDivisionError):
        world.sample(failing, latent)
    network = world.model.model.diffusion_model
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert torch.equal(world.sample(world.model, latent), base)


@pytest.mark.parametrize("attention", ["query-broadcast", "cross-intrinsic"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "flux"])
def test_three_guided_steps_of_maps_with_tensor_lora_equal_the_paper_in_float64(name, attention, worlds, lora_folder):
    world, maps = worlds(name), len(MAP_NAMES)
    streams, width = attended(world), sum(world.model.model.diffusion_model.state_dict()[key].shape[0] for key in _exits(world)[:1])
    noise, sigmas = world.start({**world.empty(maps), "batch_index": [0] * maps})
    config = AdapterConfig(
        Design(attention, "tensor"), width=width, double_blocks=streams.count(DOUBLE), single_blocks=streams.count(SINGLE), rank=3
    )
    with torch.inference_mode(False):
        adapter = write_adapter(lora_folder / "lumix.safetensors", config)
    model = lumix.ApplyTensorLoRA.execute(world.model, "lumix.safetensors", 0.4)[0]
    # An adapter changes keys and values as attention reads them: where heads share some, each head's own.
    network = ungrouped(world.network) if name == "lumina2" else world.network
    oracle = FlowOracle(name, network, world.velocity, joint_maps(attention, COLOR))
    updates = [
        (attn, *(dense(getattr(block, place).named_parameters(), "tensor", outputs, maps, width) for place, outputs in PLACES))
        for attn, block in zip(_attentions(name, network), [*adapter.double_blocks, *adapter.single_blocks], strict=True)
    ]
    # Pixels of the tiny latents: a format knows how many one of their numbers stands for.
    scale = 16 if getattr(world.model.get_model_object("latent_format"), "spacial_downscale_ratio", 8) == 16 else 8
    latent = lumix.MapLatents.execute(model, 12 * scale, 8 * scale, 1)[0]
    settings = dict(steps=STEPS, guidance=3.5, cfg=CFG, sampler_name="euler", seed=SEED)
    output = lumix.JointSampler.execute(model, *world.conditions, 12 * scale, 8 * scale, latent=latent, **settings)[5]["samples"]
    found = model.model.process_latent_in(output)
    found = found[:, :, 0] if found.ndim == 5 else found
    with updated_maps(updates, width, strength=0.4):
        wanted = oracle.euler(noise, sigmas, world.oracle_prompts(), CFG)
    assert relative_error(found, wanted) < 1e-4
    assert relative_error(found, wanted[COLOR].expand_as(wanted)) > 1e-3


@pytest.mark.parametrize("name", ["sd35", "qwen_image", "z_image", "flux2"])
def test_a_given_map_is_seen_clean_at_its_own_time_and_comes_back_exactly(name, worlds):
    world, maps = worlds(name), ("albedo", "color", "normal")
    model = lumix.JoinMaps.execute(world.model, "cross-intrinsic", ", ".join(maps))[0]
    given = {"samples": randn(1, *world.empty()["samples"].shape[1:], seed=20)}
    latent = lumix.MapLatents.execute(model, 96, 64, 1, color=given)[0]
    found = world.sample(model, latent)
    noise, sigmas = world.start(latent)
    clean = {1: model.model.process_latent_in(given["samples"].unsqueeze(2) if name == "qwen_image" else given["samples"])[0].squeeze(1)}
    wanted = world.oracle(joint_maps("cross-intrinsic", 1)).euler(noise, sigmas, world.oracle_prompts(), CFG, clean=clean)
    assert relative_error(found, wanted) < 1e-4
    assert relative_error(wanted[[0, 2]], noise[[0, 2]]) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_an_override_of_others_answers_where_rows_meet_in_both_orders(name, worlds):
    world, calls = worlds(name), []

    def override(function, query, key, *args, **options):
        # As SageAttention does: a softmax does not see the keys' mean.
        calls.append(key.shape)
        axis = 2 if options.get("skip_reshape") else 1
        return function(query, key - key.mean(dim=axis, keepdim=True), *args, **options)

    def overridden(model):
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = override
        return clone

    def exchanged(model):
        return ildm.CrossDomainAttention.execute(model, schedules.constant_schedule(0.6), ildm.NO_LORA, 1.0)[0]

    def joined(model):
        return lumix.JoinMaps.execute(model, "cross-intrinsic", "color, depth")[0]

    for apply in (exchanged, joined):
        latent = {**world.empty(2), "batch_index": [0, 0]}
        # Rows of one noise and one text stay alike: a mask on a row's own latent sets them apart.
        latent["noise_mask"] = torch.stack([torch.ones(1, 8, 12), torch.ones(1, 8, 12).tril()])
        if name == "qwen_image":
            latent["noise_mask"] = latent["noise_mask"].unsqueeze(2)
        wanted = world.sample(apply(world.model), latent)
        assert relative_error(wanted, world.sample(world.model, latent)) > 1e-4
        for order in (lambda model, apply=apply: apply(overridden(model)), lambda model, apply=apply: overridden(apply(model))):
            calls.clear()
            assert relative_error(world.sample(order(world.model), latent), wanted) < 1e-5
            assert calls


PLACES = (("input", 2), ("proj", 1))


def _exits(world):
    places = [key for key in world.model.model.diffusion_model.state_dict() if key.endswith(EXITS)]
    return places


EXITS = ("img_attn.proj.weight", "x_block.attn.proj.weight", "attn.to_out.0.weight", "attention.out.weight")


def _attentions(name, network):
    """diffusers' attentions that an adapter changes, in order."""
    if name in ("z_image", "lumina2"):
        return [layer.attention if name == "z_image" else layer.attn for layer in network.layers]
    return [block.attn for block in (*network.transformer_blocks, *getattr(network, "single_transformer_blocks", ()))]
