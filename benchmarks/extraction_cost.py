"""What extracting maps costs in ComfyUI, side by side in one run.

    python -m intrinsic_lab.benchmarks.extraction_cost [--sd15]

1. The nodes' extraction against the bare sum of its parts: VAE encode + UNet forward + VAE decode, called directly.
2. Four maps in one forward (a LoRA per row) against four passes that each merge one LoRA (core's LoraLoader), in turns.
3. Peak memory of all four: of resident memory during the call, above what was there before it.

The bundled nano model at 128 x 128 by default; --sd15 adds the real Stable Diffusion 1.5 architecture with random weights, 512 x 512, in
one round (`make bench ARGS="extraction_cost --sd15"` keeps both). Times are processor seconds of all threads. Nothing is reported if
the outputs differ.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from ..methods.maps import MAPS
from ..scenes import render_scenes
from ..tools.comfyui_source import find_comfyui
from ..tools.console import format_table
from .measuring import in_turns

NANO = Path(__file__).resolve().parents[1] / "assets" / "nano"
ROUNDS = 9
SCENE = 122
FOUR_MAPS = ("normal", "depth", "albedo", "shading")
WARM_UP_SIZE = 64
# Of map data, whose values span 1 or 2: merging rounds the weights, a LoRA per row does not.
LARGEST_DIFFERENCE = 2e-2
SD15_UNET = {
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
SD15_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}


def start_comfyui() -> None:
    """Make ComfyUI importable, on the CPU."""
    sys.path.insert(0, str(find_comfyui()))
    from comfy.cli_args import args

    args.cpu = True


def write_sd15(folder: Path) -> None:
    """Stable Diffusion 1.5's architecture with random weights, as a diffusers folder of fp16 files."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    UNet2DConditionModel(**SD15_UNET).half().save_pretrained(folder / "unet")
    AutoencoderKL(**SD15_VAE).half().save_pretrained(folder / "vae")
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
    CLIPTextModel(text).half().save_pretrained(folder / "text_encoder")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))


def write_loras(folder: Path, base: Path, rank: int = 8) -> dict[str, Path]:
    """A random attention LoRA per map (the paper's shape), in kohya's spelling."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    from ..methods.lora.lora_file import LoraLayer, kohya_state_dict

    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / "unet"))
    shapes = {
        name: tuple(module.weight.shape) for name, module in unet.named_modules() if ".attn" in name and isinstance(module, torch.nn.Linear)
    }
    paths = {}
    for seed, name in enumerate(FOUR_MAPS):
        draw = torch.Generator().manual_seed(seed)
        layers = {
            module: LoraLayer(torch.randn(rank, fan_in, generator=draw) / fan_in, torch.randn(out, rank, generator=draw) / rank)
            for module, (out, fan_in) in shapes.items()
        }
        paths[name] = folder / f"{name}.safetensors"
        save_file(kohya_state_dict(layers), paths[name], {"intrinsic_lab.map": name})
    return paths


class Setting:
    """A loaded base, a picture, and the ways to make its maps that are compared."""

    def __init__(self, base: Path, loras: dict[str, Path], size: int):
        import comfy.utils

        from ..methods.intrinsic_lora.recipe import Recipe
        from ..methods.lora.lora_file import read_lora
        from ..nodes.native.batch_rows import row_lora
        from ..nodes.native.loading.diffusers_folder import load_pipeline

        self.pipeline = load_pipeline(base)
        self.size = size
        self.image = render_scenes([SCENE], size, size).image_bhwc
        self.files = {name: comfy.utils.load_torch_file(str(path), safe_load=True) for name, path in loras.items()}
        native = {
            name.removesuffix(".weight"): key.removesuffix(".weight")
            for name, key in comfy.utils.unet_to_diffusers(self.pipeline.model.model.model_config.unet_config).items()
        }
        self.carrying = self.pipeline.model
        for name, path in loras.items():
            unet = self.carrying.get_model_object("diffusion_model")
            adapter = row_lora.MapAdapter(read_lora(path).layers, unet, native, 1.0, source=name)
            self.carrying = row_lora.carry(self.carrying, Recipe(name, MAPS[name].prompt, resolution=size), adapter)

    def _extract(self, model, merged: str) -> dict[str, torch.Tensor]:
        from ..nodes.extract import ExtractIntrinsicMaps

        outputs = ExtractIntrinsicMaps.execute(model, self.pipeline.clip, self.pipeline.vae, self.image, self.size, 0, 64, False, merged)
        return {name: value for name, value in zip(FOUR_MAPS, outputs.args, strict=False) if isinstance(value, torch.Tensor)}

    def one_forward(self) -> dict[str, torch.Tensor]:
        """All four maps by the nodes, a LoRA per row."""
        return self._extract(self.carrying, "none")

    def merged_passes(self) -> dict[str, torch.Tensor]:
        """Four times: merge one LoRA as core's LoraLoader does, extract one map."""
        import comfy.sd

        maps = {}
        for name, weights in self.files.items():
            model, _ = comfy.sd.load_lora_for_models(self.pipeline.model, None, weights, 1.0, 0.0)
            maps |= self._extract(model, name)
        return maps

    def one_map(self) -> dict[str, torch.Tensor]:
        """One map by the node, nothing applied: what the bare parts below do."""
        return self._extract(self.pipeline.model, "normal")

    def bare_parts(self) -> torch.Tensor:
        """VAE encode + UNet + VAE decode of one map, called directly on the loaded modules."""
        with torch.inference_mode():
            latent = self.pipeline.vae.encode(self.image)
            diffusion = self.pipeline.model.model
            scaled = diffusion.process_latent_in(latent)
            text = self.pipeline.clip.encode_from_tokens(self.pipeline.clip.tokenize("surface normal"))
            output = diffusion.diffusion_model(scaled, torch.tensor([999.0]), context=text.to(scaled))
            return self.pipeline.vae.decode(diffusion.process_latent_out(output))


def compare(setting: Setting, label: str, rounds: int, threads: int) -> dict:
    """Costs of all ways and the ratios that the targets name. The comparisons are run apart: removing a merged LoRA costs, too."""
    torch.set_num_threads(threads)
    pair = {"one map": setting.one_map, "bare parts": setting.bare_parts}
    four = {"four maps, one forward": setting.one_forward, "four merged passes": setting.merged_passes}
    size, image = setting.size, setting.image
    # What is loaded at the first call belongs to none of them. The pair comes last: it leaves no merged LoRA to be removed.
    setting.size, setting.image = WARM_UP_SIZE, image[:, :WARM_UP_SIZE, :WARM_UP_SIZE]
    for way in (*four.values(), *pair.values()):
        way()
    setting.size, setting.image = size, image
    cost = in_turns(pair, rounds) | in_turns(four, rounds)
    together, merged = (cost[name].result for name in four)
    difference = max(float((together[name] - merged[name]).abs().max()) for name in FOUR_MAPS)
    if difference > LARGEST_DIFFERENCE:
        raise RuntimeError(f"{label}: one forward and merged passes differ by {difference}: nothing is reported.")

    def ratio(one: str, other: str) -> float:
        return cost[one].seconds / cost[other].seconds

    return {
        "model": label,
        "rounds": rounds,
        "threads": threads,
        "largest difference": difference,
        **{f"{name} s": cost[name].seconds for name in cost},
        "one map / bare parts": ratio("one map", "bare parts"),
        "one forward / merged passes": ratio("four maps, one forward", "four merged passes"),
        **{f"{name} peak MB": cost[name].peak_megabytes for name in cost},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd15", action="store_true", help="also the real SD 1.5 architecture at 512 x 512, one round")
    arguments = parser.parse_args()
    start_comfyui()
    import folder_paths

    rows = []
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        # Where the node writes its preview.
        folder_paths.set_temp_directory(name)
        # The nano model's layers are too small for two threads: their waiting for each other would count as processor time.
        cases = [("nano, 128 x 128", NANO, 128, ROUNDS, 1)]
        if arguments.sd15:
            write_sd15(folder / "sd15")
            cases.append(("SD 1.5 architecture, 512 x 512", folder / "sd15", 512, 1, torch.get_num_threads()))
        for label, base, size, rounds, threads in cases:
            rows.append(compare(Setting(base, write_loras(folder, base), size), label, rounds, threads))
    print(format_table([{"figure": key, **{row["model"]: row[key] for row in rows}} for key in rows[0] if key != "model"]))
    print(f"load average {os.getloadavg()[0]:.1f}")
    if result := os.environ.get("INTRINSIC_LAB_RESULT"):
        Path(result).write_text(json.dumps({"load": os.getloadavg(), "rows": rows}), encoding="utf-8")


if __name__ == "__main__":
    main()
