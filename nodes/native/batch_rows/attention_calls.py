"""Every attention of a transformer over a picture's tokens as one call that a method answers, without a block or module replaced.

Core's attention functions ask the forward's `transformer_options` for an override. For one forward ours stands there, and hooks on the
modules that hold attentions say which one is asking, with how many tokens of text, and where positions are rotated to. So a block stays
core's own, whatever its Linears are (fp8, GGUF, LoRAs beside the weight), and whatever other packs do in it. An override that is there
already (SageAttention) is kept: methods call it as the attention of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ....methods.ildm.schedules import Block
from ..compiled import uncompiled
from .row_lora import eager

OVERRIDE = "optimized_attention_override"
# What an attention is over: text and picture with projections of their own, both with the same, or the picture alone.
DOUBLE, SINGLE, PICTURE = "double", "single", "picture"


@dataclass(frozen=True)
class Tokens:
    """Of one attention's tokens. text: how many come before the picture's. rotation: core's of all tokens, None where there is none."""

    text: int
    rotation: Tensor | None = None


@dataclass(frozen=True)
class AttentionPlace:
    """An attention of a transformer over the picture's tokens.

    block: its place in the order of execution. stream: DOUBLE, SINGLE or PICTURE. module: native name of what it runs in; places of one
    module run one after the other. entry, exit: native names of the Linears that its keys come from (of the picture, where text has its
    own) and that its output goes to. tokens: of its module's arguments, keyword arguments, and the latents `bc...` of the forward.
    """

    block: Block
    stream: str
    module: str
    entry: str
    exit: str
    tokens: Callable[[tuple, Mapping, Tensor], Tokens]


Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AttentionCall:
    """What core hands to one attention: query, key, value [row, head, token, dim], normed and rotated, and a mask of keys, or None.

    entered: what went into the place's `entry` [row, token, width]. others: whether another pack's override answers `own`.
    leaving: by place's `exit`, what is to be made of its output next; `at_exit` puts it there.
    """

    place: AttentionPlace
    tokens: Tokens
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    entered: Tensor
    options: Mapping
    others: bool
    attention: Callable[..., Tensor]
    leaving: dict[str, Change]

    @property
    def picture(self) -> slice:
        """The picture's tokens, without text and without pictures of reference, which core puts behind it."""
        references = sum(self.options.get("reference_image_num_tokens", ())) if self.place.stream != PICTURE else 0
        return slice(self.tokens.text, self.key.shape[2] - references)

    def own(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """As core, or what stands in its place, attends: [row, token, head x dim]. mask [row or 1, 1, query or 1, key]: additive."""
        return self.attention(query, key, value, query.shape[1], mask=mask, skip_reshape=True)

    def at_exit(self, change: Change) -> None:
        """Lets `change` act on what comes out of the place's `exit` [row, token, width]."""
        self.leaving[self.place.exit] = change


Answer = Callable[[AttentionCall], Tensor]


@dataclass
class _Forward:
    """One forward. waiting: places of the module that runs, in order. answered: how many attentions asked."""

    waiting: list[AttentionPlace] = field(default_factory=list)
    tokens: Tokens = field(default_factory=lambda: Tokens(0))
    entered: dict[str, Tensor] = field(default_factory=dict)
    leaving: dict[str, Change] = field(default_factory=dict)
    answered: int = 0


def answer_attentions(clone: ModelPatcher, key: str, places: Sequence[AttentionPlace], answer: Answer) -> None:
    """Lets `answer` [row, token, head x dim] stand for core's attention at these places of `clone`. key: of the wrapper."""
    by_module = {module: list(group) for module, group in groupby(places, key=lambda place: place.module)}

    def run(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        options = dict(transformer_options or {})
        forward, network = _Forward(), uncompiled(executor.class_obj.diffusion_model)
        options[OVERRIDE] = _override(forward, answer, options.get(OVERRIDE))
        with ExitStack() as stack:
            for module, group in by_module.items():
                _hook(stack, network, module, group, forward, x)
            stack.enter_context(eager())
            out = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        if not forward.answered and is_first_step(options):
            raise ValueError(
                "Another node replaced the blocks in which the rows of this MODEL meet, or their attention, so nothing would join them: "
                "remove that node."
            )
        return out

    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, f"{key}.attention", run)


def _hook(stack: ExitStack, network: nn.Module, module: str, places: list[AttentionPlace], forward: _Forward, latent: Tensor) -> None:
    """For as long as the stack is open, the forward knows when `module` runs."""

    def enter(_: nn.Module, args: tuple, kwargs: dict) -> None:
        forward.waiting, forward.tokens = list(places), places[0].tokens(args, kwargs, latent)

    def leave(*_: Any) -> None:
        forward.waiting = []
        forward.entered.clear()
        forward.leaving.clear()

    held = comfy.utils.get_attr(network, module)
    stack.callback(held.register_forward_pre_hook(enter, with_kwargs=True).remove)
    stack.callback(held.register_forward_hook(leave).remove)
    for place in places:

        def entering(_: nn.Module, args: tuple, name: str = place.entry) -> None:
            forward.entered[name] = args[0]

        def exiting(_: nn.Module, args: tuple, out: Tensor, name: str = place.exit) -> Tensor:
            change = forward.leaving.pop(name, None)
            return out if change is None else change(out)

        stack.callback(comfy.utils.get_attr(network, place.entry).register_forward_pre_hook(entering).remove)
        stack.callback(comfy.utils.get_attr(network, place.exit).register_forward_hook(exiting).remove)


def _override(forward: _Forward, answer: Answer, other: Callable | None) -> Callable:
    def override(function, query, key, value, heads, mask=None, *more, skip_reshape=False, skip_output_reshape=False, **options):
        def attention(query, key, value, heads, *rest, **given):
            run = function if other is None else lambda *args, **named: other(function, *args, **named)
            return run(query, key, value, heads, *rest, **{**options, **given})

        if not forward.waiting or skip_output_reshape:
            shapes = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
            return attention(query, key, value, heads, mask, *more, **shapes)
        place = forward.waiting.pop(0)
        forward.answered += 1
        if not skip_reshape:
            query, key, value = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value))
        tokens = Tokens(0) if place.stream == PICTURE else forward.tokens
        call = AttentionCall(
            place,
            tokens,
            query,
            key,
            value,
            _additive(mask, query),
            forward.entered[place.entry],
            options.get("transformer_options") or {},
            other is not None,
            attention,
            forward.leaving,
        )
        return answer(call)

    return override


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """Core's mask, of [query, key] or [row, query, key] or with heads, as numbers to be added."""
    if mask is None:
        return None
    while mask.ndim < 4:
        mask = mask.unsqueeze(0 if mask.ndim == 2 else 1)
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
    return mask.to(query.dtype)


def is_first_step(options: Mapping) -> bool:
    """Whether the forward is of a sampling's first step: packs that cache never skip that one."""
    sigma, sigmas = options.get("sigmas"), options.get("sample_sigmas")
    return sigma is not None and sigmas is not None and bool(sigma.flatten()[0] == sigmas[0])
