"""OFT and BOFT: rotations of the base model's weights, so that the change depends on these."""

import re

from .base import NOT_COMPARABLE, Refused

OFT = Refused("OFT", re.compile(r"\.oft_"), NOT_COMPARABLE)
BOFT = Refused("BOFT", re.compile(r"\.boft"), NOT_COMPARABLE)
