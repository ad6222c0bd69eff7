"""A LoRA that ComfyUI leaves out in part, or cannot load, written anew in names that it knows."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from .native.lora_library import lora_collection
from .native.lora_library.files import lora_names, lora_path
from .native.node import Node
from .native.node_text import preview_text
from .native.schema import schema
from .native.training.files import name_problem

CATEGORY = "intrinsic lab/lora space"
PRECISIONS = ("as it is", "fp16", "bf16", "fp32")


class ConvertLoRA(Node):
    """Writes a LoRA in the plain spelling that every loader knows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabConvertLoRA",
            display_name="Convert LoRA",
            category=CATEGORY,
            description=(
                "Writes a LoRA anew under names that ComfyUI's loader knows, whatever trainer made it: the same change, to the last "
                "bit at equal precision. The original stays. What ComfyUI has no names for is refused in words."
            ),
            search_aliases=["convert lora", "lora keys not loaded", "fix lora", "lora format", "peft to comfyui", "lora key not loaded"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    display_name="LoRA",
                    # Pickles too: they are read as weights alone, where torch can do so safely.
                    options=lora_names(lora_collection.bundled_styles()),
                    tooltip="The file to convert. It is not changed.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="as it is",
                    tooltip="Of the numbers in the new file. fp16 halves a file of fp32; 'as it is' keeps the change to the last bit.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Name of the new file, beside the old one. Empty: the old name followed by 'converted'.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Write over a file of that name. Off: refuse, unless it holds the same."
                ),
            ],
            outputs=[
                io.AnyType.Output("LORA_NAME", display_name="lora_name", tooltip="The new file. Connect it to lora_name of Load LoRA."),
                io.String.Output("REPORT", display_name="report", tooltip="What was done, and what ComfyUI left out of the old file."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, precision: str, name: str, overwrite: bool) -> str:
        # The file may have been replaced, or the new one deleted.
        return lora_collection.files_state(lora_collection.LORAS)

    @classmethod
    def execute(cls, lora_name: str, precision: str, name: str, overwrite: bool) -> io.NodeOutput:
        from ..methods.lora.convert import convert_file

        source = lora_path(lora_name, lora_collection.bundled_styles())
        stem = name.strip().removesuffix(".safetensors") or f"{source.stem} converted"
        if problem := name_problem(stem):
            raise ValueError(problem)
        root, folder = _place_of(source)
        target = folder / f"{stem}.safetensors"
        if target.resolve() == source.resolve():
            raise ValueError(f"{lora_name} would be written over itself: choose another name.")
        converted = convert_file(source, target, precision, overwrite=overwrite)
        written = target.relative_to(root).as_posix()
        text = f"{lora_name} -> {written}: {converted.note}."
        if before := converted.before:
            text += f"\nBefore: {before}"
        return io.NodeOutput(str(target.relative_to(root)), text, ui=preview_text(text))


def _place_of(source: Path) -> tuple[Path, Path]:
    """(folder of models/loras, the folder in it where the new file goes): beside the source, or on top for what is not in there."""
    roots = [Path(folder) for folder in folder_paths.get_folder_paths("loras")]
    for root in roots:
        if source.is_relative_to(root):
            return root, source.parent
    if not roots:
        raise ValueError("ComfyUI has no folder for LoRAs: make models/loras.")
    return roots[0], roots[0]


NODES = [ConvertLoRA]
