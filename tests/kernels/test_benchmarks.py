"""Every benchmark checks before it measures, and keeps and prints nothing of a result that is wrong."""

import json
import math

import pytest
import torch
from intrinsic_lab.kernels import benchmarking as bench
from intrinsic_lab.kernels import dispatch
from intrinsic_lab.kernels.cross_domain_attention import benchmark as cross_domain
from intrinsic_lab.kernels.query_broadcast import benchmark as query_broadcast
from intrinsic_lab.kernels.tensor_lora import benchmark as tensor_lora

SETTINGS = bench.Settings(device="cpu", threads=1, rounds=1, clock="wall", note="")
SMALL = cross_domain.Shape("small", 1, 1, 32, 16)
FILE = "kernels_cpu.json"


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The benchmarks as they are, at sizes that take no time, keeping their tables in a folder of the test."""
    monkeypatch.setattr(cross_domain, "CPU_SHAPES", (SMALL,))
    for module in (query_broadcast, tensor_lora):
        monkeypatch.setattr(module, "WIDTH", 48)
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    return tmp_path


def run_main(module, monkeypatch, *options):
    monkeypatch.setattr("sys.argv", ["benchmark", "--threads", "1", "--rounds", "1", "--write", *options])
    module.main()


RUNS = [
    (cross_domain, ("--skip-flex",), ("cross_domain_attention",)),
    (query_broadcast, ("--tokens", "16"), ("query_broadcast_attention", "cross_intrinsic_attention", "broadcast_projection")),
    (tensor_lora, ("--tokens", "16"), ("tensor_lora_", "upstream_order", "sum_before_expansion", "expand_", "norm_lora_rotary")),
]


@pytest.mark.parametrize("module, options, _", RUNS)
def test_a_right_result_is_measured_printed_and_kept(module, options, _, small, monkeypatch, capsys):
    run_main(module, monkeypatch, *options)
    kept = json.loads((small / FILE).read_text(encoding="utf-8"))
    (entry,) = kept.values()
    assert entry["measurements"] and all(0 < record["ms"] < math.inf for record in entry["measurements"])
    printed = capsys.readouterr().out
    assert all(table in printed and table in (small / "kernels_cpu.md").read_text(encoding="utf-8") for table in entry["tables"])


@pytest.mark.parametrize("module, options, broken", [(module, options, name) for module, options, names in RUNS for name in names])
def test_a_wrong_result_stops_a_benchmark_before_anything_is_printed_or_kept(module, options, broken, small, monkeypatch, capsys):
    right = getattr(module, broken)

    def wrong(*operands, **named):
        # The oracle, in float64 or from the reference, stays right: what is timed is off by 5 %.
        result = right(*operands, **named)
        if operands[0].dtype == torch.float64 or named.get("backend") == "reference":
            return result
        return tuple(part * 1.05 for part in result) if isinstance(result, tuple) else result * 1.05

    timed = []
    monkeypatch.setattr(module, broken, wrong)
    monkeypatch.setattr(bench, "keep", lambda *_: timed.append("kept"))
    with pytest.raises(bench.CheckFailed, match="no time is reported"):
        run_main(module, monkeypatch, *options)
    assert not timed and not capsys.readouterr().out and not list(small.iterdir())


def test_a_check_refuses_what_is_off_not_finite_or_of_another_shape():
    expected = torch.ones(3, 4)
    assert bench.check("same", expected + 1e-7, expected, 1e-6) < 1e-6
    for wrong in (expected * 1.01, expected * math.nan, torch.full((3, 4), math.inf), expected[:1]):
        with pytest.raises(bench.CheckFailed, match="wrong: "):
            bench.check("wrong", wrong, expected, 1e-3)


def test_candidates_take_turns_and_the_first_is_the_baseline(monkeypatch):
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    measured = bench.side_by_side(runs, bench.Settings("cpu", 1, 3, "wall", ""))
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert measured["a"].ratio == 1.0 and list(measured) == ["a", "b", "c"]


def test_peak_memory_is_what_is_held_at_once():
    def run():
        first = torch.ones(1 << 18)
        del first
        return torch.ones(1 << 17), torch.ones(1 << 16)

    assert bench.peak_extra_bytes(run) == 4 << 18


def test_without_the_device_nothing_is_measured(capsys, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    monkeypatch.setattr("sys.argv", ["benchmark", "--device", "cuda"])
    with pytest.raises(SystemExit) as stopped:
        tensor_lora.main()
    assert stopped.value.code == 0 and "not measured" in capsys.readouterr().out


def test_the_rows_for_the_dispatcher_name_the_faster_path_of_every_operation(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    times = {"ours, torch": 2.0, "ours, Triton": 1.0}
    lora = [
        {"part": part, "dtype": "bfloat16", "head_dim": dim, "tokens": 1024, "way": way, "ms": ms}
        for part, dim in (("tensor_lora_expand", 3072), ("norm_lora_rotary", 128))
        for way, ms in times.items()
    ]
    expected = [
        dispatch.MeasuredChoice(part, (9, 0), "bfloat16", dim, (513, 2048), "triton", 2.0)
        for part, dim in (("tensor_lora_expand", 3072), ("norm_lora_rotary", 128))
    ]
    assert tensor_lora.choices(lora) == expected
    attention = [
        {"part": "attention", "dtype": "bfloat16", "tokens": 1536, "way": prefix + way, "ms": ms if prefix else 3 - ms}
        for prefix in ("", "cross-intrinsic (IntrinsiX), ")
        for way, ms in times.items()
    ]
    rows = query_broadcast.choices([*attention, {"part": "projection"}])
    assert [(row.operation, row.backend, row.head_dim) for row in rows] == [
        ("query_broadcast_attention", "torch", 128),
        ("cross_intrinsic_attention", "triton", 128),
    ]
    crossed = [
        {"name": "SDXL", "dtype": "float16", "dim": 64, "tokens": 4096, "weight": 0.5, "candidate": way, "ms": ms}
        for way, ms in times.items()
    ]
    assert cross_domain.choices(crossed)[0].tokens == (2049, 8192)
