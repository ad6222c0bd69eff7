"""Rows that meet in diffusers' transformers, in float64, by the papers' equations; knows nothing of the pack."""

from contextlib import contextmanager
from itertools import pairwise
from unittest.mock import patch

import torch
import torch.nn.functional as F
from einops import rearrange

DOUBLE, SINGLE, PICTURE, TEXT = "double", "single", "picture", "text"


def roles(name, config):
    """What diffusers' attentions are over, in the order in which they run."""
    if name in ("sd3", "sd35"):
        dual = config.dual_attention_layers
        return [role for layer in range(config.num_layers) for role in ((DOUBLE, PICTURE) if layer in dual else (DOUBLE,))]
    if name == "qwen_image":
        return [DOUBLE] * config.num_layers
    if name in ("flux", "flux2"):
        return [DOUBLE] * config.num_layers + [SINGLE] * config.num_single_layers
    if name == "z_image":
        return [PICTURE] * config.n_refiner_layers + [TEXT] * config.n_refiner_layers + [SINGLE] * config.n_layers
    return [TEXT] * config.num_refiner_layers + [PICTURE] * config.num_refiner_layers + [SINGLE] * config.num_layers


# Whose attention has the picture's tokens before the text's.
PICTURE_FIRST = ("sd3", "sd35", "z_image")


class FlowOracle:
    """velocity(network, latent, time, context, pooled): of `flow_world`. attend(queries, keys, values, text, index, role): rows of
    [head, token, dim], text first -> rows; index counts attentions over the picture."""

    def __init__(self, name, network, velocity, attend):
        self.name, self.network, self.velocity, self.attend = name, network.double().eval(), velocity, attend
        self.calls = 0

    def _attention(self, text):
        order, first = iter(roles(self.name, self.network.config)), self.name in PICTURE_FIRST
        count = iter(range(100))

        def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **options):
            assert attn_mask is None or attn_mask.all()
            role = next(order)
            if role == TEXT:
                return softmax(query, key, value)
            words = 0 if role == PICTURE else text
            turned = [x.roll(words, 2) if first else x for x in (query, key, value)]
            out = torch.stack(self.attend(*turned, words, next(count), role))
            self.calls += 1
            return out.roll(-words, 2) if first else out

        return attention

    @torch.no_grad()
    def flow(self, x, sigma, context, pooled):
        """sigma: of every row."""
        rows = len(x)
        text = context.shape[1] + (-context.shape[1] % 32 if self.name == "z_image" else 0)
        given = context.double().expand(rows, -1, -1), None if pooled is None else pooled.double().expand(rows, -1)
        with patch.object(F, "scaled_dot_product_attention", self._attention(text)):
            return self.velocity(self.network, x, sigma.double(), *given)

    def euler(self, noise, sigmas, prompts, cfg, on_step=lambda t: None, clean=None):
        """Euler's method; prompts: (context, pooled) of positive and negative. clean: {row: latent} that is given, seen at time 0."""
        x, sigmas = noise.double() * sigmas[0].double(), sigmas.double()
        for sigma, after in pairwise(sigmas):
            on_step(1000 * float(sigma) - 1)
            levels = sigma.expand(len(x)).clone()
            for row, latent in (clean or {}).items():
                x[row], levels[row] = latent.double(), 0.0
            positive, negative = (self.flow(x, levels, *prompt) for prompt in prompts)
            x = x + (after - sigma) * (negative + cfg * (positive - negative))
        for row, latent in (clean or {}).items():
            x[row] = latent.double()
        return x


def softmax(query, key, value, weights=None):
    """weights: of the keys."""
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return (scores if weights is None else scores + weights.log()).softmax(-1) @ value


def joint_domains(w, pairs):
    """I-LDM, eq. 1 and 4: a row's own tokens, and the picture's tokens of the other domain, with w(index) for pictures."""

    def attend(queries, keys, values, text, index, role):
        out = []
        for row in range(2 * pairs):
            other = (row + pairs) % (2 * pairs)
            key, value = (torch.cat([x[row], x[other][:, text:]], dim=1) for x in (keys, values))
            weights = torch.ones(key.shape[1], dtype=torch.float64)
            weights[keys.shape[2] :] = w(index) if row < pairs else 1.0
            out.append(softmax(queries[row], key, value, weights))
        return out

    return attend


def joint_maps(kind, color):
    """LumiX: the colour map's queries for picture tokens (in single streams for all), or the keys of all maps."""

    def attend(queries, keys, values, text, index, role):
        shared, out = 0 if role == SINGLE else text, []
        for row in range(len(queries)):
            query = queries[row]
            if kind == "query-broadcast":
                query = torch.cat([query[:, :shared], queries[color][:, shared:]], dim=1)
            read = range(len(queries)) if kind == "cross-intrinsic" else [row]
            out.append(softmax(query, *(torch.cat([x[j] for j in read], dim=1) for x in (keys, values))))
        return out

    return attend


def ungrouped(network):
    """The same Lumina 2 with keys and values of its own for every head, where heads shared them."""
    config = network.config
    own = type(network)(**{**config, "num_kv_heads": config.num_attention_heads}).double().eval()
    head, shared = config.hidden_size // config.num_attention_heads, config.num_attention_heads // config.num_kv_heads
    own.load_state_dict(
        {
            name: weight.unflatten(0, (-1, head)).repeat_interleave(shared, 0).flatten(0, 1)
            if name.endswith(("to_k.weight", "to_v.weight"))
            else weight
            for name, weight in network.state_dict().items()
        }
    )
    return own


@contextmanager
def changed_rows(network, lora, rows):
    """scale * up down added to Linears' weights for these rows. lora: {module name: (down, up, scale)}."""

    def hook(module, args, out, parts):
        down, up, scale = (part.double() if torch.is_tensor(part) else part for part in parts)
        changed = out.clone()
        changed[rows] += scale * args[0][rows] @ (up @ down).mT
        return changed

    modules = dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda module, args, out, parts=parts: hook(module, args, out, parts))
        for name, parts in lora.items()
    ]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def updated_maps(attentions, width, strength=1.0):
    """Tensor LoRA. attentions: (attention, keys and values [2, M, d_out, M, d_in], projection [1, ...]), dense as `lumix_oracle.dense`."""
    handles = []

    def across(matrix, x):
        return strength * torch.einsum("moni,nti->mto", matrix, x)

    def adapt(attn, into, out_of):
        seen = {}
        fused = getattr(attn, "to_qkv_mlp_proj", None)
        entry = fused or attn.to_k

        def entering(module, args):
            seen["x"] = args[0]

        def key(module, args, out):
            change = rearrange(across(into[0], seen["x"]), "row token (head dim) -> row token head dim", dim=out.shape[-1])
            return out + (change if change.shape == out.shape else change.transpose(1, 2))

        def plain_key(module, args, out):
            return out + across(into[0], seen["x"])

        def value(module, args, out):
            out = out.clone()
            part = out[..., 2 * width : 3 * width] if fused else out
            part += across(into[1], seen["x"])
            return out

        def leaving(module, args, out):
            return out + across(out_of[0], out)

        handles.append(entry.register_forward_pre_hook(entering))
        normed = attn.norm_k is not None
        handles.append((attn.norm_k if normed else attn.to_k).register_forward_hook(key if normed else plain_key))
        handles.append((fused or attn.to_v).register_forward_hook(value))
        leave = attn.to_out if isinstance(attn.to_out, torch.nn.Linear) else attn.to_out[0]
        handles.append(leave.register_forward_hook(leaving))

    for attention in attentions:
        adapt(*attention)
    yield
    for handle in handles:
        handle.remove()
