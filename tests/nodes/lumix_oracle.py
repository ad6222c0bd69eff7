"""LumiX in float64, map by map, as the paper defines it: over the layers of diffusers' FLUX and UNet. Knows nothing of the pack."""

from itertools import pairwise

import torch
from einops import rearrange


def dense(parameters, lora, outputs, maps, width):
    """An update across maps as one matrix [outputs, M, d_out, M, d_in], from its parameters by name."""
    p = {name: parameter.detach().double() for name, parameter in parameters}
    delta = torch.zeros(outputs, maps, width, maps, width, dtype=torch.float64)
    for o in range(outputs):
        for i in range(maps):
            for j in range(maps):
                if lora == "tensor":
                    rank = p["G1"].shape[2]
                    core = sum(p["G1"][i, j, q] * p["G2"][i, :, :, q] for q in range(rank))
                    delta[o, i, :, j] = p["G3"][i, o * width : (o + 1) * width] @ core.T / rank**0.5
                elif lora == "fused" or (lora == "separate" and i == j):
                    delta[o, i, :, j] = p["up"][o, i] @ p["down"][o, j].T
                elif lora == "hybrid" and i == j:
                    delta[o, i, :, j] = p["own_up"][o, i] @ p["own_down"][o, i].T
                elif lora == "hybrid":
                    place = [other for other in range(maps) if other != i].index(j)
                    delta[o, i, :, j] = p["other_up"][o, i, place] @ p["other_down"][o, i, place].T
    return delta


def rotate(x, cos, sin):
    """Rotary embedding of neighbouring pairs: x [..., token, dim], cos, sin [token, dim]."""
    pairs = x.unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return x * cos + turned * sin


def softmax_attention(query, key, value):
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


class FluxOracle:
    """network: diffusers' FluxTransformer2DModel. deltas(kind, number, place): dense matrix of "input" or "proj" of a block, or None."""

    def __init__(self, network, attention, color, deltas, strength=1.0):
        self.network, self.attention, self.color, self.strength = network.double().eval(), attention, color, strength
        self.deltas = deltas

    def attend(self, queries, keys, values, text, cos, sin):
        """Lists over maps of normed, updated [head, token, dim]; text: tokens whose queries stay per map. -> list of [token, width]."""
        out = []
        for i in range(len(queries)):
            query = queries[i]
            if self.attention == "query-broadcast":
                query = torch.cat([queries[i][:, :text], queries[self.color][:, text:]], dim=1)
            read = range(len(queries)) if self.attention == "cross-intrinsic" else [i]
            key = torch.cat([rotate(keys[j], cos, sin) for j in read], dim=1)
            value = torch.cat([values[j] for j in read], dim=1)
            out.append(rearrange(softmax_attention(rotate(query, cos, sin), key, value), "head token dim -> token (head dim)"))
        return out

    def projections(self, attn, x, kind, number, heads):
        """Queries, keys, values of the image stream, normed, then updated: lists over maps."""
        delta = self.deltas(kind, number, "input")
        by_head = "token (head dim) -> head token dim"
        found = []
        for o, (layer, norm) in enumerate(((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None))):
            per_map = []
            for i in range(len(x)):
                projected = rearrange(layer(x[i]), by_head, head=heads)
                if norm is not None:
                    projected = norm(projected)
                adapted = None if delta is None else o - (3 - len(delta))
                if adapted is not None and adapted >= 0:
                    update = sum(x[j] @ delta[adapted, i, :, j].T for j in range(len(x)))
                    projected = projected + self.strength * rearrange(update, by_head, head=heads)
                per_map.append(projected)
            found.append(per_map)
        return found

    def project_out(self, layer, x, kind, number):
        out = [layer(one) for one in x]
        delta = self.deltas(kind, number, "proj")
        if delta is None:
            return out
        return [out[i] + self.strength * sum(out[j] @ delta[0, i, :, j].T for j in range(len(out))) for i in range(len(out))]

    def velocity(self, x, sigmas, context, pooled, guidance):
        """Rows x [map, channel, height, width] at their own noise levels -> velocity."""
        network, maps = self.network, x.shape[0]
        height, width = (side // 2 for side in x.shape[2:])
        heads = network.config.num_attention_heads
        image = network.x_embedder(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2))
        text = network.context_embedder(context.double()).expand(maps, -1, -1)
        scale = torch.full((maps,), 1000.0 * guidance, dtype=torch.float64)
        embedding = network.time_text_embed(sigmas.double() * 1000, scale, pooled.double().expand(maps, -1))
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
        cos, sin = (t.double() for t in network.pos_embed(torch.cat([torch.zeros(text.shape[1], 3), ids]).double()))
        length = text.shape[1]
        for number, block in enumerate(network.transformer_blocks):
            normed, gate, shift_mlp, scale_mlp, gate_mlp = block.norm1(image, emb=embedding)
            text_normed, text_gate, text_shift, text_scale, text_gate_mlp = block.norm1_context(text, emb=embedding)
            q, k, v = self.projections(block.attn, normed, "double", number, heads)
            layers = ((block.attn.add_q_proj, block.attn.norm_added_q), (block.attn.add_k_proj, block.attn.norm_added_k))
            by_head = "map token (head dim) -> map head token dim"
            tq, tk = (norm(rearrange(layer(text_normed), by_head, head=heads)) for layer, norm in layers)
            tv = rearrange(block.attn.add_v_proj(text_normed), by_head, head=heads)
            q, k, v = ([torch.cat(pair, dim=1) for pair in zip(t, own, strict=True)] for t, own in ((tq, q), (tk, k), (tv, v)))
            out = self.attend(q, k, v, length, cos, sin)
            projected = torch.stack(self.project_out(block.attn.to_out[0], [one[length:] for one in out], "double", number))
            image = image + gate.unsqueeze(1) * projected
            inner = block.norm2(image) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
            image = image + gate_mlp.unsqueeze(1) * block.ff(inner)
            text = text + text_gate.unsqueeze(1) * block.attn.to_add_out(torch.stack([one[:length] for one in out]))
            inner = block.norm2_context(text) * (1 + text_scale[:, None]) + text_shift[:, None]
            text = text + text_gate_mlp.unsqueeze(1) * block.ff_context(inner)
        tokens = torch.cat([text, image], dim=1)
        for number, block in enumerate(network.single_transformer_blocks):
            normed, gate = block.norm(tokens, emb=embedding)
            out = torch.stack(self.attend(*self.projections(block.attn, normed, "single", number, heads), 0, cos, sin))
            both = torch.cat([out, block.act_mlp(block.proj_mlp(normed))], dim=2)
            tokens = tokens + gate.unsqueeze(1) * torch.stack(self.project_out(block.proj_out, list(both), "single", number))
        final = network.proj_out(network.norm_out(tokens[:, length:], embedding))
        return rearrange(final, "b (h w) (c p q) -> b c (h p) (w q)", h=height, w=width, p=2, q=2)

    @torch.no_grad()
    def euler(self, noise, sigmas, positive, negative, guidance, cfg, clean=None):
        """Euler's method from pure noise; positive, negative: (context, pooled). clean: {row: latent} of given maps, kept at t = 0."""
        x, sigmas = noise.double(), sigmas.double()
        for sigma, after in pairwise(sigmas):
            levels = sigma.expand(x.shape[0]).clone()
            for row, latent in (clean or {}).items():
                x[row], levels[row] = latent.double(), 0.0
            v_positive, v_negative = (self.velocity(x, levels, *condition, guidance) for condition in (positive, negative))
            x = x + (after - sigma) * (v_negative + cfg * (v_positive - v_negative))
        for row, latent in (clean or {}).items():
            x[row] = latent.double()
        return x


class UNetMaps:
    """A diffusers attention processor for self-attention whose rows are maps; attention as in `FluxOracle`."""

    def __init__(self, attention, color):
        self.attention, self.color, self.calls = attention, color, 0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        assert encoder_hidden_states is None and attention_mask is None
        layers = (attn.to_q, attn.to_k, attn.to_v)
        q, k, v = (rearrange(layer(hidden_states), "map token (head dim) -> map head token dim", head=attn.heads) for layer in layers)
        if self.attention == "query-broadcast":
            q = q[self.color].expand_as(q)
        if self.attention == "cross-intrinsic":
            k, v = (torch.cat(list(t), dim=1).expand(len(q), -1, -1, -1) for t in (k, v))
        self.calls += 1
        out = rearrange(softmax_attention(q, k, v), "map head token dim -> map token (head dim)")
        return attn.to_out[0](out)
