"""Cancelling inside a network: core looks for it between steps, and one forward of a large network may take minutes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import nn

from .compiled import uncompiled

# Under which core's TorchCompileModel keeps its wrapper.
_COMPILED = "torch.compile"


@contextmanager
def stopping_inside(module: nn.Module) -> Iterator[None]:
    """While it lasts, every part of the module looks for a cancel before it runs, and raises core's exception then."""

    def look(*_: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    parts = list(module.modules())
    # A hook would have a compiled network compiled anew.
    hooks = [] if any(uncompiled(part) is not part for part in parts) else [part.register_forward_pre_hook(look) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def stopping_inside_model(model: ModelPatcher) -> Iterator[None]:
    """The same of a MODEL's network, where it is not compiled."""
    if _COMPILED in model.wrappers.get(WrappersMP.APPLY_MODEL, {}):
        yield
        return
    with stopping_inside(model.get_model_object("diffusion_model")):
        yield
