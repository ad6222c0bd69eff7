"""Factor of a LoRA's product where the file has no alpha: what peft's config in the header says."""

import json
import re
from collections.abc import Callable, Mapping

# A header is a stranger's: its patterns are module names, some with a number or a wildcard. Without groups, and with so few repetitions, no
# pattern takes long on a name.
_PATTERN = re.compile(r"[\w.\\^$\[\]|*+?-]{1,200}")
_MOST_PATTERNS, _MOST_REPETITIONS, _LONGEST_NAME = 10_000, 3, 400


def peft_scales(metadata: Mapping[str, str], component: str = "unet") -> Callable[[str, int], float]:
    """(module, rank) -> scale of layers without alpha: from the config diffusers writes into the header, else 1 (alpha = rank).

    component: whose config it is ("unet", "transformer", "text_encoder"...). Raises ValueError if the config is no JSON object, or holds
    patterns that are no names of modules.
    """
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return lambda name, rank: 1.0
    try:
        config = {key.removeprefix(f"{component}."): value for key, value in json.loads(text).items()}
        alpha, patterns = config.get("lora_alpha"), dict(config.get("alpha_pattern") or {})
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise ValueError("its header's lora_adapter_metadata is not the JSON that diffusers writes: export it again.") from None
    for pattern in patterns:
        if len(patterns) > _MOST_PATTERNS or not _PATTERN.fullmatch(pattern) or sum(map(pattern.count, "*+?")) > _MOST_REPETITIONS:
            raise ValueError(f"its header's alpha_pattern holds {pattern[:60]!r}, which names no module: export it again.")
    try:
        compiled = [(re.compile(rf"(?:.*\.)?(?:{pattern})$"), value) for pattern, value in patterns.items()]
    except re.error as error:
        raise ValueError(f"its header's alpha_pattern is no pattern ({error}): export it again.") from None

    def scale(name: str, rank: int) -> float:
        own = next((value for pattern, value in compiled if pattern.match(name[:_LONGEST_NAME])), alpha)
        if own is None:
            return 1.0
        return float(own) / (rank**0.5 if config.get("use_rslora") else rank)

    return scale
