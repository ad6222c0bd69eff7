"""A map as a ComfyUI IMAGE, which always has three channels (core's preview and save nodes expect them): one-channel maps repeat theirs."""

import torch
from torch import Tensor


def require_map(values: Tensor, name: str, *, finite: bool = True) -> None:
    """Raise ValueError unless `values` is a non-empty `bhwc` tensor (and, if `finite`, free of NaN and infinity)."""
    if values.ndim != 4:
        raise ValueError(f"{name} came with shape {list(values.shape)}: a batch of pictures [batch, height, width, channels] is wanted.")
    if not values.numel():
        raise ValueError(f"{name} is empty (shape {list(values.shape)}): connect a batch with at least one picture.")
    if finite and not (valid := torch.isfinite(values)).all():
        broken = int((~valid).sum())
        raise ValueError(f"{name} holds {broken} of {values.numel()} values that are NaN or infinite: fix the node or file that made them.")


def require_normals(normal_bhw3: Tensor, name: str) -> None:
    """Raise ValueError for what is a picture where normal data is wanted: no negative value, and vectors that are not of length 1.

    Zero vectors (nothing known there) and NaN do not count.
    """
    # Resizing and rounding make a picture's values a little negative, and unit vectors a little shorter.
    slightly_negative, off_unit = -0.05, 0.05
    length = normal_bhw3.norm(dim=-1)
    vectors = length[(length > 1e-3) & length.isfinite()]
    if len(vectors) and normal_bhw3.nan_to_num().min() >= slightly_negative and (vectors - 1).abs().mean() > off_unit:
        raise ValueError(
            f"{name} is a picture (nothing negative, vectors of length {vectors.mean():.2f}), normal data of length 1 is wanted, -1 to 1: "
            "put Read Normals from Colors before it if it is a normal map; a photo needs Picture to Maps or Extract Intrinsic Maps."
        )


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
