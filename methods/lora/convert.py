"""A LoRA in any readable spelling, written anew in the plain one that ComfyUI's loader knows all of: the same numbers under other names.

UNets: kohya's names (`lora_unet_down_blocks_...lora_up.weight`, `.alpha`), which diffusers loads as well. Transformers:
`diffusion_model.<name>.lora_B.weight`, or `transformer.<name>` where the file has the parts of what the model fuses. Other kinds of weights
keep their own tensors. What the loader has no way to express is refused in words. Nothing is multiplied out, so the change stays what it is
to the last bit, unless another precision is asked for.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import write_tensors
from .families import base_family
from .formats import ALPHA, SUFFIXES
from .formats.ia3 import IA3
from .formats.lora import LORA
from .header import DTYPES, INTEGERS, Layout, parse_layout
from .loading import PREFIXES, TEXT_ENCODERS, is_known, known_names, left_out, like_family, loading
from .lora_file import load_safetensors, load_tensors
from .modules import Module, modules_of, sizes_of, unread
from .names import canonical_name

PRECISIONS = {"as it is": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
NOTE = "intrinsic_lab.converted"
_KINDS = {dtype: kind for kind, dtype in (DTYPES | INTEGERS).items()}
# Of the tensors that were, and of a scale that ComfyUI does not apply but diffusers would, beside the alphas.
_STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata")
_UNETS = ("sd1", "sd2", "sdxl")
# Of several text encoders of one kind, those that most models have.
_ENCODERS = ("clip_l.", "clip_g.", "t5xxl.")
_KOHYA = {"down": ".lora_down.weight", "up": ".lora_up.weight"}
_PEFT = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
_ENDINGS = {"lora_mid": ".lora_mid.weight", "lora_bias": ".diff_b"} | {
    f"glora_{role}": f".{role}.weight" for role in ("a1", "a2", "b1", "b2")
}


@dataclass(frozen=True)
class Converted:
    """note: what was done, for a person; also in the metadata. before: what ComfyUI's loader did not take of the file as it was."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    note: str
    before: str = ""


def convert_file(source: Path, target: Path, precision: str = "as it is", *, overwrite: bool = False) -> Converted:
    """Writes `source`, safetensors or a pickle that holds only weights, as `target`, whole or not at all.

    Raises ValueError, naming the file, where it cannot be read or converted, or where `target` is there, holds something else and is not
    to be overwritten; OSError where it cannot be written.
    """
    try:
        converted = convert(*load_tensors(source), precision)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
    if target.exists() and not overwrite:
        if not _holds(target, converted):
            raise ValueError(f"{target.name} is there already: choose another name, or ask for it to be overwritten.")
        return converted
    write_tensors(target, converted.tensors, converted.metadata)
    return converted


def _holds(path: Path, converted: Converted) -> bool:
    try:
        tensors, metadata = load_safetensors(path)
    except Exception:
        return False
    same = metadata == converted.metadata and tensors.keys() == converted.tensors.keys()
    return same and all(_equal(tensor, converted.tensors[key]) for key, tensor in tensors.items())


def _equal(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    # As bytes: what is no number equals itself too.
    return torch.equal(*(tensor.flatten().view(torch.uint8) for tensor in (one, other)))


def convert(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], precision: str = "as it is") -> Converted:
    """Raises ValueError, saying what cannot be converted and why (BadFile where the tensors are no LoRA's)."""
    if precision not in PRECISIONS:
        raise ValueError(f"there is no precision {precision!r}: choose one of {', '.join(PRECISIONS)}.")
    layout = _layout_of(tensors)
    modules = modules_of(layout)
    family = base_family(sizes_of(layout), metadata)
    _refuse(layout, modules, family)
    spelled = _spellings(modules, family)
    found = {}
    for name, module in modules.items():
        for role, key in module.keys.items():
            found[spelled[name] + _ending(module, role, spelled[name])] = _cast(key, tensors[key], PRECISIONS[precision], role == ALPHA)
    dropped = len(tensors) - len(found)
    note = f"names that ComfyUI loads ({family}), precision {precision}"
    note += f"; {dropped} tensors under other names left out, which another spelling of the same modules overrules" if dropped else ""
    note += "; lora_adapter_metadata left out: ComfyUI does not apply it" if "lora_adapter_metadata" in metadata else ""
    kept = {key: value for key, value in metadata.items() if key not in _STALE and isinstance(value, str)}
    converted = Converted(found, kept | {NOTE: note}, note, loading(layout, family))
    # Whatever the tables say: the result is what was asked for, or there is none.
    made = _layout_of(found)
    if left := left_out(made, family):
        raise ValueError(f"ComfyUI's loader would leave out {left[0]}: it cannot be expressed in names that the loader knows.")
    if {name: module.format for name, module in modules_of(made).items()} != {name: module.format for name, module in modules.items()}:
        raise ValueError("its modules would not be the same under other names: keep the file as it is.")
    return converted


def _layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    entries = {}
    for key, tensor in tensors.items():
        if tensor.dtype not in _KINDS:
            raise ValueError(f"{key} is {tensor.dtype}, which no LoRA holds: export it again.")
        size = tensor.numel() * tensor.element_size()
        entries[key] = {"dtype": _KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [0, size]}
    return parse_layout(json.dumps(entries))


def _refuse(layout: Layout, modules: Mapping[str, Module], family: str) -> None:
    if others := unread(layout):
        raise ValueError(
            f"it holds {len(others)} tensors that belong to no LoRA module ({others[0]}), which the result would lack: keep it."
        )
    if not like_family(family):
        raise ValueError(f"its base model is not known (structure {family}), and so are the names that ComfyUI has for it: keep it.")
    for name, module in modules.items():
        if module.format is IA3:
            raise ValueError(f"module {name} holds IA3 weights, and ComfyUI's loader has nothing for them under any name: keep it.")
        for role in ("lora_magnitude_vector", "magnitude"):
            if role in module.keys:
                raise ValueError(
                    f"module {name} is a DoRA whose magnitudes ({module.keys[role]}) are not written as ComfyUI reads them (.dora_scale): "
                    "export it for ComfyUI where it was trained."
                )


def _ending(module: Module, role: str, spelling: str) -> str:
    if module.format is LORA and role in _KOHYA:
        dotted = "." in spelling and "lora_mid" not in module.keys
        return (_PEFT if dotted else _KOHYA)[role]
    return _ENDINGS.get(role, f".{role}")


def _cast(key: str, tensor: Tensor, dtype: torch.dtype | None, alpha: bool) -> Tensor:
    if alpha or not tensor.is_floating_point():
        return tensor.float() if alpha else tensor
    made = tensor.to(dtype or tensor.dtype).contiguous()
    if not torch.isfinite(made.float()).all():
        raise ValueError(f"{key} holds numbers that are not finite, or too large for {made.dtype}: choose another precision.")
    return made


def _spellings(modules: Mapping[str, Module], family: str) -> dict[str, str]:
    """Canonical name -> the name to write. One prefix for all modules of the network where there is one that knows all."""
    bare = {name: _without_suffix(name, module) for name, module in modules.items()}
    network = [name for name in bare.values() if not _of_text_encoder(name)]
    kind = like_family(family)
    order = ("lora_unet_",) if kind in _UNETS else ("diffusion_model.", "transformer.", "lora_unet_")
    order += tuple(prefix for prefix in PREFIXES if prefix not in order)
    chosen = next((prefix for prefix in order if all(spelling_of(name, family, (prefix,)) for name in network)), "")
    if kind in _UNETS:
        encoders = ("lora_te1_", "lora_te2_") if kind == "sdxl" else ("lora_te_",)
    else:
        encoders = ("text_encoder.", "text_encoder_2.") if chosen == "transformer." else ()
    encoders += ("text_encoders.", *(prefix for prefix in PREFIXES if prefix not in encoders))
    found = {}
    for name, plain in bare.items():
        own = modules[name].spelling
        if re.match(r"te[34]_", plain) and is_known(own, family):
            # Which T5 or language model it is, only the file says.
            found[name] = own
            continue
        prefixes = encoders if _of_text_encoder(plain) else (chosen, *order)
        if (spelling := spelling_of(plain, family, prefixes)) is None:
            raise ValueError(f"ComfyUI's loader has no name for the module {plain} of {family}: keep the file as it is.")
        found[name] = spelling
    return found


def _without_suffix(name: str, module: Module) -> str:
    suffix = next((SUFFIXES[role] for role in module.keys if role in SUFFIXES), "")
    return name.removesuffix(suffix)


def _of_text_encoder(name: str) -> bool:
    return re.match(r"te\d_", name) is not None


@lru_cache(maxsize=1 << 14)
def spelling_of(name: str, family: str, prefixes: Sequence[str]) -> str | None:
    """How ComfyUI's loader calls the module of a canonical name, behind the first of these prefixes that has a name for it."""
    candidates = list(_candidates(name, family))
    for prefix in prefixes:
        for spelling in candidates:
            known = next(one for one in PREFIXES if spelling.startswith(one)) == prefix and is_known(spelling, family)
            if known and canonical_name(spelling) == name:
                return spelling
    return None


def _candidates(name: str, family: str) -> Iterator[str]:
    """Spellings that may be the module's: of the first blocks' names, with its numbers in their place."""
    yield f"lora_unet_{name}"
    table = _first_spellings(family)
    numbers = list(re.finditer(r"(?<=_)\d+(?=_|$)", name))
    for count in range(3):
        for places in combinations(numbers, count):
            first = name
            for place in reversed(places):
                first = f"{first[: place.start()]}0{first[place.end() :]}"
            for spelling in table.get(first, ()):
                zeros = list(re.finditer(r"(?<=[._])0(?=[._]|$)", spelling))
                for chosen in combinations(zeros, count):
                    made = spelling
                    for zero, place in reversed(list(zip(chosen, places, strict=True))):
                        made = f"{made[: zero.start()]}{place[0]}{made[zero.end() :]}"
                    yield made


@lru_cache(maxsize=64)
def _first_spellings(family: str) -> Mapping[str, list[str]]:
    """Canonical name -> spellings, of the first block of each stack."""
    found: dict[str, list[str]] = {}
    for one in (like_family(family), TEXT_ENCODERS):
        for group in known_names()[one]:
            for prefix in group["prefixes"]:
                for name in group["names"]:
                    if prefix == "text_encoders." and not name.startswith(_ENCODERS):
                        continue
                    found.setdefault(canonical_name(prefix + name), []).append(prefix + name)
    return found
