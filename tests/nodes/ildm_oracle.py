"""I-LDM's eq. 1 and 4 and its sampling, written from the paper in float64 over diffusers' networks; knows nothing of the pack."""

import re

import torch
from einops import rearrange


class JointSelfAttention:
    """A diffusers attention processor: keys and values of both domains concatenated, the intrinsic domain with its own weights."""

    def __init__(self, oracle, index, stage, lora):
        self.oracle, self.index, self.stage, self.lora = oracle, index, stage, lora

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        assert encoder_hidden_states is None and attention_mask is None
        z_x, z_i = hidden_states.chunk(2)

        def project(name, layer, z, intrinsic):
            weight = layer.weight
            if intrinsic and name in self.lora:
                down, up, scale = self.lora[name]
                weight = weight + scale * up @ down
            return z @ weight.T + (0 if layer.bias is None else layer.bias)

        def both(name, layer):
            return project(name, layer, z_x, False), project(name, layer, z_i, True)

        heads = [
            [rearrange(z, "b n (h d) -> b h n d", h=attn.heads) for z in both(name, getattr(attn, name))]
            for name in ("to_q", "to_k", "to_v")
        ]
        (q_x, q_i), keys, values = heads
        k, v = torch.cat(keys, 2), torch.cat(values, 2)
        n = q_x.shape[2]
        big_w = torch.ones(n, 2 * n, dtype=torch.float64)
        big_w[:, n:] = self.oracle.w(self.index, self.stage, self.oracle.t)
        scale = q_x.shape[-1] ** -0.5
        picture = ((q_x @ k.mT) * scale + big_w.log()).softmax(-1) @ v
        intrinsic = ((q_i @ k.mT) * scale).softmax(-1) @ v
        picture, intrinsic = (rearrange(z, "b h n d -> b n (h d)") for z in (picture, intrinsic))
        out = attn.to_out[0]
        self.oracle.calls += 1
        return torch.cat([project("to_out.0", out, picture, False), project("to_out.0", out, intrinsic, True)])


class Oracle:
    """w(index, stage, t): the schedule. lora: {module name: (down, up, scale)} of the intrinsic domain."""

    def __init__(self, network, lora, w):
        self.network, self.w, self.calls, self.t = network.double().eval(), w, 0, None
        names = [name.removesuffix(".processor") for name in network.attn_processors if ".attn1." in name]
        processors = dict(network.attn_processors)
        for index, (stage, name) in enumerate(sorted(((self._place(name), name) for name in names), key=lambda entry: entry[0])):
            own = {layer: lora[f"{name}.{layer}"] for layer in ("to_q", "to_k", "to_v", "to_out.0") if f"{name}.{layer}" in lora}
            own = {layer: (down.double(), up.double(), scale) for layer, (down, up, scale) in own.items()}
            processors[f"{name}.processor"] = JointSelfAttention(self, index, stage[0], own)
        network.set_attn_processor(processors)

    def _place(self, name):
        """(stage, ...) that sorts by execution."""
        numbers = [int(number) for number in re.findall(r"\.(\d+)", name)]
        if name.startswith("transformer_blocks"):
            return numbers[0] * 9 // len(self.network.transformer_blocks), numbers[0]
        levels = len(self.network.config.block_out_channels)
        if name.startswith("mid"):
            return levels, *numbers
        return numbers[0] + (levels + 1 if name.startswith("up") else 0), *numbers[1:]

    def forward(self, x, t, context, conditions):
        """Raw output of the network for pictures and intrinsics `x`; both have the same prompt."""
        self.t = t
        rows = x.shape[0]
        extra = {"added_cond_kwargs": {name: value.double().expand(rows, -1) for name, value in conditions.items()}} if conditions else {}
        timestep = torch.full((rows,), t, dtype=torch.float64)
        output = self.network(x, timestep=timestep, encoder_hidden_states=context.double().expand(rows, -1, -1), return_dict=False, **extra)
        return output[0][:, : x.shape[1]]

    @torch.no_grad()
    def euler(self, noise, sigmas, timesteps, positive, negative, cfg, prediction):
        """Euler's method with guidance, from noise at sigmas[0] on an empty latent; positive, negative: (context, conditions)."""
        sigmas = sigmas.double()
        x = noise.double() * sigmas[0]
        for sigma, after, t in zip(sigmas, sigmas[1:], timesteps, strict=False):
            denoised = []
            for context, conditions in (positive, negative):
                output = self.forward(x / (sigma**2 + 1).sqrt(), t, context, conditions)
                if prediction == "epsilon":
                    denoised.append(x - sigma * output)
                else:
                    denoised.append(x / (sigma**2 + 1) - sigma / (sigma**2 + 1).sqrt() * output)
            guided = denoised[1] + cfg * (denoised[0] - denoised[1])
            x = x + (x - guided) / sigma * (after - sigma)
        return x
