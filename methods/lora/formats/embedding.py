"""LoRA on embeddings (peft): transposed, and of no layer that models share."""

import re

from .base import NOT_COMPARABLE, Refused

EMBEDDING = Refused("embedding LoRA", re.compile(r"\.lora_embedding"), NOT_COMPARABLE)
