"""How many samples a second the bundled models train on, on one core: what `make nano` spends its minutes on.

    OMP_NUM_THREADS=1 python -m intrinsic_lab.benchmarks.nano_training [--compile]

Steps of the base (UNet and text encoder), in float32 as it trains on a CPU, in bfloat16, and with memory in torch's usual layout; of the
VAE's decoder; and of an adapter. In turns, on random latents: nothing is rendered or encoded, as in a run whose latents are kept. Times
are processor seconds. --compile adds the compiled UNet, after a minute of compiling.
"""

import argparse
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.machine import machine
from ..training.intrinsic_lora import add_adapter, load_base
from ..training.nano.adapters import KIND, RANK
from ..training.nano.base import BaseTask, LatentCaptions
from ..training.nano.decoder import DecoderPairs, DecoderTask
from ..training.scene_pictures import PicturePool
from .measuring import in_turns

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "nano"
BATCH, SCENES, LATENT = 16, 64, (16, 16, 16)
DECODER_BATCH, ADAPTER_BATCH = 3, 8
ROUNDS = 5


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def stepper(module: nn.Module, loss: Callable[[], Tensor], bfloat16: bool = False) -> Callable[[], float]:
    """One optimiser step; returns its loss."""
    optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-6)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            value = loss()
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
        return value.item()

    return step


def base_step(bfloat16: bool = False, channels_last: bool = True, compiled: bool = False) -> Callable[[], float]:
    base = load_base(ASSETS)
    unet, text_encoder = base.network.train(), base.text_encoder.requires_grad_(True).train()
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    if compiled:
        unet.compile()
    tokens = torch.randint(100, (SCENES, 77), generator=torch.Generator().manual_seed(0))
    task = BaseTask(unet, text_encoder, LatentCaptions(randn(SCENES, *LATENT), tokens, tokens[0]), BATCH)
    draw = torch.Generator().manual_seed(0)
    return stepper(task.module, lambda: task.loss(task.module, draw), bfloat16)


def decoder_step() -> Callable[[], float]:
    vae = load_base(ASSETS).vae.to(memory_format=torch.channels_last)
    vae.decoder.requires_grad_(True)
    pool = PicturePool(torch.randint(256, (2, SCENES, 3, 128, 128), dtype=torch.uint8), ("",) * SCENES)
    task = DecoderTask(vae, [DecoderPairs(pool, randn(2, SCENES, *LATENT))], DECODER_BATCH)
    draw = torch.Generator().manual_seed(0)
    return stepper(task.module, lambda: task.loss(task.module, draw))


def adapter_step() -> Callable[[], float]:
    base = load_base(ASSETS)
    add_adapter(base.network, KIND, RANK, 0)
    network = base.network.to(memory_format=torch.channels_last).train()
    latent, text = randn(ADAPTER_BATCH, *LATENT), base.embed("surface normal").expanded(ADAPTER_BATCH).context
    return stepper(network, lambda: network(latent, 999, encoder_hidden_states=text).sample.square().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="also measure the compiled UNet")
    options = parser.parse_args()
    steps = {
        "base, float32": (BATCH, base_step()),
        "base, bfloat16": (BATCH, base_step(bfloat16=True)),
        "base, float32, usual memory layout": (BATCH, base_step(channels_last=False)),
        "decoder (whole pictures)": (DECODER_BATCH, decoder_step()),
        "adapter": (ADAPTER_BATCH, adapter_step()),
    }
    if options.compile:
        steps["base, float32, compiled"] = (BATCH, base_step(compiled=True))
    for _, step in steps.values():
        step()
    costs = in_turns({name: step for name, (_, step) in steps.items()}, ROUNDS)
    rows = {name: round(batch / costs[name].seconds, 1) for name, (batch, _) in steps.items()}
    print("\n".join(["| step | samples a core-second |", "| --- | --- |", *(f"| {name} | {rate} |" for name, rate in rows.items())]))
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}")
    if kept := os.environ.get("INTRINSIC_LAB_RESULT"):
        Path(kept).write_text(json.dumps({"samples a core-second": rows, "load": round(os.getloadavg()[0], 1)}), encoding="utf-8")


if __name__ == "__main__":
    main()
