"""Where the maps that are judged come from: a folder of files, or a base with an Intrinsic LoRA."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy
import torch
from einops import rearrange
from torch import Tensor, nn

from ..data import Pair
from ..data.files import read_exr, read_npy, read_pixels
from ..methods.intrinsic_lora.extract import processed_size
from ..methods.intrinsic_lora.multi_step import AUGMENTED, SINGLE, Noise
from ..methods.intrinsic_lora.recipe import AUTO, Recipe, recipe_of
from ..methods.lora.lora_file import LoraFile, read_lora
from ..methods.maps import MapKind, map_kind
from ..methods.maps.files import COLOR_FILES, Reading
from ..training.backbones import single_step_of
from ..training.intrinsic_lora import SingleStepBase, load_base, noise_for, predict_maps, predict_maps_in_steps
from ..training.intrinsic_lora.latents import downscale
from ..training.intrinsic_lora.widened import widen
from .measures import data_of_picture, resized

_LOG = logging.getLogger(__name__)
ENDINGS = (".npy", ".exr", ".png", ".jpg")


class Predictions(Protocol):
    """Maps of pictures."""

    def predict(self, pair: Pair, picture_hw3: Tensor) -> Tensor:
        """`[h, w, c]` of map data (`methods.maps`), of any size that shows the same view. Raises ValueError."""


class FolderPredictions:
    """NAME.npy, .exr (data: normals of -1..1, linear colours) or .png, .jpg (pictures), NAME as the data set calls its pictures.

    Slashes of NAME are folders, or underscores. convention: of the files, one of the map's `files.choices`, or AUTO for this pack's own.
    metric: depth has to be metres, which only data in this pack's convention can be.
    """

    def __init__(self, folder: Path, map_name: str, convention: str = AUTO, metric: bool = False):
        if not folder.is_dir():
            raise ValueError(f"the folder of predictions {folder} does not exist: give one that holds NAME.npy, NAME.exr or NAME.png.")
        self.folder, self.kind = folder, map_kind(map_name)
        files = self.kind.files
        self.convention = files.own if convention == AUTO else convention
        if self.convention not in files.choices:
            choices = ", ".join(filter(None, files.choices))
            raise ValueError(f"the convention is {convention!r}: {map_name} has {choices or 'none to choose'}.")
        self.metric = metric and self.kind.relative
        if self.metric and self.convention != files.own:
            raise ValueError(f"depth that is {self.convention} has no metres: align it by scale-and-shift.")

    def predict(self, pair: Pair, picture_hw3: Tensor) -> Tensor:
        names = pair.name, pair.name.replace("/", "_")
        path = next((path for name in names for ending in ENDINGS if (path := self.folder / f"{name}{ending}").is_file()), None)
        if path is None:
            raise ValueError(f"there is no prediction for {pair.name}: wanted {self.folder / pair.name}.npy, .exr or .png.")
        if path.suffix in (".npy", ".exr"):
            data = _data_file(path, self.kind.channels)
            # Colours as data are linear in every convention.
            linear = self.convention == self.kind.files.own or self.kind.files is COLOR_FILES
            return data if linear else in_this_packs(self.kind, data, self.kind.files.choices[self.convention].to_own)
        if self.metric:
            raise ValueError(f"{path.name} is a picture, which has no metres: give .npy or .exr in metres, or align it by scale-and-shift.")
        return data_of_picture(self.kind, read_pixels(path)[None], self.convention)[0]


def _data_file(path: Path, channels: int) -> Tensor:
    values = read_npy(path, channels) if path.suffix == ".npy" else read_exr(path, ("R", "G", "B")[:channels])
    return torch.from_numpy(numpy.ascontiguousarray(values))


def in_this_packs(kind: MapKind, data_hwc: Tensor, to_own: Reading) -> Tensor:
    """Data that were taken for this pack's, in it."""
    return kind.from_picture(to_own(kind.to_picture(data_hwc[None])))[0]


@dataclass(frozen=True)
class Sampling:
    """How a multi-step network is asked for a map; as upstream does it. rescale: None is the method's own. seed: of the noise."""

    steps: int = 25
    guidance: float = 3.0
    rescale: float | None = None
    seed: int = 0

    def rescaled(self, method: str) -> float:
        """How far the guided output is brought to the unguided one's deviation."""
        return self.rescale if self.rescale is not None else 0.7 if method == AUGMENTED else 0.0


class NetworkPredictions:
    """A network that was trained or has its LoRA, by its recipe's method; a picture's short side is brought to `size` pixels.

    recipe: which map it makes, from which prompt, in which convention. size: 0 keeps the picture's own. noise: of a multi-step method.
    """

    def __init__(self, base: SingleStepBase, recipe: Recipe, size: int, noise: Noise | None = None, sampling: Sampling = Sampling()):
        self.base, self.recipe, self.size, self.noise, self.sampling = base, recipe, size, noise, sampling
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        base.to(self.device)
        self.text = base.embed(recipe.prompt)

    def predict(self, pair: Pair, picture_hw3: Tensor) -> Tensor:
        return self.of(picture_hw3)

    def of(self, picture_hw3: Tensor) -> Tensor:
        """`[h, w, c]` of map data, of the picture's size."""
        factor = downscale(self.base.vae) * single_step_of(self.base.network).patch
        own_height, own_width = picture_hw3.shape[:2]
        cells = (max(1, round(side / factor)) for side in processed_size(own_height, own_width, self.size))
        picture = resized(picture_hw3, *(factor * cell for cell in cells)).clamp(0, 1)
        [data] = self._maps(rearrange(picture, "h w c -> 1 c h w"))
        if to_own := self.recipe.to_own:
            data = in_this_packs(map_kind(self.recipe.map), data, to_own)
        return resized(data, own_height, own_width)

    def _maps(self, pictures_bchw: Tensor) -> Tensor:
        """Map data `bhwc` of pictures whose sides are multiples of the VAE's factor."""
        recipe, sampling = self.recipe, self.sampling
        if self.noise is None:
            return predict_maps(self.base.network, self.base.vae, self.text, pictures_bchw, recipe.map, reading=recipe.reading)
        return predict_maps_in_steps(
            self.base,
            self.noise,
            pictures_bchw,
            recipe.map,
            steps=sampling.steps,
            guidance=sampling.guidance,
            rescale=sampling.rescaled(recipe.method),
            seed=sampling.seed,
            prompt=recipe.prompt,
        )


class ModelPredictions(NetworkPredictions):
    """`NetworkPredictions` of a base (`training.bases`) with an Intrinsic LoRA file.

    convention: in which the LoRA learnt its map; AUTO: as its file says or is known for (`recipe_of`). size: 0 keeps the picture's own,
    None is the one that the file says it was trained at, else 512. Raises ValueError for files that do not fit.
    """

    def __init__(
        self,
        base: Path,
        lora: Path,
        map_name: str,
        convention: str = AUTO,
        size: int | None = None,
        sampling: Sampling = Sampling(),
    ):
        file = read_lora(lora)
        if (made := file.metadata.get("intrinsic_lab.map", map_name)) != map_name:
            raise ValueError(f"{lora.name} makes {made}, {map_name} is to be judged: pick that map's LoRA.")
        recipe = recipe_of(file, lora.name, map_name, convention)
        _LOG.info("%s", recipe.in_words)
        loaded = load_base(base)
        merge_lora(loaded.network, file, lora.name)
        if file.picture_in is not None:
            widen(loaded.network, file.picture_in)
        noise = None if recipe.method == SINGLE else recipe.noise or noise_for(base, recipe.method)
        super().__init__(loaded, recipe, (recipe.resolution or 512) if size is None else size, noise, sampling)


@torch.no_grad()
def merge_lora(network: nn.Module, file: LoraFile, name: str) -> None:
    """Add a LoRA to the weights of the layers it changes. Raises ValueError, naming the file, where the two do not fit."""
    modules = dict(network.named_modules())
    if unknown := sorted(file.layers.keys() - modules.keys()):
        raise ValueError(
            f"{name} changes {len(unknown)} layers that this base does not have ({unknown[0]}): pick the base it was made for."
        )
    for module_name, layer in file.layers.items():
        weight = modules[module_name].get_parameter("weight")
        delta = layer.scale * layer.up.float().flatten(1) @ layer.down.float().flatten(1)
        if delta.numel() != weight.numel() or delta.shape[0] != weight.shape[0]:
            raise ValueError(f"{name} does not fit {module_name} of this base ({list(weight.shape)}): pick the base it was made for.")
        weight += delta.reshape(weight.shape).to(weight)
