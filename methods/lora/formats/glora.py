"""GLoRA (LyCORIS): W a2 a1 + b1 b2 with the base model's W."""

import re

from .base import Refused

GLORA = Refused(
    "GLoRA",
    re.compile(r"\.glora|\.[ab][12]\.weight$"),
    "whose change depends on the base model's weights, which are not at hand: leave it out, or convert it.",
)
