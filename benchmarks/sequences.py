"""How steady the bundled model's maps are over rendered camera moves, and how right: what aligning depth, an anchor frame and averaging change.

    python -m intrinsic_lab.benchmarks.sequences [--moves N] [--frames N]

Each move shows one held-out scene from FRAMES places; its maps and its motion are exact. Two numbers a map:

- error: against the exact map, over all frames; depth (one scale and shift fitted for the whole sequence) as a share of the depth in
  percent, normals in degrees, colours as mean absolute difference x 100.
- flicker: how much a surface point's error changes from one frame to the next, in the same units. Points are followed by the exact motion
  and count where both frames see them; normals are compared in the world's axes.

"each frame by the truth" fits every frame's depth to the exact one: what an alignment can reach at most.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from ..methods import metrics
from ..methods.intrinsic_lora.extract import ExtractSettings, plan_extraction
from ..methods.intrinsic_lora.sequence import extract_sequence, sequence_parts
from ..scenes import SceneMaps, render
from ..scenes.moves import camera_move, motion, warp
from ..tools.console import format_table
from ..training.scene_pictures import BUNDLED_MAPS
from .extraction_cost import start_comfyui

ASSETS = Path(__file__).resolve().parents[1] / "assets"
# (kind, seed): held-out scenes.
MOVES = (("room", 3), ("room", 11), ("interior", 5), ("tabletop", 4), ("room", 20), ("clutter", 9))
SIZE, FRAMES = 128, 12
ANCHOR_WEIGHTS = (0.1, 0.3, 1.0)
AVERAGED = 3  # frames

Maps = dict[str, Tensor]


def ways(extract: Callable[..., Maps]) -> dict[str, Callable[[SceneMaps], Maps]]:
    """What is compared: from a move to its maps."""
    alone, aligned = partial(extract, align=False, weight=0.0), partial(extract, align=True, weight=0.0)
    return {
        "each frame alone": alone,
        f"mean of {AVERAGED} frames": lambda move: averaged(alone(move)),
        "aligned": aligned,
        f"aligned, mean of {AVERAGED} frames": lambda move: averaged(aligned(move)),
        **{f"aligned, anchor {weight:g}": partial(extract, align=True, weight=weight) for weight in ANCHOR_WEIGHTS},
        "each frame by the truth": lambda move: fitted_to_truth(alone(move), move),
    }


def averaged(maps: Maps) -> Maps:
    """Plain temporal averaging of each map with its neighbours in time, pixel by pixel."""
    around = AVERAGED // 2
    return {
        name: torch.stack([values[max(0, i - around) : i + around + 1].mean(0) for i in range(len(values))])
        for name, values in maps.items()
    }


def fitted_to_truth(maps: Maps, move: SceneMaps) -> Maps:
    scale, shift = metrics.align_scale_shift(maps["depth"], move.depth_bhw1)
    return maps | {"depth": (maps["depth"].double() * scale[:, None, None, None] + shift[:, None, None, None]).float()}


def errors(maps: Maps, move: SceneMaps) -> Maps:
    """By map, what is wrong at every pixel [b, h, w, c], in a form that may be followed from frame to frame."""
    as_one = [depth.flatten(0, 1)[None] for depth in (maps["depth"], move.depth_bhw1)]
    scale, shift = (float(value) for value in metrics.align_scale_shift(*as_one))
    axes = move.scenes.camera_axes
    return {
        "normal": torch.einsum("bhwa,bax->bhwx", maps["normal"], axes),
        "depth": 100 * (scale * maps["depth"] + shift - move.depth_bhw1) / move.depth_bhw1,
        "albedo": 100 * (maps["albedo"] - move.albedo_bhwc),
        "shading": 100 * (maps["shading"] - move.shading_bhwc),
    }


def judge(maps: Maps, move: SceneMaps, motions: list[tuple[Tensor, Tensor]]) -> dict[str, tuple[float, float]]:
    """(error, flicker) by map."""
    result = {}
    for name, error in errors(maps, move).items():
        size = metrics.normal_angle_degrees if name == "normal" else lambda one, other: (one - other).abs().mean(-1)
        exact = torch.einsum("bhwa,bax->bhwx", move.normal_bhwc, move.scenes.camera_axes) if name == "normal" else torch.zeros_like(error)
        changes = [
            size(error[frame][None], warp(error[frame - 1 : frame], grid)[None])[0][visible].mean()
            for frame, (grid, visible) in enumerate(motions, start=1)
        ]
        result[name] = float(size(error, exact).mean()), float(torch.stack(changes).mean())
    return result


class NanoModel:
    """The bundled base with its four LoRAs, as the nodes hold it."""

    def __init__(self) -> None:
        from ..nodes.extract import ApplyIntrinsicLoRA
        from ..nodes.native.lora_library.files import BUNDLED_MARK
        from ..nodes.native.loading.diffusers_folder import load_pipeline

        self.pipeline = load_pipeline(ASSETS / "nano")
        self.model = self.pipeline.model
        for name in BUNDLED_MAPS:
            self.model = ApplyIntrinsicLoRA.execute(self.model, f"nano/{name}{BUNDLED_MARK}", "auto", 1.0)[0]

    def extract(self, move: SceneMaps, align: bool, weight: float) -> Maps:
        from ..nodes.extract import single_step

        generator, recipes, _ = single_step(self.model, self.pipeline.clip, self.pipeline.vae, SIZE, "none", weight)
        settings = ExtractSettings(SIZE)
        plan = plan_extraction(move.image_bhwc[:4], list(recipes), settings, generator.downscale)
        parts = sequence_parts(len(move.image_bhwc), plan.pictures, 0 if weight else None)
        done = [maps for _, maps in extract_sequence(move.image_bhwc, list(recipes), generator, settings, plan, parts, align)]
        return {name: torch.cat([maps[name] for maps in done]) for name in recipes}


def table(scores: Mapping[str, list[dict[str, tuple[float, float]]]]) -> list[dict]:
    """A row a way: each number's mean over the moves."""
    return [
        {
            "way": way,
            **{
                f"{name} {number}": round(mean(move[name][index] for move in moves), 3)
                for name in BUNDLED_MAPS
                for index, number in enumerate(("error", "flicker"))
            },
        }
        for way, moves in scores.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=len(MOVES), help="how many of the moves (%(default)s)")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each move (%(default)s)")
    arguments = parser.parse_args()
    start_comfyui()
    scores: dict[str, list] = {}
    start = time.monotonic()
    with torch.inference_mode():
        model = NanoModel()
        for kind, seed in MOVES[: arguments.moves]:
            move = render(camera_move(seed, arguments.frames, kind), SIZE, SIZE)
            motions = [motion(move, frame, frame - 1) for frame in range(1, arguments.frames)]
            for way, make in ways(model.extract).items():
                scores.setdefault(way, []).append(judge(make(move), move, motions))
    rows = table(scores)
    print(format_table(rows))
    print(f"{time.monotonic() - start:.0f} s, load average {os.getloadavg()[0]:.1f}")
    if result := os.environ.get("INTRINSIC_LAB_RESULT"):
        record = {"moves": MOVES[: arguments.moves], "frames": arguments.frames, "size": SIZE, "rows": rows, "scores": scores}
        Path(result).write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
