"""Tensor LoRA against the upstream contraction order, written from its formula: time and peak memory; then its parts and the key pass.

    python -m intrinsic_lab.kernels.tensor_lora.benchmark [--device cuda --write-table] [--threads N] [--write]

The byte floor is the time in which the machine moves the bytes that must move, at the rate of a copy measured in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import benchmarking as bench
from ..dispatch import MeasuredChoice, write_choices
from ..flops import (
    tensor_lora_bytes,
    tensor_lora_expand_bytes,
    tensor_lora_flops,
    tensor_lora_shrink_bytes,
    tensor_lora_upstream_flops,
)
from . import EXPAND, NORM_LORA_ROTARY, SHRINK, expand_, merge_cores, norm_lora_rotary, shrink, tensor_lora_

MAPS, RANK, WIDTH, HEADS = 5, 8, 3072, 24
SCALE = RANK**-0.5
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
COPY = "copy of x, for the byte floor"


@dataclass(frozen=True)
class Operands:
    """One update of a FLUX-wide block: x, out [map, token, width], the cores, and the cores merged."""

    x: Tensor
    out: Tensor
    g1: Tensor
    g2: Tensor
    g3: Tensor
    merged: Tensor


def operands(tokens: int, dtype: torch.dtype, device: str) -> Operands:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, out = normal(MAPS, tokens, WIDTH), normal(MAPS, tokens, WIDTH)
    g1, g2, g3 = normal(MAPS, MAPS, RANK) / MAPS, normal(MAPS, WIDTH, RANK, RANK) / (WIDTH * RANK) ** 0.5, normal(MAPS, WIDTH, RANK)
    return Operands(x, out, g1, g2, g3, merge_cores(g1, g2))


def upstream_order(out: Tensor, x: Tensor, g1: Tensor, g2: Tensor, g3: Tensor) -> Tensor:
    """Cores merged in every call; every pair of output and input map expanded, [M, M, tokens, d_out]; then the sum over input maps."""
    merged = torch.einsum("ijq,iurq->ijur", g1, g2)
    hidden = torch.einsum("jlu,ijur->ijlr", x, merged)
    return out + SCALE * torch.einsum("ijlr,ior->ijlo", hidden, g3).sum(dim=1)


def sum_before_expansion(out: Tensor, x: Tensor, g1: Tensor, g2: Tensor, g3: Tensor) -> Tensor:
    """The same with the sum over input maps taken before the expansion."""
    merged = torch.einsum("ijq,iurq->ijur", g1, g2)
    return out + SCALE * torch.einsum("ilr,ior->ilo", torch.einsum("jlu,ijur->ilr", x, merged), g3)


def separate_key_passes(key: Tensor, norm_weight: Tensor, hidden: Tensor, g3: Tensor, rotation: Tensor) -> Tensor:
    """Norm, delta and rotation as a block computes them one after the other, each a pass over the keys."""
    normed = F.rms_norm(key, key.shape[-1:], norm_weight, 1e-6)
    shifted = normed + (SCALE * (hidden @ g3.mT)).unflatten(-1, (key.shape[-3], -1)).transpose(-2, -3)
    pairs = shifted.float().unflatten(-1, (-1, 1, 2))
    return (rotation[..., 0] * pairs[..., 0] + rotation[..., 1] * pairs[..., 1]).flatten(-2).to(key.dtype)


def _ours(call: Callable[[str], Tensor], device: str) -> dict[str, Callable[[], Tensor]]:
    runs = {"ours, torch": lambda: call("torch")}
    if device == "cuda":
        runs["ours, Triton"] = lambda: call("triton")
    return runs


def measure(tokens: int, dtype: torch.dtype, settings: bench.Settings) -> tuple[list[tuple], list[dict]]:
    """Checks every order against float64, then times them and takes the peak of their temporary memory."""
    given = operands(tokens, dtype, settings.device)
    cores = (given.out, given.x, given.g1, given.g2, given.g3)
    expected = sum_before_expansion(*(t.double() for t in cores))
    target = given.out.clone()
    runs: dict[str, Callable[[], Tensor]] = {
        "upstream order": lambda: upstream_order(*cores),
        "sum before expansion": lambda: sum_before_expansion(*cores),
        **_ours(lambda backend: tensor_lora_(target, given.x, given.merged, given.g3, SCALE, backend=backend), settings.device),
    }
    errors, peaks = {}, {}
    for name, run in runs.items():
        target.copy_(given.out)
        errors[name] = bench.check(name, run(), expected, TOLERANCE[dtype])
        peaks[name] = _peak(run, settings) / 2**20
    del expected
    measured = bench.side_by_side({**runs, COPY: lambda: target.copy_(given.x)}, settings)
    floor_bytes = tensor_lora_bytes(tokens, WIDTH, WIDTH, MAPS, RANK, dtype.itemsize)
    floor = _floor_ms(floor_bytes, given.x, measured.pop(COPY))
    kind = str(dtype).removeprefix("torch.")
    rows, records = [], []
    for name, result in measured.items():
        count = tensor_lora_upstream_flops if name == "upstream order" else tensor_lora_flops
        speed_up = 1 / result.ratio
        gigaflop = count(tokens, WIDTH, WIDTH, MAPS, RANK) / 1e9
        rows.append(
            (kind, name, f"{result.milliseconds:.2f}", f"{speed_up:.1f}x", f"+{peaks[name]:.1f} MiB", f"{gigaflop:.1f}",
             f"{result.milliseconds / floor:.1f} of {floor:.2f} ms", f"{errors[name]:.1e}")
        )  # fmt: skip
        records.append(
            {"dtype": kind, "tokens": tokens, "way": name, "ms": result.milliseconds, "speed_up": speed_up, "peak_mib": peaks[name],
             "byte_floor_ms": floor}
        )  # fmt: skip
    return rows, records


def measure_parts(tokens: int, dtype: torch.dtype, settings: bench.Settings) -> tuple[list[tuple], list[dict]]:
    """The two halves of the update and the key pass, each of our paths after its check against float64."""
    given = operands(tokens, dtype, settings.device)
    wide = Operands(*(tensor.double() for tensor in vars(given).values()))
    hidden = shrink(given.x, given.merged, backend="reference")
    target = given.out.clone()
    key = given.x.unflatten(-1, (HEADS, -1)).transpose(-2, -3)
    norm_weight = torch.linspace(0.5, 1.5, WIDTH // HEADS, device=settings.device).to(dtype)
    angle = torch.arange(tokens * WIDTH // HEADS // 2, device=settings.device).view(tokens, -1) * 0.1
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    for_keys = (key, norm_weight, hidden, given.g3, rotation)
    wide_for_keys = (key.double(), norm_weight.double(), hidden.double(), given.g3.double(), rotation.double())

    def add(backend: str) -> Tensor:
        return expand_(target, hidden, given.g3, SCALE, backend=backend)

    half_bytes = tensor_lora_expand_bytes(tokens, WIDTH, MAPS, RANK, dtype.itemsize)
    parts = (
        (SHRINK, WIDTH, tensor_lora_shrink_bytes(tokens, WIDTH, MAPS, RANK, dtype.itemsize),
         _ours(lambda backend: shrink(given.x, given.merged, backend=backend), settings.device),
         lambda: shrink(wide.x, wide.merged, backend="reference")),
        (EXPAND, WIDTH, half_bytes, _ours(add, settings.device),
         lambda: expand_(wide.out, hidden.double(), wide.g3, SCALE, backend="reference")),
        (NORM_LORA_ROTARY, WIDTH // HEADS, half_bytes + rotation.nbytes,
         {"norm, delta, rotation apart": lambda: separate_key_passes(*for_keys),
          **_ours(lambda backend: norm_lora_rotary(*for_keys, SCALE, backend=backend), settings.device)},
         lambda: norm_lora_rotary(*wide_for_keys, SCALE, backend="reference")),
    )  # fmt: skip
    kind = str(dtype).removeprefix("torch.")
    rows, records = [], []
    for operation, head_dim, floor_bytes, runs, expected_of in parts:
        expected = expected_of()
        errors = {}
        for name, run in runs.items():
            target.copy_(given.out)
            errors[name] = bench.check(f"{operation}, {name}", run(), expected, TOLERANCE[dtype])
        measured = bench.side_by_side({**runs, COPY: lambda: target.copy_(given.x)}, settings)
        floor = _floor_ms(floor_bytes, given.x, measured.pop(COPY))
        for name, result in measured.items():
            against_floor = f"{result.milliseconds / floor:.1f} of {floor:.2f} ms"
            rows.append((kind, operation, name, f"{result.milliseconds:.2f}", f"{result.ratio:.2f}", against_floor, f"{errors[name]:.1e}"))
            records.append(
                {"part": operation, "dtype": kind, "head_dim": head_dim, "tokens": tokens, "way": name, "ms": result.milliseconds,
                 "ratio": result.ratio, "byte_floor_ms": floor}
            )  # fmt: skip
    return rows, records


def _floor_ms(floor_bytes: int, copied: Tensor, copy: bench.Measurement) -> float:
    """Milliseconds that `floor_bytes` take at the rate of a copy, which reads and writes `copied` once."""
    return floor_bytes / (2 * copied.nbytes) * copy.milliseconds


def _peak(run: Callable[[], Tensor], settings: bench.Settings) -> int:
    if settings.device == "cpu":
        return bench.peak_extra_bytes(run)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def choices(records: list[dict]) -> list[MeasuredChoice]:
    """The faster of our two paths for each part and dtype."""
    times: dict[tuple, dict[str, float]] = {}
    for r in records:
        times.setdefault((r["part"], r["dtype"], r["head_dim"], r["tokens"]), {})[r["way"]] = r["ms"]
    return [bench.faster_path(*part, *(ways[f"ours, {path}"] for path in ("torch", "Triton"))) for part, ways in times.items()]


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    settings = bench.settings_from(options)
    whole, parts, records, part_records = [], [], [], []
    with torch.inference_mode():
        for dtype in (torch.float32 if settings.device == "cpu" else torch.float16, torch.bfloat16):
            found, kept = measure(options.tokens, dtype, settings)
            whole += found
            records += kept
            found, kept = measure_parts(options.tokens, dtype, settings)
            parts += found
            part_records += kept
    columns = ("dtype", "way", "ms", "speed-up", "peak extra memory", "GFLOP", "times the byte floor", "error (float64)")
    part_columns = ("dtype", "part", "way", "ms", "ratio", "times the byte floor", "error (float64)")
    size = f"{MAPS} maps, {options.tokens} tokens, d = {WIDTH}, rank {RANK}"
    sections = [
        bench.report(f"Tensor LoRA, {size}", columns, whole, settings),
        bench.report(f"Tensor LoRA by parts, and the key pass, {size}", part_columns, parts, settings),
    ]
    print("\n\n".join(sections))
    if options.write:
        bench.keep("tensor_lora", sections, records + part_records, settings)
    if options.write_table and settings.device == "cuda":
        write_choices(choices(part_records))


if __name__ == "__main__":
    main()
