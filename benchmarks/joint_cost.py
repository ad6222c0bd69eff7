"""What rows that meet cost on the transformers of 2026 at their published widths, two blocks each, against independent forwards.

    python -m intrinsic_lab.benchmarks.joint_cost [--models flux ...] [--side 16] [--text 64] [--rounds 3] [--threads 1] [--write]

One sampler step in ComfyUI, without guidance, random weights in float32, a picture of `side` x `side` tokens. Side by side, in turns:

* one forward of the base, of one row; independent forwards are as many of it as there are rows;
* I-LDM: two rows, weight 0.5, a rank-32 LoRA on the intrinsic row (where keys come from and where attention's output goes);
* LumiX: three rows, query broadcast, Tensor LoRA of rank 8;
* maps that read each other's keys (cross-intrinsic): three rows.

Arithmetic is counted, not measured: matrix products of the base's forward by PyTorch's counter, attention and what a method adds or
saves by formula (`kernels.flops`). "measured" is a joint step's time over the independent forwards' time, "counted" the same of the
arithmetic; the aim is measured at most 1.10 of counted. Times are medians of processor seconds of all threads. Nothing is reported unless
a picture row at weight 0, and the colour map without an adapter, equal the base's own, and the joint ways differ from it. Models that are
measured one at a time are kept in one record.
"""

import argparse
import gc
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..kernels.flops import attention_flops, cross_intrinsic_flops, query_broadcast_flops, saved_query_flops, tensor_lora_flops
from ..kernels.machine import machine_and_card
from ..methods.ildm.schedules import constant_schedule
from ..methods.lora.layers import LoraLayer
from ..methods.lumix.design import COLOR, CROSS_INTRINSIC, QUERY_BROADCAST, Design
from ..methods.lumix.tensor_lora.config import AdapterConfig
from ..methods.lumix.tensor_lora.layer import Adapter
from ..tools.console import say
from .extraction_cost import start_comfyui
from .ildm_cost import RANK, WEIGHT, random_patcher
from .measuring import RESULTS, in_turns, keep_result, markdown_table

MAPS = ("albedo", COLOR, "normal")
LIMIT, TENSOR_RANK, EQUAL = 1.10, 8, 2e-5
BASE, EXCHANGE, LUMIX, CROSS = "one forward", "I-LDM", "LumiX", "cross-intrinsic"
ROWS = {EXCHANGE: 2, LUMIX: len(MAPS), CROSS: len(MAPS)}


@dataclass(frozen=True)
class Published:
    """A transformer in diffusers' config. text: numbers of a token; pooled: of the text's vector; patch: latent pixels along a token."""

    title: str
    config: dict
    text: int
    pooled: int = 0
    channels: int = 16
    patch: int = 2


_FLUX = dict(num_layers=1, num_single_layers=1, attention_head_dim=128, num_attention_heads=24, patch_size=1, out_channels=None)
_SD3 = dict(patch_size=2, in_channels=16, num_layers=2, attention_head_dim=64, joint_attention_dim=4096, pooled_projection_dim=2048)
_REFINED = dict(in_channels=16, qk_norm=True, norm_eps=1e-5)
PUBLISHED = {
    "flux": Published(
        "FLUX.1",
        _FLUX
        | dict(in_channels=64, joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=[16, 56, 56]),
        4096,
        pooled=768,
    ),
    "flux2": Published(
        "FLUX.2 klein 4B",
        _FLUX
        | dict(in_channels=128, joint_attention_dim=7680, guidance_embeds=False, axes_dims_rope=[32] * 4, rope_theta=2000, mlp_ratio=3.0),
        7680,
        channels=128,
        patch=1,
    ),
    "sd3": Published(
        "SD 3.5 medium",
        _SD3
        | dict(num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=(0,)),
        4096,
        pooled=2048,
    ),
    "qwen_image": Published(
        "Qwen-Image",
        dict(num_layers=2, attention_head_dim=128, num_attention_heads=24, joint_attention_dim=3584, in_channels=64, out_channels=16)
        | dict(patch_size=2, axes_dims_rope=[16, 56, 56]),
        3584,
    ),
    "z_image": Published(
        "Z-Image",
        _REFINED | dict(dim=3840, n_layers=1, n_refiner_layers=1, n_heads=30, n_kv_heads=30, cap_feat_dim=2560, axes_dims=[32, 48, 48]),
        2560,
    ),
    "lumina2": Published(
        "Lumina 2",
        dict(in_channels=16, norm_eps=1e-5, patch_size=2, hidden_size=2304, num_layers=1, num_refiner_layers=1, num_attention_heads=24)
        | dict(num_kv_heads=8, multiple_of=256, cap_feat_dim=2304, axes_dim_rope=[32, 32, 32]),
        2304,
    ),
}


def build(name: str):
    """The MODEL: core's class by the folder loader's own reading of the config, random weights."""
    import comfy.latent_formats
    from comfy.model_base import ModelType

    from ..nodes.native.backbones import qwen_image, sd3, z_image
    from ..nodes.native.backbones.flux import flux2
    from ..nodes.native.backbones.flux import loading as flux1
    from ..nodes.native.loading.latent_format import AnyLatent
    from ..nodes.native.loading.patcher import configure
    from ..nodes.native.loading.sampling import NoiseSchedule

    made, read = {
        "flux": (flux1.AnyWidthFlux, flux1.flux_config),
        "flux2": (flux2.AnyWidthFlux2, flux2.flux2_config),
        "sd3": (sd3.AnyWidthSD3, sd3.sd3_config),
        "qwen_image": (qwen_image.AnyWidthQwenImage, qwen_image.qwen_config),
        "z_image": (z_image.AnyWidthNextDiT, z_image.z_image_config),
        "lumina2": (z_image.AnyWidthNextDiT, z_image.lumina_config),
    }[name]
    published = PUBLISHED[name]
    latent_format = comfy.latent_formats.Wan21() if name == "qwen_image" else AnyLatent(published.channels, 1.0, 0.0, 8)
    return random_patcher(configure(made(read(published.config)), NoiseSchedule(ModelType.FLOW), latent_format), torch.float32)


class Setting:
    """One transformer, its joint clones, and a step of each."""

    def __init__(self, name: str, side: int, text: int):
        from ..nodes.native.backbones import BACKBONES

        self.name, self.published, self.tokens = name, PUBLISHED[name], side * side
        self.base = build(name)
        network = self.base.model.diffusion_model
        backbone = next(backbone for backbone in BACKBONES if backbone.matches(network))
        self.places = backbone.attentions(network)
        size = side * self.published.patch
        self.noise = torch.randn(1, self.published.channels, size, size, generator=torch.Generator().manual_seed(1))
        context = torch.randn(1, text, self.published.text, generator=torch.Generator().manual_seed(2))
        extra = {"pooled_output": torch.randn(1, self.published.pooled)} if self.published.pooled else {}
        self.prompt = [[context, extra]]
        self.lora, self.adapter = self._random_lora(network), self._random_adapter(network)

    def _random_lora(self, network: torch.nn.Module) -> dict[str, LoraLayer]:
        layers, draw = {}, torch.Generator().manual_seed(3)
        for name in (name for place in self.places for name in (place.entry, place.exit)):
            linear = network.get_submodule(name)
            down = torch.randn(RANK, linear.in_features, generator=draw) / math.sqrt(linear.in_features)
            layers[name] = LoraLayer(down, 0.3 * torch.randn(linear.out_features, RANK, generator=draw) / math.sqrt(RANK))
        return layers

    def _random_adapter(self, network: torch.nn.Module) -> Adapter:
        from ..nodes.native.batch_rows.attention_calls import DOUBLE, SINGLE

        streams, width = [place.stream for place in self.places], network.get_submodule(self.places[0].exit).out_features
        config = AdapterConfig(Design(maps=MAPS), width, streams.count(DOUBLE), streams.count(SINGLE), TENSOR_RANK)
        torch.manual_seed(4)
        adapter = Adapter(config).requires_grad_(False)
        for name, parameter in adapter.named_parameters():
            if name.endswith("G3"):
                parameter.normal_(std=0.3)
        adapter.merge_()
        return adapter

    def exchanged(self, weight: float):
        """I-LDM's clone."""
        from ..nodes.native.backbones import CROSS_DOMAIN, require
        from ..nodes.native.joint_sampling.cross_domain import exchange_domains

        adapter = require(self.base, CROSS_DOMAIN).bind_lora(self.base, self.lora, 1.0, "the LoRA")
        return exchange_domains(self.base, constant_schedule(weight), {"intrinsic": adapter})[0]

    def joined(self, kind: str):
        """Maps that meet without an adapter."""
        from ..nodes.native.joint_sampling.lumix import join_maps

        return join_maps(self.base, MAPS, kind)

    def adapted(self):
        """LumiX's clone."""
        from ..nodes.native.backbones import MAP_ADAPTER, require
        from ..nodes.native.backbones.backbone import TensorLora
        from ..nodes.native.batch_rows.lumix_rows import attach_rows

        clone = self.base.clone()
        require(self.base, MAP_ADAPTER)(clone, TensorLora("the adapter", self.adapter, QUERY_BROADCAST, 1.0, None, None))
        attach_rows(clone, MAPS)
        return clone

    def step(self, model: Any, rows: int = 1) -> Tensor:
        """One Euler step of rows that share noise and prompt."""
        import comfy.sample

        latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros_like(self.noise.expand(rows, -1, -1, -1)))
        noise = self.noise.repeat(rows, 1, 1, 1).reshape(latent.shape)
        options = dict(denoise=1.0, disable_pbar=True, seed=0)
        return comfy.sample.sample(model, noise, 1, 1.0, "euler", "normal", self.prompt, self.prompt, latent, **options)

    def check(self, base: Tensor, exchanged: Tensor, adapted: Tensor, crossed: Tensor, joined: Tensor, at_zero: Tensor) -> None:
        """Raises RuntimeError where joint rows are not what they should be. joined, at_zero: without an adapter, at weight 0."""
        color = MAPS.index(COLOR)
        equal = {
            "a picture at weight 0": at_zero[0],
            "the colour map by its own queries": joined[color],
            # Rows of one noise and one prompt are alike: keys that are read three times weigh as much as once.
            "the colour map by the keys of all": crossed[color],
        }
        start = self.noise.reshape(base.shape)[0]

        def difference(found: Tensor) -> float:
            """Of what the network says: a step from noise is that beside the noise itself."""
            return float((found - base[0]).norm() / (base[0] - start).norm())

        for label, found in equal.items():
            if not difference(found) < EQUAL:
                raise RuntimeError(f"{self.name}: {label} is {difference(found):.1e} from the base's: nothing is reported.")
        for label, found in {EXCHANGE: exchanged[0], LUMIX: adapted[color]}.items():
            if not difference(found) > 10 * EQUAL:
                raise RuntimeError(f"{self.name}: {label} is {difference(found):.1e} from the base's, too little: nothing is reported.")

    def flops(self) -> dict[str, float]:
        """Operations of a step of each way, counted."""
        from ..nodes.native.batch_rows.attention_calls import OVERRIDE, PICTURE, SINGLE

        attentions: list[tuple[int, int, int]] = []

        def recorded(function: Callable, query: Tensor, key: Tensor, value: Tensor, heads: int, *args: Any, **options: Any) -> Tensor:
            axis = 2 if options.get("skip_reshape") else 1
            width = query.shape[1] * query.shape[3] if axis == 2 else query.shape[2]
            attentions.append((query.shape[axis], key.shape[axis], width))
            return query.new_zeros(query.shape[0], query.shape[axis], width)

        clone = self.base.clone()
        clone.model_options["transformer_options"][OVERRIDE] = recorded
        with FlopCounterMode(display=False) as counter:
            self.step(clone)
        forward = counter.get_total_flops() + sum(attention_flops(*shape) for shape in attentions)
        # Those of text alone are shorter.
        seen = [shape for shape in attentions if shape[0] >= self.tokens]
        if len(seen) != len(self.places):
            raise RuntimeError(
                f"{self.name}: {len(seen)} attentions over the picture ran, {len(self.places)} are known: the count is wrong."
            )
        maps, picture = len(MAPS), self.tokens
        counted = {BASE: forward, EXCHANGE: 2.0 * forward, LUMIX: float(maps * forward), CROSS: float(maps * forward)}
        network = self.base.model.diffusion_model
        for place, (tokens, _, width) in zip(self.places, seen, strict=True):
            own = tokens if place.stream == SINGLE else picture
            linears = (network.get_submodule(name) for name in (place.entry, place.exit))
            counted[EXCHANGE] += 2 * attention_flops(tokens, picture, width)
            counted[EXCHANGE] += sum(2 * own * RANK * (linear.in_features + linear.out_features) for linear in linears)
            counted[CROSS] += cross_intrinsic_flops(tokens, width, maps) - query_broadcast_flops(tokens, width, maps)
            if place.stream != PICTURE:
                counted[LUMIX] += sum(tensor_lora_flops(own, width, outputs * width, maps, TENSOR_RANK) for outputs in (2, 1))
            if self.name == "flux":
                # The pack runs FLUX.1's blocks itself, and leaves out queries that nobody reads.
                counted[LUMIX] -= saved_query_flops(own, width, maps)
        return counted


def measure(name: str, side: int, text: int, rounds: int) -> dict:
    """One row of the table. Raises RuntimeError where joint rows are wrong."""
    setting = Setting(name, side, text)
    counted = setting.flops()
    joint = {EXCHANGE: setting.exchanged(WEIGHT), LUMIX: setting.adapted(), CROSS: setting.joined(CROSS_INTRINSIC)}
    # Also the first steps, which take what later ones find.
    first = setting.step(setting.joined(QUERY_BROADCAST), len(MAPS)), setting.step(setting.exchanged(0.0), 2)
    ways: dict[str, Callable[[], object]] = {BASE: lambda: setting.step(setting.base)}
    ways |= {way: lambda model=model, rows=ROWS[way]: setting.step(model, rows) for way, model in joint.items()}
    cost = in_turns(ways, rounds)
    setting.check(*(cost[way].result for way in (BASE, EXCHANGE, LUMIX, CROSS)), *first)
    found = {
        way: {
            "rows": rows,
            "seconds": cost[way].seconds,
            "TFLOP": counted[way] / 1e12,
            "measured": cost[way].seconds / (rows * cost[BASE].seconds),
            "counted": counted[way] / (rows * counted[BASE]),
        }
        for way, rows in ROWS.items()
    }
    for of_way in found.values():
        of_way["measured / counted"] = of_way["measured"] / of_way["counted"]
    return {
        "title": setting.published.title,
        "seconds of one forward": cost[BASE].seconds,
        "TFLOP of one forward": counted[BASE] / 1e12,
    } | found


def report(rows: dict[str, dict], arguments: argparse.Namespace) -> str:
    header = ["model", "one forward", *(f"{way}: measured, counted, measured / counted" for way in ROWS)]
    lines = [
        [
            row["title"],
            f"{row['seconds of one forward']:.2f} s, {row['TFLOP of one forward']:.2f} TFLOP",
            *("{measured:.2f}, {counted:.2f}, **{measured / counted:.2f}**".format_map(row[way]) for way in ROWS),
        ]
        for row in rows.values()
    ]
    worst = max(row[way]["measured / counted"] for row in rows.values() for way in ROWS)
    return "\n".join(
        [
            f"Joint rows against independent forwards: {arguments.side} x {arguments.side} tokens of a picture, {arguments.text} of text "
            f"(FLUX.2: 512), two blocks, float32, {torch.get_num_threads()} threads, {arguments.rounds} rounds.",
            "",
            markdown_table(header, lines),
            "",
            f"Largest measured / counted: {worst:.3f} (aim: at most {LIMIT:.2f}).",
        ]
    )


def _kept(settings: dict) -> dict[str, dict]:
    """What was measured before in the same way, on this machine."""
    path = RESULTS / "joint_cost.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    same = (kept.get("settings"), kept.get("machine")) == (settings, machine_and_card())
    return kept["rows"] if same else {}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(PUBLISHED), default=list(PUBLISHED), help="each needs up to 4 GB of memory")
    parser.add_argument("--side", type=int, default=16, help="of the picture, in tokens")
    parser.add_argument("--text", type=int, default=64, help="tokens of text")
    parser.add_argument("--rounds", type=int, default=3)
    # Threads that wait for each other on a busy machine spin, and processor seconds count that.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results, beside models measured before")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    start_comfyui()
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True
    rows = {}
    with torch.inference_mode():
        for name in options.models:
            rows[name] = measure(name, options.side, options.text, options.rounds)
            say(f"{name}: " + ", ".join(f"{way} {rows[name][way]['measured / counted']:.3f}" for way in ROWS))
            gc.collect()
    if not (options.write or os.environ.get("INTRINSIC_LAB_RESULT")):
        say(report(rows, options))
        return
    settings = {name: value for name, value in vars(options).items() if name not in ("models", "write")}
    rows = _kept(settings) | rows
    rows = {name: rows[name] for name in PUBLISHED if name in rows}
    keep_result("joint_cost", report(rows, options), {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
