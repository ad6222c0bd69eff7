"""The mapping network that all style-based generators share: z and, in a generator of classes, a class -> w."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def require_classes(classes: int, class_dim: int) -> None:
    """Raises ValueError for an impossible number of classes, or width of their embedding."""
    if not all(isinstance(number, int) and 0 <= number <= 2**15 for number in (classes, class_dim)) or bool(classes) != bool(class_dim):
        raise ValueError(f"the generator has {classes} classes of {class_dim} numbers: whole numbers to {2**15}, or 0 of 0, are wanted.")


class StyleNetwork(nn.Module):
    """`style` makes w. The base of the generators, so that its weights are theirs.

    mean_style: what truncation pulls w towards, `[style_dim]`, or `[classes, style_dim]`. class_embedding: `[classes, class_dim]`. One-hot
    classes through a linear layer (Karras et al. 2020, "Training GANs with limited data") and a pretrained classifier's features, projected
    (Sauer et al. 2022, section 3.1), are the same here: a row for each class.
    """

    mean_style: Tensor
    class_embedding: Tensor

    def __init__(self, latent_dim: int, style_dim: int, mapping_layers: int, classes: int, class_dim: int):
        super().__init__()
        layers = [nn.Linear(*pair) for pair in pairwise([latent_dim + class_dim, *[style_dim] * mapping_layers])]
        self.mapping = nn.ModuleList(layers)
        for layer in layers:
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        self.latent_dim, self.classes = latent_dim, classes
        self.register_buffer("mean_style", torch.zeros(classes, style_dim) if classes else torch.zeros(style_dim))
        if classes:
            self.register_buffer("class_embedding", torch.randn(classes, class_dim))

    def style(self, z_bd: Tensor, truncation_b1: Tensor | float = 1.0, classes_b: Tensor | None = None) -> Tensor:
        """w of z (normalised to unit mean square), pulled towards the mean: `mean + truncation (w - mean)` (2019, section 2.1).

        classes_b: numbers of classes, in a generator of classes: their embedding, normalised likewise, is put beside z, and the mean is
        that of the class.
        """
        mean, w_bd = self.mean_style, _normalised(z_bd)
        if self.classes:
            mean, w_bd = mean[classes_b], torch.cat([w_bd, _normalised(self.class_embedding[classes_b])], 1)
        for layer in self.mapping:
            w_bd = functional.leaky_relu(layer(w_bd), 0.2) * math.sqrt(2)
        return torch.lerp(mean.expand_as(w_bd), w_bd, torch.as_tensor(truncation_b1, dtype=w_bd.dtype, device=w_bd.device))

    @torch.no_grad()
    def measure_mean_style(self, samples: int = 4096) -> None:
        """Set `mean_style` to the mean of w over a fixed draw of z, in a generator without classes."""
        z = torch.randn(samples, self.latent_dim, generator=torch.Generator().manual_seed(0))
        self.mean_style.copy_(self.style(z.to(self.mean_style.device)).mean(0))


def _normalised(x_bd: Tensor) -> Tensor:
    return x_bd * torch.rsqrt(x_bd.square().mean(1, keepdim=True) + 1e-8)
