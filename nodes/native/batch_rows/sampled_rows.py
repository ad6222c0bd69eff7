"""Which rows of the sampled batch one forward runs on: known when sampling starts, and checked against what arrives in every forward.

Core hands a network whole batches, one for each condition that it puts together (`cond_or_uncond`), or the rows of a context window. Packs
that tile, split or batch on their own leave no note of what they did, so their rows are counted, and a wrong number is refused.
"""

from collections.abc import Mapping
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....methods.rows import Rows

# Where, in `transformer_options` of a sampling, the number of its rows stands.
KEY = "intrinsic_lab.sampled_rows"


def note_rows(clone: ModelPatcher) -> None:
    """Lets every sampling of `clone` note how many rows it has."""
    clone.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _note)


def _note(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
    # A copy of the options that lives as long as this sampling: nothing to undo.
    extra_args["model_options"]["transformer_options"][KEY] = noise.shape[0]
    return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)


def conditions_of(options: Mapping) -> int:
    """How many conditions a forward has batched together."""
    return len(options.get("cond_or_uncond") or (0,))


def sampled_rows(x: Tensor, options: Mapping, total: int | None = None) -> tuple[int, ...]:
    """Numbers of the sampled rows in a forward's batch `x`, in its order; under every condition the same.

    options: the forward's `transformer_options`. total: rows of the sampled batch, where these do not say so; a network that is called
    outside of a sampling has whole batches. Raises ValueError for fewer and for more rows than core would hand on.
    """
    conditions = conditions_of(options)
    total = options.get(KEY, total) or x.shape[0] // conditions
    rows = _in_window(options.get("context_window"), total)
    if x.shape[0] != conditions * len(rows):
        of = f"{len(rows)} rows under {conditions} condition{'s' * (conditions != 1)}"
        raise ValueError(
            f"The model was called with {x.shape[0]} rows, {conditions * len(rows)} were expected ({of}): another patch splits or batches "
            "rows, and which of them is which map cannot be known. Remove it, or set its batch of tiles to 1."
        )
    return rows


def _in_window(window: Any, total: int) -> tuple[int, ...]:
    # Windows over other dimensions (0 is the batch) hold every row.
    if window is None or getattr(window, "dim", 0) != 0 or total == 1:
        return tuple(range(total))
    anchor = getattr(window, "causal_anchor_index", None)
    return (*((anchor,) if anchor is not None and anchor >= 0 else ()), *window.index_list)


def rows_of_forward(members: tuple[str, ...], x: Tensor, options: Mapping) -> Rows:
    """The rows of a forward in which all members of a picture meet. Raises ValueError where some are missing, or in another order."""
    chosen = sampled_rows(x, options)
    pictures = len(chosen) // len(members)
    total = options.get(KEY, len(chosen)) // len(members)
    whole = [member * total + picture for member in range(len(members)) for picture in chosen[:pictures]]
    if list(chosen) == whole:
        return Rows(members, conditions_of(options), pictures)
    if options.get("context_window") is None:
        raise ValueError(
            f"The model was called with {x.shape[0]} rows, a multiple of {len(members)} was expected ({', '.join(members)} of each "
            "picture): another patch splits or batches rows. Remove it."
        )
    here = ", ".join(members[row // total] if row // total < len(members) else "none" for row in chosen)
    raise ValueError(
        f"Context Windows hands this MODEL {len(chosen)} of {total * len(members)} rows ({here}), and {', '.join(members)} of a picture "
        f"have to be in one window: set its context length to {total * len(members)}, or remove it."
    )


def require_rows_kept(model_options: Mapping) -> None:
    """Raises ValueError for context windows that give rows the noise or the latent of others once sampling runs."""
    handler = model_options.get("context_handler")
    if handler is None or getattr(handler, "dim", 0) != 0:
        return
    for setting, name in (("freenoise", "freenoise"), ("latent_retain_index_list", "the latent retain index list")):
        if getattr(handler, setting, None):
            raise ValueError(
                f"Context Windows with {name} gives rows what belongs to others, and those of one picture have to stay together: turn it "
                "off, or remove Context Windows."
            )
