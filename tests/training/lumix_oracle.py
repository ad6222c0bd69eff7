"""LumiX's forward from the paper's equations, in float64, one map at a time; diffusers' own layers around the attention."""

import torch
from intrinsic_lab.methods.lumix.design import FUSED, QUERY_BROADCAST, SEPARATE, TENSOR


def dense_update(layer, kind, outputs):
    """[outputs, M, d_out, M, d_in], pair of maps by pair of maps."""
    p = {name: parameter.detach().double() for name, parameter in layer.named_parameters()}
    maps = next(iter(p.values())).shape[0 if kind == TENSOR else 1]
    rows = []
    for o in range(outputs):
        for i in range(maps):
            for j in range(maps):
                if kind == TENSOR:
                    rank, d_out = p["G1"].shape[2], p["G3"].shape[1] // outputs
                    core = torch.einsum("q,urq->ur", p["G1"][i, j], p["G2"][i])
                    rows.append(p["G3"][i, o * d_out : (o + 1) * d_out] @ core.T / rank**0.5)
                elif kind == FUSED:
                    rows.append(p["up"][o, i] @ p["down"][o, j].T)
                elif kind == SEPARATE:
                    rows.append(float(i == j) * p["up"][o, i] @ p["down"][o, i].T)
                elif i == j:
                    rows.append(p["own_up"][o, i] @ p["own_down"][o, i].T)
                else:
                    place = j if j < i else j - 1
                    rows.append(p["other_up"][o, i, place] @ p["other_down"][o, i, place].T)
    return torch.stack(rows).unflatten(0, (outputs, maps, maps)).permute(0, 1, 3, 2, 4)


def rotate(x, positions, axes):
    """Rotary embedding of [token, head, dim]: neighbouring channels are a complex number, turned by position / 10000^(2k / axis)."""
    angles = []
    for axis, place in zip(axes, positions.T, strict=True):
        frequency = 10000.0 ** (-torch.arange(0, axis, 2, dtype=torch.float64) / axis)
        angles.append(place.double()[:, None] * frequency)
    turn = torch.polar(torch.ones((), dtype=torch.float64), torch.cat(angles, -1))[:, None]
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)


class Oracle:
    """`transformer`: a float64 FluxTransformer2DModel as diffusers made it; `adapter`: float64."""

    def __init__(self, transformer, adapter):
        self.t, self.adapter, self.design = transformer, adapter, adapter.config.design
        self.maps = range(len(self.design.maps))

    def forward(self, latent_mchw, time_m, context, pooled):
        """Velocity [map, c, h, w]; context [token, dim], pooled [dim]."""
        t, (_, c, h, w) = self.t, latent_mchw.shape
        tokens = latent_mchw.reshape(-1, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(len(latent_mchw), -1, 4 * c)
        place = torch.tensor([[0, row, column] for row in range(h // 2) for column in range(w // 2)])
        self.places = torch.cat([torch.zeros(len(context), 3).long(), place])
        self.text = len(context)
        temb = [t.time_text_embed(1000 * time_m[i : i + 1], pooled[None]) for i in self.maps]
        image = [t.x_embedder(tokens[i : i + 1]) for i in self.maps]
        text = [t.context_embedder(context[None]) for _ in self.maps]
        for block, own in zip(t.transformer_blocks, self.adapter.double_blocks, strict=True):
            text, image = self.double(block, own, text, image, temb)
        rows = [torch.cat(pair, 1) for pair in zip(text, image, strict=True)]
        for block, own in zip(t.single_transformer_blocks, self.adapter.single_blocks, strict=True):
            rows = self.single(block, own, rows, temb)
        out = torch.cat([t.proj_out(t.norm_out(rows[i][:, self.text :], temb[i])) for i in self.maps])
        return out.reshape(-1, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(latent_mchw.shape)

    def heads(self, x, attn):
        return x[0].unflatten(-1, (-1, attn.head_dim))

    def qkv(self, attn, own, x, positions):
        """Queries, keys and values of the tokens x (a list over maps) that the adapter acts on."""
        outputs = self.adapter.config.input_outputs
        delta = torch.einsum("oidje,jte->oitd", dense_update(own.input, self.design.lora, outputs), torch.cat(x))
        axes = self.t.config.axes_dims_rope
        found = []
        for i in self.maps:
            source = self.design.maps.index("color") if self.design.attention == QUERY_BROADCAST else i
            q = attn.norm_q(self.heads(attn.to_q(x[source]), attn))
            if self.design.adapt_query:
                q = q + self.heads(delta[0, source][None], attn)
            k = attn.norm_k(self.heads(attn.to_k(x[i]), attn)) + self.heads(delta[-2, i][None], attn)
            v = self.heads(attn.to_v(x[i]) + delta[-1, i], attn)
            found.append((rotate(q, positions, axes), rotate(k, positions, axes), v))
        return found

    def attend(self, queries, keys, values):
        if self.design.attention == "cross-intrinsic":
            keys, values = [torch.cat(keys)] * len(keys), [torch.cat(values)] * len(values)
        outputs = []
        for q, k, v in zip(queries, keys, values, strict=True):
            weight = (torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5).softmax(-1)
            outputs.append(torch.einsum("hqk,khd->qhd", weight, v).flatten(1)[None])
        return outputs

    def projected(self, layer, outputs):
        delta = torch.einsum("oidje,jte->oitd", dense_update(layer, self.design.lora, 1), torch.cat(outputs))[0]
        return [output + delta[i] for i, output in enumerate(outputs)]

    def double(self, block, own, text, image, temb):
        attn, axes = block.attn, self.t.config.axes_dims_rope
        modulated = [block.norm1(image[i], emb=temb[i]) for i in self.maps]
        modulated_text = [block.norm1_context(text[i], emb=temb[i]) for i in self.maps]
        own_qkv = self.qkv(attn, own, [m[0] for m in modulated], self.places[self.text :])
        q, k, v = [], [], []
        for i in self.maps:
            x = modulated_text[i][0]
            text_q, text_k = (
                attn.norm_added_q(self.heads(attn.add_q_proj(x), attn)),
                attn.norm_added_k(self.heads(attn.add_k_proj(x), attn)),
            )
            text_q, text_k = (rotate(part, self.places[: self.text], axes) for part in (text_q, text_k))
            for kept, before, after in zip((q, k, v), (text_q, text_k, self.heads(attn.add_v_proj(x), attn)), own_qkv[i], strict=True):
                kept.append(torch.cat([before, after]))
        output = self.attend(q, k, v)
        projected = self.projected(own.proj, [attn.to_out[0](part[:, self.text :]) for part in output])
        for i in self.maps:
            _, gate, shift, scale, gate_mlp = modulated[i]
            image[i] = image[i] + gate[:, None] * projected[i]
            image[i] = image[i] + gate_mlp[:, None] * block.ff(block.norm2(image[i]) * (1 + scale[:, None]) + shift[:, None])
            _, gate, shift, scale, gate_mlp = modulated_text[i]
            text[i] = text[i] + gate[:, None] * attn.to_add_out(output[i][:, : self.text])
            text[i] = text[i] + gate_mlp[:, None] * block.ff_context(block.norm2_context(text[i]) * (1 + scale[:, None]) + shift[:, None])
        return text, image

    def single(self, block, own, rows, temb):
        modulated = [block.norm(rows[i], emb=temb[i]) for i in self.maps]
        found = self.qkv(block.attn, own, [m[0] for m in modulated], self.places)
        output = self.attend(*(list(part) for part in zip(*found, strict=True)))
        hidden = [torch.cat([output[i], block.act_mlp(block.proj_mlp(modulated[i][0]))], -1) for i in self.maps]
        projected = self.projected(own.proj, [block.proj_out(x) for x in hidden])
        return [rows[i] + modulated[i][1][:, None] * projected[i] for i in self.maps]
