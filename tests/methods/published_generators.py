"""Published generators in float64, written over the published names alone, and random weights for them. Knows nothing of the pack."""

import torch
from torch.nn import functional

# A published VQGAN's settings, as far as they shape it; the real ones are FFHQ's f16.
FFHQ = {
    "embed_dim": 256,
    "n_embed": 1024,
    "ddconfig": {
        "double_z": False,
        "z_channels": 256,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [16],
        "dropout": 0.0,
    },
    "lossconfig": {"target": "taming.modules.losses.DummyLoss"},
}
TINY = FFHQ | {"embed_dim": 6, "n_embed": 24}
TINY["ddconfig"] = FFHQ["ddconfig"] | {"z_channels": 10, "resolution": 32, "ch": 32, "ch_mult": [1, 2, 1], "num_res_blocks": 1}


def taming_shapes(params):
    """{name in the checkpoint: shape} of the network's own weights."""
    network, shapes = params["ddconfig"], {}
    widths = [network["ch"] * multiple for multiple in network["ch_mult"]]
    sides = [network["resolution"] // 2**level for level in range(len(widths))]

    def convolution(name, inputs, outputs, kernel=3):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, kernel, kernel), (outputs,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def block(name, inputs, outputs):
        norm(f"{name}.norm1", inputs)
        convolution(f"{name}.conv1", inputs, outputs)
        norm(f"{name}.norm2", outputs)
        convolution(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            convolution(f"{name}.nin_shortcut", inputs, outputs, 1)

    def attention(name, width):
        norm(f"{name}.norm", width)
        for layer in ("q", "k", "v", "proj_out"):
            convolution(f"{name}.{layer}", width, width, 1)

    def middle(name):
        block(f"{name}.mid.block_1", widths[-1], widths[-1])
        attention(f"{name}.mid.attn_1", widths[-1])
        block(f"{name}.mid.block_2", widths[-1], widths[-1])

    convolution("encoder.conv_in", 3, widths[0])
    width = widths[0]
    for level, after in enumerate(widths):
        for index in range(network["num_res_blocks"]):
            block(f"encoder.down.{level}.block.{index}", width, after)
            width = after
            if sides[level] in network["attn_resolutions"]:
                attention(f"encoder.down.{level}.attn.{index}", width)
        if level < len(widths) - 1:
            convolution(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder")
    norm("encoder.norm_out", width)
    convolution("encoder.conv_out", width, network["z_channels"])
    convolution("decoder.conv_in", network["z_channels"], width)
    middle("decoder")
    for level in reversed(range(len(widths))):
        for index in range(network["num_res_blocks"] + 1):
            block(f"decoder.up.{level}.block.{index}", width, widths[level])
            width = widths[level]
            if sides[level] in network["attn_resolutions"]:
                attention(f"decoder.up.{level}.attn.{index}", width)
        if level:
            convolution(f"decoder.up.{level}.upsample.conv", width, width)
    norm("decoder.norm_out", width)
    convolution("decoder.conv_out", width, 3)
    shapes["quantize.embedding.weight"] = (params["n_embed"], params["embed_dim"])
    convolution("quant_conv", network["z_channels"], params["embed_dim"], 1)
    convolution("post_quant_conv", params["embed_dim"], network["z_channels"], 1)
    return shapes


def random_weights(shapes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) / max(1, sum(shape[1:])) ** 0.5 for name, shape in shapes.items()}


class TamingOracle:
    """Picture -> codes -> picture, of a checkpoint's weights."""

    def __init__(self, params, weights):
        self.network, self.weights = params["ddconfig"], {name: weight.double() for name, weight in weights.items()}

    def convolution(self, name, x, stride=1, padding=None):
        weight = self.weights[f"{name}.weight"]
        return functional.conv2d(x, weight, self.weights[f"{name}.bias"], stride, weight.shape[2] // 2 if padding is None else padding)

    def norm(self, name, x):
        return functional.group_norm(x, 32, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-6)

    def block(self, name, x):
        hidden = self.convolution(f"{name}.conv1", functional.silu(self.norm(f"{name}.norm1", x)))
        hidden = self.convolution(f"{name}.conv2", functional.silu(self.norm(f"{name}.norm2", hidden)))
        return hidden + (self.convolution(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.weights else x)

    def attention(self, name, x):
        if f"{name}.q.weight" not in self.weights:
            return x
        normed = self.norm(f"{name}.norm", x)
        query, key, value = (self.convolution(f"{name}.{layer}", normed).flatten(2) for layer in "qkv")
        weights = (query.mT @ key / x.shape[1] ** 0.5).softmax(-1)
        return x + self.convolution(f"{name}.proj_out", (value @ weights.mT).view_as(x))

    def middle(self, name, x):
        return self.block(f"{name}.mid.block_2", self.attention(f"{name}.mid.attn_1", self.block(f"{name}.mid.block_1", x)))

    def last(self, name, x):
        return self.convolution(f"{name}.conv_out", functional.silu(self.norm(f"{name}.norm_out", x)))

    def __call__(self, picture):
        levels, blocks = len(self.network["ch_mult"]), self.network["num_res_blocks"]
        x = self.convolution("encoder.conv_in", picture.double())
        for level in range(levels):
            for index in range(blocks):
                x = self.attention(f"encoder.down.{level}.attn.{index}", self.block(f"encoder.down.{level}.block.{index}", x))
            if level < levels - 1:
                x = self.convolution(f"encoder.down.{level}.downsample.conv", functional.pad(x, (0, 1, 0, 1)), 2, 0)
        x = self.convolution("quant_conv", self.last("encoder", self.middle("encoder", x)))
        codes = self.weights["quantize.embedding.weight"]
        nearest = (x[:, None] - codes[None, :, :, None, None]).square().sum(2).argmin(1)
        x = self.convolution("post_quant_conv", codes[nearest].permute(0, 3, 1, 2))
        x = self.middle("decoder", self.convolution("decoder.conv_in", x))
        for level in reversed(range(levels)):
            for index in range(blocks + 1):
                x = self.attention(f"decoder.up.{level}.attn.{index}", self.block(f"decoder.up.{level}.block.{index}", x))
            if level:
                x = self.convolution(f"decoder.up.{level}.upsample.conv", functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.last("decoder", x)
