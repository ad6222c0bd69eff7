"""What a map is: its name, its prompt, its values as data, and its look as the picture a generator's VAE sees.

Data (what nodes pass on) is linear float, `bhwc`, never clamped:

========= ======== ============================================================================================
map       channels values
========= ======== ============================================================================================
normal    3        unit vectors in camera space, -1..1: x right, y up, z towards the viewer (OpenGL)
depth     1        relative depth, larger is farther; nominally 0..1 (nearest..farthest of one picture)
albedo    3        linear reflectance, nominally 0..1
shading   3        linear irradiance, nominally 0..1: picture = sRGB(albedo x shading)
========= ======== ============================================================================================

The picture form is what the VAE encodes after `2 x - 1`: nominally 0..1, three channels, sRGB for colours.

A ComfyUI IMAGE that carries a map always has three channels (core's preview and save nodes expect them): one-channel
maps repeat theirs. `map_from_image` and `image_from_map` go between the two.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def srgb_from_linear(linear: Tensor) -> Tensor:
    """sRGB transfer function (IEC 61966-2-1), any shape; negative values are mirrored, nothing is clamped."""
    magnitude = linear.abs()
    curve = 1.055 * magnitude.clamp(min=0.0031308).pow(1 / 2.4) - 0.055
    return torch.where(magnitude <= 0.0031308, 12.92 * magnitude, curve) * linear.sign()


def linear_from_srgb(srgb: Tensor) -> Tensor:
    """Inverse of `srgb_from_linear`."""
    magnitude = srgb.abs()
    curve = ((magnitude.clamp(min=0.04045) + 0.055) / 1.055).pow(2.4)
    return torch.where(magnitude <= 0.04045, magnitude / 12.92, curve) * srgb.sign()


def normal_picture(normal_bhw3: Tensor) -> Tensor:
    """-1..1 to the picture's 0..1."""
    return (normal_bhw3 + 1) / 2


def unit_normals(vector: Tensor) -> Tensor:
    """Vectors (last dimension 3) of length 1; a zero vector becomes (0, 0, 1), facing the viewer."""
    # On a decoder's planes several times faster than `norm`, which gathers its three numbers for every pixel.
    x, y, z = vector.unbind(-1)
    length = (x * x + y * y + z * z).sqrt()[..., None]
    towards_viewer = vector.new_tensor([0.0, 0.0, 1.0]).expand_as(vector)
    return torch.where(length > 1e-6, vector / length.clamp(min=1e-6), towards_viewer)


def normal_from_picture(picture_bhw3: Tensor) -> Tensor:
    """A picture's 0..1 to unit vectors, as `unit_normals`."""
    return unit_normals(picture_bhw3 * 2 - 1)


def relative_depth(depth_bhw1: Tensor) -> Tensor:
    """Any monotone depth to 0..1 per picture (nearest..farthest); a flat depth becomes 0."""
    nearest, farthest = depth_bhw1.amin((1, 2, 3), keepdim=True), depth_bhw1.amax((1, 2, 3), keepdim=True)
    return (depth_bhw1 - nearest) / (farthest - nearest).clamp(min=1e-12)


def depth_picture(depth_bhw1: Tensor) -> Tensor:
    """Relative depth of each picture as grey, near dark."""
    return relative_depth(depth_bhw1).expand(*depth_bhw1.shape[:3], 3)


def depth_from_picture(picture_bhw3: Tensor) -> Tensor:
    """Mean over channels (as the I-LoRA authors read their depth); no normalisation here."""
    return picture_bhw3.mean(dim=-1, keepdim=True)


def require_map(values: Tensor, name: str, *, finite: bool = True) -> None:
    """Raise ValueError unless `values` is a non-empty `bhwc` tensor (and, if `finite`, free of NaN and infinity)."""
    if values.ndim != 4:
        raise ValueError(f"{name} came with shape {list(values.shape)}: a batch of pictures [batch, height, width, channels] is wanted.")
    if not values.numel():
        raise ValueError(f"{name} is empty (shape {list(values.shape)}): connect a batch with at least one picture.")
    if finite and not (valid := torch.isfinite(values)).all():
        broken = int((~valid).sum())
        raise ValueError(f"{name} holds {broken} of {values.numel()} values that are NaN or infinite: fix the node or file that made them.")


def map_from_image(image_bhwc: Tensor, channels: int, name: str, *, grey: bool = False, finite: bool = True) -> Tensor:
    """The map data that an IMAGE carries: float32, 1 or 3 channels; alpha is dropped, nothing is clamped.

    image_bhwc: 1, 3 or 4 channels. One channel out of three is their mean, exact where they are equal. `grey` lets a
    one-channel image stand for three equal channels. `name` is used in errors. Raises ValueError as `require_map` does,
    and for other numbers of channels.
    """
    require_map(image_bhwc, name, finite=finite)
    came = image_bhwc.shape[-1]
    wanted = (1, 3, 4) if channels == 1 or grey else (3, 4)
    if came not in wanted:
        raise ValueError(
            f"{name} came with {came} channel{'s' * (came != 1)}, {' or '.join(map(str, wanted))} are wanted: connect the right map."
        )
    values = image_bhwc[..., :3].float()
    if channels == 1:
        first = values[..., :1]
        return first + (values - first).mean(dim=-1, keepdim=True)
    return values.expand(*values.shape[:3], channels)


def image_from_map(map_bhwc: Tensor) -> Tensor:
    """Map data as an IMAGE of three channels; a one-channel map repeats its channel. Values are not touched."""
    return map_bhwc.expand(*map_bhwc.shape[:3], 3).contiguous()


@dataclass(frozen=True)
class MapKind:
    """One kind of map. `prompt` is the I-LoRA prompt; `to_picture` / `from_picture` convert data and the VAE's picture."""

    name: str
    prompt: str
    channels: int
    to_picture: Callable[[Tensor], Tensor]
    from_picture: Callable[[Tensor], Tensor]


MAPS: dict[str, MapKind] = {
    "normal": MapKind("normal", "surface normal", 3, normal_picture, normal_from_picture),
    "depth": MapKind("depth", "depth map", 1, depth_picture, depth_from_picture),
    "albedo": MapKind("albedo", "albedo", 3, srgb_from_linear, linear_from_srgb),
    "shading": MapKind("shading", "shading", 3, srgb_from_linear, linear_from_srgb),
}
