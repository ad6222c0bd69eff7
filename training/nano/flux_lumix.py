"""`python -m intrinsic_lab.training.nano.flux_lumix`: the bundled LumiX adapter on the nano FLUX base; run it again to resume."""

import argparse
import json
import logging
from pathlib import Path

from ..loop import LoopConfig, console_report, write_atomically
from ..lumix import LumixConfig, train_lumix
from .adapters import ADAPTER_DATA

STEPS = 900
BATCH = 4
LEARNING_RATE = 4e-3
# Maps given clean in training, so that the few steps of a nano run also teach decomposition; the paper's share is 0.
CLEAN_SHARE = 0.25


def nano_config(base: Path, output: Path, steps: int = STEPS, **options) -> LumixConfig:
    """Settings of the bundled adapter; `options` of `LumixConfig` make another one of the same recipe."""
    loop = LoopConfig(
        output, steps, learning_rate=LEARNING_RATE, schedule="cosine", warmup=30, weight_decay=0.0, ema_decay=0.99, checkpoint_every=50
    )
    return LumixConfig(base, loop, ADAPTER_DATA, batch=BATCH, clean_share=CLEAN_SHARE, save_dtype="float16", **options)


def train_bundled(runs: Path, assets: Path, latents: Path, steps: int) -> None:
    """Train the adapter on `assets/nano_flux` and put it beside it, with its record."""
    config = nano_config(assets / "nano_flux", runs / "bundled", steps)
    trained = train_lumix(config, cache=latents, report=console_report("lumix", every=50))
    last = trained.history.losses[-100:]
    record = {"final_loss": sum(last) / len(last), "minutes": trained.history.seconds / 60, "steps": steps}
    text = json.dumps(record | {"learning_rate": LEARNING_RATE, "settings": config.task_settings()}, indent=1)
    write_atomically(assets / "nano_lumix.safetensors", lambda path: path.write_bytes(trained.weights.read_bytes()))
    write_atomically(assets / "nano_lumix.json", lambda path: path.write_text(text))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m intrinsic_lab.training.nano.flux_lumix", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/nano_lumix"), help="folder of checkpoints and results")
    parser.add_argument("--assets", type=Path, default=Path("assets"), help="where the base is, and where the adapter goes")
    parser.add_argument("--latents", type=Path, default=Path("runs/nano/table/latents"), help="folder of encoded maps, shared by runs")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train_bundled(arguments.runs, arguments.assets, arguments.latents, arguments.steps)


if __name__ == "__main__":
    main()
