"""Checkpoints in one file, as models/checkpoints holds them: SD 1.x, SD 2.x, SDXL and FLUX.1, as the parts of a diffusers pipeline.

Everything is built from the file's own shapes and converted in memory: nothing is downloaded, and nothing written.
"""

from .base import SingleFile

__all__ = ["SingleFile"]
