"""IA3 (LyCORIS, peft): factors on the base model's inputs and outputs."""

import re

from .base import Refused

IA3 = Refused(
    "IA3",
    re.compile(r"\.on_input$|\.ia3_l"),
    "which are factors on the base model's weights, and these are not at hand: leave it out, or convert it.",
)
