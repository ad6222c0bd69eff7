"""Weights that replace the base model's (`.set_weight`, the norms of BFL's control LoRAs): the change is not known without it."""

import re

from .base import Refused

REPLACED = Refused(
    "replacing",
    re.compile(r"\.set_weight$|_norm\.scale$|\.reshape_weight$"),
    "which take the place of the base model's, and these are not at hand: leave it out.",
)
