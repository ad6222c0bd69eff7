"""How a LoRA file makes its map: what its header says, else what is known of the published files, else this pack's own ways.

The published checkpoints (SD 1.5, rank 8 on all attention layers) have no header. Their normals were learnt in Omnidata's axes and their
depth with near bright; copies of them go around under other keys.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ..lora.layers import LoraFile
from ..maps import MAPS
from ..maps.files import Convention, Reading
from .multi_step import AUGMENTED, METHODS, SINGLE, Noise, noise_of

AUTO = "auto"
# How a network's raw output at the noise end of time, for a picture's clean latent, says the map's latent. A flow's output is noise - data:
# its negative points to the data, and the input less the output is the data that it tells of.
RAW = "raw"
READINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    RAW: lambda output, picture: output,
    "negative": lambda output, picture: -output,
    "data": lambda output, picture: picture - output,
}
DEFAULT_TIMESTEP, TIMESTEPS = 999, 1000
PUBLISHED = {"normal": "opencv", "depth": "near_bright", "albedo": "srgb", "shading": "srgb"}
# Transformer blocks of SD 1.5's UNet by their width. Each has q, k, v, out of two attentions; one of them reads the text.
_BLOCKS = {320: 5, 640: 5, 1280: 6}
_TEXT_WIDTH = 768
_PUBLISHED_SIZES = Counter(
    {(8, width, width): 6 * blocks for width, blocks in _BLOCKS.items()}
    | {(8, _TEXT_WIDTH, width): 2 * blocks for width, blocks in _BLOCKS.items()}
)
Number = TypeVar("Number", float, Tensor)
# What converters write into every safetensors header.
_SAYS_NOTHING = {"format"}


def flow_time(timestep: Number) -> Number:
    """The share of noise, 0..1, at a timestep 0..999 of a network that predicts a flow: the last timestep is noise alone."""
    return (timestep + 1) / TIMESTEPS


def flow_timestep(share: Number) -> Number:
    """Inverse of `flow_time`."""
    return share * TIMESTEPS - 1


@dataclass(frozen=True)
class Recipe:
    """How a LoRA makes its map.

    timestep: 0..999. resolution: short side in pixels it was trained at, None where unknown. convention: of the pictures that come
    out, one of the map's `files.choices`; the map's own without it. reason: why this one. method: of `multi_step.METHODS`; noise: of the
    augmented one. reading: of READINGS, in a single step.
    """

    map: str
    prompt: str
    timestep: int = DEFAULT_TIMESTEP
    resolution: int | None = None
    convention: str = ""
    reason: str = ""
    method: str = SINGLE
    noise: Noise | None = None
    reading: str = RAW

    @property
    def _learnt(self) -> Convention:
        files = MAPS[self.map].files
        return files.choices[self.convention or files.own]

    @property
    def to_own(self) -> Reading | None:
        """From what is drawn to the map's own picture; None where they are the same."""
        return None if self.convention in ("", MAPS[self.map].files.own) else self._learnt.to_own

    @property
    def in_words(self) -> str:
        """Which convention was taken, and why."""
        return f"{self.map}: {self.convention} ({self._learnt.meaning}), {self.reason}." if self.convention else f"{self.map}: as it is."


def conventions() -> list[str]:
    """All names, in the order of the maps."""
    return list(dict.fromkeys(name for kind in MAPS.values() if kind.files.setting for name in kind.files.choices))


def recipe_of(lora: LoraFile, source: str, map_name: str = AUTO, convention: str = AUTO, unsaid_method: str = SINGLE) -> Recipe:
    """From a file. map_name, convention: AUTO, or what a person says. unsaid_method: of a file whose header has none.

    Raises ValueError, naming `source`, where the file does not say which map it makes, says what makes no sense, or its map has no such
    convention.
    """
    header = {key.removeprefix("intrinsic_lab."): value for key, value in lora.metadata.items() if key.startswith("intrinsic_lab.")}
    found = header.get("map") if map_name == AUTO else map_name
    if found is None:
        raise ValueError(f"{source} does not say which map it makes: choose {', '.join(MAPS)} as 'map' instead of '{AUTO}'.")
    if found not in MAPS:
        raise ValueError(f"{source} says it makes the map '{found}', known are {', '.join(MAPS)}: choose one of them as 'map'.")
    # The rest of a header is about the map that it names.
    of_map = header if header.get("map") == found else {}
    method = header.get("method", unsaid_method)
    if method not in METHODS:
        raise ValueError(f"{source} says it works by the method '{method}', known are {', '.join(METHODS)}: export it again.")
    reading = header.get("reading", RAW)
    if reading not in READINGS:
        raise ValueError(f"{source} reads its map as '{reading}', known are {', '.join(READINGS)}: export it again, or update this pack.")
    timestep, resolution = _header_number(header, "timestep", source), _header_number(header, "resolution", source)
    return Recipe(
        found,
        of_map.get("prompt") or MAPS[found].prompt,
        DEFAULT_TIMESTEP if timestep is None else timestep,
        resolution,
        *_convention(lora, source, found, of_map, convention),
        method,
        noise_of(header, source) if method == AUGMENTED else None,
        reading,
    )


def _convention(lora: LoraFile, source: str, map_name: str, header: Mapping[str, str], chosen: str) -> tuple[str, str]:
    """Its name and the reason."""
    files = MAPS[map_name].files
    if chosen != AUTO:
        name, reason = chosen, "as chosen"
    elif not files.setting:
        return "", ""
    elif "convention" in header:
        name, reason = header["convention"], "says the file's header"
    elif header:
        name, reason = files.own, "as this pack's trainer learns it"
    elif map_name in PUBLISHED and (mark := _mark_of_published(lora)):
        name, reason = PUBLISHED[map_name], f"as in the published files: {mark}, no header"
    else:
        name, reason = files.own, "this pack's own: the file does not say"
    if name not in files.choices:
        has = f"is one of {', '.join(files.choices)}" if files.setting else f"has no conventions to choose from ('{AUTO}')"
        raise ValueError(f"{source} came with the convention '{name}', the map {map_name} {has}: choose that as 'convention'.")
    return name, reason


def _mark_of_published(lora: LoraFile) -> str | None:
    """By what a file is taken for a published one or a copy of one."""
    if lora.metadata.keys() - _SAYS_NOTHING:
        return None
    if lora.attention_processors:
        return "keys of old attention processors"
    sizes = Counter((layer.rank, layer.down.shape[1], layer.up.shape[0]) for layer in lora.layers.values())
    return "rank 8 on all attention layers of SD 1.5" if sizes == _PUBLISHED_SIZES else None


def _header_number(header: Mapping[str, str], key: str, source: str) -> int | None:
    if key not in header:
        return None
    try:
        number = int(json.loads(header[key]))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise ValueError(
            f"{source} has '{header[key][:40]}' as intrinsic_lab.{key} in its header, a whole number was expected: export it again."
        ) from None
    highest = 999 if key == "timestep" else 8192
    if not 0 <= number <= highest:
        raise ValueError(f"{source} has {number} as intrinsic_lab.{key} in its header, 0 to {highest} was expected: export it again.")
    return number
