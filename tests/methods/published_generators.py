"""Published generators in float64, written over the published names alone, and random weights for them. Knows nothing of the pack."""

import pickle
import sys
from collections import OrderedDict
from types import ModuleType

import pytest
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


def rosinality_shapes(widths, style=512, latent=512, mapping=8):
    """{name under `g_ema`: shape} without noises and filters. widths: channels at 4 x 4, 8 x 8..."""
    shapes = {"input.input": (1, widths[0], 4, 4)}
    for layer in range(mapping):
        shapes |= {f"style.{layer + 1}.weight": (style, style if layer else latent), f"style.{layer + 1}.bias": (style,)}

    def convolution(name, inputs, outputs, kernel):
        shapes[f"{name}.conv.weight"] = (1, outputs, inputs, kernel, kernel)
        shapes[f"{name}.conv.modulation.weight"], shapes[f"{name}.conv.modulation.bias"] = (inputs, style), (inputs,)

    def styled(name, inputs, outputs):
        convolution(name, inputs, outputs, 3)
        shapes[f"{name}.noise.weight"], shapes[f"{name}.activate.bias"] = (1,), (outputs,)

    def to_picture(name, width):
        convolution(name, width, 3, 1)
        shapes[f"{name}.bias"] = (1, 3, 1, 1)

    styled("conv1", widths[0], widths[0])
    to_picture("to_rgb1", widths[0])
    for level in range(len(widths) - 1):
        styled(f"convs.{2 * level}", widths[level], widths[level + 1])
        styled(f"convs.{2 * level + 1}", widths[level + 1], widths[level + 1])
        to_picture(f"to_rgbs.{level}", widths[level + 1])
    return shapes


def as_nvidia(weights):
    """A `g_ema` under the names and in the shapes of NVIDIA's module, where convolutions come without a constant."""
    renamed = {"synthesis.b4.const": weights["input.input"][0]}
    layers = {
        "conv.weight": "weight",
        "conv.modulation.weight": "affine.weight",
        "conv.modulation.bias": "affine.bias",
        "noise.weight": "noise_strength",
        "activate.bias": "bias",
        "bias": "bias",
    }
    for name, weight in weights.items():
        layer, _, rest = name.partition(".")
        if layer == "style":
            number, kind = rest.split(".")
            renamed[f"mapping.fc{int(number) - 1}.{kind}"] = weight
            continue
        if layer == "input":
            continue
        number, own = ("", rest) if layer.endswith("1") else rest.split(".", 1)
        side = 4 if number == "" else 8 * 2 ** (int(number) // (2 if layer == "convs" else 1))
        part = "torgb" if layer.startswith("to_rgb") else "conv1" if number == "" or int(number) % 2 else "conv0"
        weight = weight[0] if own == "conv.weight" else weight.reshape(()) if own == "noise.weight" else weight
        renamed[f"synthesis.b{side}.{part}.{layers[own]}"] = weight.flatten() if own == "bias" else weight
    return renamed


class StyleGan2Oracle:
    """z and noises -> picture, of a `g_ema`, one picture at a time. constants: whether convolutions are multiplied by He's constant."""

    def __init__(self, weights, constants=True):
        self.weights, self.constants = {name: weight.double() for name, weight in weights.items()}, constants

    def linear(self, name, x, rate=1.0):
        weight = self.weights[f"{name}.weight"]
        return weight @ x * rate / weight.shape[1] ** 0.5 + self.weights[f"{name}.bias"] * rate

    def style(self, z):
        w, layer = z.double() / (z.double().square().mean() + 1e-8).sqrt(), 1
        while f"style.{layer}.weight" in self.weights:
            w = functional.leaky_relu(self.linear(f"style.{layer}", w, 0.01), 0.2) * 2**0.5
            layer += 1
        return w

    @staticmethod
    def filtered(x, zeros_before, zeros_after):
        """The filter [1, 3, 3, 1] for a picture of twice the size, on x with that many zeros around it."""
        row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 4
        padded = functional.pad(x[:, None], (zeros_before, zeros_after) * 2)
        return functional.conv2d(padded, torch.outer(row, row)[None, None])[:, 0]

    @staticmethod
    def spread(x):
        wide = x.new_zeros(len(x), 2 * x.shape[1], 2 * x.shape[2])
        wide[:, ::2, ::2] = x
        return wide

    def convolution(self, name, x, w, demodulate, enlarge=False):
        weight = self.weights[f"{name}.conv.weight"][0]
        if self.constants or not demodulate:
            weight = weight / weight[0].numel() ** 0.5
        weight = weight * self.linear(f"{name}.conv.modulation", w)[None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if not enlarge:
            return functional.conv2d(x[None], weight, padding=weight.shape[-1] // 2)[0]
        # Transposed, written out: a convolution (kernel turned round) of the pixels with zeros between them.
        wide = functional.conv2d(functional.pad(self.spread(x), (2, 1, 2, 1))[None], weight.flip(2, 3))[0]
        return self.filtered(wide, 1, 1)

    def styled(self, name, x, w, noise, enlarge=False):
        out = self.convolution(name, x, w, True, enlarge) + self.weights[f"{name}.noise.weight"] * noise.double()
        return functional.leaky_relu(out + self.weights[f"{name}.activate.bias"][:, None, None], 0.2) * 2**0.5

    def to_picture(self, name, x, w):
        return self.convolution(name, x, w, False) + self.weights[f"{name}.bias"][0]

    def __call__(self, w, noises):
        x = self.styled("conv1", self.weights["input.input"][0], w, noises[0])
        picture, level = self.to_picture("to_rgb1", x, w), 0
        while f"to_rgbs.{level}.bias" in self.weights:
            x = self.styled(f"convs.{2 * level}", x, w, noises[2 * level + 1], enlarge=True)
            x = self.styled(f"convs.{2 * level + 1}", x, w, noises[2 * level + 2])
            picture = self.filtered(self.spread(picture), 2, 1) + self.to_picture(f"to_rgbs.{level}", x, w)
            level += 1
        return picture


class Persistent:
    """A module as NVIDIA's files hold it: rebuilt, by a function of theirs, from its class's source and its state."""

    def __init__(self, state, source):
        self.state, self.source = state, source

    def __reduce__(self):
        rebuild = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": "Generator", "state": self.state}
        return rebuild, (meta,), None


BUFFERS = ("w_avg", "resample_filter", "freqs", "phases", "transform", "magnitude_ema", "up_filter", "down_filter")


def write_module(path, tensors, attributes=None):
    """A published `.pkl` of one module: its tensors and plain attributes by dotted names. Its source writes a `.witness` if it is run."""
    tree = {"own": {}, "plain": {}, "parts": {}}
    for kind, named in (("own", tensors), ("plain", attributes or {})):
        for name, value in named.items():
            node = tree
            *parts, last = name.split(".")
            for part in parts:
                node = node["parts"].setdefault(part, {"own": {}, "plain": {}, "parts": {}})
            node[kind][last] = value

    def module(node):
        state = node["plain"] | {
            "training": False,
            "_parameters": OrderedDict((name, torch.nn.Parameter(each)) for name, each in node["own"].items() if name not in BUFFERS),
            "_buffers": OrderedDict((name, each) for name, each in node["own"].items() if name in BUFFERS),
            "_modules": OrderedDict((name, module(part)) for name, part in node["parts"].items()),
        }
        return Persistent(state, f"import os\nos.system('echo ran > {path.with_suffix('.witness')}')\n")

    fake = ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("a function of the file was called")

    _reconstruct_persistent_obj.__module__ = fake.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    fake._reconstruct_persistent_obj = _reconstruct_persistent_obj
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_utils", ModuleType("torch_utils"))
        patch.setitem(sys.modules, fake.__name__, fake)
        path.write_bytes(pickle.dumps({"G": None, "D": None, "G_ema": module(tree), "augment_pipe": None}, protocol=4))
