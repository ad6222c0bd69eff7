"""Stable Diffusion's UNets: SD 1.x, SD 2.x, SDXL."""

from collections.abc import Mapping

import comfy.latent_formats
import comfy.model_sampling
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import comfy.utils
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .....methods.ildm.schedules import stage_blocks
from .....methods.lora.layers import LoraLayer
from ...batch_rows.row_lora import MapAdapter
from ...loading.text_encoder import CLIP_L, TextFamily, TextPart
from ..backbone import INTRINSIC_LORA, JOINT_LORA, Backbone, CrossDomain, Family, MapAttention, MultiStep, SingleStep
from .attention import exchange_in, join_maps_in, read_anchor_in
from .loading import load_unet


class ImageToImage(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.IMG_TO_IMG):
    """The model's input goes in unscaled, its raw output comes out."""


def require_plain(model: ModelPatcher) -> None:
    """Raises ValueError for UNets with extra input channels."""
    unet = model.get_model_object("diffusion_model")
    wanted = model.get_model_object("latent_format").latent_channels
    if unet.in_channels != wanted:
        raise ValueError(
            f"This UNet takes {unet.in_channels} input channels, {wanted} were expected: load a plain text-to-image checkpoint, "
            "not an inpainting or editing one."
        )


ENTRY = "input_blocks.0.0"


def is_widened(model: ModelPatcher) -> bool:
    """Whether the UNet takes the latent of a picture beside its own, as instruct-pix2pix does."""
    channels = model.get_model_object("latent_format").latent_channels
    return model.get_model_object("diffusion_model").in_channels == 2 * channels


def require_picture_channels(model: ModelPatcher, picture_in: Tensor | None, source: str) -> None:
    """Raises ValueError unless MODEL and file together take the picture's latent, once."""
    unet = model.get_model_object("diffusion_model")
    channels = model.get_model_object("latent_format").latent_channels
    plain, widened = f"a plain one takes {channels}", f"one that edits pictures (instruct-pix2pix) {2 * channels}"
    kinds = f"{plain}, {widened}, an inpainting one {2 * channels + 1}"
    if picture_in is None and not is_widened(model):
        raise ValueError(
            f"{source} holds no weights for the picture's channels, so its MODEL must; this UNet takes {unet.in_channels} input channels "
            f"({kinds}): load the widened model that the file was trained on."
        )
    if picture_in is None:
        return
    if unet.in_channels != channels:
        raise ValueError(
            f"{source} brings weights for the picture's channels; this UNet takes {unet.in_channels} input channels ({kinds}): load the "
            "plain model that the file was trained on."
        )
    entry = unet.get_submodule(ENTRY)
    wanted = (entry.out_channels, channels, *entry.kernel_size)
    if tuple(picture_in.shape) != wanted:
        raise ValueError(
            f"{source} was made for a model of another width: its weights for the picture are {tuple(picture_in.shape)}, the MODEL needs "
            f"{wanted}. Load the base model it was trained on."
        )


def bind_lora(model: ModelPatcher, layers: Mapping[str, LoraLayer], strength: float, source: str) -> MapAdapter:
    """A LoRA file's layers bound to the MODEL's. Raises ValueError, naming `source`, where they do not fit."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    native = {name.removesuffix(".weight"): native.removesuffix(".weight") for name, native in names.items()}
    return MapAdapter(layers, model.get_model_object("diffusion_model"), native, strength, source)


def _sd2_model(**params) -> nn.Module:
    """diffusers' SD 2 folders lack CLIP-H's unused last layer, so the last layer is the one to take."""
    return comfy.text_encoders.sd2_clip.SD2ClipModel(layer="last", **params)


def family_of(config: Mapping) -> str | None:
    """The family of a diffusers UNet's config.json."""
    if config.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        return None
    if config.get("addition_embed_type") == "text_time":
        return "sdxl"
    # As in ComfyUI's own detection, linear projections around attention tell SD 2 from SD 1.
    return "sd21" if config.get("use_linear_projection", False) else "sd15"


UNET = Backbone(
    name="unet",
    title="Stable Diffusion UNets (SD 1.x, SD 2.x, SDXL)",
    matches=lambda network: isinstance(network, UNetModel),
    part="unet",
    family_of=family_of,
    families=(
        Family(
            "sd15",
            "SD 1.5",
            text=TextFamily((CLIP_L,), comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
            trainers=(INTRINSIC_LORA, JOINT_LORA),
        ),
        Family(
            "sd21",
            "SD 2.1",
            text=TextFamily((TextPart("clip_h", "text_encoder", "tokenizer"),), comfy.text_encoders.sd2_clip.SD2Tokenizer, _sd2_model),
            trainers=(INTRINSIC_LORA, JOINT_LORA),
        ),
        Family(
            "sdxl",
            "SDXL",
            text=TextFamily(
                (CLIP_L, TextPart("clip_g", "text_encoder_2", "tokenizer_2")),
                comfy.sdxl_clip.SDXLTokenizer,
                comfy.sdxl_clip.SDXLClipModel,
                fewest_layers=3,
            ),
            trainers=(JOINT_LORA,),
        ),
    ),
    load=load_unet,
    latent_formats=(comfy.latent_formats.SD15, comfy.latent_formats.SDXL),
    layouts={"SD 1.5 / SD 2.1": stage_blocks((2, 2, 2, 0, 1, 0, 3, 3, 3)), "SDXL": stage_blocks((0, 4, 20, 10, 30, 6, 0))},
    single_step=SingleStep(
        check=require_plain,
        model_sampling=lambda model: ImageToImage(model.model.model_config),
        noise_levels=lambda model, timesteps: model.get_model_object("model_sampling").sigma(timesteps),
        context_width=lambda model: model.model.model_config.unet_config.get("context_dim"),
        bind_lora=bind_lora,
        attach_anchor=read_anchor_in,
    ),
    cross_domain=CrossDomain(exchange_in, bind_lora),
    map_attention=MapAttention(join_maps_in),
    multi_step=MultiStep(ENTRY, require_picture_channels, is_widened),
)
