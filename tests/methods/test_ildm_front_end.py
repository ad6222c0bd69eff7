"""The heat map that the front end draws live is the one Python makes."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from intrinsic_lab.methods.ildm import schedules
from intrinsic_lab.methods.ildm.heat_map import heat_map

MATHS = Path(__file__).resolve().parents[2] / "web" / "schedule_math.js"
LAYOUTS = [
    schedules.stage_blocks((2, 2, 2, 0, 1, 0, 3, 3, 3)),
    schedules.stage_blocks((0, 4, 20, 10, 30, 6, 0)),
    schedules.transformer_blocks(28),
]
STAGES = schedules.at_stages(range(3, 8))
GAUSSIAN = schedules.gaussian_schedule(0.9, 700, 150)
TABLE = schedules.table_schedule(schedules.parse_table("999: 0, 600: 1, 0: 0.3"))
CASES = {
    'dropSchedule("stages", "3-7", 900)': schedules.drop_schedule(STAGES),
    'dropSchedule("blocks", "1, 4-5", 500)': schedules.drop_schedule(schedules.at_blocks((1, 4, 5)), 500),
    "gaussianSchedule(0.9, 700, 150)": GAUSSIAN,
    'combinedSchedule([], "product", 0.4, "everywhere", "", "")': schedules.constant_schedule(0.4),
    'combinedSchedule([gaussianSchedule(0.9, 700, 150)], "maximum", 0.5, "stages", "3-7", "999: 0, 600: 1, 0: 0.3")': schedules.restricted(
        schedules.product(GAUSSIAN, schedules.constant_schedule(0.5), TABLE), STAGES
    ),
    'combinedSchedule([dropSchedule("stages", "3-7", 900), gaussianSchedule(0.9, 700, 150)], "maximum", 1, "everywhere", "", "")': (
        schedules.maximum(schedules.drop_schedule(STAGES), GAUSSIAN)
    ),
}


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_front_end_draws_the_same_heat_maps_as_python(tmp_path):
    calls = ", ".join(f"layouts.map((stages) => picture({case}, m.blocksOf(stages)))" for case in CASES)
    # Node takes a file for a module by its ending.
    (tmp_path / "math.mjs").write_text(MATHS.read_text(encoding="utf-8"))
    script = tmp_path / "run.mjs"
    script.write_text(
        'import * as m from "./math.mjs";\n'
        "const { dropSchedule, gaussianSchedule, combinedSchedule } = m;\n"
        "const picture = (schedule, blocks) => { const p = m.heatMap(schedule, blocks); return [p.width, p.height, [...p.data]]; };\n"
        f"const layouts = {[[block.stage for block in blocks] for blocks in LAYOUTS]};\n"
        f"console.log(JSON.stringify([{calls}]));\n"
    )
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    pictures = json.loads(done.stdout)
    for schedule, drawn in zip(CASES.values(), pictures, strict=True):
        for blocks, (width, height, data) in zip(LAYOUTS, drawn, strict=True):
            front = torch.tensor(data).view(height, width, 4)[..., :3]
            python = (heat_map(schedule, blocks)[0] * 255).round().long()
            assert front.shape == python.shape
            # Ties between two bytes may round differently.
            assert (front - python).abs().max() <= 1 and (front != python).float().mean() < 1e-3


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_text_that_python_refuses_draws_nothing(tmp_path):
    texts = ["3-x", "7-3", "", "1,,2", "0 - 2"]
    tables = ["3", "5: 1, 5: 0", "1000: 0", "1: 2", "1: 1: 1", "0: 0.5, 999: 1"]
    (tmp_path / "math.mjs").write_text(MATHS.read_text(encoding="utf-8"))
    script = tmp_path / "run.mjs"
    script.write_text(
        'import { parsePositions, parseTable } from "./math.mjs";\n'
        f"console.log(JSON.stringify([{json.dumps(texts)}.map((t) => parsePositions(t) && [...parsePositions(t)]),"
        f" {json.dumps(tables)}.map(parseTable)]));\n"
    )
    positions, points = json.loads(subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=60, check=True).stdout)

    def in_python(parse, text):
        try:
            return [list(entry) if isinstance(entry, tuple) else entry for entry in parse(text)]
        except ValueError:
            return None

    def table(text):
        points = schedules.parse_table(text)
        schedules.table_schedule(points)
        return sorted(points)

    assert positions == [in_python(schedules.parse_positions, text) for text in texts]
    assert points == [in_python(table, text) for text in tables]
