"""Weight schedules against the paper's equations, written out anew."""

import math

import pytest
import torch
from intrinsic_lab.methods.ildm.heat_map import COLUMNS, RAMP, heat_map, weight_table
from intrinsic_lab.methods.ildm.schedules import (
    Block,
    at_blocks,
    at_stages,
    constant_schedule,
    drop_schedule,
    gaussian_schedule,
    maximum,
    parse_positions,
    parse_table,
    product,
    restricted,
    stage_blocks,
    table_schedule,
    transformer_blocks,
)

SD21 = stage_blocks((2, 2, 2, 0, 1, 0, 3, 3, 3))
TIMESTEPS = (0, 1, 499.5, 700, 800, 899, 900, 900.5, 901, 999)


def test_drop_is_one_in_its_blocks_up_to_tau_and_zero_elsewhere():
    schedule = drop_schedule(at_blocks((3, 4, 5, 6, 7)), tau=900)
    seen = {(index, t): schedule(Block(index, 99), t) for index in range(16) for t in TIMESTEPS}
    assert seen == {(index, t): float(3 <= index <= 7 and t <= 900) for index in range(16) for t in TIMESTEPS}


def test_the_default_drop_is_the_papers_read_as_resolution_stages():
    schedule = drop_schedule()
    assert [schedule(Block(0, stage), 900) for stage in range(9)] == [0, 0, 0, 1, 1, 1, 1, 1, 0]
    assert schedule(Block(0, 5), 901) == 0


def test_gaussian_has_the_papers_defaults_and_no_factor_two():
    schedule = gaussian_schedule()
    for t in TIMESTEPS:
        assert schedule(SD21[0], t) == pytest.approx(math.e ** (-((t - 800) * (t - 800)) / (100 * 100)), abs=1e-15)
    assert gaussian_schedule(0.25, 500, 50)(SD21[3], 550) == pytest.approx(0.25 / math.e)


def test_schedules_compose_pointwise():
    gaussian, drop = gaussian_schedule(), drop_schedule()
    combined = {
        "product": product(gaussian, drop),
        "maximum": maximum(gaussian, drop),
        "restricted": restricted(gaussian, at_stages((4,))),
        "halved": product(gaussian, constant_schedule(0.5)),
    }
    for block in SD21:
        for t in TIMESTEPS:
            g, d = gaussian(block, t), drop(block, t)
            wanted = {"product": g * d, "maximum": max(g, d), "restricted": g if block.stage == 4 else 0, "halved": g / 2}
            assert {name: schedule(block, t) for name, schedule in combined.items()} == wanted


def test_a_table_is_linear_between_its_points_and_constant_beyond():
    schedule = table_schedule(parse_table("900: 0.2,\n 500: 1, 100: 0"))
    assert [schedule(SD21[0], t) for t in (0, 100, 300, 500, 700, 900, 999)] == pytest.approx([0, 0, 0.5, 1, 0.6, 0.2, 0.2])


def test_blocks_are_counted_through_the_stages_and_a_transformer_has_nine():
    assert [block.index for block in SD21] == list(range(16))
    assert [block.stage for block in SD21] == [0, 0, 1, 1, 2, 2, 4, 6, 6, 6, 7, 7, 7, 8, 8, 8]
    assert {block.stage for block in transformer_blocks(28)} == set(range(9))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gaussian_schedule(sigma=0), "sigma"),
        (lambda: gaussian_schedule(alpha=1.5), "alpha"),
        (lambda: gaussian_schedule(tau=1000), "tau"),
        (lambda: drop_schedule(tau=-1), "tau"),
        (lambda: constant_schedule(math.nan), "weight"),
        (lambda: at_blocks((-1,)), "negative"),
        (lambda: table_schedule(()), "empty"),
        (lambda: table_schedule(((5, 1), (5, 0))), "twice"),
        (lambda: table_schedule(((5, 2),)), "timestep 5"),
        (lambda: parse_positions("3-x"), "3-7, 9"),
        (lambda: parse_positions("7-3"), "backwards"),
        (lambda: parse_positions(" , "), "no block"),
        (lambda: parse_table("3"), "timestep: weight"),
        (lambda: heat_map(lambda block, t: 2.0, SD21), "0..1"),
    ],
)
def test_impossible_schedules_are_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_positions_are_numbers_and_ranges():
    assert parse_positions("3-7, 9 , 0,4") == (3, 4, 5, 6, 7, 9, 0)


def test_the_heat_map_shows_every_block_and_timestep_in_the_ramps_colours():
    schedule = drop_schedule(tau=500)
    picture = heat_map(schedule, SD21)
    stages = len({block.stage for block in SD21})
    assert picture.shape == (1, 16 * 10 + stages - 1, COLUMNS, 3)
    colors = {tuple((255 * color).round().int().tolist()) for color in picture.reshape(-1, 3)}
    assert colors == {RAMP[0], RAMP[-1], (96, 96, 96)}
    weights = weight_table(schedule, SD21)
    bright = (picture[0, :, :, 0] > 0.9).float()
    assert torch.equal(bright.sum(0), weights.sum(0).float() * 10)
    assert weights[6, 0] == 0 and weights[6, -1] == 1, "sampling runs from noise on the left to the clean picture on the right"


def test_the_heat_map_interpolates_between_colours():
    picture = heat_map(constant_schedule(0.125), transformer_blocks(28))
    wanted = [round((a + b) / 2) for a, b in zip(RAMP[0], RAMP[1], strict=True)]
    assert (255 * picture[0, 0, 0]).round().int().tolist() == wanted
