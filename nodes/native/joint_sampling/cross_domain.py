"""I-LDM on a native MODEL: picture rows and intrinsic rows in one batch, meeting in every self-attention.

Everything sits on a clone: the exchange itself where the MODEL's backbone has its self-attentions, the intrinsic rows' LoRA by the
mechanism of `row_lora`, the state of each forward in an APPLY_MODEL wrapper, and the check of the latent, with the noise that stochastic
samplers share, in an OUTER_SAMPLE wrapper.
"""

import logging
from collections.abc import Callable, Mapping

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import TORCH_COMPILE_KWARGS
from torch import Tensor

from ....methods.ildm.joint_forward import CURRENT, DOMAINS, PICTURE, JointForward
from ....methods.ildm.schedules import Block, WeightSchedule
from ....methods.lora.layers import LoraFile
from ....methods.rows import Rows
from ..backbones import CROSS_DOMAIN, require
from ..backbones.joint_attention import DOMAINS_KEY as KEY
from ..batch_rows import row_lora
from ..batch_rows.lumix_rows import KEY as MAPS_KEY
from ..batch_rows.sampled_rows import note_rows, require_rows_kept, rows_of_forward
from ..batch_rows.shared_noise import require_same_noise, sharing_noise


def bind_lora(model: ModelPatcher, lora: LoraFile, strength: float, source: str) -> row_lora.MapAdapter:
    """A LoRA file bound to the layers of a MODEL that this method supports. Raises ValueError, naming `source`, where it does not fit."""
    return require(model, CROSS_DOMAIN).bind_lora(model, lora.layers, strength, source)


def exchange_domains(
    model: ModelPatcher, schedule: WeightSchedule, adapters: Mapping[str, row_lora.MapAdapter]
) -> tuple[ModelPatcher, tuple[Block, ...]]:
    """A clone of `model` whose picture and intrinsic rows attend to each other, and its self-attentions in order of execution.

    schedule: weight of intrinsic keys for picture queries. adapters: LoRA of the rows of a domain ("picture", "intrinsic").
    Raises ValueError for architectures and for other patches that this cannot work with.
    """
    backbone = require(model, CROSS_DOMAIN)
    if model.get_attachment(KEY) is not None:
        raise ValueError("This MODEL already has cross-domain attention: apply it once, and combine the schedules instead.")
    if model.get_attachment(MAPS_KEY) is not None:
        raise ValueError(
            "This MODEL samples maps together (Apply Tensor LoRA or Join Maps in Attention): connect the MODEL from before that node."
        )
    if carried := row_lora.carried_maps(model):
        raise ValueError(
            f"This MODEL carries intrinsic LoRAs of Apply Intrinsic LoRA ({', '.join(carried)}), which would act on all rows: connect the "
            "MODEL from before that node."
        )
    clone = model.clone()
    blocks = backbone.attach(clone)
    clone.set_attachments(KEY, schedule)
    # Plain patchers also where core uses dynamic ones: these layers are ours, a few MB, and move as a whole.
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    clone.set_additional_models(KEY, [ModelPatcher(adapter, load_device=load, offload_device=offload) for adapter in adapters.values()])
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _run_jointly(schedule, adapters, backbone.timestep))
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _sample_jointly(_replaced_attention(clone.model_options)))
    note_rows(clone)
    return clone, blocks


def _replaced_attention(model_options: Mapping) -> dict:
    return dict(model_options["transformer_options"].get("patches_replace", {}).get("attn1", {}))


def _sample_jointly(own: Mapping) -> Callable:
    """own: the replacements of self-attention that are the exchange, by ComfyUI's address."""

    def sample(executor, noise, latent_image, sampler, *args, **kwargs):
        require_same_noise(noise)
        options = executor.class_obj.model_options
        require_rows_kept(options)
        others = [address for address, function in _replaced_attention(options).items() if own and own.get(address) is not function]
        if others:
            raise ValueError(
                f"A node after Cross-Domain Attention replaces self-attention of this MODEL ({len(others)} blocks, first {others[0]}), and "
                "picture and intrinsics would no longer meet there: remove one of the two."
            )
        if TORCH_COMPILE_KWARGS in options:
            logging.info("Cross-domain attention runs this compiled model uncompiled: torch.compile does not see LoRAs of single rows.")
        return executor(noise, latent_image, sharing_noise(sampler), *args, **kwargs)

    return sample


def _run_jointly(schedule: WeightSchedule, adapters: Mapping[str, row_lora.MapAdapter], timestep_of: Callable) -> Callable:
    def run(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        options = transformer_options or {}
        timestep = float(timestep_of(executor.class_obj.model_sampling, t).flatten()[0])
        step = JointForward(rows_of_forward(DOMAINS, x, options), timestep, schedule)
        token = CURRENT.set(step)
        try:
            with row_lora.hooked(executor.class_obj.diffusion_model, adapters, step.rows.member_of_row(adapters)):
                return executor(x, t, c_concat, c_crossattn, _for_pictures(control, step.rows), options, **kwargs)
        finally:
            CURRENT.reset(token)

    return run


def _for_pictures(control: dict | None, rows: Rows) -> dict | None:
    """A ControlNet's residuals on picture rows only: it was trained on pictures, and its hint shows one."""
    if control is None:
        return None

    def on_pictures(residual: Tensor | None) -> Tensor | None:
        if residual is None:
            return None
        if residual.shape[0] not in (1, len(rows)):
            raise ValueError(f"A ControlNet gave {residual.shape[0]} rows for {len(rows)}: use one that keeps the batch.")
        is_picture = torch.tensor([domain is not None for domain in rows.member_of_row((PICTURE,))], device=residual.device)
        shown = is_picture.view(-1, *[1] * (residual.ndim - 1))
        return torch.where(shown, residual, residual.new_zeros(()))

    return {part: [on_pictures(residual) for residual in residuals] for part, residuals in control.items()}
