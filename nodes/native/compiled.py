"""Networks that other packs put into torch.compile's module by themselves; core's own node leaves the network where it is."""

from torch import nn


def uncompiled(network: nn.Module) -> nn.Module:
    """The network itself, where torch.compile's OptimizedModule stands around it."""
    return getattr(network, "_orig_mod", network)
