"""Where attention goes between picture and maps (I-LDM): the share of it that crosses domains, by block and timestep, on the nano base.

    OMP_NUM_THREADS=1 python -m intrinsic_lab.benchmarks.ildm_attention [--prompts N]

Samples held-out prompts with full exchange (w = 1) and asks the pack's own attention for the probability that each query gives to keys of
the other domain: mean over heads, tokens, prompts and steps. Both domains have as many keys, so a query that cares for neither gives half.
"""

import argparse
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import torch
from torch import Tensor

from ..kernels.cross_domain_attention import Segment, cross_domain_attention, joint_attention
from ..methods.ildm import joint_forward
from ..methods.ildm.schedules import Block, WeightSchedule
from ..scenes import sample_scenes
from ..training.scene_pictures import HELD_OUT_SEEDS
from .extraction_cost import start_comfyui
from .ildm_table import ALWAYS, BY_NAME, World
from .measuring import ROOT, keep_result, markdown_table

# Upper ends of the bins of timesteps.
BINS = (1000, 800, 600, 400, 200)
WIDTH = 200
# (domain, block's index, upper end of the bin) -> shares of single forwards.
Shares = dict[tuple[str, int, int], list[float]]


class Crossing:
    """Stands in for the attention of a joint forward, does the same, and keeps how much of it crosses."""

    def __init__(self) -> None:
        self.shares: Shares = {}
        self.block = Block(0, 0)

    def seen_by(self, schedule: WeightSchedule) -> WeightSchedule:
        """The schedule, which is asked for its weight just before the attention is computed, and so tells which block that is."""

        def weight(block: Block, t: float) -> float:
            self.block = block
            return schedule(block, t)

        return weight

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, segments: list[Segment]) -> Tensor:
        # Ones as the other domain's values and zeros as the own: what comes out is the probability of the other's keys.
        crossing = cross_domain_attention(query, key, torch.zeros_like(value), key, torch.ones_like(value), segments).mean((1, 2, 3))
        step = joint_forward.CURRENT.get()
        upper = max(BINS[-1], WIDTH * (int(step.t) // WIDTH + 1))
        for domain in joint_forward.DOMAINS:
            self.shares.setdefault((domain, self.block.index, upper), []).append(step.rows.of(domain, crossing).mean().item())
        return joint_attention(query, key, value, segments)


def watched(crossing: Crossing) -> AbstractContextManager:
    """Joint forwards compute their attention by `crossing`."""
    return patch.object(joint_forward, "joint_attention", crossing)


def attention_shares(world: World, prompts: list[str]) -> Shares:
    """Of pictures made from prompts with full exchange."""
    crossing = Crossing()
    always = BY_NAME[ALWAYS]
    row = replace(always, name="always, watched", schedule=crossing.seen_by(always.schedule))
    with watched(crossing):
        world.generate(row, prompts, 0, 0)
    return crossing.shares


def as_markdown(shares: Shares) -> str:
    lines = []
    for domain, other in zip(joint_forward.DOMAINS, reversed(joint_forward.DOMAINS), strict=True):
        blocks = sorted({block for of, block, _ in shares if of == domain})
        cells = [[block, *(f"{mean(shares[domain, block, upper]):.3f}" for upper in BINS)] for block in blocks]
        lines += [f"Of {domain} queries on {other} keys, by self-attention (in order of execution) and timestep:", ""]
        lines += [markdown_table(["block", *(f"t {upper - WIDTH}-{upper - 1}" for upper in BINS)], cells), ""]
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "assets" / "nano")
    parser.add_argument("--lora", type=Path, default=ROOT / "assets" / "nano_ildm.safetensors")
    parser.add_argument("--prompts", type=int, default=8)
    arguments = parser.parse_args()
    start_comfyui()
    with torch.inference_mode():
        world = World(arguments.base, {True: arguments.lora})
        shares = attention_shares(world, list(sample_scenes(HELD_OUT_SEEDS[: arguments.prompts]).captions))
    record = {"prompts": arguments.prompts, "shares": {" ".join(map(str, place)): mean(values) for place, values in shares.items()}}
    keep_result("ildm_attention", as_markdown(shares), record)


if __name__ == "__main__":
    main()
