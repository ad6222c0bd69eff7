"""Trained norms (LyCORIS): differences of the scales and biases of norm layers, beside other weights or alone."""

import re

from .base import Refused

NORM = Refused("norm", re.compile(r"\.[wb]_norm$"), "vectors without a matrix, which do not compare with LoRAs: leave it out.")
