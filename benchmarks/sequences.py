"""How steady, and how right, the bundled model's maps are over rendered camera moves: aligned, with an anchor frame, averaged in time.

    python -m intrinsic_lab.benchmarks.sequences [--moves N] [--frames N]

Each move shows one held-out scene from FRAMES places; its maps and its motion are exact. Two numbers a map:

- error: against the exact map, over all frames; depth (one scale and shift fitted for the whole sequence) as a share of the depth in
  percent, normals in degrees, colours as mean absolute difference x 100.
- flicker: how much a surface point's error changes from one frame to the next, in the same units. Points are followed by the exact motion
  and count where both frames see them; normals are compared in the world's axes.

"Each frame's depth by the truth" fits every frame to the exact one: the most that any alignment can reach. "Exact depth, 0 to 1 in each
frame" is no model's: nothing but its scale and shift flickers.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from ..methods import metrics
from ..methods.intrinsic_lora.extract import ExtractSettings, plan_extraction
from ..methods.intrinsic_lora.sequence import Steadied, extract_sequence, sequence_parts
from ..methods.maps import relative_depth
from ..scenes import SceneMaps, render
from ..scenes.moves import camera_move, motion, warp
from ..tools.console import format_table
from ..training.scene_pictures import BUNDLED_MAPS, scene_data
from .extraction_cost import start_comfyui

ASSETS = Path(__file__).resolve().parents[1] / "assets"
# (kind, seed): held-out scenes.
MOVES = (("room", 3), ("room", 11), ("interior", 5), ("tabletop", 4), ("room", 20), ("clutter", 9))
SIZE, FRAMES = 128, 12
ANCHOR_WEIGHTS = (0.1, 0.3, 1.0)
AVERAGED = 3  # frames

Maps = dict[str, Tensor]


def compared(move: SceneMaps, extract: Callable[[SceneMaps, float], Maps]) -> Iterator[tuple[str, Maps]]:
    """What is compared: each way with the maps that it makes of a move. extract: from a move and an anchor weight."""
    alone = extract(move, 0.0)
    yield "each frame alone", alone
    yield f"mean of {AVERAGED} frames", averaged(alone)
    yield "aligned", aligned(alone)
    yield f"aligned, mean of {AVERAGED} frames", averaged(aligned(alone))
    for weight in ANCHOR_WEIGHTS:
        yield f"aligned, anchor {weight:g}", aligned(extract(move, weight))
    yield "each frame's depth by the truth", {"depth": fitted_to_truth(alone["depth"], move)}
    own_range = {"depth": relative_depth(move.depth_bhw1)}
    yield "exact depth, 0 to 1 in each frame", own_range
    yield "the same, aligned", aligned(own_range)
    yield f"the same, mean of {AVERAGED} frames", averaged(own_range)


def aligned(maps: Maps) -> Maps:
    """What `extract_sequence` does to relative maps where it aligns."""
    steadied = Steadied()
    return maps | {"depth": torch.stack([steadied(frame) for frame in maps["depth"]])}


def averaged(maps: Maps) -> Maps:
    """Plain temporal averaging of each map with its neighbours in time, pixel by pixel."""
    around = AVERAGED // 2
    return {
        name: torch.stack([values[max(0, i - around) : i + around + 1].mean(0) for i in range(len(values))])
        for name, values in maps.items()
    }


def fitted_to_truth(depth_bhw1: Tensor, move: SceneMaps) -> Tensor:
    scale, shift = metrics.align_scale_shift(depth_bhw1, move.depth_bhw1)
    return (depth_bhw1.double() * scale[:, None, None, None] + shift[:, None, None, None]).float()


def compared_values(name: str, values: Tensor, move: SceneMaps) -> tuple[Tensor, Tensor]:
    """A map and what it should be, [b, h, w, c], as they may be followed from frame to frame."""
    exact = scene_data(move, name)
    if name == "normal":
        return world_normals(values, move), world_normals(exact, move)
    if name == "depth":
        scale, shift = (float(value) for value in metrics.align_scale_shift(values.flatten(0, 1)[None], exact.flatten(0, 1)[None]))
        return 100 * (scale * values + shift - exact) / exact, torch.zeros_like(exact)
    return 100 * (values - exact), torch.zeros_like(exact)


def world_normals(normal_bhw3: Tensor, move: SceneMaps) -> Tensor:
    return torch.einsum("bhwa,bax->bhwx", normal_bhw3, move.scenes.camera_axes)


def judge(maps: Maps, move: SceneMaps, motions: list[tuple[Tensor, Tensor]]) -> dict[str, tuple[float, float]]:
    """(error, flicker) by map."""
    result = {}
    for name, values in maps.items():
        came, wanted = compared_values(name, values, move)
        size = metrics.normal_angle_degrees if name == "normal" else lambda one, other: (one - other).abs().mean(-1)
        changes = [
            size(came[frame][None], warp(came[frame - 1 : frame], grid)[None])[0][visible].mean()
            for frame, (grid, visible) in enumerate(motions, start=1)
        ]
        result[name] = float(size(came, wanted).mean()), float(torch.stack(changes).mean())
    return result


class NanoModel:
    """The bundled base with its four LoRAs, as the nodes hold it."""

    def __init__(self) -> None:
        from ..nodes.extract import ApplyIntrinsicLoRA
        from ..nodes.native.loading.diffusers_folder import load_pipeline
        from ..nodes.native.lora_library.files import BUNDLED_MARK

        self.pipeline = load_pipeline(ASSETS / "nano")
        self.model = self.pipeline.model
        for name in BUNDLED_MAPS:
            self.model = ApplyIntrinsicLoRA.execute(self.model, f"nano/{name}{BUNDLED_MARK}", "auto", 1.0)[0]

    def extract(self, move: SceneMaps, weight: float) -> Maps:
        """Unaligned maps of a move's frames, with the first as the anchor of all where it has a weight."""
        from ..nodes.extract import single_step

        generator, recipes, _ = single_step(self.model, self.pipeline.clip, self.pipeline.vae, SIZE, "none", weight)
        settings = ExtractSettings(SIZE)
        plan = plan_extraction(move.image_bhwc[:4], list(recipes), settings, generator.downscale)
        parts = sequence_parts(len(move.image_bhwc), plan.pictures, 0 if weight else None)
        done = [maps for _, maps in extract_sequence(move.image_bhwc, list(recipes), generator, settings, plan, parts, align=False)]
        return {name: torch.cat([maps[name] for maps in done]) for name in recipes}


def table(scores: Mapping[str, list[dict[str, tuple[float, float]]]]) -> list[dict]:
    """A row a way: each number's mean over the moves."""
    return [
        {
            "way": way,
            **{
                f"{name} {number}": round(mean(move[name][index] for move in moves), 3) if name in moves[0] else ""
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
            for way, maps in compared(move, model.extract):
                scores.setdefault(way, []).append(judge(maps, move, motions))
    rows = table(scores)
    print(format_table(rows))
    print(f"{time.monotonic() - start:.0f} s, load average {os.getloadavg()[0]:.1f}")
    if result := os.environ.get("INTRINSIC_LAB_RESULT"):
        record = {"moves": MOVES[: arguments.moves], "frames": arguments.frames, "size": SIZE, "rows": rows, "scores": scores}
        Path(result).write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
