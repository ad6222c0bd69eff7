"""Extract Maps of a Sequence on a tiny random Stable Diffusion, against Extract Intrinsic Maps and against diffusers."""

import sys
from pathlib import Path

import comfy.model_management
import diffusers
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.nodes import sequence as sequence_nodes
from intrinsic_lab.nodes.sequence import ExtractSequence

sys.path.insert(0, str(Path(__file__).parent))
from extract_world import ATTENTION, apply, embed, extract, folders, hooks_left, peft_unet, save_lora, tiny, to_model

# Noise over one picture, brighter from frame to frame: maps of neighbours agree in part.
FRAMES = torch.rand(6, 32, 40, 3, generator=torch.Generator().manual_seed(0))
FRAMES = torch.linspace(0.7, 0.9, 5)[:, None, None, None] * FRAMES[:1] + 0.03 * FRAMES[1:]


@pytest.fixture
def two_maps(tiny, folders):
    """A MODEL that carries normals and depth, and the diffusers UNets with the same LoRAs."""
    model, unets = tiny.model, {}
    for seed, name in enumerate(("normal", "depth")):
        unets[name], state = peft_unet(tiny, ATTENTION, seed)
        save_lora(folders, name, state)
        model = apply(model, name)
    return model, unets


def sequence(tiny, model, image, **settings):
    defaults = dict(align_depth=False, anchor_weight=0.0, anchor_every=0, frames_at_once=8)
    defaults |= dict(processing_resolution=0, tile_size=0, tile_overlap=64, mirrored_average=False, merged_map="none")
    return ExtractSequence.execute(model, tiny.clip, tiny.native_vae, image, **(defaults | settings))


def by_name(output):
    return {name: values for name, values in zip(MAPS, output.args, strict=True) if not isinstance(values, ExecutionBlocker)}


class ReadsFirstRow:
    """diffusers' attention processor for self-attention in which each row also reads the first row's keys: the equation, concatenated."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        batch, tokens, _ = hidden_states.shape
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        bias = None
        if encoder_hidden_states is None:
            key, value = (torch.cat([x, x[:1].expand_as(x)], 1) for x in (key, value))
            bias = torch.zeros(batch, 1, tokens, 2 * tokens)
            bias[..., tokens:] = torch.tensor(self.weight).log()
            bias[0, ..., tokens:] = float("-inf")
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def test_without_weight_and_alignment_it_is_extract_intrinsic_maps_bit_for_bit(tiny, two_maps):
    model, _ = two_maps
    plain, alone = extract(tiny, model, FRAMES), by_name(sequence(tiny, model, FRAMES))
    assert list(alone) == ["normal", "depth"]
    assert torch.equal(alone["normal"], plain[0]) and torch.equal(alone["depth"], plain[1])
    # Alignment is of depth alone, and it does something here.
    aligned = by_name(sequence(tiny, model, FRAMES, align_depth=True))
    assert torch.equal(aligned["normal"], plain[0]) and not torch.equal(aligned["depth"], plain[1])
    assert torch.equal(aligned["depth"][0], plain[1][0])


def test_an_anchor_equals_diffusers_with_its_keys_concatenated(tiny, two_maps):
    model, unets = two_maps
    outputs = by_name(sequence(tiny, model, FRAMES, anchor_weight=0.4))
    config = tiny.vae.config
    latent = to_model(tiny, tiny.vae.encode(FRAMES.movedim(-1, 1) * 2 - 1).latent_dist.mode())
    for name, unet in unets.items():
        pictures = {}
        for processor in (ReadsFirstRow(0.4), diffusers.models.attention_processor.AttnProcessor2_0()):
            unet.set_attn_processor(processor)
            out = unet(latent, torch.tensor([999]), embed(tiny, MAPS[name].prompt).expand(len(FRAMES), -1, -1)).sample
            decoded = tiny.vae.decode(out / config.scaling_factor + (config.shift_factor or 0)).sample.movedim(1, -1) / 2 + 0.5
            pictures[type(processor)] = decoded
        anchored, plain = pictures.values()
        # Normals before normalisation, which magnifies rounding where they are short.
        length = (anchored * 2 - 1).norm(dim=-1, keepdim=True) if name == "normal" else 1
        difference = (outputs[name] - MAPS[name].from_picture(anchored)) * length
        assert difference.abs().max() < 1e-3
        assert (anchored - plain)[1:].abs().max() > 0.02, "the anchor is too weak for this comparison to mean anything"
        assert torch.equal(anchored[:1], plain[:1]) or (anchored - plain)[:1].abs().max() < 1e-4
    assert hooks_left(tiny.model) == 0


def test_chunks_memory_that_runs_out_and_mirrored_frames_do_not_change_the_result(tiny, two_maps, monkeypatch):
    model, _ = two_maps
    settings = dict(align_depth=True, anchor_weight=1.0, anchor_every=3)
    whole = by_name(sequence(tiny, model, FRAMES, **settings))
    rows = []

    def run_out(module, args):
        rows.append(args[0].shape[0])
        if rows[-1] > most:
            raise comfy.model_management.OOM_EXCEPTION("no memory for this many rows")

    handle = tiny.model.model.diffusion_model.register_forward_pre_hook(run_out)
    try:
        for frames_at_once, most in ((1, 99), (2, 99), (8, 4), (8, 3)):
            rows.clear()
            other = by_name(sequence(tiny, model, FRAMES, frames_at_once=frames_at_once, **settings))
            for name in whole:
                length = 1 if name == "depth" else 0.2
                assert ((other[name] - whole[name]) * length).abs().max() < 2e-3, (name, frames_at_once, most, rows)
    finally:
        handle.remove()
    with monkeypatch.context() as patch:
        patch.setattr(sequence_nodes, "rows_per_forward", lambda model, height, width: 1)
        least = by_name(sequence(tiny, model, FRAMES[:3], mirrored_average=True, anchor_weight=1.0))
    mirrored = by_name(sequence(tiny, model, FRAMES[:3], mirrored_average=True, anchor_weight=1.0))
    assert (least["depth"] - mirrored["depth"]).abs().max() < 2e-3


def test_it_stops_at_the_next_forward_when_cancelled(tiny, two_maps):
    model, _ = two_maps
    forwards = []

    def cancel(module, args):
        forwards.append(args[0].shape[0])
        comfy.model_management.interrupt_current_processing()

    handle = tiny.model.model.diffusion_model.register_forward_pre_hook(cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sequence(tiny, model, FRAMES, frames_at_once=2)
    finally:
        handle.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert forwards == [4] and hooks_left(tiny.model) == 0


def test_what_cannot_be_extracted_is_told_before_the_work_begins(tiny, two_maps, monkeypatch):
    model, _ = two_maps
    monkeypatch.setattr(sequence_nodes, "extract_sequence", lambda *args: pytest.fail("the work began"))
    broken = torch.rand(20, 16, 16, 3)
    broken[17, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="from frame 16 holds 3 of"):
        sequence(tiny, model, broken)
    with pytest.raises(ValueError, match="image, from frame 0 is empty"):
        sequence(tiny, model, FRAMES[:0])
    with pytest.raises(ValueError, match="carries no intrinsic LoRA"):
        sequence(tiny, tiny.model, FRAMES)
    replaced = model.clone()
    replaced.set_model_attn1_replace(lambda q, k, v, options: v, "input", 1)
    with pytest.raises(ValueError, match="set the anchor weight to 0"):
        sequence(tiny, replaced, FRAMES, anchor_weight=0.5)
