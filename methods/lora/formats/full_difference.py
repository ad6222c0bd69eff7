"""Full differences of weights and biases, and weights that replace the base model's (ComfyUI's extraction and merges)."""

import re

from .base import NOT_COMPARABLE, Refused

FULL_DIFFERENCE = Refused("full-difference", re.compile(r"\.(?:diff|set_weight)"), NOT_COMPARABLE)
