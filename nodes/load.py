"""Loading a model folder."""

import torch
from comfy_api.latest import io

from .native.loading.diffusers_folder import FAMILY_NAMES, load_pipeline
from .native.node import Node
from .native.paths import folder_fingerprint, model_folder, model_folders
from .native.schema import schema

DTYPES = {"default": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8_e4m3fn": torch.float8_e4m3fn}


class LoadIntrinsicModel(Node):
    """Diffusers-format folder -> native MODEL, CLIP, VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabLoadModel",
            display_name="Load Intrinsic Model",
            category="intrinsic lab/load",
            description=(
                f"Loads a diffusers-format model folder as native MODEL, CLIP and VAE: {', '.join(FAMILY_NAMES.values())}, of any width, "
                "safetensors only. The pack's own nano model comes with it. Checkpoint files go through ComfyUI's own Load Checkpoint."
            ),
            search_aliases=["load diffusers", "diffusers loader", "model folder", "nano model", "load checkpoint folder"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(model_folders()),
                    tooltip="A diffusers-format folder (one with a model_index.json) in models/diffusers or in extra_model_paths, "
                    "or the nano model that is bundled with the pack.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(DTYPES),
                    default="default",
                    optional=True,
                    tooltip="In which the diffusion model's weights are kept. default: ComfyUI's choice for your device. "
                    "fp8_e4m3fn halves the memory of fp16.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The diffusion model, for LoRA loaders, KSampler and this pack's nodes."),
                io.Clip.Output(tooltip="The text encoder (or encoders), for CLIP Text Encode."),
                io.Vae.Output(tooltip="The VAE, between pictures and latents."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model, weight_dtype="default"):
        """A replaced file is loaded anew."""
        folder = model_folders().get(model)
        return (weight_dtype, folder and folder_fingerprint(folder))

    @classmethod
    def execute(cls, model, weight_dtype="default") -> io.NodeOutput:
        if weight_dtype not in DTYPES:
            raise ValueError(f"weight_dtype is {weight_dtype!r}, one of {', '.join(DTYPES)} was expected.")
        loaded = load_pipeline(model_folder(model), dtype=DTYPES[weight_dtype])
        return io.NodeOutput(loaded.model, loaded.clip, loaded.vae)


NODES = [LoadIntrinsicModel]
