"""Any LoRA file for a UNet or a transformer, read safely into one canonical form.

Spellings that are read, all with the same meaning (`M` is a diffusers module name such as `mid_block.attentions.0.proj_in`):

================== =============================================================================================
kohya              `lora_unet_<M with _ for .>.lora_down.weight`, `.lora_up.weight`, `.alpha`; LDM names too
peft / diffusers   `unet.M.lora_A.weight`, `base_model.model.M.lora_A.default.weight`, `unet.M.lora.down.weight`
attention processor `M.attn1.processor.to_q_lora.down.weight` (diffusers 0.20, the published I-LoRA checkpoints)
================== =============================================================================================

Files are safetensors, or PyTorch's pickles, read as data: nothing in them is run, and one that wants to is refused.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..intrinsic_lora.multi_step import PICTURE_KEY
from ..pickled_weights import read_pickled
from .formats import ALPHA, label_of, split_key
from .header import BadFile
from .layers import LoraFile, LoraLayer
from .names import dotted_name
from .scales import peft_scales
from .spellings import KOHYA, split_component, split_text_encoder
from .weight_file import load_safetensors


def read_lora(path: str | Path) -> LoraFile:
    """Reads and checks a LoRA file. Raises ValueError, naming the file, what is wrong with it and what to do."""
    path = Path(path)
    tensors, metadata = load_tensors(path)
    try:
        return parse_lora(tensors, metadata)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors or pickled weight file; nothing in the file is ever executed."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror}): check that the file is there and readable.") from None
    # A safetensors file starts with the 8-byte length of its JSON header, whose first byte may look like a pickle's.
    if head[8:] != b"{" and head.startswith((b"\x80", b"PK")):
        return _load_pickled(path), {}
    try:
        return load_safetensors(path)
    except BadFile as error:
        raise ValueError(f"{path.name} is neither a safetensors file nor a PyTorch weight file: {error}") from None


def _load_pickled(path: Path) -> dict[str, Tensor]:
    pickled = read_pickled(path)
    try:
        return pickled.named_tensors()
    except ValueError as error:
        raise ValueError(
            f"{path.name} is a pickle that holds more than weights, or is damaged ({error}) Nothing in it was run: "
            "ask its author for a safetensors file."
        ) from None


def parse_lora(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> LoraFile:
    """State dict to canonical form. Raises ValueError for other adapter kinds, broken pairs and values that are not finite."""
    metadata = dict(metadata or {})
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    unknown, ignored = [], 0
    picture_in = tensors.get(PICTURE_KEY)
    for key, tensor in tensors.items():
        if key == PICTURE_KEY:
            continue
        module, role = split_key(key) or ("", "")
        if split_text_encoder(key):
            ignored += 1
        elif role == ALPHA and tensor.numel() == 1:
            alphas[dotted_name(module)] = float(tensor)
        elif role in ("down", "up"):
            halves.setdefault(dotted_name(module), {})[role] = tensor
        else:
            unknown.append(key)
    _refuse_unknown(unknown, found=len(halves), ignored=ignored)
    components = {split_component(key)[0] for key in tensors}
    scale_of = peft_scales(metadata, "transformer" if "transformer" in components else "unet")
    layers = {}
    for name, pair in halves.items():
        _check_pair(name, pair)
        rank = pair["down"].shape[0]
        scale = alphas[name] / rank if name in alphas else scale_of(name, rank)
        layers[name] = LoraLayer(pair["down"], pair["up"], scale)
    orphans = sorted(alphas.keys() - layers.keys())
    if orphans:
        raise ValueError(f"{len(orphans)} alpha values have no weights (first: {orphans[0]}): the file is incomplete, export it again.")
    if picture_in is not None:
        _check_picture_in(picture_in)
    return LoraFile(layers, metadata, ignored, any(".processor.to_" in key for key in tensors), picture_in)


def _refuse_unknown(unknown: list[str], found: int, ignored: int) -> None:
    for key in unknown:
        if label := label_of(key):
            raise ValueError(
                f"holds {label} weights ({key}), only plain LoRA is understood here: convert it to LoRA, or merge it with LoraLoader."
            )
    if not found:
        reason = "only text-encoder LoRA" if ignored else f"no LoRA weights (first key: {unknown[0]})" if unknown else "no tensors"
        raise ValueError(f"holds {reason}, a LoRA for a diffusion UNet was expected: pick another file.")
    if unknown:
        raise ValueError(f"holds {len(unknown)} tensors that belong to no LoRA layer (first: {unknown[0]}): export it as plain LoRA.")


def _check_pair(name: str, pair: Mapping[str, Tensor]) -> None:
    if missing := {"down", "up"} - pair.keys():
        raise ValueError(f"layer {name} lacks its '{missing.pop()}' weight: the file is incomplete, export it again.")
    down, up = pair["down"], pair["up"]
    if down.ndim not in (2, 4) or up.ndim != down.ndim or down.shape[0] != up.shape[1] or (up.ndim == 4 and up.shape[2:] != (1, 1)):
        raise ValueError(f"layer {name} has shapes {tuple(down.shape)} and {tuple(up.shape)}, wanted [rank, in] and [out, rank].")
    for side, tensor in pair.items():
        _check_numbers(f"layer {name} ({side})", tensor)


def _check_picture_in(weight: Tensor) -> None:
    if weight.ndim != 4:
        raise ValueError(f"{PICTURE_KEY} has shape {tuple(weight.shape)}, wanted [width, channels, kernel, kernel]: export it again.")
    _check_numbers(PICTURE_KEY, weight)


def _check_numbers(what: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{what} is {tensor.dtype}, floating point weights were expected: export it again.")
    # fp8 has no isfinite of its own.
    if not torch.isfinite(tensor.float()).all():
        raise ValueError(f"{what} holds NaN or infinite values: the training that made it diverged, use an earlier checkpoint.")


def peft_state_dict(layers: Mapping[str, LoraLayer], prefix: str) -> dict[str, Tensor]:
    """peft's spelling after `prefix`, the one that diffusers and ComfyUI read for transformers; it has no place for a scale."""
    state = {}
    for name, layer in layers.items():
        state[f"{prefix}{name}.lora_A.weight"] = layer.down.contiguous()
        state[f"{prefix}{name}.lora_B.weight"] = (layer.scale * layer.up).contiguous()
    return state


def kohya_state_dict(layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """The spelling that ComfyUI's LoraLoader and diffusers both load fully, convolutions included; `alpha` carries the scale."""
    state = {}
    for name, layer in layers.items():
        key = f"{KOHYA}{name.replace('.', '_')}"
        state[f"{key}.lora_down.weight"] = layer.down.contiguous()
        state[f"{key}.lora_up.weight"] = layer.up.contiguous()
        state[f"{key}.alpha"] = torch.tensor(float(layer.scale * layer.rank))
    return state
