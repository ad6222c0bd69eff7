"""The LumiX trainer: five aligned maps from a FLUX.1 transformer (LumiX, CVPR 2026), and every cell of its design matrix."""

from .config import LumixConfig
from .data import map_source
from .network import MapDenoiser, make_adapter
from .run import LumixTask, MapLatents, TrainedLumix, train_lumix
from .sample import sample_maps

__all__ = [
    "LumixConfig",
    "LumixTask",
    "MapDenoiser",
    "MapLatents",
    "TrainedLumix",
    "make_adapter",
    "map_source",
    "sample_maps",
    "train_lumix",
]
