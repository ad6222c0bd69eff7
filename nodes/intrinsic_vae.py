"""Between intrinsic maps and the latents in which they are generated."""

import comfy.sd
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..methods.ildm.intrinsic_vae import INTRINSICS, join_intrinsics, split_intrinsics
from ..methods.maps import image_from_map, map_from_image, normal_picture
from .native import vaes
from .native.loading.intrinsic_vae import intrinsic_vae_folder, intrinsic_vae_folders, load_intrinsic_vae
from .native.node import Node
from .native.paths import folder_fingerprint
from .native.schema import schema

IntrinsicVae = io.Custom("INTRINSIC_VAE")
CATEGORY = "intrinsic lab/joint generation"
PREVIEW_PICTURES = 4


class LoadIntrinsicVAE(Node):
    """A folder with a widened VAE -> INTRINSIC_VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabLoadIntrinsicVAE",
            display_name="Load Intrinsic VAE (I-LDM)",
            category=CATEGORY,
            description=(
                "Loads the VAE of the intrinsic maps, which puts depth, normals, segmentation and lines of a picture into one latent "
                "(I-LDM). It belongs to a base model: take the one that was trained with the LoRA you use."
            ),
            search_aliases=["i-ldm", "intrinsic autoencoder", "load vae"],
            inputs=[
                io.Combo.Input(
                    "intrinsic_vae",
                    options=list(intrinsic_vae_folders()),
                    tooltip="A diffusers-format folder: `intrinsic_vae` inside a model folder of models/diffusers, or a folder in "
                    "models/vae.",
                )
            ],
            outputs=[
                IntrinsicVae.Output(
                    "INTRINSIC_VAE",
                    display_name="intrinsic_vae",
                    tooltip="For Encode Intrinsics and Decode Intrinsics. Not a VAE for pictures.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, intrinsic_vae: str) -> tuple | None:
        """A replaced file is loaded anew."""
        folder = intrinsic_vae_folders().get(intrinsic_vae)
        return None if folder is None else folder_fingerprint(folder)

    @classmethod
    def execute(cls, intrinsic_vae: str) -> io.NodeOutput:
        return io.NodeOutput(load_intrinsic_vae(intrinsic_vae_folder(intrinsic_vae)))


class EncodeIntrinsics(Node):
    """Maps of a picture -> one latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        tooltips = {
            "depth": "Depth data, larger is farther, any unit: each picture's is stretched to 0..1.",
            "normal": "Normals as data, -1 to 1, camera space (x right, y up, z towards the viewer).",
            "segmentation": "Segments in colours, 0 to 1.",
            "line": "Line drawing, 0 to 1, white lines on black.",
        }
        return schema(
            node_id="IntrinsicLabEncodeIntrinsics",
            display_name="Encode Intrinsics (I-LDM)",
            category=CATEGORY,
            description=(
                "Puts depth, normals, segmentation and lines into one latent, of the size the base model's own VAE would give. Maps that "
                "are not connected count as unknown. The latent starts Joint Latent from maps you have."
            ),
            search_aliases=["i-ldm", "vae encode", "encode maps"],
            inputs=[
                IntrinsicVae.Input("intrinsic_vae", tooltip="From Load Intrinsic VAE."),
                *(io.Image.Input(name, optional=True, tooltip=tooltips[name]) for name in INTRINSICS),
            ],
            outputs=[io.Latent.Output("LATENT", display_name="intrinsic_latent", tooltip="The maps' latent, for Joint Latent.")],
        )

    @classmethod
    def execute(cls, intrinsic_vae: comfy.sd.VAE, **given: Tensor | None) -> io.NodeOutput:
        maps = {name: map_from_image(image, INTRINSICS[name].channels, name) for name, image in given.items() if image is not None}
        return io.NodeOutput({"samples": vaes.encode(intrinsic_vae, join_intrinsics(maps))})


class DecodeIntrinsics(Node):
    """One latent -> depth, normal, segmentation, line."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabDecodeIntrinsics",
            display_name="Decode Intrinsics (I-LDM)",
            category=CATEGORY,
            description=(
                "Takes depth, normals, segmentation and lines out of an intrinsic latent. The maps are float data, never clamped; the "
                "Format nodes make pictures for other programs of them."
            ),
            search_aliases=["i-ldm", "vae decode", "decode maps", "depth", "normals", "segmentation", "line drawing"],
            has_intermediate_output=True,
            inputs=[
                IntrinsicVae.Input("intrinsic_vae", tooltip="From Load Intrinsic VAE."),
                io.Latent.Input("intrinsic_latent", tooltip="The intrinsics from Split Joint Latent, or from Encode Intrinsics."),
            ],
            outputs=[io.Image.Output(name.upper(), display_name=name, tooltip=kind.tooltip) for name, kind in INTRINSICS.items()],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, intrinsic_vae: comfy.sd.VAE, intrinsic_latent: dict) -> io.NodeOutput:
        samples = intrinsic_latent["samples"]
        if samples.ndim != 4 or samples.shape[1] != intrinsic_vae.latent_channels:
            raise ValueError(
                f"The latent is {list(samples.shape)}, this intrinsic VAE decodes [batch, {intrinsic_vae.latent_channels}, height, width]: "
                "use the VAE that belongs to the model that made the latent."
            )
        maps = {name: image_from_map(data.float()) for name, data in split_intrinsics(vaes.decode(intrinsic_vae, samples)).items()}
        return io.NodeOutput(*maps.values(), ui=ui.PreviewImage(_side_by_side(maps), cls=cls))


def _side_by_side(maps: dict[str, Tensor]) -> Tensor:
    """The first pictures' maps as colours 0..1, one row per picture."""
    looks = [normal_picture(image) if INTRINSICS[name].vector else image for name, image in maps.items()]
    return torch.cat([look[:PREVIEW_PICTURES] for look in looks], dim=2).clamp(0, 1).cpu()


NODES = [LoadIntrinsicVAE, EncodeIntrinsics, DecodeIntrinsics]
