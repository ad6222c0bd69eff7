"""Tensor LoRA against the upstream contraction order, written from its formula; time and peak memory.

python -m intrinsic_lab.kernels.tensor_lora.benchmark [--device cuda] [--threads N] [--write]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import benchmarking as bench
from ..flops import tensor_lora_bytes, tensor_lora_flops, tensor_lora_upstream_flops
from . import merge_cores, tensor_lora_

MAPS, RANK, WIDTH = 5, 8, 3072
SCALE = RANK**-0.5
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1.5e-2}


def upstream_order(out: Tensor, x: Tensor, g1: Tensor, g2: Tensor, g3: Tensor, scale: float) -> Tensor:
    """Cores merged in every call; every pair of output and input map expanded, [M, M, tokens, d_out]; then the sum over input maps."""
    merged = torch.einsum("ijq,iurq->ijur", g1, g2)
    hidden = torch.einsum("jlu,ijur->ijlr", x, merged)
    return out + scale * torch.einsum("ijlr,ior->ijlo", hidden, g3).sum(dim=1)


def sum_before_expansion(out: Tensor, x: Tensor, g1: Tensor, g2: Tensor, g3: Tensor, scale: float) -> Tensor:
    """The same with the sum over input maps taken before the expansion."""
    merged = torch.einsum("ijq,iurq->ijur", g1, g2)
    return out + scale * torch.einsum("ilr,ior->ilo", torch.einsum("jlu,ijur->ilr", x, merged), g3)


def measure(tokens: int, dtype: torch.dtype, settings: bench.Settings) -> tuple[list[tuple], list[dict]]:
    """Checks every order against float64, then times them and takes the peak of their temporary memory."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(settings.device, dtype)

    x, out = normal(MAPS, tokens, WIDTH), normal(MAPS, tokens, WIDTH)
    g1, g2, g3 = normal(MAPS, MAPS, RANK) / MAPS, normal(MAPS, WIDTH, RANK, RANK) / (WIDTH * RANK) ** 0.5, normal(MAPS, WIDTH, RANK)
    merged = merge_cores(g1, g2)
    expected = sum_before_expansion(*(t.double() for t in (out, x, g1, g2, g3)), SCALE)
    target = out.clone()

    def ours(backend: str) -> Callable[[], Tensor]:
        return lambda: tensor_lora_(target, x, merged, g3, SCALE, backend=backend)

    runs: dict[str, Callable[[], Tensor]] = {
        "upstream order": lambda: upstream_order(out, x, g1, g2, g3, SCALE),
        "sum before expansion": lambda: sum_before_expansion(out, x, g1, g2, g3, SCALE),
        "ours, torch: merged once, in place": ours("torch"),
    }
    if settings.device == "cuda":
        runs["ours, Triton: merged once, in place"] = ours("triton")
    errors, peaks = {}, {}
    for name, run in runs.items():
        target.copy_(out)
        errors[name] = bench.check(name, run(), expected, TOLERANCE[dtype])
        peaks[name] = _peak(run, settings) / 2**20
    del expected
    measured = bench.side_by_side(runs, settings)
    kind = str(dtype).removeprefix("torch.")
    floor = tensor_lora_bytes(tokens, WIDTH, WIDTH, MAPS, RANK, dtype.itemsize)
    rows, records = [], []
    for name, result in measured.items():
        count = tensor_lora_upstream_flops if name == "upstream order" else tensor_lora_flops
        speed_up = 1 / result.ratio
        gigaflop = count(tokens, WIDTH, WIDTH, MAPS, RANK) / 1e9
        rate = floor / result.milliseconds / 1e6
        rows.append(
            (kind, name, f"{result.milliseconds:.2f}", f"{speed_up:.1f}x", f"+{peaks[name]:.1f} MiB", f"{gigaflop:.1f}", f"{rate:.1f}",
             f"{errors[name]:.1e}")
        )  # fmt: skip
        records.append(
            {"dtype": kind, "tokens": tokens, "way": name, "ms": result.milliseconds, "speed_up": speed_up, "peak_mib": peaks[name]}
        )
    return rows, records


def _peak(run: Callable[[], Tensor], settings: bench.Settings) -> int:
    if settings.device == "cpu":
        return bench.peak_extra_bytes(run)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    settings = bench.settings_from(options)
    rows, records = [], []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            found, kept = measure(options.tokens, dtype, settings)
            rows += found
            records += kept
    columns = ("dtype", "way", "ms", "speed-up", "peak extra memory", "GFLOP", "GB/s of the byte floor", "error (float64)")
    section = bench.report(f"Tensor LoRA, {MAPS} maps, {options.tokens} tokens, d = {WIDTH}, rank {RANK}", columns, rows, settings)
    print(section)
    if options.write:
        bench.keep("tensor_lora", [section], records, settings)


if __name__ == "__main__":
    main()
