"""The benchmarks that show what the bundled models can do measure what they say."""

import math

import pytest
import torch
from einops import rearrange
from intrinsic_lab.benchmarks import base_checkpoints, ildm_attention, ildm_table, lumix_table, photographs, text_table
from intrinsic_lab.methods.ildm import joint_forward
from intrinsic_lab.methods.ildm.schedules import Block, constant_schedule
from intrinsic_lab.methods.rows import Rows
from intrinsic_lab.scenes import sample_scenes
from torch import Tensor, nn


def test_claims_hold_for_measured_depth_and_not_for_its_negative():
    metres = photographs.motorcycle_metres()
    known = metres.nan_to_num(metres.nanmedian().item())
    claims = [claim for claim in photographs.CLAIMS if claim.photograph == "motorcycle" and claim.group != photographs.NORMALS]
    assert len(claims) >= 4 and 1.5 < metres.nanmedian() < 6
    assert all(claim.holds({"depth": known}) for claim in claims)
    assert not any(claim.holds({"depth": -known}) for claim in claims)


def test_claims_on_normals_hold_for_a_ball_and_a_floor_and_not_for_a_wall():
    x = torch.linspace(-0.9, 0.9, 40).expand(40, 40)
    ball = torch.stack([x, torch.zeros_like(x), (1 - x**2).sqrt()], -1)[None]
    floor, wall = torch.zeros(1, 40, 40, 3), torch.zeros(1, 40, 40, 3)
    floor[..., 1], wall[..., 2] = 1, 1
    everywhere, left, right = (0.0, 0.0, 1.0, 1.0), (0.0, 0.2, 0.3, 0.8), (0.7, 0.2, 1.0, 0.8)
    round_, up, facing = (
        photographs.turns("p", "round", left, right),
        photographs.faces("p", "up", everywhere, photographs.UP),
        photographs.faces("p", "facing", everywhere, photographs.TO_VIEWER),
    )
    held = [[claim.holds({"normal": normal}) for claim in (round_, up, facing)] for normal in (ball, floor, wall)]
    assert held == [[True, False, True], [False, True, False], [False, False, True]]


def test_every_box_lies_in_its_photograph_and_every_photograph_is_there():
    for name in photographs.PHOTOGRAPHS:
        picture = photographs.photograph(name)
        assert min(picture.shape[1:3]) == photographs.SHORT_SIDE and 0 <= picture.min() < picture.max() <= 1
    assert {claim.photograph for claim in photographs.CLAIMS} <= set(photographs.PHOTOGRAPHS)
    assert len({(claim.photograph, claim.words) for claim in photographs.CLAIMS}) == len(photographs.CLAIMS)


def test_things_that_captions_name_are_in_the_plan_of_the_scene():
    scenes = sample_scenes(range(60), kind="world")
    plans = [plan for plan in scenes.drawn if hasattr(plan, "names")]
    found = {thing for plan in plans for thing in text_table.named(plan.caption, "world")}
    assert len(found) > 15 and len(plans) > 30
    for plan in plans:
        there = {word for name in plan.names for word in name.split()}
        assert set(text_table.named(plan.caption, "world")) <= {text_table.SINGULAR.get(word, word) for word in there}, plan.caption
    caption = "a striped purple box, a orange ball and a pink cylinder on a blue floor, marbled purple walls, light from above"
    assert text_table.named(caption, "room") == ["purple box", "orange ball", "pink cylinder"]


class Colors(nn.Module):
    """Logits of "red ball" and "green ball": how much of the colour there is."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))[:, :2]


def test_prompts_are_counted_by_their_own_thing_and_chance_by_the_others():
    judge = text_table.Judge(["red ball", "green ball"], Colors(), torch.full((2,), 0.5), torch.ones(2))
    red, green = torch.zeros(128, 128, 3), torch.zeros(128, 128, 3)
    red[..., 0], green[..., 1] = 1, 1
    prompts = [text_table.Prompt("a red ball on", "red ball", red), text_table.Prompt("a green ball on", "green ball", green)]
    images = torch.stack([torch.stack([red, green]), torch.stack([red, red]), torch.stack([red, red])])
    counted = text_table.count(judge, prompts, "room", images)
    assert counted == {
        "prompts": 1,
        "pictures": pytest.approx(2 / 3),
        "chance": pytest.approx(1 / 3),
        "of each": [1.0, pytest.approx(1 / 3)],
    }


def test_the_share_that_crosses_is_that_of_a_plain_softmax_and_the_exchange_stays_what_it_is():
    query, key, value = torch.randn(3, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    crossing, block = ildm_attention.Crossing(), Block(3, 1)

    def run(schedule):
        token = joint_forward.CURRENT.set(step := joint_forward.JointForward(Rows(joint_forward.DOMAINS, 1, 2), 730.0, schedule))
        try:
            return joint_forward.exchange(step, block, query, key, value, 2, own_attention=None)
        finally:
            joint_forward.CURRENT.reset(token)

    expected = run(constant_schedule(1.0))
    with ildm_attention.watched(crossing):
        assert torch.equal(run(crossing.seen_by(constant_schedule(1.0))), expected)
    q, k = (rearrange(x.double(), "(domain b) t (head d) -> domain b head t d", domain=2, head=2) for x in (query, key))
    scores = torch.stack([q[one] @ k[other].mT / math.sqrt(4) for one in (0, 1) for other in (0, 1)])
    for domain, (own, others) in zip(joint_forward.DOMAINS, ((0, 1), (3, 2)), strict=True):
        share = torch.cat([scores[own], scores[others]], -1).softmax(-1)[..., 9:].sum(-1).mean().item()
        assert crossing.shares[domain, 3, 800] == [pytest.approx(share, abs=1e-5)]


def test_verdicts_count_what_is_beyond_the_spread():
    none = {
        "normal of depth": [30.0, 31.0],
        "normal of picture": [30.0, 31.0],
        "lines": [0.1, 0.2],
        "segments": [0.1, 0.2],
        "change": [0.0, 0.0],
    }
    better = none | {"normal of depth": [28.0, 29.1], "lines": [0.3, 0.41], "segments": [0.15, 0.16]}
    text = ildm_table.verdict({ildm_table.ROWS[0].name: none, "Gaussian": better})
    assert "depth, ° -1.950 ± 0.071 (better)" in text and "lines on edges +0.205 ± 0.007 (better)" in text
    assert "picture, ° +0.000 ± 0.000 (the same)" in text and "segments on edges +0.005 ± 0.064 (the same)" in text
    errors = {"normal mean_degrees": 20.0, "depth abs_rel": 0.1, "albedo rmse": 0.2, "shading rmse": 0.1, "normal of depth": 17.0}
    assert "better than the mean map on 3 of 4 maps" in lumix_table.verdict(
        errors, dict.fromkeys(errors, 0.15) | {"normal mean_degrees": 30.0}
    )
    rows = [base_checkpoints.Row(f"{x}%", x, [10.0**-x] * 2, {"normal": [30.0 - x, 31.0 - x]}) for x in (1, 2, 3)]
    rows.append(base_checkpoints.Row(base_checkpoints.RANDOM, 0, [50.0, 60.0], {"normal": [40.0, 41.0]}))
    assert "over 3 checkpoints +1.00; the worst base is random" in base_checkpoints.as_markdown(rows, ["normal"])
