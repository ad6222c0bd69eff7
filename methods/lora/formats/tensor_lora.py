"""Tensor LoRA (LumiX): several maps' changes in one tensor network; `methods/lumix/tensor_lora` reads it."""

import re

from .base import NOT_COMPARABLE, Refused

TENSOR_LORA = Refused("Tensor LoRA", re.compile(r"tt_lora"), NOT_COMPARABLE)
