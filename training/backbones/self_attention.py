"""Joint self-attention for the networks whose self-attentions diffusers calls attn1: eq. 1 of I-LDM, w = 1."""

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from einops import rearrange
from peft.tuners.lora import LoraLayer
from torch import Tensor

from ...kernels.cross_domain_attention import Segment, joint_attention

PROJECTIONS = r".*\.attn1\.(?:to_q|to_k|to_v|to_out\.0)"


class JointSelfAttention:
    """A diffusers attention processor. The picture's half goes through the base weights, the intrinsic half through base + LoRA."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None or hidden_states.ndim != 3:
            raise ValueError("Joint self-attention was put where attention has another context or a mask: set it on attn1 only.")
        query, key, value = (
            rearrange(_by_domain(layer, hidden_states), "row token (head dim) -> row head token dim", head=attn.heads)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        pairs = hidden_states.shape[0] // 2
        picture, intrinsic = slice(0, pairs), slice(pairs, 2 * pairs)
        output = joint_attention(query, key, value, [Segment(picture, intrinsic, 1.0), Segment(intrinsic, picture, 1.0)])
        return attn.to_out[1](_by_domain(attn.to_out[0], rearrange(output, "row head token dim -> row token (head dim)")))


def _by_domain(layer: LoraLayer, x: Tensor) -> Tensor:
    picture, intrinsic = x.chunk(2)
    return torch.cat([layer.base_layer(picture), layer(intrinsic)])


def exchange_in(network: ModelMixin) -> None:
    """Puts the joint attention into every self-attention of `network`, whose rows are then all pictures, then their intrinsics."""
    joint = JointSelfAttention()
    network.set_attn_processor({name: joint if ".attn1." in name else processor for name, processor in network.attn_processors.items()})
