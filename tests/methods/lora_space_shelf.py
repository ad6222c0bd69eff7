"""Small LoRAs with a known style, in the spellings found in the wild."""

import torch
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.lora_file import kohya_state_dict
from safetensors.torch import save_file

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
# SD 1's widths where it is told by (768), small elsewhere; [out, in].
MODULES = {
    f"{BLOCK}.attn1.to_q": (64, 64),
    f"{BLOCK}.attn1.to_out.0": (64, 64),
    f"{BLOCK}.attn2.to_k": (64, 768),
    f"{BLOCK}.attn2.to_v": (64, 768),
    f"{BLOCK}.ff.net.0.proj": (128, 64),
    f"{BLOCK}.ff.net.2": (64, 128),
    "mid_block.resnets.0.conv1": (48, 32, 3, 3),
}


def make_lora(seed, style=0, rank=4, noise=0.5, modules=MODULES):
    """module -> LoraLayer. LoRAs of one style share the larger part of their changes."""
    layers = {}
    for number, (name, (out, width, *kernel)) in enumerate(modules.items()):
        common, own = (torch.Generator().manual_seed(1000 * number + key) for key in (7 * style + 3, 500 + seed))
        # Drawn for rank 8, so that ranks of one style share their first directions.
        left = (torch.randn(8, out, generator=common) + noise * torch.randn(8, out, generator=own))[:rank].T.contiguous()
        right = (torch.randn(8, width, *kernel, generator=common) + noise * torch.randn(8, width, *kernel, generator=own))[:rank]
        layers[name] = LoraLayer(0.1 * right, 0.1 * left.reshape(out, rank, *(1 for _ in kernel)), scale=0.5)
    return layers


def save_lora(path, layers, dtype=torch.float32, metadata=None):
    """Writes a kohya file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.to(dtype) for key, tensor in kohya_state_dict(layers).items()}, path, metadata)
    return path


def peft_state_dict(layers, prefix="unet."):
    """diffusers' spelling; the scale is folded into B."""
    state = {f"{prefix}{name}.lora_A.weight": layer.down for name, layer in layers.items()}
    return state | {f"{prefix}{name}.lora_B.weight": layer.up * layer.scale for name, layer in layers.items()}


def dense(layers):
    """flat module name -> change [out, in] in double precision."""
    return {
        name.replace(".", "_"): layer.scale * layer.up.double().flatten(1) @ layer.down.double().flatten(1)
        for name, layer in layers.items()
    }


def refactor(layers, seed=0):
    """The same changes from other factors: B R and R^-1 A."""
    draw, result = torch.Generator().manual_seed(seed), {}
    for name, layer in layers.items():
        change = torch.randn(layer.rank, layer.rank, generator=draw, dtype=torch.float64) + 2 * torch.eye(layer.rank)
        down = torch.linalg.solve(change, layer.down.double().flatten(1)).reshape(layer.down.shape)
        up = (layer.up.double().flatten(1) @ change).reshape(layer.up.shape)
        result[name] = LoraLayer(down.float(), up.float(), layer.scale)
    return result


def pad_rank(layers, rank):
    """The same changes with rows of zeros up to `rank`; the scale stays what it was."""
    result = {}
    for name, layer in layers.items():
        down, up = torch.zeros(rank, *layer.down.shape[1:]), torch.zeros(len(layer.up), rank, *layer.up.shape[2:])
        down[: layer.rank], up[:, : layer.rank] = layer.down, layer.up
        result[name] = LoraLayer(down, up, layer.scale)
    return result
