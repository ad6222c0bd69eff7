"""The counters against the figures the LumiX paper publishes (table 1: 512 text + 1,024 image tokens, D = 3,072, five maps, rank 8)."""

import pytest
from intrinsic_lab.kernels import flops

TOKENS, WIDTH, MAPS, RANK = 1536, 3072, 5, 8


def test_attention_of_a_lumix_block_is_the_published_145_gflop():
    assert flops.query_broadcast_flops(TOKENS, WIDTH, MAPS) == pytest.approx(145.1e9, rel=2e-3)


def test_cross_intrinsic_attention_is_the_published_725_gflop():
    assert flops.cross_intrinsic_flops(TOKENS, WIDTH, MAPS) == pytest.approx(724.7e9, rel=2e-3)


def test_tensor_lora_of_a_block_has_the_published_parameters():
    block = flops.lumix_block_parameters(WIDTH, MAPS, RANK)
    assert block == pytest.approx(2.34e6, rel=3e-3)
    assert (19 + 38) * block == pytest.approx(133.1e6, rel=1e-3)


@pytest.mark.parametrize(("rank", "projections", "published"), [(8, 2, 12.1e9), (8, 3, 14.1e9), (4, 2, 4.7e9), (12, 2, 22.5e9)])
def test_tensor_lora_of_a_block_costs_the_published_gflop(rank, projections, published):
    counted = flops.tensor_lora_published_flops
    both = counted(TOKENS, WIDTH, projections * WIDTH, MAPS, rank) + counted(TOKENS, WIDTH, WIDTH, MAPS, rank)
    assert both == pytest.approx(published, abs=0.05e9)


def test_both_domains_of_an_sdxl_block_cost_16_n_squared_d():
    assert flops.cross_domain_attention_flops(4096, 640) == 16 * 4096**2 * 640
    assert flops.cross_domain_attention_flops(4096, 640, image_reads_intrinsic=False) == 12 * 4096**2 * 640


def test_saved_query_projections_are_the_116_gflop_of_a_single_stream_block():
    assert flops.saved_query_flops(TOKENS, WIDTH, MAPS) == pytest.approx(116e9, rel=2e-3)


def test_attention_count_equals_what_torch_counts_for_the_same_products():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    query, key = torch.randn(1, 3, 10, 16), torch.randn(1, 3, 14, 16)
    with FlopCounterMode(display=False) as counter:
        (query @ key.transpose(-1, -2)) @ key
    assert counter.get_total_flops() == flops.attention_flops(10, 14, 48)


def test_tensor_lora_counts_equal_what_torch_counts_for_the_merged_order():
    import torch
    from intrinsic_lab.kernels.tensor_lora import merge_cores, shrink
    from torch.utils.flop_counter import FlopCounterMode

    merged, g3 = merge_cores(torch.randn(5, 5, 8), torch.randn(5, 32, 8, 8)), torch.randn(5, 48, 8)
    with FlopCounterMode(display=False) as counter:
        # torch counts no product that adds in place, so the expansion is spelled out of place here.
        shrink(torch.randn(5, 7, 32), merged, backend="torch") @ g3.transpose(1, 2)
    assert counter.get_total_flops() == flops.tensor_lora_flops(7, 32, 48, 5, 8)
