"""Factor of a LoRA's product where the file has no alpha: what peft's config in the header says."""

import json
import re
from collections.abc import Callable, Mapping


def peft_scales(metadata: Mapping[str, str], component: str = "unet") -> Callable[[str, int], float]:
    """(module, rank) -> scale of layers without alpha: from the config diffusers writes into the header, else 1 (alpha = rank).

    component: whose config it is ("unet", "transformer", "text_encoder"...). Raises ValueError if the config is no JSON object.
    """
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return lambda name, rank: 1.0
    try:
        config = {key.removeprefix(f"{component}."): value for key, value in json.loads(text).items()}
        alpha, patterns = config.get("lora_alpha"), dict(config.get("alpha_pattern") or {})
    except (ValueError, AttributeError, TypeError):
        raise ValueError("its header's lora_adapter_metadata is not the JSON that diffusers writes: export it again.") from None

    def scale(name: str, rank: int) -> float:
        own = next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), alpha)
        if own is None:
            return 1.0
        return float(own) / (rank**0.5 if config.get("use_rslora") else rank)

    return scale
