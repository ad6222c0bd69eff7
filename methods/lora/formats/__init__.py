"""Every kind of weights that LoRA files hold, one file each; these tables are the only other place that knows of one."""

from collections.abc import Collection, Iterable

from .base import ADAPTER, Format, Refused, key_pattern
from .embedding import EMBEDDING
from .full_difference import FULL_DIFFERENCE
from .glora import GLORA
from .ia3 import IA3
from .loha import LOHA
from .lokr import LOKR
from .lora import LORA
from .oft import OFT, PEFT_BOFT, PEFT_OFT
from .replaced import REPLACED
from .tensor_lora import TENSOR_LORA

# In the order of ComfyUI's loader: where a module has the weights of several, the last counts.
FORMATS: tuple[Format, ...] = (IA3, LORA, LOHA, LOKR, GLORA, OFT, FULL_DIFFERENCE)
REFUSED: tuple[Refused, ...] = (PEFT_OFT, PEFT_BOFT, REPLACED, EMBEDDING, TENSOR_LORA)

# Beside the weights of any format. A DoRA's magnitudes rescale the base model's columns: they are not read, the module is approximate.
ALPHA, MAGNITUDES = "alpha", ("dora_scale", "lora_magnitude_vector", "magnitude")
_BESIDE = key_pattern(**{role: rf"\.{role}{ADAPTER}" for role in (ALPHA, *MAGNITUDES)})
_PATTERNS = (*(one.pattern for one in FORMATS), _BESIDE)
_LABELS = dict.fromkeys(MAGNITUDES, "DoRA") | {role: one.labels.get(role, one.label) for one in FORMATS for role in one.pattern.groupindex}
SUFFIXES = {role: suffix for one in FORMATS for role, suffix in one.suffixes.items()}


def split_key(key: str) -> tuple[str, str] | None:
    """(module as the file spells it, role of the tensor: "down", "hada_w1_a", "alpha"...); None for a key of no format that is read."""
    match = next((match for pattern in _PATTERNS if (match := pattern.match(key))), None)
    return (match["module"], match.lastgroup) if match and match.lastgroup else None


def format_of(roles: Collection[str]) -> Format | None:
    """Format of a module with tensors of these roles."""
    return next((one for one in reversed(FORMATS) if any(role in roles for role in one.marked_by)), None)


def label_of(key: str) -> str | None:
    """What people call the weights that a key belongs to, whether they are read or not."""
    if found := split_key(key):
        return _LABELS.get(found[1])
    return next((one.label for one in REFUSED if one.pattern.search(key)), None)


def refused_by(keys: Iterable[str]) -> tuple[Refused, str] | None:
    """(kind, key) of the first key that tells a kind of weights which is not read."""
    return next(((one, key) for key in keys for one in REFUSED if one.pattern.search(key)), None)
