"""The bundled nano FLUX and its LumiX adapter: native text, and maps sampled natively, against diffusers and transformers."""

import comfy.sample
import pytest
import torch
from intrinsic_lab.methods.lumix.design import COLOR, MAP_NAMES, Design
from intrinsic_lab.methods.lumix.schedule import published_shift, shifted_sigmas
from intrinsic_lab.methods.lumix.tensor_lora.file import read_adapter
from intrinsic_lab.nodes.native.joint_sampling.lumix import apply_adapter
from intrinsic_lab.nodes.native.joint_sampling.lumix_sampling import map_latents, sample_jointly
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.nodes.native.paths import bundled_file
from intrinsic_lab.training.backbones.flux import encode_texts, load_flux_base
from intrinsic_lab.training.lumix import MapDenoiser, sample_maps

PROMPT = "a red ball and a blue box on a gray floor, white walls, light from left"
FOLDER, ADAPTER = bundled_file("nano_flux"), bundled_file("nano_lumix.safetensors")


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(FOLDER, dtype=torch.float32, text_dtype=torch.float32)


def test_its_own_words_are_read_as_transformers_reads_them(pipeline):
    expected = encode_texts(FOLDER, [PROMPT])
    context, pooled = pipeline.clip.encode_from_tokens(pipeline.clip.tokenize(PROMPT), return_pooled=True)
    assert context.shape == expected.context.shape == (1, 48, 64)
    torch.testing.assert_close(context, expected.context, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled, expected.pooled, rtol=1e-4, atol=1e-4)
    other, _ = pipeline.clip.encode_from_tokens(pipeline.clip.tokenize(PROMPT.replace("red", "cyan")), return_pooled=True)
    assert (other - context).norm() > 0.1 * context.norm()


@pytest.mark.parametrize("cfg, given", [(3.0, ()), (1.0, (COLOR, "depth"))])
@torch.no_grad()
def test_maps_sampled_natively_are_those_of_the_trainers_own_network(pipeline, cfg, given):
    model = apply_adapter(pipeline.model, ADAPTER, 1.0, None, None, None)
    clean = {name: torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(row)) for row, name in enumerate(given)}
    conditions = []
    for text in (PROMPT, ""):
        context, pooled = pipeline.clip.encode_from_tokens(pipeline.clip.tokenize(text), return_pooled=True)
        conditions.append([[context, {"pooled_output": pooled}]])
    latent = map_latents(model, 128, 128, 1, {name: {"samples": tensor} for name, tensor in clean.items()})
    native = sample_jointly(model, *conditions, latent, 3, 3.5, cfg, "euler", 7)["samples"]

    noise = comfy.sample.prepare_noise(latent["samples"], 7, latent["batch_index"])[:1]
    text = encode_texts(FOLDER, [PROMPT, ""])
    denoiser = MapDenoiser(load_flux_base(FOLDER).transformer, read_adapter(ADAPTER).float())
    rows = (text.rows(torch.tensor([row])) for row in (0, 1))
    sigmas = shifted_sigmas(3, published_shift(64))
    expected = sample_maps(denoiser, Design(), noise, next(rows), sigmas, empty=next(rows), cfg=cfg, given=clean)[0]
    for row, name in enumerate(MAP_NAMES):
        # The adapter's merged cores are kept in the file's half precision.
        assert (native[row] - expected[row]).norm() < 5e-3 * expected[row].norm(), name
        assert name not in given or torch.equal(native[row], clean[name][0])
