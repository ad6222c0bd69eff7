"""Query-broadcast attention: what the shared query saves in a FLUX-wide single-stream block, and the baselines of the paper.

    python -m intrinsic_lab.kernels.query_broadcast.benchmark [--device cuda --write-table] [--tokens N] [--threads N] [--write]

Two tables: the projection into query, key, value (query for one map against all maps, the fused weight sliced as views), and the attention.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from .. import benchmarking as bench
from ..dispatch import MeasuredChoice, write_choices
from ..flops import cross_intrinsic_flops, query_broadcast_flops, saved_query_flops
from . import CROSS_INTRINSIC, OPERATION, cross_intrinsic_attention, query_broadcast_attention

MAPS, COLOUR, WIDTH, HEADS = 5, 2, 3072, 24
PATHS = ("torch", "Triton")
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}


def separate_projection(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value of every map: x [maps, tokens, width], weight [3 * width, width]."""
    query, key, value = F.linear(x, weight).chunk(3, dim=-1)
    return query, key, value


def broadcast_projection(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query of the colour map alone, key and value of every map; both weights are views of the fused one."""
    width = x.shape[-1]
    key, value = F.linear(x, weight[width:]).chunk(2, dim=-1)
    return F.linear(x[COLOUR], weight[:width]), key, value


def split_heads(tensor: Tensor) -> Tensor:
    return rearrange(tensor, "... token (head dim) -> ... head token dim", head=HEADS)


def measure_projection(tokens: int, dtype: torch.dtype, settings: bench.Settings) -> tuple[list[tuple], list[dict]]:
    """Times the two projections after checking that the shared results are the same numbers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(MAPS, tokens, WIDTH, generator=generator).to(settings.device, dtype)
    weight = (torch.randn(3 * WIDTH, WIDTH, generator=generator) / WIDTH**0.5).to(settings.device, dtype)
    separate, broadcast = separate_projection(x, weight), broadcast_projection(x, weight)
    for found, expected in zip(broadcast, (separate[0][COLOUR], *separate[1:]), strict=True):
        bench.check("projection", found, expected, TOLERANCE[dtype])
    del separate, broadcast
    runs = {
        "query of every map": lambda: separate_projection(x, weight),
        "query of the colour map": lambda: broadcast_projection(x, weight),
    }
    measured = bench.side_by_side(runs, settings)
    kind = str(dtype).removeprefix("torch.")
    saved = saved_query_flops(tokens, WIDTH, MAPS) / 1e9
    rows, records = [], []
    for name, result in measured.items():
        saved_here = f"{saved:.1f}" if name != "query of every map" else "0"
        rows.append((kind, tokens, name, f"{result.milliseconds:.1f}", f"{result.ratio:.3f}", saved_here))
        records.append(
            {"part": "projection", "dtype": kind, "tokens": tokens, "way": name, "ms": result.milliseconds, "ratio": result.ratio}
        )
    return rows, records


def measure_attention(tokens: int, dtype: torch.dtype, settings: bench.Settings) -> tuple[list[tuple], list[dict]]:
    """Times the attention alone; the shared query saves a copy there, no arithmetic."""
    generator = torch.Generator().manual_seed(1)
    query = split_heads(torch.randn(1, tokens, WIDTH, generator=generator).to(settings.device, dtype))
    key, value = (split_heads(torch.randn(1, MAPS, tokens, WIDTH, generator=generator).to(settings.device, dtype)) for _ in range(2))
    every_query = repeat(query, "group head token dim -> group map head token dim", map=MAPS).contiguous()

    def copied() -> Tensor:
        per_map = repeat(query, "group head token dim -> (group map) head token dim", map=MAPS).contiguous()
        return F.scaled_dot_product_attention(per_map, key[0], value[0])

    runs = {
        "SDPA, query copied per map": copied,
        "ours, torch": lambda: query_broadcast_attention(query, key, value, backend="torch"),
        "cross-intrinsic (IntrinsiX), ours, torch": lambda: cross_intrinsic_attention(every_query, key, value, backend="torch"),
    }
    if settings.device == "cuda":
        runs["ours, Triton"] = lambda: query_broadcast_attention(query, key, value, backend="triton")
        runs["cross-intrinsic (IntrinsiX), ours, Triton"] = lambda: cross_intrinsic_attention(every_query, key, value, backend="triton")
    # Two heads are enough for a check that needs the scores in float64.
    two = [tensor[..., :2, :, :].double() for tensor in (query, every_query, key, value)]
    own = query_broadcast_attention(two[0], *two[2:], backend="reference")
    across = cross_intrinsic_attention(*two[1:], backend="reference")
    for name, run in runs.items():
        found = run()[..., :2, :, :]
        bench.check(name, found.view_as(own), across if name.startswith("cross-intrinsic") else own, TOLERANCE[dtype])
    measured = bench.side_by_side(runs, settings)
    kind = str(dtype).removeprefix("torch.")
    rows, records = [], []
    for name, result in measured.items():
        count = cross_intrinsic_flops if name.startswith("cross-intrinsic") else query_broadcast_flops
        work = count(tokens, WIDTH, MAPS)
        rate = f"{work / result.milliseconds / 1e9:.3g}"
        rows.append((kind, tokens, name, f"{result.milliseconds:.1f}", f"{result.ratio:.2f}", f"{work / 1e9:.1f}", rate))
        records.append(
            {"part": "attention", "dtype": kind, "tokens": tokens, "way": name, "ms": result.milliseconds, "ratio": result.ratio}
        )
    return rows, records


def choices(records: list[dict]) -> list[MeasuredChoice]:
    """The faster of our two paths for either attention, by dtype."""
    times = {(r["dtype"], r["tokens"], r["way"]): r["ms"] for r in records if r["part"] == "attention"}
    return [
        bench.faster_path(operation, dtype, WIDTH // HEADS, tokens, *(times[dtype, tokens, f"{prefix}ours, {path}"] for path in PATHS))
        for dtype, tokens in dict.fromkeys(key[:2] for key in times)
        for operation, prefix in ((OPERATION, ""), (CROSS_INTRINSIC, "cross-intrinsic (IntrinsiX), "))
    ]


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", help="tokens per map (default 1,536 on CUDA, 256 and 1,024 on the CPU)")
    options = parser.parse_args()
    settings = bench.settings_from(options)
    counts = options.tokens or ([1536] if settings.device == "cuda" else [256, 1024])
    dtypes = (torch.float16 if settings.device == "cuda" else torch.float32, torch.bfloat16)
    projection: list[tuple] = []
    attention: list[tuple] = []
    records: list[dict] = []
    with torch.inference_mode():
        for dtype, tokens in product(dtypes, counts):
            for rows, measure in ((projection, measure_projection), (attention, measure_attention)):
                found, kept = measure(tokens, dtype, settings)
                rows += found
                records += kept
    columns = ("dtype", "tokens", "way", "ms", "ratio")
    sections = [
        bench.report("Query broadcast: projection of a FLUX-wide block", (*columns, "GFLOP saved"), projection, settings),
        bench.report("Query broadcast: attention", (*columns, "GFLOP", "TFLOP/s"), attention, settings),
    ]
    print("\n\n".join(sections))
    if options.write:
        bench.keep(OPERATION, sections, records, settings)
    if options.write_table and settings.device == "cuda":
        write_choices(choices(records))


if __name__ == "__main__":
    main()
