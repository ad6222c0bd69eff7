"""Axes of rotary positions."""

from collections.abc import Mapping

from .folder_files import ModelFolderError


def rope_axes(config: Mapping, part: str, usual: tuple[int, ...] = (16, 56, 56)) -> list[int]:
    """`axes_dims_rope` of a transformer's config, `usual` where it does not say.

    Raises ModelFolderError unless they are even and sum to the width of a head.
    """
    head, axes = config["attention_head_dim"], list(config.get("axes_dims_rope", usual))
    if sum(axes) != head or any(axis % 2 for axis in axes):
        raise ModelFolderError(
            f"The {part} has axes_dims_rope {axes} and attention_head_dim {head}: even numbers that sum to it were expected."
        )
    return axes
