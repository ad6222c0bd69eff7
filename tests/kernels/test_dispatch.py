"""Which path runs, what happens where Triton is missing or broken, and that importing, compiling and odd module names break nothing."""

import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from intrinsic_lab.kernels import dispatch
from intrinsic_lab.kernels.cross_domain_attention import PATHS, cross_domain_attention
from intrinsic_lab.kernels.query_broadcast import query_broadcast_attention
from intrinsic_lab.kernels.tensor_lora import merge_cores, tensor_lora_

ROOT = Path(__file__).resolve().parents[2]
# A pack as ComfyUI loads it: the module's name is the folder's path, dots replaced.
LOAD_BY_PATH = """
import importlib, importlib.util, sys
root = sys.argv[1]
name = root.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, root + "/__init__.py", submodule_search_locations=[root])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
"""


def run_python(code: str, **environment: str) -> str:
    """Output of `code` in a fresh interpreter whose pack is named by its path."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", LOAD_BY_PATH + code, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env={**kept, "OMP_NUM_THREADS": "1", **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def case():
    return [torch.randn(2, 1, 9, 16) for _ in range(5)]


@pytest.fixture
def table_says_triton(monkeypatch):
    """A table that picks Triton for everything, as a measured GPU would; the interpreter stands in for the GPU."""
    monkeypatch.setattr(dispatch, "_table_backend", lambda *_: "triton")
    monkeypatch.setattr(dispatch, "_failed_operations", set())


def test_auto_runs_triton_only_where_the_table_says_so(monkeypatch, table_says_triton):
    from intrinsic_lab.kernels.cross_domain_attention import triton_kernel

    launches = []
    launch = triton_kernel.launch
    monkeypatch.setattr(triton_kernel, "launch", lambda *a, **kw: launches.append(1) or launch(*a, **kw))
    cross_domain_attention(*case(), 0.5)
    assert len(launches) == 1
    cross_domain_attention(*[t.requires_grad_() for t in case()], 0.5)
    cross_domain_attention(*case(), 0.5, backend="torch")
    assert len(launches) == 1


def test_a_broken_triton_kernel_falls_back_to_torch_with_one_logged_line(monkeypatch, table_says_triton, caplog):
    calls = []

    def broken(*_):
        calls.append(1)
        raise RuntimeError("ptxas: no such architecture\nsecond line")

    monkeypatch.setitem(PATHS, "triton", broken)
    operands = case()
    with caplog.at_level(logging.WARNING):
        found = [cross_domain_attention(*operands, 0.5) for _ in range(3)]
    assert all(torch.equal(f, cross_domain_attention(*operands, 0.5, backend="torch")) for f in found)
    assert len(calls) == 1 and len(caplog.records) == 1
    assert "ptxas: no such architecture" in caplog.text and "second line" not in caplog.text


def test_a_missing_triton_falls_back_to_torch_with_one_logged_line(monkeypatch, table_says_triton, caplog):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "triton" else find_spec(name, *a))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            cross_domain_attention(*case(), 0.5)
    assert len(caplog.records) == 1 and "not installed" in caplog.text
    with pytest.raises(RuntimeError, match="not installed"):
        cross_domain_attention(*case(), 0.5, backend="triton")


def test_running_out_of_memory_is_not_taken_for_a_broken_kernel(monkeypatch, table_says_triton):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(PATHS, "triton", too_large)
    with pytest.raises(torch.OutOfMemoryError):
        cross_domain_attention(*case(), 0.5)


def test_triton_asked_for_by_name_raises_where_it_cannot_run(monkeypatch):
    with pytest.raises(RuntimeError, match="float64"):
        cross_domain_attention(*[t.double() for t in case()], 0.5, backend="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="CUDA"):
        cross_domain_attention(*case(), 0.5, backend="triton")


def test_a_new_backend_is_an_entry_in_the_table_of_backends_and_one_in_its_operations_paths(monkeypatch, caplog):
    monkeypatch.setitem(dispatch.BACKENDS, "double", lambda sample: None if sample.dtype == torch.float32 else "it takes float32")
    monkeypatch.setitem(
        PATHS, "double", lambda *arguments: PATHS["reference"](*(t.double() for t in arguments[:5]), *arguments[5:]).float()
    )
    monkeypatch.setattr(dispatch, "_table_backend", lambda *_: "double")
    monkeypatch.setattr(dispatch, "_failed_operations", set())
    operands = case()
    by_name, by_table = cross_domain_attention(*operands, 0.5, backend="double"), cross_domain_attention(*operands, 0.5)
    assert torch.equal(by_name, by_table) and torch.allclose(by_name, cross_domain_attention(*operands, 0.5, backend="torch"), atol=1e-5)
    assert not torch.equal(by_name, cross_domain_attention(*operands, 0.5, backend="reference"))
    half = [t.half() for t in operands]
    with pytest.raises(RuntimeError, match="it takes float32"):
        cross_domain_attention(*half, 0.5, backend="double")
    assert torch.equal(cross_domain_attention(*half, 0.5), cross_domain_attention(*half, 0.5, backend="torch"))
    assert "the double path is not usable (it takes float32)" in caplog.text


def test_the_first_matching_row_of_the_table_decides_on_a_gpu(monkeypatch):
    rows = [
        dispatch.MeasuredChoice("op", (9, 0), "bfloat16", 64, (1025, 4096), "triton", 1.2),
        dispatch.MeasuredChoice("op", (9, 0), "bfloat16", 64, (1, 8192), "torch", 1.0),
    ]

    class CudaTensor:
        device, dtype = torch.device("cuda", 0), torch.bfloat16

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(dispatch, "measured_choices", lambda: rows)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert [dispatch._table_backend("op", CudaTensor, 64, tokens) for tokens in (1024, 1025, 4096, 4097)] == [
        "torch", "triton", "triton", "torch",
    ]  # fmt: skip
    assert dispatch._table_backend("op", CudaTensor, 72, 2048) == "torch"


def test_the_kept_table_can_be_read():
    assert isinstance(json.loads(dispatch.TABLE_FILE.read_text(encoding="utf-8"))["measured"], list)
    assert all(row.backend in ("torch", "triton") for row in dispatch.measured_choices())


def test_torch_compile_of_the_torch_paths_needs_no_graph_break():
    operands = case()
    merged, g3 = merge_cores(torch.randn(5, 5, 8), torch.randn(5, 16, 8, 8)), torch.randn(5, 12, 8)
    x, out = torch.randn(5, 9, 16), torch.randn(5, 9, 12)
    query, key = torch.randn(1, 2, 9, 16), torch.randn(1, 5, 2, 9, 16)

    def block(*operands):
        mixed = cross_domain_attention(*operands, 0.5)
        return mixed, tensor_lora_(out.clone(), x, merged, g3, 0.3), query_broadcast_attention(query, key, key)

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for found, expected in zip(compiled(*operands), block(*operands), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_torch_compile_of_16_bit_torch_paths_needs_no_graph_break(dtype):
    operands = [t.to(dtype) for t in case()]
    merged, g3 = merge_cores(torch.randn(5, 5, 8), torch.randn(5, 16, 8, 8)).to(dtype), torch.randn(5, 12, 8, dtype=dtype)
    x, out = torch.randn(5, 9, 16, dtype=dtype), torch.randn(5, 9, 12, dtype=dtype)

    def block(*operands):
        return cross_domain_attention(*operands, 0.5), tensor_lora_(out.clone(), x, merged, g3, 0.3)

    torch._dynamo.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for found, expected in zip(compiled(*operands), block(*operands), strict=True):
        torch.testing.assert_close(found, expected)


def test_torch_compile_of_training_gives_the_eager_gradients():
    leaves = [t.requires_grad_() for t in case()]

    def loss(*operands):
        return cross_domain_attention(*operands, 0.5).square().sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(*leaves), leaves)
    torch.testing.assert_close(found, expected)


def test_a_pack_named_by_its_path_runs_compiles_and_imports_triton_only_when_it_launches():
    report = run_python(
        """
kernels, broadcast, lora = (
    importlib.import_module(name + ".kernels." + part) for part in ("cross_domain_attention", "query_broadcast", "tensor_lora")
)
assert "triton" not in sys.modules and "torch._dynamo" not in sys.modules, "imported too early"
import torch
torch.set_num_threads(1)
operands = [torch.randn(2, 1, 9, 16) for _ in range(5)]
expected = kernels.cross_domain_attention(*operands, 0.5, backend="reference")
for run in (kernels.cross_domain_attention, torch.compile(kernels.cross_domain_attention, backend="eager")):
    for backend in ("torch", "triton"):
        torch.testing.assert_close(run(*operands, 0.5, backend=backend), expected)
query, keys = torch.randn(1, 2, 9, 16), torch.randn(1, 5, 2, 9, 16)
merged, g3 = lora.merge_cores(torch.randn(5, 5, 8), torch.randn(5, 16, 8, 8)), torch.randn(5, 32, 8)
x, out = torch.randn(5, 9, 16), torch.randn(5, 9, 32)
angle = torch.randn(9, 8)
rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))

def block(backend):
    attended = broadcast.query_broadcast_attention(query, keys, keys, backend=backend)
    updated = lora.tensor_lora_(out.clone(), x, merged, g3, 0.3, backend=backend)
    hidden = lora.shrink(x, merged, backend=backend)
    return attended, updated, lora.norm_lora_rotary(keys[0], torch.ones(16), hidden, g3, rotation, 0.3, backend=backend)

for run in (block, torch.compile(block, backend="aot_eager")):
    torch.testing.assert_close(run("triton"), block("reference"), atol=1e-3, rtol=1e-4)
assert "triton" in sys.modules
print("ran")
""",
        TRITON_INTERPRET="1",
    )
    assert report.strip() == "ran"


def test_kernels_compile_for_both_architectures_without_a_gpu_and_without_spills():
    pytest.importorskip("triton")
    report = run_python(
        """
offline = importlib.import_module(name + ".kernels.compile_offline")
for architecture in (80, 90):
    for build in offline.builds(architecture, ("bf16",)):
        if build.label in ("d = 72", "expand, rank 8") or "rotary" in build.label:
            result = offline.compile_build(build, architecture)
            print(architecture, build.operation, result.registers, result.spill_bytes, result.tensor_core, sep=",")
"""
    )
    rows = [line.split(",") for line in report.strip().splitlines()]
    assert {(row[0], row[1]) for row in rows} == {
        (arch, name) for arch in ("80", "90") for name in ("cross_domain_attention", "tensor_lora")
    }
    assert all(0 < int(row[2]) <= 255 and row[3] == "0" for row in rows), report
    assert {row[4] for row in rows if row[1] == "cross_domain_attention"} == {"mma.sync", "wgmma"}


def test_measured_rows_replace_those_of_their_shape_class_and_keep_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(dispatch, "TABLE_FILE", tmp_path / "table.json")
    dispatch.TABLE_FILE.write_text('{"comment": "kept", "measured": []}', encoding="utf-8")
    dispatch.measured_choices.cache_clear()
    old = dispatch.MeasuredChoice("op", (9, 0), "bfloat16", 64, (1, 1024), "torch", 1.1)
    other = dispatch.MeasuredChoice("op", (8, 0), "bfloat16", 64, (1, 1024), "torch", 1.1)
    new = dispatch.MeasuredChoice("op", (9, 0), "bfloat16", 64, (1, 1024), "triton", 1.3)
    dispatch.write_choices([old, other])
    dispatch.write_choices([new])
    assert dispatch.measured_choices() == (new, other)
    assert json.loads(dispatch.TABLE_FILE.read_text(encoding="utf-8"))["comment"] == "kept"
    dispatch.measured_choices.cache_clear()
