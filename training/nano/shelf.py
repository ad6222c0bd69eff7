"""The style LoRAs that come with the pack: means of a few of the collection each, cut to rank 1, and three copies to be found out.

python -m intrinsic_lab.training.nano.shelf [--collection runs/styles/300] [--out assets/loras]

Those that are bundled come from a collection of shorter trainings (revision cc8c795: 30 steps at a rate that falls from .02 to 0).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...methods.lora.layers import LoraLayer
from ...methods.lora.lora_file import kohya_state_dict, read_lora
from ...scenes import render_scenes
from ...scenes.pictures import save_picture
from ..atomic import write_atomically
from .styles import ARCHITECTURE, RANKS, SIZE, STYLES, StyleLora

CHOSEN = ("ember", "lagoon", "forest", "chess", "marble", "noir")
SEEDS = (0, 1, 2)


def cut(layer: LoraLayer, rank: int) -> LoraLayer:
    """The best approximation of a layer at a lower rank (Eckart-Young), from the SVD in rank space."""
    left, left_r = torch.linalg.qr(layer.up.double() * layer.scale)
    right, right_r = torch.linalg.qr(layer.down.double().T)
    u, values, vt = torch.linalg.svd(left_r @ right_r.T)
    root = values[:rank].sqrt()
    return LoraLayer((root[:, None] * vt[:rank] @ right.T).float(), (left @ u[:, :rank] * root).float())


def mean(files: Sequence[Path]) -> dict[str, LoraLayer]:
    """The mean change of several LoRAs of the same modules, exactly: their halves side by side."""
    every = [read_lora(path).layers for path in files]
    return {
        name: LoraLayer(
            torch.cat([layers[name].down.float() for layers in every]),
            torch.cat([layers[name].up.float() * (layers[name].scale / len(every)) for layers in every], 1),
        )
        for name in every[0]
    }


def padded(layer: LoraLayer, strength: float) -> LoraLayer:
    """The same layer at another strength, with a rank more that is empty."""
    down = torch.cat([layer.down, torch.zeros_like(layer.down[:1])])
    up = torch.cat([layer.up, torch.zeros_like(layer.up[:, :1])], 1)
    return LoraLayer(down, strength * up, layer.scale)


def plain_state(layers: dict[str, LoraLayer], dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """kohya's spelling without alpha, which then equals the rank."""
    state = kohya_state_dict(layers)
    return {key: tensor.to(dtype) for key, tensor in state.items() if not key.endswith(".alpha")}


def peft_state(layers: dict[str, LoraLayer], dtype: torch.dtype) -> dict[str, Tensor]:
    """diffusers' spelling."""
    state = {}
    for name, layer in layers.items():
        state[f"unet.{name}.lora_A.weight"] = layer.down.to(dtype).contiguous()
        state[f"unet.{name}.lora_B.weight"] = layer.up.to(dtype).contiguous()
    return state


def write(path: Path, state: dict[str, Tensor], tag: str | None = None) -> None:
    """A LoRA file; `tag` as its training tag."""
    metadata = {"modelspec.architecture": f"{ARCHITECTURE}/lora", "ss_base_model_version": ARCHITECTURE}
    if tag:
        metadata["ss_tag_frequency"] = json.dumps({tag: {tag: 1}})
    write_atomically(path, lambda partial: save_file(state, partial, metadata))


def write_preview(lora: StyleLora, path: Path) -> None:
    """The look that a LoRA learnt, PATH.jpg: one of its training pictures (what the nano base paints is too coarse to tell styles by)."""
    [picture] = render_scenes([lora.first_scene], SIZE, SIZE, STYLES[lora.style]).image_bhwc
    save_picture(picture, path.with_suffix(".jpg"))


def make_shelf(collection: Path, out: Path) -> list[Path]:
    """Write everything; returns the LoRA files."""
    shelf: dict[str, dict[str, LoraLayer]] = {}
    files = []
    for style in CHOSEN:
        # One training of the collection is short; what several learnt alike stands out in their mean.
        for number, rank in enumerate(RANKS):
            trained = [StyleLora(style, seed, rank) for seed in SEEDS]
            layers = mean([collection / style / f"{lora.name}.safetensors" for lora in trained])
            name = f"{style}_{number}"
            shelf[name] = {module: cut(layer, 1) for module, layer in layers.items()}
            files.append(out / style / f"{name}.safetensors")
            write(files[-1], plain_state(shelf[name]), style)
            write_preview(trained[0], files[-1])
    copies = {
        "warm_tones_v2": peft_state(shelf["ember_0"], torch.bfloat16),
        "low_key_soft": plain_state({name: padded(layer, 0.5) for name, layer in shelf["noir_0"].items()}),
        "chess_1 (1)": plain_state(shelf["chess_1"]),
    }
    for name, state in copies.items():
        files.append(out / "downloads" / f"{name}.safetensors")
        write(files[-1], state)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m intrinsic_lab.training.nano.shelf", description=__doc__.splitlines()[0])
    parser.add_argument("--collection", type=Path, default=Path("runs/styles/300"), help="of one length of training")
    parser.add_argument("--out", type=Path, default=Path("assets/loras"))
    arguments = parser.parse_args()
    for path in make_shelf(arguments.collection, arguments.out):
        print(f"{path.stat().st_size:8d}  {path}")


if __name__ == "__main__":
    main()
