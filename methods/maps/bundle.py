"""Maps that belong to the same pictures, as one thing."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .table import MAPS, map_kind

PICTURE = "image"


def bundle_names() -> list[str]:
    """What a bundle may hold, in order: the picture, then every map of MAPS."""
    return [PICTURE, *MAPS]


def of_one_size(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps `bhwc` of one size; one picture serves a batch. ValueError for sizes or batches that do not fit."""
    sizes = {name: f"{values.shape[2]} x {values.shape[1]}" for name, values in maps.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the maps differ in size ({', '.join(f'{name} {size}' for name, size in sizes.items())}): resize them to one size."
        )
    batch = max(len(values) for values in maps.values())
    if any(len(values) not in (1, batch) for values in maps.values()):
        counts = ", ".join(f"{name} {len(values)}" for name, values in maps.items())
        raise ValueError(f"the maps differ in number ({counts}): give as many of each, or one for all.")
    return {name: values.expand(batch, -1, -1, -1) for name, values in maps.items()}


@dataclass(frozen=True)
class MapBundle:
    """maps: by name (`bundle_names`), each as data `bhwc` with its own number of channels, all of one size and number.

    Raises ValueError for no map at all, unknown names, other numbers of channels, and as `of_one_size`.
    """

    maps: Mapping[str, Tensor]

    def __post_init__(self):
        if not self.maps:
            raise ValueError("there is no map to bundle: connect at least one.")
        for name, values in self.maps.items():
            if name not in bundle_names():
                raise ValueError(f"a bundle cannot hold {name!r}: it may hold {', '.join(bundle_names())}.")
            if values.ndim != 4 or values.shape[-1] != map_kind(name).channels:
                wanted = f"[batch, height, width, {map_kind(name).channels}]"
                raise ValueError(f"{name} came with shape {list(values.shape)}: {wanted} is wanted in a bundle.")
        of_one = of_one_size(self.maps)
        object.__setattr__(self, "maps", {name: of_one[name] for name in bundle_names() if name in of_one})

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.maps:
            raise ValueError(
                f"these maps have no {name} (they have: {', '.join(self.maps)}): connect it by itself, or add it with Bundle Maps."
            )
        return self.maps[name]
