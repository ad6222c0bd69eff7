"""Compiles every Triton kernel for GPUs that need not be present, and records registers, spills and shared memory.

    python -m intrinsic_lab.kernels.compile_offline [--write-readme] [--dtype bf16 fp16 fp32]

`--write-readme` puts the table into the README of each operation, between its `compiled` marks.
Exit code 1 when a kernel does not compile, or spills a byte in a 16-bit dtype: float32 products take three tensor-core products each, whose
operands do not fit the registers; no model of this pack samples in float32 on a GPU, and `auto` never picks Triton without a measurement.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90)
HEAD_DIMS = (40, 64, 72, 80, 128, 160)
DTYPES = ("bf16", "fp16", "fp32")
MARKS = ("<!-- compiled: begin -->", "<!-- compiled: end -->")
# What a launch would specialise on: addresses and strides are multiples of 16, innermost strides are 1.
ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Build:
    """One specialisation of one kernel.

    pointers: element types of the pointers that are not `dtype`; constants: constexpr and folded arguments.
    """

    operation: str
    label: str
    dtype: str
    kernel: Any
    constants: Mapping[str, Any]
    pointers: Mapping[str, str]
    floats: tuple[str, ...]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Compiled:
    """Resources of a build on an architecture. spill_bytes: stack of a thread, which these kernels use for
    spilled registers alone; shared_bytes: per program."""

    build: Build
    architecture: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_core: str


def builds(architecture: int, dtypes: tuple[str, ...] = DTYPES) -> Iterator[Build]:
    """Every kernel in every specialisation that the launchers would ask for on an architecture, head dims of SD, SDXL, PixArt and FLUX."""
    import torch

    from .cross_domain_attention import triton_kernel as attention
    from .tensor_lora import triton_kernel as lora

    torch_dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    unit_strides = dict.fromkeys(("stride_qd", "stride_kd", "stride_vd", "stride_okd", "stride_ovd", "stride_od"), 1)
    for dtype in dtypes:
        torch_dtype = torch_dtypes[dtype]
        precision = attention.precision_of(torch_dtype)
        for head_dim in HEAD_DIMS:
            main, tail = attention.split_head_dim(head_dim)
            config = attention.launch_config(head_dim, torch_dtype, divmod(architecture, 10))
            yield Build(
                "cross_domain_attention", f"d = {head_dim}", dtype, attention.two_segment_attention_kernel,
                {**unit_strides, "HAS_OTHER": True, "HAS_PARTNER": True, "HEAD_DIM": head_dim, "MAIN": main, "TAIL": tail,
                 "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "PRECISION": precision},
                {"lse_ptr": "fp32", "weight_ptr": "fp32", "partner_ptr": "i32"}, ("score_scale",), config.num_warps, config.num_stages,
            )  # fmt: skip
        flux = attention.launch_config(128, torch_dtype, divmod(architecture, 10))
        yield Build(
            "query_broadcast", "d = 128, own keys only", dtype, attention.two_segment_attention_kernel,
            {**unit_strides, "HAS_OTHER": False, "HAS_PARTNER": False, "HEAD_DIM": 128, "MAIN": 128, "TAIL": 0,
             "BLOCK_M": flux.block_m, "BLOCK_N": flux.block_n, "PRECISION": precision},
            {"lse_ptr": "fp32", "weight_ptr": "fp32", "partner_ptr": "i32"}, ("score_scale",), flux.num_warps, flux.num_stages,
        )  # fmt: skip
        yield Build(
            "tensor_lora", "shrink, 40 columns", dtype, lora.shrink_kernel,
            {"stride_xd": 1, "stride_wd": 1, "BLOCK_TOKENS": lora.SHRINK_BLOCK_TOKENS, "BLOCK_K": lora.shrink_block_k(torch_dtype),
             "COLUMNS": 64,
             "PRECISION": precision},
            {"partial_ptr": "fp32"}, (), lora.NUM_WARPS, 3,
        )  # fmt: skip
        yield Build(
            "tensor_lora", "expand, rank 8", dtype, lora.expand_kernel,
            {"stride_od": 1, "stride_gr": 1, "RANK": 8, "BLOCK_TOKENS": lora.BLOCK_TOKENS, "BLOCK_OUT": lora.EXPAND_BLOCK_OUT},
            {}, ("scale",), lora.NUM_WARPS, 3,
        )  # fmt: skip
        yield Build(
            "tensor_lora", "norm + delta + rotary, d = 128", dtype, lora.norm_lora_rotary_kernel,
            {"stride_kd": 1, "stride_od": 1, "stride_gr": 1, "DIM": 128, "HALF": 64, "RANK": 8, "BLOCK_TOKENS": lora.BLOCK_TOKENS,
             "HEADS_PER_PROGRAM": lora.HEADS_PER_PROGRAM},
            {"rotation_ptr": "fp32"}, ("scale", "eps"), lora.ROTARY_WARPS, 3,
        )  # fmt: skip


def compile_build(build: Build, architecture: int) -> Compiled:
    """Compiles for a CUDA architecture (80, 90) and reads its resources; raises what Triton or ptxas raise."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for index, name in enumerate(build.kernel.arg_names):
        if name in build.constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + build.pointers.get(name, build.dtype)
            attributes[(index,)] = ALIGNED
        elif name in build.floats:
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if name.startswith("stride_"):
                attributes[(index,)] = ALIGNED
    compiled = triton.compile(
        ASTSource(build.kernel, signature, dict(build.constants), attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": build.num_warps, "num_stages": build.num_stages},
    )
    registers, spill_bytes = _resources(triton.knobs.nvidia.cuobjdump.path, compiled.asm["cubin"])
    tensor_core = next((name for name in ("wgmma", "mma.sync") if name in compiled.asm["ptx"]), "none")
    return Compiled(build, architecture, registers, spill_bytes, compiled.metadata.shared, tensor_core)


def _resources(cuobjdump: str, cubin: bytes) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        report = subprocess.run([cuobjdump, "-res-usage", str(path)], capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", report)[0]
    return int(registers), int(stack)


def table(results: list[Compiled]) -> str:
    """The results as a Markdown table, one line per specialisation and architecture."""
    import triton

    lines = [
        f"Triton {triton.__version__}, compiled without a GPU; spills are bytes of stack per thread.",
        "",
        "| specialisation | dtype | target | tile (warps, stages) | registers | spills | shared | tensor core |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        build = result.build
        sizes = " x ".join(str(value) for name, value in build.constants.items() if name.startswith("BLOCK_"))
        lines.append(
            f"| {build.label} | {build.dtype} | sm_{result.architecture} | {sizes} ({build.num_warps}, {build.num_stages}) "
            f"| {result.registers} | {result.spill_bytes} B | {result.shared_bytes / 1024:.0f} KiB | {result.tensor_core} |"
        )
    return "\n".join(lines)


def write_readme(operation: str, text: str) -> None:
    """Replaces what stands between the marks of an operation's README."""
    path = Path(__file__).parent / operation / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-readme", action="store_true")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    options = parser.parse_args(arguments)
    if os.environ.pop("TRITON_INTERPRET", None):
        print("TRITON_INTERPRET is ignored here: interpreted kernels cannot be compiled.", file=sys.stderr)
    dtypes = tuple(options.dtype)
    results = [compile_build(build, architecture) for architecture in ARCHITECTURES for build in builds(architecture, dtypes)]
    for operation in dict.fromkeys(result.build.operation for result in results):
        text = table([result for result in results if result.build.operation == operation])
        print(f"\n## {operation}\n{text}")
        if options.write_readme:
            write_readme(operation, text)
    spilling = [result for result in results if result.spill_bytes and result.build.dtype != "fp32"]
    for result in spilling:
        print(f"spills: {result.build.operation} {result.build.label} {result.build.dtype} sm_{result.architecture}", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
