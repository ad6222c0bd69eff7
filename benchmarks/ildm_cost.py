"""What a joint step of I-LDM costs at the real SD 2.1 and SDXL architectures (random weights), in ComfyUI, side by side in one run.

    python -m intrinsic_lab.benchmarks.ildm_cost [--models sd21 sdxl] [--side 64] [--rounds 3] [--threads 1]

One sampler step of a picture and its intrinsics, without guidance, four ways in turns: as two independent forwards of the base; as the
pack's joint forward (one batch of two rows, rank-32 LoRA on the intrinsic row, weight 0.5); and as two plain spellings of eq. 4 in the
same place, with the same LoRA: keys and values concatenated, the weight's logarithm in a mask. "naive" makes the N x 2N mask of the paper;
"broadcast" knows that its rows are equal and lets the attention repeat one. All joint ways must give the same latents.

ComfyUI's own attention is torch's in all of them, as it is on GPUs: what it takes on a CPU by default is slower and wants more memory.

Target: the joint forward within 1.15 of the two forwards' sum plus the exchange's counted extra attention (8 N^2 D operations a block, at
the two forwards' own speed). Memory is the peak of resident memory during the step, above what it was before. Times are processor seconds
of all threads, after a step of each kind to warm up.
"""

import argparse
import gc
import json
import math
import os
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..kernels.cross_domain_attention import Segment, per_row
from ..kernels.flops import attention_flops, cross_domain_attention_flops
from ..methods.ildm.schedules import constant_schedule
from ..methods.lora.layers import LoraFile, LoraLayer
from ..tools.console import format_table
from .extraction_cost import start_comfyui
from .measuring import in_turns

RANK, WEIGHT, LIMIT = 32, 0.5, 1.15
COMMON = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "use_linear_projection": True}
ARCHITECTURES = {
    "sd21": COMMON
    | {
        "block_out_channels": [320, 640, 1280, 1280],
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "sdxl": COMMON
    | {
        "block_out_channels": [320, 640, 1280],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": 2816,
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    },
}
# SDXL's 2.6 billion weights take 10 GB in float32.
DTYPES = {"sd21": torch.float32, "sdxl": torch.bfloat16}


def random_model(family: str):
    """A MODEL of a published architecture."""
    from ..nodes.native.backbones.unet.loading import CONFIGS, unet_config

    return random_patcher(CONFIGS[family](unet_config(ARCHITECTURES[family])), DTYPES[family])


def random_patcher(config: Any, dtype: torch.dtype):
    """The MODEL of core's model config, its weights drawn like those of fresh layers."""
    import comfy.model_management
    import comfy.model_patcher

    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.diffusion_model.named_parameters():
        if parameter.ndim > 1:
            bound = math.sqrt(1 / parameter[0].numel())
            parameter.data.uniform_(-bound, bound, generator=draw)
        else:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
    load = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=load, offload_device=comfy.model_management.unet_offload_device())


def random_lora(network: torch.nn.Module) -> LoraFile:
    """Rank-32 layers on every projection of self-attention."""
    draw = torch.Generator().manual_seed(1)
    layers = {}
    for name, module in network.named_modules():
        if ".attn1.to_" in name and hasattr(module, "in_features"):
            down = torch.randn(RANK, module.in_features, generator=draw) / math.sqrt(module.in_features)
            layers[name] = LoraLayer(down, 0.3 * torch.randn(module.out_features, RANK, generator=draw) / math.sqrt(RANK))
    return SimpleNamespace(layers=layers)


def masked_joint_attention(mask_rows: int | None, query: Tensor, key: Tensor, value: Tensor, segments: list[Segment]) -> Tensor:
    """Eq. 1 and 4 as they are written: concatenated keys and values, and the weights' logarithms as a mask.

    mask_rows: of each picture's mask; None: one per query.
    """
    weights, partner = per_row(segments, len(query))
    keys, values = torch.cat([key, key[partner]], 2), torch.cat([value, value[partner]], 2)
    tokens = query.shape[2]
    mask = query.new_zeros(len(partner), 1, mask_rows or tokens, 2 * tokens)
    mask[..., tokens:] = torch.tensor(weights, dtype=torch.float32).log().to(mask)[:, None, None, None]
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


class Setting:
    """One architecture, its joint clone, and the ways to make a step that are compared."""

    def __init__(self, family: str, side: int):
        from ..nodes.native.joint_sampling import cross_domain

        self.base = random_model(family)
        network = self.base.model.diffusion_model
        adapter = cross_domain.bind_lora(self.base, random_lora(network), 1.0, "the LoRA")
        self.joint_model, self.blocks = cross_domain.exchange_domains(self.base, constant_schedule(WEIGHT), {"intrinsic": adapter})
        self.side, self.family = side, family
        self.noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(2))
        config = ARCHITECTURES[family]
        text = torch.randn(1, 77, config["cross_attention_dim"], generator=torch.Generator().manual_seed(3))
        extra = {"pooled_output": torch.randn(1, 1280, generator=torch.Generator().manual_seed(4))} if family == "sdxl" else {}
        self.text = [[text, extra]]

    def _step(self, model, rows: int) -> Tensor:
        import comfy.sample

        noise = self.noise.expand(rows, -1, -1, -1).contiguous()
        options = dict(denoise=1.0, disable_pbar=True, seed=0)
        return comfy.sample.sample(model, noise, 1, 1.0, "euler", "normal", self.text, self.text, torch.zeros_like(noise), **options)

    def two_forwards(self) -> Tensor:
        """The base, once per domain."""
        return torch.cat([self._step(self.base, 1), self._step(self.base, 1)])

    def joint(self) -> Tensor:
        """The pack's patch."""
        return self._step(self.joint_model, 2)

    def masked(self, mask_rows: int | None) -> Tensor:
        """The same patch with a plain attention in the kernel's place."""
        from ..methods.ildm import joint_forward

        kernel, joint_forward.joint_attention = joint_forward.joint_attention, partial(masked_joint_attention, mask_rows)
        try:
            return self._step(self.joint_model, 2)
        finally:
            joint_forward.joint_attention = kernel

    def flops(self) -> tuple[int, int]:
        """Operations of the two forwards, and those that the exchange adds, counted."""
        attentions = []

        def count(module, args, kwargs):
            x, context = args[0], kwargs.get("context", args[1] if len(args) > 1 else None)
            keys = x.shape[1] if context is None else context.shape[1]
            attentions.append((x.shape[1], keys, module.to_q.out_features))

        handles = [
            module.register_forward_pre_hook(count, with_kwargs=True)
            for module in self.base.model.diffusion_model.modules()
            if type(module).__name__ == "CrossAttention"
        ]
        try:
            # The CPU's fused attention is not among the operations that the counter knows.
            with FlopCounterMode(display=False) as counter:
                self._step(self.base, 1)
        finally:
            for handle in handles:
                handle.remove()
        own = [(tokens, width) for tokens, keys, width in attentions if tokens == keys]
        if len(own) != len(self.blocks):
            raise RuntimeError(f"{len(own)} self-attentions ran, the network has {len(self.blocks)}: the count is wrong.")
        forward = counter.get_total_flops() + sum(attention_flops(*shape) for shape in attentions)
        extra = sum(cross_domain_attention_flops(tokens, width) - 2 * attention_flops(tokens, tokens, width) for tokens, width in own)
        return 2 * forward, extra


def measure(family: str, side: int, rounds: int) -> dict:
    """One column of the table. Raises RuntimeError where the two joint ways differ."""
    setting = Setting(family, side)
    # Also the first steps, which take what later ones find.
    two, extra = setting.flops()
    setting.joint()
    ways = {
        "two forwards": setting.two_forwards,
        "joint": setting.joint,
        "naive": partial(setting.masked, None),
        "broadcast": partial(setting.masked, 1),
    }
    cost = in_turns(ways, rounds)
    seconds = {name: spent.seconds for name, spent in cost.items()}
    latents = {name: spent.result for name, spent in cost.items()}
    error = max(_difference(latents["joint"], latents[name]) for name in ("naive", "broadcast"))
    exchanged = _difference(latents["joint"], latents["two forwards"])
    # bfloat16 keeps 8 bits, and 70 blocks add up; the exchange itself must stand out from that.
    bound = 1e-4 if DTYPES[family] == torch.float32 else 0.05
    if not (error < bound and exchanged > 3 * error):
        raise RuntimeError(f"{family}: joint and plain differ by {error:.2g}, the exchange makes {exchanged:.2g}: nothing is reported.")
    allowed = seconds["two forwards"] * (1 + extra / two)
    return {
        "architecture": family,
        "latent": f"{side} x {side}, {str(DTYPES[family]).removeprefix('torch.')}",
        "rounds": rounds,
        "joint against plain spellings, relative difference": error,
        "TFLOP, two forwards": two / 1e12,
        "TFLOP, added by the exchange": extra / 1e12,
        **{f"{name} s": value for name, value in seconds.items()},
        "joint / two forwards": seconds["joint"] / seconds["two forwards"],
        f"joint / (two forwards + counted extra), at most {LIMIT}": seconds["joint"] / allowed,
        "naive / joint": seconds["naive"] / seconds["joint"],
        "broadcast / joint": seconds["broadcast"] / seconds["joint"],
        **{f"{name} peak MB": spent.peak_megabytes for name, spent in cost.items()},
    }


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(ARCHITECTURES), default=["sd21"], help="sdxl needs 7 GB of memory")
    parser.add_argument("--side", type=int, default=64, help="of the latent; 64 is 512 pixels")
    parser.add_argument("--rounds", type=int, default=3)
    # Threads that wait for each other on a busy machine spin, and processor seconds count that.
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start_comfyui()
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True
    rows = []
    with torch.inference_mode():
        for family in arguments.models:
            started = time.monotonic()
            rows.append(measure(family, arguments.side, arguments.rounds))
            print(f"{family}: {time.monotonic() - started:.0f} s", flush=True)
            gc.collect()
    print(format_table([{"figure": key, **{row["architecture"]: _shown(row[key]) for row in rows}} for key in rows[0]]))
    print(f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    if result := os.environ.get("INTRINSIC_LAB_RESULT"):
        Path(result).write_text(json.dumps({"threads": torch.get_num_threads(), "load": os.getloadavg(), "rows": rows}), encoding="utf-8")


def _shown(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
