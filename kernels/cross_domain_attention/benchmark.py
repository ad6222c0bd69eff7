"""Cross-domain attention against what one would write with PyTorch's attention.

    python -m intrinsic_lab.kernels.cross_domain_attention.benchmark [--device cuda --write-table] [--threads N] [--write]

Baseline: attention on keys concatenated beforehand, without a weight: less work than is asked for, so its 1.00 is a bound. A model has its
two sets of keys apart: "concatenated in the call" is what the bias costs there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import benchmarking as bench
from ..dispatch import MeasuredChoice, write_choices
from ..flops import attention_flops
from . import OPERATION, cross_domain_attention

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Shape:
    """One self-attention of a base model."""

    name: str
    rows: int
    heads: int
    tokens: int
    dim: int


CPU_SHAPES = (Shape("SD 1.5, 32 x 32", 1, 8, 1024, 40), Shape("SDXL, 64 x 64, 2 of 10 heads", 1, 2, 4096, 64))
CUDA_SHAPES = (
    Shape("SDXL 1024 px, outer", 2, 10, 4096, 64),
    Shape("SDXL 1024 px, inner", 2, 20, 1024, 64),
    Shape("SD 2.1 768 px, outer", 2, 5, 9216, 64),
    Shape("SD 1.5 512 px, outer", 2, 8, 4096, 40),
    Shape("SD 1.5 512 px, middle", 2, 8, 1024, 80),
    Shape("SD 1.5 512 px, inner", 2, 8, 256, 160),
    Shape("PixArt 1024 px", 2, 16, 4096, 72),
    Shape("FLUX 1024 px", 1, 24, 4608, 128),
)


def operands(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value, other key, other value as a model hands them over: views of [rows, tokens, heads, dim]."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape.rows, shape.tokens, shape.heads, shape.dim)
    draws = (torch.randn(sizes, generator=generator).to(device, dtype).transpose(1, 2) for _ in range(5))
    query, key, value, other_key, other_value = draws
    return query, key, value, other_key, other_value


def sdpa_kernels(device: str) -> dict[str, AbstractContextManager]:
    """PyTorch's attention kernels by name: on CUDA each one alone, on the CPU there is one."""
    if device == "cpu":
        return {"SDPA": nullcontext()}
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    return {name: sdpa_kernel(backend) for name, backend in backends.items()}


def flex_attention_of(query: Tensor, keys: Tensor, values: Tensor, own: int, weight: float) -> Callable[[], Tensor]:
    """FlexAttention, compiled, with log w as its score modification; at weight 0 it is given the own keys alone."""
    from torch.nn.attention.flex_attention import flex_attention

    log_weight = torch.tensor(weight, device=query.device).log()

    def weigh(score, batch, head, row, column):
        return torch.where(column < own, score, score + log_weight)

    compiled = torch.compile(flex_attention)
    if weight == 0:
        return lambda: compiled(query, keys[..., :own, :], values[..., :own, :])
    return lambda: compiled(query, keys, values, score_mod=weigh)


def candidates_of(shape: Shape, dtype: torch.dtype, weight: float, device: str, flex: bool) -> tuple[dict[str, Callable], Tensor]:
    """What is timed, the unbiased baseline first, and the expected values."""
    query, key, value, other_key, other_value = tensors = operands(shape, dtype, device)
    wide = (query.double(), key.double(), value.double(), other_key.double(), other_value.double())
    expected = cross_domain_attention(*wide, weight, backend="torch" if device == "cpu" else "reference")
    keys, values = torch.cat([key, other_key], 2), torch.cat([value, other_value], 2)
    row = torch.zeros(1, 1, 1, keys.shape[2], device=device)
    row[..., shape.tokens :] = torch.tensor(weight).log()
    row = row.to(dtype)
    full = row.expand(1, 1, shape.tokens, -1).contiguous()

    def concatenating() -> Tensor:
        keys, values = torch.cat([key, other_key], 2), torch.cat([value, other_value], 2)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=row)

    def sdpa(kernel, bias=None):
        def run():
            with kernel:
                return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)

        return run

    kernels = sdpa_kernels(device)
    runs: dict[str, Callable] = {f"{name}, concatenated, no weight": sdpa(kernel) for name, kernel in kernels.items()}
    runs["ours, torch"] = lambda: cross_domain_attention(*tensors, weight, backend="torch")
    if device == "cuda":
        runs["ours, Triton"] = lambda: cross_domain_attention(*tensors, weight, backend="triton")
    runs["SDPA + N x 2N mask"] = lambda: F.scaled_dot_product_attention(query, keys, values, attn_mask=full)
    runs["SDPA + row mask"] = lambda: F.scaled_dot_product_attention(query, keys, values, attn_mask=row)
    runs["the same, concatenated in the call"] = concatenating
    if flex:
        runs["FlexAttention, compiled"] = flex_attention_of(query, keys, values, shape.tokens, weight)
    return runs, expected


def measure(shape: Shape, dtype: torch.dtype, weight: float, settings: bench.Settings, flex: bool) -> tuple[list[tuple], list[dict]]:
    """Checks every weighted candidate against float64, then times all side by side."""
    runs, expected = candidates_of(shape, dtype, weight, settings.device, flex)
    weighted = {name: run for name, run in runs.items() if "no weight" not in name}
    errors = {name: bench.check(f"{shape.name}, {name}", run(), expected, TOLERANCE[dtype]) for name, run in weighted.items()}
    measured = bench.side_by_side(runs, settings)
    best_unbiased = min((m for name, m in measured.items() if name not in weighted), key=lambda m: m.milliseconds)
    keys_read = shape.tokens * (2 if weight else 1)
    work = shape.rows * attention_flops(shape.tokens, keys_read, shape.heads * shape.dim)
    kind = str(dtype).removeprefix("torch.")
    rows, records = [], []
    for name, result in measured.items():
        ratio = result.milliseconds / best_unbiased.milliseconds if settings.device == "cuda" else result.ratio
        error = f"{errors[name]:.1e}" if name in errors else "-"
        rate = f"{work / result.milliseconds / 1e9:.3g}" if name in errors else "-"
        rows.append((shape.name, kind, weight, name, f"{result.milliseconds:.3f}", f"{ratio:.2f}", rate, error))
        records.append({**asdict(shape), "dtype": kind, "weight": weight, "candidate": name, "ms": result.milliseconds, "ratio": ratio})
    return rows, records


def choices(records: list[dict]) -> list[MeasuredChoice]:
    """The faster of our two paths for every shape class, at a weight between 0 and 1."""
    chosen = []
    ours = [record for record in records if record["weight"] == 0.5 and record["candidate"].startswith("ours")]
    for torch_path in (record for record in ours if record["candidate"] == "ours, torch"):
        same = ("name", "dtype")
        triton_path = next(r for r in ours if r["candidate"] == "ours, Triton" and all(r[key] == torch_path[key] for key in same))
        shape_class = (torch_path["dtype"], torch_path["dim"], torch_path["tokens"])
        chosen.append(bench.faster_path(OPERATION, *shape_class, torch_path["ms"], triton_path["ms"]))
    return chosen


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--skip-flex", action="store_true", help="leave out FlexAttention, whose compilation takes a minute")
    parser.add_argument("--only", default="", help="measure only shapes whose name contains this")
    options = parser.parse_args()
    settings = bench.settings_from(options)
    dtypes = (torch.float32, torch.bfloat16) if settings.device == "cpu" else (torch.bfloat16, torch.float16)
    rows, records = [], []
    with torch.inference_mode():
        for shape in (s for s in (CPU_SHAPES if settings.device == "cpu" else CUDA_SHAPES) if options.only in s.name):
            for dtype in dtypes:
                for weight in (0.5, 0.0):
                    torch.compiler.reset()
                    found = measure(shape, dtype, weight, settings, not options.skip_flex)
                    rows += found[0]
                    records += found[1]
    columns = ("shape", "dtype", "w", "way", "ms", "ratio", "TFLOP/s", "error (float64)")
    section = bench.report("Cross-domain attention", columns, rows, settings)
    print(section)
    if options.write:
        bench.keep(OPERATION, [section], records, settings)
    if options.write_table and settings.device == "cuda":
        write_choices(choices(records))


if __name__ == "__main__":
    main()
