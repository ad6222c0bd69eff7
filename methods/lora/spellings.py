"""How LoRA files spell the names of modules: every prefix that trainers write, and whose part of the model it names."""

import re

PEFT = "base_model.model."
KOHYA = "lora_unet_"
# Of one network alone; several may stand before a name. Dots stay dots.
_DOTTED = (PEFT, "unet.", "transformer.", "model.diffusion_model.", "diffusion_model.")
# Every dot of the name that follows is written as an underscore.
_FLAT = ("lora_unet__", KOHYA, "lora_transformer_", "lora_prior_unet_", "lycoris_")
_TEXT_ENCODERS = (
    re.compile(r"^(?:lora_(?P<prior>prior_)?te(?P<number>\d?)_|text_encoder(?:_(?P<diffusers>\d))?\.)"),
    re.compile(r"^text_encoders\.(?:transformer\.|(?P<name>[a-z0-9_]+)\.(?:transformer\.)?)"),
)
_ENCODER_NUMBERS = {"clip_l": "1", "clip_h": "1", "clip_g": "2", "t5xxl": "2"}
# The order in which ComfyUI's loader looks for them: where a file spells a module twice, what comes later counts.
_LOOKED_FOR = (re.compile(r"^(?:lora_unet_|text_encoders\.)"), re.compile(r"^(?:diffusion_model\.|lora_(?:prior_)?te)"))


def precedence(spelling: str) -> int:
    """Of two spellings of a module in one file, the one with more is what ComfyUI loads."""
    return next((place for place, pattern in enumerate(_LOOKED_FOR) if pattern.match(spelling)), len(_LOOKED_FOR))


def split_text_encoder(spelling: str) -> tuple[str, str] | None:
    """(number of the text encoder, "1" for the first, the module's name inside it); None where it is no text encoder's."""
    for pattern in _TEXT_ENCODERS:
        if match := pattern.match(spelling):
            found = match.groupdict()
            if "name" in found:
                number = _ENCODER_NUMBERS.get(found["name"] or "", "1")
            else:
                # Cascade's prior has the larger CLIP alone.
                number = found["number"] or found["diffusers"] or ("2" if found["prior"] else "1")
            return number, spelling[match.end() :].removeprefix(PEFT)
    return None


def split_prefix(spelling: str) -> tuple[str, bool]:
    """(the module's name inside its network, whether its dots are written as underscores)."""
    name = spelling
    while prefix := next((prefix for prefix in _DOTTED if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    flat = next((prefix for prefix in _FLAT if name.startswith(prefix)), "")
    return name.removeprefix(flat), bool(flat)


def split_component(spelling: str) -> tuple[str, str]:
    """("unet", "transformer", "text_encoder"... as diffusers names a model's parts, the module's name inside it)."""
    component, _, rest = spelling.partition(".")
    return component, rest.removeprefix(PEFT)
