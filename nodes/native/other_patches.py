"""Patches of other packs and of core on a MODEL that fail in a forward of ours: told in words, with their names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath

import comfy.model_management
from comfy.model_patcher import ModelPatcher

_OWN = __name__.split(".nodes.", maxsplit=1)[0]


@contextmanager
def named_where_they_fail(model: ModelPatcher, what: str) -> Iterator[None]:
    """Turns what a forward raises under patches of others into a ValueError that names them. what: runs here, for the message."""
    try:
        yield
    except (ValueError, comfy.model_management.OOM_EXCEPTION, comfy.model_management.InterruptProcessingException):
        raise
    except Exception as error:
        others = patches_of_others(model.model_options["transformer_options"])
        if not others:
            raise
        raise ValueError(
            f"{what} failed under patches of other nodes on this MODEL ({', '.join(others)}): {type(error).__name__}: {error}. Connect the "
            "MODEL from before those nodes."
        ) from error


def patches_of_others(transformer_options: Mapping) -> list[str]:
    """Names of the functions that others hung into the network, as "module.function"."""
    found: dict[str | None, None] = {}
    for patches in transformer_options.get("patches", {}).values():
        found |= dict.fromkeys(map(_name, patches))
    for by_address in transformer_options.get("patches_replace", {}).values():
        found |= dict.fromkeys(map(_name, by_address.values()))
    return [name for name in found if name is not None]


def _name(patch: object) -> str | None:
    named = patch if hasattr(patch, "__qualname__") else type(patch)
    if named.__module__.startswith(_OWN):
        return None
    # Core and other packs are imported under whole paths.
    return f"{PurePath(named.__module__).name}.{named.__qualname__.split('.')[0]}"
