"""Everything in core that changes a MODEL: all its nodes that take one and give one, and all entries of a MODEL's options.

Nodes are found in ComfyUI's own list and called with their defaults, moved off values that change nothing; what a node needs beside a MODEL
comes from `Parts`, by its type. Entries without a node of their own are set as packs set them.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Settings that reach what the nodes are for in networks as small as these, and in batches of a few rows.
SETTINGS: dict[str, dict[str, Any]] = {
    "ContextWindowsManual": {"context_length": 2, "context_overlap": 0, "dim": 0},
    "HyperTile": {"tile_size": 64},
    "SkipLayerGuidanceDiT": {"double_layers": "0", "single_layers": "0"},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "0", "single_layers": "0"},
    "PatchModelAddDownscale": {"block_number": 1},
    "CFGOverride": {"cfg": 2.0},
}
# Compiling is not a change; tests hold it, and it takes a compiler.
LEFT_OUT = ("TorchCompileModel",)
NOT_AT_ONE = 0.7


@dataclass(frozen=True)
class Parts:
    """What nodes need beside a MODEL, by the type of their input; files: names for inputs that choose a file."""

    of_type: Mapping[str, Any]
    files: Mapping[str, str]


class Needs(Exception):
    """A node needs an input that belongs to other networks."""


Patch = Callable[[Any, Parts], Any]


def core_nodes() -> dict[str, Patch]:
    """By name, every node of core that takes a MODEL and gives one. Raises Needs when such a node cannot be called."""
    import nodes

    asyncio.run(nodes.init_builtin_extra_nodes())
    found = {}
    for name, node in sorted(nodes.NODE_CLASS_MAPPINGS.items()):
        if node.__module__ != "nodes" and "comfy_extras" not in node.__module__:
            continue
        inputs = node.INPUT_TYPES()
        if "MODEL" in node.RETURN_TYPES and any(kind == "MODEL" for kind, _ in _inputs(inputs).values()) and name not in LEFT_OUT:
            found[name] = _calling(name, node, inputs)
    return found


def _inputs(inputs: Mapping) -> dict[str, tuple[Any, Mapping]]:
    described = {**inputs.get("required", {}), **inputs.get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in described.items()}


def _calling(name: str, node: Any, inputs: Mapping) -> Patch:
    def patch(model: Any, parts: Parts) -> Any:
        given, seen = {}, False
        for label, (kind, options) in _inputs(inputs).items():
            if label in parts.files:
                given[label] = parts.files[label]
            elif kind == "MODEL":
                given[label], seen = (parts.of_type["MODEL"] if seen else model), True
            else:
                value = SETTINGS.get(name, {}).get(label, _value(label, kind, options, parts, label in inputs.get("required", {})))
                if value is not None:
                    given[label] = value
        output = getattr(node(), node.FUNCTION)(**given)
        return output[list(node.RETURN_TYPES).index("MODEL")]

    return patch


def _value(label: str, kind: Any, options: Mapping, parts: Parts, required: bool) -> Any:
    if isinstance(kind, list) or kind == "COMBO":
        choices = kind if isinstance(kind, list) else options.get("options", ())
        return options.get("default", choices[0] if choices else None)
    if kind == "FLOAT":
        return NOT_AT_ONE if options.get("default", 1.0) == 1.0 and options.get("min", 0) <= NOT_AT_ONE else options["default"]
    if kind in ("INT", "STRING", "BOOLEAN"):
        return options.get("default", {"INT": 1, "STRING": "", "BOOLEAN": False}[kind])
    if kind in parts.of_type:
        return parts.of_type[kind]
    if required:
        raise Needs(kind)
    return None


def _scaled(x: Tensor, *_: Any) -> Tensor:
    return x * 0.9


def _attended(query: Tensor, key: Tensor, value: Tensor, extra: Mapping) -> Tensor:
    from comfy.ldm.modules.attention import optimized_attention

    return optimized_attention(query * 0.9, key, value, extra["n_heads"], attn_precision=extra["attn_precision"])


def _block_replaced(args: Mapping, extra: Mapping) -> Mapping:
    return {name: part * 0.9 if name == "img" else part for name, part in extra["original_block"](args).items()}


def _in_windows(apply_model: Callable, args: Mapping) -> Tensor:
    """As packs that tile: the two halves of the picture, one after the other."""
    halves = [apply_model(half, args["timestep"], **args["c"]) for half in args["input"].chunk(2, dim=-1)]
    return torch.cat(halves, dim=-1)


def _rows_apart(apply_model: Callable, args: Mapping) -> Tensor:
    """As packs that save memory: every row by itself."""
    x, c = args["input"], args["c"]
    parts = []
    for row in range(x.shape[0]):
        own = {name: value[row : row + 1] if isinstance(value, Tensor) else value for name, value in c.items()}
        own["transformer_options"] = {**c["transformer_options"], "cond_or_uncond": [0]}
        parts.append(apply_model(x[row : row + 1], args["timestep"][row : row + 1], **own))
    return torch.cat(parts)


def _tiles_batched(apply_model: Callable, args: Mapping) -> Tensor:
    """As packs that batch tiles: the two halves of the picture in one call."""
    c = {name: value.repeat(2, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value for name, value in args["c"].items()}
    halves = apply_model(torch.cat(args["input"].chunk(2, dim=-1)), args["timestep"].repeat(2), **c)
    return torch.cat(halves.chunk(2), dim=-1)


def _overridden(attention: Callable, query: Tensor, *args: Any, **options: Any) -> Tensor:
    return attention(query * 0.9, *args, **options)


# By the entry's name in a MODEL's options; each sets it on a clone.
ENTRIES: dict[str, Callable[[Any], None]] = {
    "sampler_cfg_function": lambda m: m.set_model_sampler_cfg_function(lambda args: args["cond"] * 0.9, True),
    "sampler_pre_cfg_function": lambda m: m.set_model_sampler_pre_cfg_function(lambda args: [x * 0.9 for x in args["conds_out"]], True),
    "sampler_post_cfg_function": lambda m: m.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.9, True),
    "sampler_calc_cond_batch_function": lambda m: m.set_model_sampler_calc_cond_batch_function(
        lambda args: [torch.zeros_like(args["input"]) for _ in args["conds"]]
    ),
    "denoise_mask_function": lambda m: m.set_model_denoise_mask_function(lambda sigma, mask, extra_options: mask * 0.9),
    "model_function_wrapper, tiles": lambda m: m.set_model_unet_function_wrapper(_in_windows),
    "model_function_wrapper, tiles in one batch": lambda m: m.set_model_unet_function_wrapper(_tiles_batched),
    "model_function_wrapper, rows apart": lambda m: m.set_model_unet_function_wrapper(_rows_apart),
    "patches: attn1_patch": lambda m: m.set_model_attn1_patch(lambda q, k, v, extra: (q, k * 0.9, v)),
    "patches: attn2_patch": lambda m: m.set_model_attn2_patch(lambda q, k, v, extra: (q, k * 0.9, v)),
    "patches: attn1_output_patch": lambda m: m.set_model_attn1_output_patch(_scaled),
    "patches: attn2_output_patch": lambda m: m.set_model_attn2_output_patch(_scaled),
    "patches: input_block_patch": lambda m: m.set_model_input_block_patch(_scaled),
    "patches: input_block_patch_after_skip": lambda m: m.set_model_input_block_patch_after_skip(_scaled),
    "patches: middle_block_after_patch": lambda m: m.set_model_middle_block_after_patch(lambda args: {"h": args["h"] * 0.9}),
    "patches: output_block_patch": lambda m: m.set_model_output_block_patch(lambda h, skip, extra: (h * 0.9, skip)),
    "patches: emb_patch": lambda m: m.set_model_emb_patch(_scaled),
    "patches: forward_timestep_embed_patch": lambda m: m.set_model_forward_timestep_embed_patch((torch.nn.GELU, lambda *args: args[1])),
    "patches: post_input": lambda m: m.set_model_post_input_patch(lambda args: {**args, "img": args["img"] * 0.9}),
    "patches: double_block": lambda m: m.set_model_double_block_patch(lambda args: {**args, "img": args["img"] * 0.9}),
    "patches: noise_refiner": lambda m: m.set_model_noise_refiner_patch(lambda args: args),
    "patches_replace: attn1": lambda m: m.set_model_attn1_replace(_attended, "middle", 0),
    "patches_replace: attn2": lambda m: m.set_model_attn2_replace(_attended, "middle", 0),
    "patches_replace: dit": lambda m: m.set_model_patch_replace(_block_replaced, "dit", "double_block", 0),
    "rope_options": lambda m: m.set_model_rope_options(0.9, 0.0, 0.9, 0.0, 1.0, 0.0),
    "compute dtype": lambda m: m.set_model_compute_dtype(torch.float64),
    "optimized_attention_override": lambda m: m.model_options["transformer_options"].update(optimized_attention_override=_overridden),
}


def entries() -> dict[str, Patch]:
    """By name, everything that packs put into a MODEL's options."""

    def setting(put: Callable[[Any], None]) -> Patch:
        def patch(model: Any, parts: Parts) -> Any:
            clone = model.clone()
            put(clone)
            return clone

        return patch

    return {name: setting(put) for name, put in ENTRIES.items()}


def other_model(model: Any) -> Any:
    """The same network with other weights, for nodes that merge two."""
    other = model.clone()
    draw = torch.Generator().manual_seed(5)
    weights = {key: value for key, value in model.model_state_dict("diffusion_model.").items() if value.is_floating_point()}
    other.add_patches(
        {key: (torch.randn(value.shape, generator=draw) * value.float().std().nan_to_num(0) * 0.1,) for key, value in weights.items()}
    )
    return other


def plain_lora(model: Any, rank: int = 2) -> dict[str, Tensor]:
    """A LoRA of the network's attention under the names that core knows for every network."""
    draw = torch.Generator().manual_seed(6)
    state = {}
    for key, weight in model.model_state_dict("diffusion_model.").items():
        name = key.removesuffix(".weight")
        if name != key and weight.ndim == 2 and any(part in name for part in ("attn", "attention", "linear1")):
            outputs, inputs = weight.shape
            state[f"{name}.lora_up.weight"] = torch.randn(outputs, rank, generator=draw) * 0.05
            state[f"{name}.lora_down.weight"] = torch.randn(rank, inputs, generator=draw) * 0.05
    return state


def write_hypernetwork(path: Path, widths: tuple[int, ...]) -> None:
    """A hypernetwork for attention inputs of these widths."""
    draw = torch.Generator().manual_seed(7)

    def layers(width: int) -> dict[str, Tensor]:
        return {"linear.0.weight": torch.randn(width, width, generator=draw) * 0.05, "linear.0.bias": torch.zeros(width)}

    whole: dict[Any, Any] = {width: (layers(width), layers(width)) for width in widths}
    torch.save({**whole, "activation_func": "linear", "is_layer_norm": False, "use_dropout": False, "activate_output": False}, path)
