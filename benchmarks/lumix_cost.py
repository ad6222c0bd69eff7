"""What LumiX costs in a pair of FLUX-wide blocks: ours against the upstream order of computation, time, peak memory, where the time goes.

    python -m intrinsic_lab.benchmarks.lumix_cost [--device cuda] [--pixels 512] [--rounds 3] [--threads N] [--clock cpu] [--write]

One double-stream and one single-stream block of FLUX.1's width, five maps, 512 text tokens, one prompt, random weights in bfloat16. The
upstream order is a reference written from its formula: queries are projected, normed and rotated for every map and then replaced by the
colour map's; Tensor LoRA contracts the input of every map with the cores of every other, and expands every pair of maps before it sums.
Nothing is reported unless both give the same numbers.

On a CPU that multiplies bfloat16 natively, ours attends through `kernels.cpu_attention`, upstream's through PyTorch's attention: that is
part of the ratio beside the order.

The order of computation saves little of the arithmetic of such a pair, and much of what moves through memory. How much it could save at
most is printed with the tables: the time of upstream's pair over the time of our projections and attention alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ..kernels import benchmarking as bench
from ..kernels.flops import query_broadcast_flops, saved_query_flops, tensor_lora_flops
from ..methods.lumix.design import QUERY_BROADCAST, Design
from ..methods.lumix.tensor_lora.config import AdapterConfig
from ..methods.lumix.tensor_lora.layer import Adapter, TensorLayer
from ..methods.rows import Rows
from ..tools.comfyui_source import find_comfyui

WIDTH, HEADS, TEXT, RANK = 3072, 24, 512, 8
TOLERANCE = 3e-2
PROJECTIONS, ATTENTION, TENSOR_LORA, REST = "projections", "attention", "Tensor LoRA products", "norms, rotations, sums, copies"
KINDS = {
    PROJECTIONS: ("addmm", "mkldnn_linear", "aten::mm", "aten::linear"),
    ATTENTION: ("scaled_dot_product", "flash_attention", "softmax"),
    TENSOR_LORA: ("bmm", "einsum"),
}


def start_comfyui() -> None:
    """Makes ComfyUI importable, on the CPU where there is no CUDA."""
    sys.path.insert(0, str(find_comfyui()))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def tensor_lora_in_upstream_order(x: Tensor, g1: Tensor, g2: Tensor, g3: Tensor) -> Tensor:
    """x G2, then G1, then G3, each for every pair (output map i, input map j); then the sum over j. [map, token, width] in and out."""
    pairs = torch.einsum("jtu,iurq->ijtrq", x, g2)
    hidden = torch.einsum("ijtrq,ijq->ijtr", pairs, g1)
    return torch.einsum("ijtr,ior->ijto", hidden, g3).sum(dim=1)


class Pair:
    """A double-stream and a single-stream block with their Tensor LoRA, and the tokens of five maps."""

    def __init__(self, device: str, pixels: int):
        import comfy.ops
        from comfy.ldm.flux.layers import DoubleStreamBlock, EmbedND, SingleStreamBlock

        from ..nodes.native.backbones.flux.maps import Attention, double_block, single_block
        from ..nodes.native.batch_rows.lumix_rows import KEY, MapForward

        options = {"dtype": torch.bfloat16, "device": device, "operations": comfy.ops.disable_weight_init}
        torch.manual_seed(0)
        self.double = _drawn(DoubleStreamBlock(WIDTH, HEADS, 4.0, qkv_bias=True, **options))
        self.single = _drawn(SingleStreamBlock(WIDTH, HEADS, 4.0, **options))
        config = AdapterConfig(Design(), double_blocks=1, single_blocks=1, rank=RANK)
        self.cores = _drawn(Adapter(config).to(device, torch.bfloat16))
        merged = _drawn(Adapter(config).to(device, torch.bfloat16))
        merged.load_state_dict(self.cores.state_dict())
        merged.merge_()
        self.color, maps = config.design.color_row, len(config.design.maps)
        side = pixels // 16
        network = SimpleNamespace(double_blocks=[self.double], single_blocks=[self.single])
        self.forward = MapForward(network, Rows(config.design.maps))
        self.options = {KEY: self.forward}
        normal = {"dtype": torch.bfloat16, "device": device}
        self.img, self.txt = torch.randn(maps, side * side, WIDTH, **normal), torch.randn(maps, TEXT, WIDTH, **normal)
        self.vec = torch.randn(maps, WIDTH, **normal)
        ids = torch.zeros(TEXT + side * side, 3, device=device)
        ids[TEXT:, 1:] = torch.cartesian_prod(torch.arange(side), torch.arange(side)).to(ids)
        self.pe = EmbedND(WIDTH // HEADS, 10000, [16, 56, 56])(ids.expand(maps, -1, -1))
        blocks = merged.double_blocks[0], merged.single_blocks[0]
        makers = double_block, single_block
        self.replaced = [make(0, Attention(QUERY_BROADCAST, layer, 1.0)) for make, layer in zip(makers, blocks, strict=True)]

    def _arguments(self, **streams: Tensor) -> dict:
        # Blocks write into their streams.
        return {**{name: x.clone() for name, x in streams.items()}, "vec": self.vec, "pe": self.pe, "transformer_options": self.options}

    def ours(self) -> Tensor:
        """Both blocks as the node runs them."""
        self.forward.ran.clear()
        out = self.replaced[0](self._arguments(img=self.img, txt=self.txt))
        return self.replaced[1](self._arguments(img=torch.cat([out["txt"], out["img"]], dim=1)))["img"]

    def upstream(self) -> Tensor:
        """Both blocks in the upstream order."""
        from comfy.ldm.flux.layers import apply_mod
        from comfy.ldm.flux.math import apply_rope

        def by_head(x: Tensor) -> Tensor:
            return rearrange(x, "row token (head dim) -> row head token dim", head=HEADS)

        def update(layer: TensorLayer, x: Tensor) -> Tensor:
            return layer.scale * tensor_lora_in_upstream_order(x, layer.G1, layer.G2, layer.G3)

        def projected(linear: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
            return linear(x).split([WIDTH] * 3 + [linear.out_features - 3 * WIDTH], dim=-1)

        def key_value(layer: TensorLayer, x: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            key_change, value_change = update(layer, x).chunk(2, dim=-1)
            return key + by_head(key_change), by_head(value + value_change)

        def shared(query: Tensor) -> Tensor:
            return repeat(query[self.color], "... -> row ...", row=len(query))

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
            return rearrange(out, "row head token dim -> row token (head dim)")

        img, txt, block, layers = self.img.clone(), self.txt.clone(), self.double, self.cores.double_blocks[0]
        (mod, mod_mlp), (text_mod, text_mod_mlp) = block.img_mod(self.vec), block.txt_mod(self.vec)
        x = apply_mod(block.img_norm1(img), 1 + mod.scale, mod.shift)
        query, key, value, _ = projected(block.img_attn.qkv, x)
        query, key = block.img_attn.norm(by_head(query), by_head(key), value)
        key, value = key_value(layers.input, x, key, value)
        text = rearrange(
            block.txt_attn.qkv(apply_mod(block.txt_norm1(txt), 1 + text_mod.scale, text_mod.shift)),
            "row token (part head dim) -> part row head token dim",
            part=3,
            head=HEADS,
        )
        text = (*block.txt_attn.norm(*text), text[2])
        query, key, value = (torch.cat(streams, dim=2) for streams in zip(text, (query, key, value), strict=True))
        query, key = apply_rope(query, key, self.pe)
        query = torch.cat([query[:, :, :TEXT], shared(query[:, :, TEXT:])], dim=2)
        out = attend(query, key, value)
        image = block.img_attn.proj(out[:, TEXT:])
        img = img + apply_mod(image + update(layers.proj, image), mod.gate)
        img = img + apply_mod(block.img_mlp(apply_mod(block.img_norm2(img), 1 + mod_mlp.scale, mod_mlp.shift)), mod_mlp.gate)
        txt = txt + apply_mod(block.txt_attn.proj(out[:, :TEXT]), text_mod.gate)
        inner = apply_mod(block.txt_norm2(txt), 1 + text_mod_mlp.scale, text_mod_mlp.shift)
        txt = txt + apply_mod(block.txt_mlp(inner), text_mod_mlp.gate)
        tokens, block, layers = torch.cat([txt, img], dim=1), self.single, self.cores.single_blocks[0]
        mod, _ = block.modulation(self.vec)
        x = apply_mod(block.pre_norm(tokens), 1 + mod.scale, mod.shift)
        query, key, value, mlp = projected(block.linear1, x)
        query, key = block.norm(by_head(query), by_head(key), value)
        key, value = key_value(layers.input, x, key, value)
        query, key = apply_rope(query, key, self.pe)
        out = block.linear2(torch.cat([attend(shared(query), key, value), block.mlp_act(mlp)], dim=2))
        return tokens + apply_mod(out + update(layers.proj, out), mod.gate)


def _drawn(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.05)
        else:
            parameter.fill_(1.0 if parameter.numel() == WIDTH // HEADS else 0.0)
    return module.eval()


def where_time_goes(run: Callable[[], Tensor], device: str) -> dict[str, float]:
    """Milliseconds of one run by kind of operation."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, record_shapes=True) as profiler:
        run()
    found = dict.fromkeys([*KINDS, REST], 0.0)
    for event in profiler.key_averages(group_by_input_shape=True):
        # A kernel's time on a GPU is told twice: with the operation that launched it, and by itself.
        if event.device_type == DeviceType.CPU:
            found[_kind(event)] += (event.self_device_time_total if device == "cuda" else event.self_cpu_time_total) / 1e3
    return found


def _kind(event) -> str:
    kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), REST)
    # A weight is at least as wide as the stream either way; queries, keys and values of a head are not.
    if kind == PROJECTIONS and min(event.input_shapes[2 if "addmm" in event.key else 1]) < WIDTH:
        kind = TENSOR_LORA if RANK in event.input_shapes[1] else ATTENTION
    # On slices of a stream torch's Linear is a batched product, with the weight once a row.
    if kind == TENSOR_LORA and any(len(shape) == 3 and min(shape[1:]) >= WIDTH for shape in event.input_shapes):
        return PROJECTIONS
    return kind


def flops_of_products(image: int, maps: int) -> dict[str, dict[str, int]]:
    """Floating-point operations of the pair by kind, upstream's and ours; image: tokens of one map."""
    tokens = image + TEXT
    # 12 widths by a width: query, key, value and output, and the feed-forward layers of four widths; in either block.
    projections = 2 * 12 * maps * 2 * tokens * WIDTH * WIDTH
    attention = 2 * query_broadcast_flops(tokens, WIDTH, maps)
    updates = [(count, outputs * WIDTH) for count in (image, tokens) for outputs in (2, 1)]

    def of_pairs(count: int, width_out: int) -> int:
        """x G2, G1 and G3 of every pair of maps, and the sum."""
        return maps * maps * count * (2 * WIDTH * RANK**2 + 2 * RANK**2 + 2 * RANK * width_out + width_out)

    saved = saved_query_flops(image, WIDTH, maps) + saved_query_flops(tokens, WIDTH, maps)
    return {
        "upstream order": {PROJECTIONS: projections, ATTENTION: attention, TENSOR_LORA: sum(of_pairs(*update) for update in updates)},
        "ours": {
            PROJECTIONS: projections - saved,
            ATTENTION: attention,
            TENSOR_LORA: sum(tensor_lora_flops(count, WIDTH, width_out, maps, RANK) for count, width_out in updates),
        },
    }


def peak_mib(run: Callable[[], Tensor], device: str) -> float:
    """Most memory held at once during a run, above the weights and inputs."""
    if device == "cpu":
        return bench.peak_extra_bytes(run) / 2**20
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--pixels", type=int, default=512)
    parser.set_defaults(rounds=3)
    options = parser.parse_args()
    settings = bench.settings_from(options)
    start_comfyui()
    with torch.inference_mode():
        pair = Pair(settings.device, options.pixels)
        error = bench.check("ours", pair.ours(), pair.upstream(), TOLERANCE)
        ways = {"upstream order": pair.upstream, "ours": pair.ours}
        measured = bench.side_by_side(ways, settings)
        peaks = {name: peak_mib(run, settings.device) for name, run in ways.items()}
        parts = {name: where_time_goes(run, settings.device) for name, run in ways.items()}
    rows = [(name, f"{result.milliseconds:.0f}", f"{1 / result.ratio:.2f}x", f"{peaks[name]:.0f} MiB") for name, result in measured.items()]
    title = f"LumiX: a pair of FLUX-wide blocks, five maps, {options.pixels} x {options.pixels}, bfloat16 (difference {error:.1e})"
    table = bench.report(title, ("way", "ms", "speed-up", "peak memory"), rows, settings)
    counts = flops_of_products(pair.img.shape[1], len(pair.img))
    cells = {name: {kind: (f"{counts[name].get(kind, 0) / 1e9:.0f}", f"{parts[name][kind]:.0f}") for kind in parts[name]} for name in ways}
    kinds = [(kind, *cells["upstream order"][kind], *cells["ours"][kind]) for kind in parts["ours"]]
    columns = ("operations", *(column for name in ways for column in (f"{name}: GFLOP", "ms")))
    details = bench.report("Where the time goes in one profiled run", columns, kinds, settings)
    least = sum(milliseconds for kind, milliseconds in parts["ours"].items() if kind in (PROJECTIONS, ATTENTION))
    at_most = sum(parts["upstream order"].values()) / least
    arithmetic = sum(counts["upstream order"].values()) / sum(counts["ours"].values())
    print(f"{table}\n\n{details}\n")
    print(f"Arithmetic alone: {arithmetic:.2f}x. Were all but our projections and attention free: {at_most:.2f}x.")
    kept = os.environ.get("INTRINSIC_LAB_RESULT") or (bench.RESULTS / f"lumix_cost_{settings.device}.json" if options.write else None)
    if kept:
        record = {
            "machine": bench.machine(),
            "settings": vars(settings),
            "difference": error,
            "milliseconds": {name: result.milliseconds for name, result in measured.items()},
            "speed_up": 1 / measured["ours"].ratio,
            "peak_mib": peaks,
            "parts_ms": parts,
            "flops": counts,
            "arithmetic_ratio": arithmetic,
            "speed_up_at_most": at_most,
        }
        Path(kept).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
