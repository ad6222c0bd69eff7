"""StyleGAN3's and StyleGAN-XL's generator in float64 over the published names alone, and made-up files of them. Knows nothing of the pack.

Layers and filters are designed as the paper says (Karras et al. 2021, sections 3.2 and C), the filters by scipy.
"""

import math
from dataclasses import dataclass

import numpy
import scipy.signal
import scipy.special
import torch
from torch.nn import functional

MARGIN, TAPS = 10, 6


@dataclass
class Layer:
    name: str
    rate_before: int
    fine: int
    rate: int
    side_before: int
    side: int
    inputs: int
    outputs: int
    kernel: int
    up: numpy.ndarray | None
    down: numpy.ndarray | None


def low_pass(taps, cutoff, half_width, rate, radial=False):
    """A Kaiser-windowed sinc, or jinc."""
    if taps == 1:
        return None
    if not radial:
        return scipy.signal.firwin(taps, cutoff, width=2 * half_width, fs=rate)
    x = (numpy.arange(taps) - (taps - 1) / 2) / rate
    distance = numpy.hypot(*numpy.meshgrid(x, x))
    window = numpy.kaiser(taps, scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(taps, half_width / (rate / 4))))
    kernel = scipy.special.j1(2 * math.pi * cutoff * distance) / (math.pi * distance) * numpy.outer(window, window)
    return kernel / kernel.sum()


def design(resolution, count, most_channels, base=None, radial=False, first_stopband=2**2.1, margin=MARGIN):
    """The layers of a network: cutoffs and stopbands grow geometrically, the last two layers are sampled critically, then the picture."""
    base = base or 16 * most_channels
    progress = numpy.minimum(numpy.arange(count + 1) / (count - 2), 1)
    cutoffs = 2 * (resolution / 2 / 2) ** progress
    stopbands = first_stopband * (resolution / 2 * 2**0.3 / first_stopband) ** progress
    rates = [int(rate) for rate in 2 ** numpy.ceil(numpy.log2(numpy.minimum(2 * stopbands, resolution)))]
    half_widths = numpy.maximum(stopbands, numpy.array(rates) / 2) - cutoffs
    sides = [rate + 2 * margin for rate in rates[:-2]] + [resolution] * 2
    channels = [int(min(round(base / 2 / cutoff), most_channels)) for cutoff in cutoffs[:-1]] + [3]
    layers = []
    for number in range(count + 1):
        before, last = max(number - 1, 0), number == count
        fine = max(rates[before], rates[number]) * (1 if last else 2)
        up, down = fine // rates[before], fine // rates[number]
        critical = number >= count - 2
        layers.append(
            Layer(
                f"L{number}_{sides[number]}_{channels[number]}",
                rates[before],
                fine,
                rates[number],
                sides[before],
                sides[number],
                channels[before],
                channels[number],
                1 if last or radial else 3,
                low_pass(TAPS * up if up > 1 else 1, cutoffs[before], half_widths[before], fine),
                low_pass(TAPS * down if down > 1 else 1, cutoffs[number], half_widths[number], fine, radial and not critical),
            )
        )
    return layers


def published(layers, latent=6, style=5, mapping=2, classes=0, features=0, seed=0):
    """(tensors, plain attributes) of a generator as published. features: of the classifier that embeds classes; 0: one-hot classes.

    seed: None for shapes alone.
    """
    draw = torch.Generator().manual_seed(seed or 0)
    tensors, attributes = {}, {"z_dim": latent, "w_dim": style, "c_dim": classes, "synthesis.output_scale": 0.25}

    def randn(*shape):
        return torch.empty(shape, device="meta") if seed is None else torch.randn(shape, generator=draw)

    embedded = 0
    if classes and features:
        embedded = latent
        attributes["mapping.c_dim"] = classes
        # The classifier knows more classes than the generator.
        tensors |= {"mapping.embed.weight": randn(classes + 2, features), "mapping.embed_proj.weight": randn(latent, features)}
        tensors["mapping.embed_proj.bias"] = randn(latent)
        attributes["mapping.embed_proj.activation"] = "lrelu"
    elif classes:
        embedded = style
        tensors |= {"mapping.embed.weight": randn(style, classes), "mapping.embed.bias": randn(style)}
    for number in range(mapping):
        inputs = style if number else latent + embedded
        tensors |= {f"mapping.fc{number}.weight": 100 * randn(style, inputs), f"mapping.fc{number}.bias": 10 * randn(style)}
    tensors["mapping.w_avg"] = 0.3 * (randn(classes, style) if classes and features else randn(style))
    width, name = layers[0].inputs, "synthesis.input"
    angles, radii = 2 * math.pi * torch.rand(width, generator=draw), 2 * torch.rand(width, generator=draw) ** 0.5
    tensors |= {
        f"{name}.weight": randn(width, width),
        f"{name}.affine.weight": 0.2 * randn(4, style),
        f"{name}.affine.bias": torch.tensor([1.0, 0.0, 0.0, 0.0]),
        f"{name}.freqs": radii[:, None] * torch.stack([angles.cos(), angles.sin()], 1),
        f"{name}.phases": torch.rand(width, generator=draw) - 0.5,
        f"{name}.transform": torch.eye(3),
    }
    for layer in layers:
        name = f"synthesis.{layer.name}"
        tensors |= {
            f"{name}.weight": randn(layer.outputs, layer.inputs, layer.kernel, layer.kernel),
            f"{name}.bias": 0.1 * randn(layer.outputs),
            f"{name}.affine.weight": 0.5 * randn(layer.inputs, style),
            f"{name}.affine.bias": torch.ones(layer.inputs),
            f"{name}.magnitude_ema": 0.5 + torch.rand((), generator=draw),
        }
        for kind, kernel in (("up", layer.up), ("down", layer.down)):
            if kernel is not None:
                tensors[f"{name}.{kind}_filter"] = torch.tensor(kernel, dtype=torch.float32)
        attributes |= {f"{name}.up_factor": layer.fine // layer.rate_before, f"{name}.down_factor": layer.fine // layer.rate}
        attributes[f"{name}.padding"] = padding(layer)
        attributes |= {f"{name}.conv_clamp": 256, f"{name}.is_torgb": layer is layers[-1], f"{name}.in_size": numpy.array([1, 1])}
    return tensors, attributes


def padding(layer):
    """Zeros left, right, above and below, round the pixels that are followed by zeros, so that both filters are inside everywhere."""
    reach = sum(0 if kernel is None else len(kernel) - 1 for kernel in (layer.up, layer.down)) / 2 / layer.fine
    pixels = AliasFreeOracle.positions(layer.side_before + layer.kernel - 1, layer.rate_before)
    outputs = AliasFreeOracle.positions(layer.side, layer.rate)
    before = (pixels[0] - (outputs[0] - reach)) * layer.fine
    after = (outputs[-1] + reach - pixels[-1]) * layer.fine - (layer.fine // layer.rate_before - 1)
    return [int(before.round()), int(after.round())] * 2


class AliasFreeOracle:
    """z and a class -> w -> picture, one at a time. Filters are matrices between positions in the picture's plane."""

    def __init__(self, layers, tensors, attributes):
        self.layers, self.attributes = layers, attributes
        self.weights = {name: weight.double() for name, weight in tensors.items()}

    def linear(self, name, x, rate=1.0):
        weight = self.weights[f"{name}.weight"]
        return weight @ x * rate / weight.shape[1] ** 0.5 + self.weights[f"{name}.bias"] * rate

    @staticmethod
    def unit(x):
        return x / (x.square().mean() + 1e-8).sqrt()

    @staticmethod
    def leaky(x):
        return torch.where(x < 0, 0.2 * x, x) * 2**0.5

    def style(self, z, number=None, truncation=1.0):
        w, mean, layer = self.unit(z.double()), self.weights["mapping.w_avg"], 0
        if number is not None and "mapping.embed_proj.weight" in self.weights:
            embedded = self.leaky(self.linear("mapping.embed_proj", self.weights["mapping.embed.weight"][number]))
            mean, w = mean[number], torch.cat([w, self.unit(embedded)])
        elif number is not None:
            one_hot = torch.zeros(self.weights["mapping.embed.weight"].shape[1]).double()
            one_hot[number] = 1
            w = torch.cat([w, self.unit(self.linear("mapping.embed", one_hot))])
        while f"mapping.fc{layer}.weight" in self.weights:
            w = self.leaky(self.linear(f"mapping.fc{layer}", w, 0.01))
            layer += 1
        return mean + truncation * (w - mean)

    @staticmethod
    def positions(side, rate):
        """Of pixels' centres, in pictures from the middle."""
        return (torch.arange(side).double() + 0.5 - side / 2) / rate

    def features(self, w):
        first = self.layers[0]
        cosine, sine, *shift = self.linear("synthesis.input.affine", w)
        length = (cosine**2 + sine**2) ** 0.5
        x = self.positions(first.side, first.rate)
        places = torch.stack([x.expand(len(x), -1), x[:, None].expand(-1, len(x))]) - torch.stack(shift)[:, None, None] / length
        turned = torch.einsum("de,ehw->dhw", torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])]) / length, places)
        angles = torch.einsum("cd,dhw->chw", self.weights["synthesis.input.freqs"], turned)
        waves = torch.exp(2j * math.pi * (angles + self.weights["synthesis.input.phases"][:, None, None])).imag
        weight = self.weights["synthesis.input.weight"]
        return torch.einsum("oc,chw->ohw", weight / weight.shape[1] ** 0.5, waves)

    @staticmethod
    def between(kernel, to, sources, rate):
        """`[to, sources]`: the filter's value at the distance of each pair; a pair between two taps has none."""
        index = (to[:, None] - sources[None, :]) * rate + (len(kernel) - 1) / 2
        assert (index - index.round()).abs().max() < 1e-9, "positions do not lie on one grid"
        inside = (index.round() >= 0) & (index.round() < len(kernel))
        return torch.where(inside, kernel[index.round().long().clamp(0, len(kernel) - 1)], 0.0)

    def layer(self, layer, x, w):
        name, last = f"synthesis.{layer.name}", layer is self.layers[-1]
        weight = self.weights[f"{name}.weight"] * self.linear(f"{name}.affine", w)[None, :, None, None]
        energy = weight[0].numel() if last else weight.square().sum((1, 2, 3), keepdim=True) + 1e-8
        weight = weight / energy**0.5
        x = functional.conv2d(x[None] / self.weights[f"{name}.magnitude_ema"] ** 0.5, weight, padding=layer.kernel - 1)[0]
        x = x + self.weights[f"{name}.bias"][:, None, None]
        to = self.positions(layer.side, layer.rate)
        before = self.positions(x.shape[-1], layer.rate_before)
        if last:
            take = (to[:, None] - before[None, :]).abs().lt(1e-9).double()
            return take @ x @ take.T
        up, down = self.weights[f"{name}.up_filter"], self.weights[f"{name}.down_filter"]
        # All that the second filter reaches.
        reached = (layer.side - 1) * layer.fine // layer.rate + len(down)
        fine = to[0] + (torch.arange(reached) - (len(down) - 1) / 2) / layer.fine
        widen = self.between(up, fine, before, layer.fine) * layer.fine / layer.rate_before
        x = self.leaky(widen @ x @ widen.T).clamp(-256, 256)
        if down.ndim == 1:
            narrow = self.between(down, to, fine, layer.fine)
            return narrow @ x @ narrow.T
        step = layer.fine // layer.rate
        filtered = [scipy.signal.convolve2d(channel.numpy(), down.numpy(), "valid")[::step, ::step] for channel in x]
        return torch.tensor(numpy.stack(filtered))

    def __call__(self, w):
        x = self.features(w)
        for layer in self.layers:
            x = self.layer(layer, x, w)
        return x * self.attributes["synthesis.output_scale"]
