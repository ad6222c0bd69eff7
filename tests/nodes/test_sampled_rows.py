"""Rows are known when sampling starts, and counted in every forward: windows of whole pictures are right, everything else is refused."""

import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.context_windows as windows
import pytest
import torch
from comfy.ldm.modules.attention import attention_basic, attention_pytorch
from intrinsic_lab.methods.ildm.joint_forward import DOMAINS, JointForward, exchange
from intrinsic_lab.methods.ildm.schedules import Block, constant_schedule
from intrinsic_lab.methods.rows import Rows, in_query_windows
from intrinsic_lab.nodes.native.backbones.unet.attention import exchange_in
from intrinsic_lab.nodes.native.batch_rows import lumix_rows, sampled_rows
from intrinsic_lab.nodes.native.joint_sampling import lumix
from intrinsic_lab.tests.nodes.conftest import randn

sys.path.insert(0, str(Path(__file__).parent))
from ildm_world import (  # noqa: F401 - fixtures
    joint_latent,
    ksample,
    make_lora_folder,
    make_worlds,
    network_of,
    patched,
    random_lora,
    relative_error,
)


def windowed(model, index_lists, **settings):
    """A MODEL that core's Context Windows cut into these rows."""
    clone = model.clone()
    clone.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.ContextSchedule("given", lambda frames, handler, options: index_lists),
        windows.get_matching_fuse_method(windows.ContextFuseMethods.FLAT),
        context_length=len(index_lists[0]),
        **{"causal_window_fix": False, **settings},
    )
    return clone


def test_context_windows_of_whole_pictures_change_nothing_and_others_are_refused(worlds):
    world = worlds("sd21")
    model, latent = patched(world, constant_schedule(0.5), random_lora(network_of(world.folder), 5)), joint_latent(world, pairs=2)
    wanted = ksample(model, world, latent)
    assert relative_error(ksample(windowed(model, [[0, 2], [1, 3]]), world, latent), wanted) < 1e-5
    with pytest.raises(ValueError, match=r"2 of 4 rows \(picture, picture\).* in one window: set its context length to 4"):
        ksample(windowed(model, [[0, 1], [2, 3]]), world, latent)
    for index_lists, settings in (([[2, 0], [3, 1]], {}), ([[0, 3], [1, 2]], {}), ([[0, 2], [1, 3]], {"causal_window_fix": True})):
        with pytest.raises(ValueError, match="in one window"):
            ksample(windowed(model, index_lists, **settings), world, latent)
    for setting, value in (("freenoise", True), ("latent_retain_index_list", "0")):
        with pytest.raises(ValueError, match=r"gives rows what belongs to others.*turn it off"):
            ksample(windowed(model, [[0, 2], [1, 3]], **{setting: value}), world, latent)


def test_given_maps_stay_given_in_a_window_of_their_picture(worlds):
    world = worlds("sd21")
    model = lumix.join_maps(world.model, ("color", "depth"), "query-broadcast")
    latent = joint_latent(world, pairs=2)
    latent["samples"] = torch.cat([randn(2, 4, *latent["samples"].shape[2:], seed=3), torch.zeros_like(latent["samples"][:2])])
    latent["noise_mask"] = torch.tensor([0.0, 0, 1, 1]).view(4, 1, 1, 1).expand(4, 1, *latent["samples"].shape[2:])
    wanted = ksample(model, world, latent)
    assert relative_error(ksample(windowed(model, [[0, 2], [1, 3]]), world, latent), wanted) < 1e-5
    clean = lumix_rows.CleanRows((0, 1), latent["samples"][:2]).among((1, 3))
    assert clean.rows == (0,) and torch.equal(clean.latent_bchw, latent["samples"][1:2])


@pytest.mark.parametrize("called, conditions, rows", [(2, 1, 4), (8, 1, 4), (4, 2, 4), (12, 2, 4), (1, 1, 2)])
def test_fewer_and_more_rows_than_were_sampled_are_refused(called, conditions, rows):
    options = {sampled_rows.KEY: rows, "cond_or_uncond": list(range(conditions))}
    with pytest.raises(ValueError, match=rf"called with {called} rows, {conditions * rows} were expected.*cannot be known. Remove it"):
        sampled_rows.rows_of_forward(DOMAINS, torch.zeros(called, 4, 2, 2), options)
    whole = sampled_rows.rows_of_forward(DOMAINS, torch.zeros(conditions * rows, 4, 2, 2), options)
    assert whole == Rows(DOMAINS, conditions, rows // 2)


def test_outside_of_a_sampling_batches_are_whole():
    assert sampled_rows.rows_of_forward(DOMAINS, torch.zeros(4, 4, 2, 2), {"cond_or_uncond": [1, 0]}) == Rows(DOMAINS, 2, 1)
    with pytest.raises(ValueError, match="called with 3 rows, a multiple of 2 was expected"):
        sampled_rows.rows_of_forward(DOMAINS, torch.zeros(3, 4, 2, 2), {})
    # A window over the height holds every row.
    over_height = windows.IndexListContextWindow([0, 1], dim=2, total_frames=8)
    assert sampled_rows.sampled_rows(torch.zeros(4, 4, 2, 2), {"context_window": over_height}) == (0, 1, 2, 3)


def test_queries_cut_into_windows_read_the_keys_that_core_gives_them():
    """HyperTile cuts queries alone; core's attentions then take consecutive keys."""
    rows, windows_per_row, tokens, width = Rows(DOMAINS, 1, 1), 4, 16, 8
    query = randn(2 * windows_per_row, tokens // windows_per_row, width, seed=1)
    key, value = randn(2, tokens, width, seed=2), randn(2, tokens, width, seed=3)
    core = attention_pytorch(query, key, value, 2)
    cut = in_query_windows(query, key, value)
    assert relative_error(attention_pytorch(query, *cut, 2), core) < 1e-6
    step = JointForward(rows, 500.0, constant_schedule(0.0))
    out = exchange(step, Block(0, 0), query, key, value, 2, lambda q, k, v: attention_basic(q, k, v, 2))
    assert relative_error(out[:windows_per_row], core[:windows_per_row]) < 1e-5
    with pytest.raises(ValueError, match="do not divide by it: remove HyperTile"):
        in_query_windows(randn(10, 2, width), key[:, :9].repeat(1, 1, 1), value[:, :9])


def test_what_is_left_of_a_model_made_anew_from_parts_is_refused_in_words(worlds):
    """AnimateDiff's Unload keeps a MODEL's options and leaves its wrappers."""
    world = worlds("sd21")
    clone = world.model.clone()
    exchange_in(clone)
    with pytest.raises(ValueError, match=r"without what tells them which rows are pictures.*before Cross-Domain Attention"):
        ksample(clone, world, joint_latent(world))
    maps = lumix.join_maps(world.model, ("color", "depth"), "query-broadcast")
    maps.wrappers = {}
    with pytest.raises(ValueError, match="without what tells them which rows are which map"):
        ksample(maps, world, SimpleNamespace(**joint_latent(world)).__dict__)
