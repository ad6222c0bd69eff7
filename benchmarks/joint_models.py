"""Joint rows on the transformers of 2026, beside what else people put on a MODEL.

    python -m intrinsic_lab.benchmarks.joint_models

On a small random network of each kind, by core's own class, under each change (`SITUATIONS`):

* I-LDM at schedule 0: picture rows against core's sampling of the same rows.
* Maps joined by query broadcast: the colour map against core's sampling of the same rows.

Each has to be equal to core under the same change, to float32's rounding, or to refuse in words; a cell that is neither ends the command
with 1. Changes are made before the pack's nodes and after them. "no effect": core's result does not move, "core stops": core alone cannot
do it, "-": core has no such thing.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .core_model_patches import Needs, Parts, Patch, core_nodes, entries, plain_lora
from .core_patches import CORE_STOPS, EQUAL, LARGEST_ERROR, OTHER, OWN, REFUSED, SEED, WRONG, Cell, Method, judge, relative_error
from .extraction_cost import start_comfyui
from .measuring import keep_result, markdown_table

STEPS, CFG, HEIGHT, WIDTH, TEXT = 2, 2.5, 8, 12, 9
# What a change adds to prompts travels with the MODEL.
PROMPT = "benchmark.prompt"
# Changes the way to a result, not the result.
UNSEEN = "SageAttention (an override)"
SHIFT = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
BY_SIZE = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9}


@dataclass(frozen=True)
class Tiny:
    """A small transformer in diffusers' config; text: numbers of a token."""

    network: str
    config: dict
    schedule: dict
    text: int = 32
    pooled: int = 0
    channels: int = 16


_SD3 = dict(sample_size=16, patch_size=2, in_channels=16, out_channels=16, attention_head_dim=64, num_attention_heads=2, qk_norm="rms_norm")
_SD3 |= dict(joint_attention_dim=4096, caption_projection_dim=128, pooled_projection_dim=2048, pos_embed_max_size=12, num_layers=2)
_FLUX = dict(num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32)
NETWORKS = {
    "FLUX.1": Tiny(
        "FluxTransformer2DModel",
        _FLUX | dict(in_channels=64, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 6, 6)),
        BY_SIZE,
        pooled=32,
    ),
    "FLUX.2": Tiny("Flux2Transformer2DModel", _FLUX | {"in_channels": 32, "axes_dims_rope": (4, 4, 4, 4)}, BY_SIZE, channels=32),
    "SD 3.5": Tiny("SD3Transformer2DModel", _SD3 | {"dual_attention_layers": (0,)}, SHIFT, text=4096, pooled=2048),
    "Qwen-Image": Tiny(
        "QwenImageTransformer2DModel",
        dict(num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 6, 6)),
        BY_SIZE,
    ),
    "Z-Image": Tiny(
        "ZImageTransformer2DModel",
        dict(dim=48, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32, axes_dims=[8, 8, 8]),
        SHIFT,
    ),
    "Lumina 2": Tiny(
        "Lumina2Transformer2DModel",
        dict(in_channels=16, hidden_size=48, num_layers=2, num_refiner_layers=1, num_attention_heads=4, num_kv_heads=2, multiple_of=16)
        | {"axes_dim_rope": (4, 4, 4), "axes_lens": (300, 64, 64), "cap_feat_dim": 32},
        SHIFT,
    ),
}


def build(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The MODEL of a small random network, its norms and biases moved off where they begin."""
    import comfy.latent_formats
    import diffusers

    from ..nodes.native.backbones import BACKBONES, FAMILIES
    from ..nodes.native.backbones.backbone import LoadRequest
    from ..nodes.native.loading.latent_format import AnyLatent

    tiny = NETWORKS[name]
    torch.manual_seed(0)
    network = getattr(diffusers, tiny.network)(**tiny.config)
    for parameter in network.parameters():
        parameter.data += (0.1 if parameter.ndim == 1 else 0.02) * torch.randn(parameter.shape)
    network.save_pretrained(folder / "transformer")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(tiny.schedule))
    config = json.loads((folder / "transformer/config.json").read_text())
    backbone, family = next((backbone, family) for backbone in BACKBONES if (family := backbone.family_of(config)))
    latent_format = comfy.latent_formats.Wan21() if name == "Qwen-Image" else AnyLatent(tiny.channels, 1.0, 0.0, 8)
    return backbone.load(LoadRequest(folder, FAMILIES[family], latent_format, dtype))


def noise(tiny: Tiny, rows: int, pictures: int) -> Tensor:
    draw = torch.Generator().manual_seed(SEED)
    return torch.randn(pictures, tiny.channels, HEIGHT, WIDTH, generator=draw).repeat(rows // pictures, 1, 1, 1)


def sampled(model: Any, tiny: Tiny, rows: int, pictures: int) -> Tensor:
    """What KSampler gives for rows that share the noise of their picture, with what the MODEL says of its prompts."""
    import comfy.sample

    draw = torch.Generator().manual_seed(SEED + 1)
    prompts = []
    for _ in range(2):
        extra = {"pooled_output": torch.randn(1, tiny.pooled, generator=draw)} if tiny.pooled else {}
        prompts.append([[torch.randn(1, TEXT, tiny.text, generator=draw), extra]])
    change = model.get_attachment(PROMPT)
    if change is not None:
        prompts = [change(prompt) for prompt in prompts]
    latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(rows, tiny.channels, HEIGHT, WIDTH))
    start = noise(tiny, rows, pictures).reshape(latent.shape)
    return comfy.sample.sample(model, start, STEPS, CFG, "euler", "normal", *prompts, latent, disable_pbar=True, seed=SEED)


def methods(name: str, model: Any, files: dict[str, str]) -> list[Method]:
    from ..methods.ildm.schedules import constant_schedule
    from ..methods.lumix.design import COLOR, MAP_NAMES
    from ..nodes.ildm import NO_LORA, CrossDomainAttention
    from ..nodes.lumix import JoinMaps

    tiny, count, color = NETWORKS[name], len(MAP_NAMES), MAP_NAMES.index(COLOR)
    parts = Parts({"LORA_MODEL": plain_lora(model)}, files)

    def pictures(model: Any) -> Tensor:
        return sampled(model, tiny, 4, 2)[:2]

    def color_map(model: Any) -> Tensor:
        return sampled(model, tiny, count, 1)[color : color + 1]

    def exchange(model: Any) -> Any:
        return CrossDomainAttention.execute(model, constant_schedule(0.0), NO_LORA, 1.0, NO_LORA)[0]

    def join(model: Any) -> Any:
        return JoinMaps.execute(model, "query-broadcast", ", ".join(MAP_NAMES))[0]

    return [
        Method("I-LDM", model, parts, exchange, pictures, pictures),
        Method("maps", model, parts, join, color_map, color_map),
    ]


def _with_prompt(change: Callable[[list], list]) -> Patch:
    def patch(model: Any, parts: Parts) -> Any:
        clone = model.clone()
        clone.set_attachments(PROMPT, change)
        return clone

    return patch


def _smoothed(function: Callable, query: Tensor, key: Tensor, *args: Any, **options: Any) -> Tensor:
    """As SageAttention begins: keys without their mean, which no softmax sees; the rest in torch's own attention."""
    axis = 2 if options.get("skip_reshape") else 1
    return function(query, key - key.mean(dim=axis, keepdim=True), *args, **options)


def _override(model: Any, parts: Parts) -> Any:
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = _smoothed
    return clone


def _packed(model: Any, parts: Parts) -> Any:
    """As GGUF loaders hold weights: whole numbers and a scale a row, unpacked in the layer's own forward."""
    import comfy.ops

    class Packed(comfy.ops.manual_cast.Linear):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.packed.to(x) * self.scale.to(x)
            return torch.nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x))

    network = model.model.diffusion_model
    for module in network.modules():
        if isinstance(module, torch.nn.Linear) and not hasattr(module, "packed"):
            scale = module.weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
            module.packed, module.scale = (module.weight / scale).round().to(torch.int8), scale
            module.__class__ = Packed
    return model.clone()


def _references(channels: int) -> Patch:
    import node_helpers

    draw = torch.Generator().manual_seed(9)
    latent = torch.randn(1, channels, HEIGHT, HEIGHT, generator=draw)

    def patch(model: Any, parts: Parts) -> Any:
        given = latent.unsqueeze(2) if model.get_model_object("latent_format").latent_dimensions == 3 else latent
        values = {"reference_latents": [given]}
        return _with_prompt(lambda prompt: node_helpers.conditioning_set_values(prompt, values))(model, parts)

    return patch


def _text_mask(prompt: list) -> list:
    """The last tokens of the text are none."""
    mask = torch.ones(1, TEXT)
    mask[:, -3:] = 0
    return [[text, {**extra, "attention_mask": mask}] for text, extra in prompt]


def control_network(name: str, model: Any) -> Any:
    """Core's ControlNet of a kind of network, small and random. Raises Needs where core has none."""
    import comfy.cldm.mmdit
    import comfy.ldm.flux.controlnet
    import comfy.ldm.qwen_image.controlnet
    import comfy.model_management
    import comfy.ops
    from comfy.controlnet import ControlNet

    config = {key: value for key, value in model.model.model_config.unet_config.items() if key not in ("image_model", "num_blocks")}
    config["dtype"] = torch.float32
    options = {"operations": comfy.ops.disable_weight_init, "device": "cpu"}
    torch.manual_seed(1)
    if name == "FLUX.1":
        made = comfy.ldm.flux.controlnet.ControlNetFlux(latent_input=True, control_latent_channels=16, **config, **options)
    elif name == "SD 3.5":
        made = comfy.cldm.mmdit.ControlNet(num_blocks=2, **config, **options)
    elif name == "Qwen-Image":
        made = comfy.ldm.qwen_image.controlnet.QwenImageControlNetModel(extra_condition_channels=0, **config, **options)
    else:
        raise Needs("a ControlNet, and core has none")
    # Buffers of positions are empty until a file fills them.
    for values in (*made.parameters(), *(buffer for buffer in made.buffers() if buffer.is_floating_point())):
        values.data.normal_(std=0.1)
    extra = {"FLUX.1": ["y", "guidance"], "SD 3.5": ["y"]}.get(name, [])
    return ControlNet(made, compression_ratio=1, load_device=comfy.model_management.get_torch_device(), extra_conds=extra)


def _control(name: str) -> Patch:
    def patch(model: Any, parts: Parts) -> Any:
        hint = torch.randn(1, NETWORKS[name].channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
        five = model.get_model_object("latent_format").latent_dimensions == 3
        network = control_network(name, model)

        def controlled(prompt: list) -> list:
            net = network.copy().set_cond_hint(hint.unsqueeze(2) if five else hint, 1.0, (0.0, 1.0))
            return [[text, {**extra, "control": net, "control_apply_to_uncond": False}] for text, extra in prompt]

        return _with_prompt(controlled)(model, parts)

    return patch


def situations(name: str) -> dict[str, Patch]:
    """By name: what is put on a MODEL of this kind, or on its prompts."""
    core, entry = core_nodes(), entries()
    return {
        "a LoRA (LoraLoader)": core["LoraLoaderModelOnly"],
        UNSEEN: _override,
        "an override that changes the result": entry["optimized_attention_override"],
        "patches of a block's attention": _attention_patches,
        "a block replaced around core's": entry["patches_replace: dit"],
        "patches after blocks": entry["patches: double_block"],
        "Context Windows over rows": core["ContextWindowsManual"],
        "rows apart (a wrapper)": entry["model_function_wrapper, rows apart"],
        "ControlNet": _control(name),
        "reference latents (Kontext, edit)": _references(NETWORKS[name].channels),
        "a text mask": _with_prompt(_text_mask),
        "rope scaled": entry["rope_options"],
    }


def _attention_patches(model: Any, parts: Parts) -> Any:
    def scaled(q: Tensor, k: Tensor, v: Tensor, pe: Any = None, attn_mask: Any = None, extra_options: Any = None) -> dict:
        return {"q": q, "k": k * 0.9, "v": v}

    clone = model.clone()
    clone.set_model_attn1_patch(scaled)
    clone.set_model_attn1_output_patch(lambda x, extra: x * 0.9)
    return clone


def weights(name: str, folder: Path) -> dict[str, Callable[[], Any]]:
    """By name, ways to hold the weights."""
    parts = Parts({}, {})
    return {
        "fp8 weights": lambda: build(name, folder, torch.float8_e4m3fn),
        "packed weights (GGUF)": lambda: _packed(build(name, folder), parts),
    }


def judge_network(name: str, folder: Path, files: dict[str, str]) -> dict[str, dict[str, dict[str, Cell]]]:
    """By situation, by method, by order: the cells."""
    cells: dict[str, dict[str, dict[str, Cell]]] = {}
    for label, make in {"plain": lambda: build(name, folder), **weights(name, folder)}.items():
        for method in methods(name, make(), files):
            error = relative_error(method.ours(method.apply(method.plain)), method.core(method.plain))
            cell = Cell(EQUAL if error < LARGEST_ERROR else WRONG, f"{error:.1e} from core", 0.0, error)
            cells.setdefault(label, {})[method.name] = {"before": cell}
    for method in methods(name, build(name, folder), files):
        unchanged = method.core(method.plain)
        for label, patch in situations(name).items():
            print(f"{name}, {method.name}: {label}", file=sys.stderr)
            judged = judge(method, patch, unchanged)
            if label == UNSEEN:
                judged = {order: replace(cell, words=cell.words or "as without") for order, cell in judged.items()}
            cells.setdefault(label, {})[method.name] = judged
    return cells


def shown(by_method: Mapping[str, Mapping[str, Cell]]) -> str:
    """One word for a network and a situation, or what differs."""
    words = {verdict(cell) for by_order in by_method.values() for cell in by_order.values()}
    if len(words) == 1:
        return words.pop()
    return "; ".join(f"{name} {'/'.join(dict.fromkeys(map(verdict, by_order.values())))}" for name, by_order in by_method.items())


def verdict(cell: Cell) -> str:
    return {
        EQUAL: "works" if cell.words else "no effect",
        OWN: "works",
        REFUSED: "refused",
        CORE_STOPS: "core stops",
        OTHER: "-",
        WRONG: "WRONG",
    }[cell.verdict]


def report(found: dict[str, dict]) -> str:
    labels = list(next(iter(found.values())))
    lines = [markdown_table(["", *found], [[label, *(shown(found[name][label]) for name in found)] for label in labels])]
    cells = [
        (name, label, method, order, cell)
        for name, by_label in found.items()
        for label, by_method in by_label.items()
        for method, by_order in by_method.items()
        for order, cell in by_order.items()
    ]
    worst = max(cell.error for *_, cell in cells if cell.verdict in (EQUAL, OWN))
    lines += ["", f"{len(cells)} cells; largest difference from core where it works {worst:.1e}.", ""]
    refused = sorted({cell.words for *_, cell in cells if cell.verdict == REFUSED})
    lines += ["Refused in these words:", "", *(f"* {words}" for words in refused)] if refused else []
    stops = sorted({f"{name}, {label}: {cell.words[:160]}" for name, label, _, _, cell in cells if cell.verdict == CORE_STOPS})
    lines += ["", "Where core stops by itself:", "", *(f"* {words}" for words in stops)] if stops else []
    wrong = [f"* {name}, {label}, {method}, {order}: {cell.words}" for name, label, method, order, cell in cells if cell.verdict == WRONG]
    return "\n".join([*lines, *(["", "Wrong:", "", *wrong] if wrong else [])])


def main() -> None:
    start_comfyui()
    logging.disable(logging.WARNING)
    import folder_paths
    from safetensors.torch import save_file

    found = {}
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        for name in NETWORKS:
            folder = Path(temporary) / name
            folder.mkdir()
            with torch.inference_mode(False), torch.no_grad():
                model = build(name, folder)
            save_file(plain_lora(model), folder / "lora.safetensors")
            folder_paths.folder_names_and_paths["loras"] = ([str(folder)], {".safetensors"})
            found[name] = judge_network(name, folder, {"lora_name": "lora.safetensors"})
    record = {
        name: {label: {m: {o: vars(cell) for o, cell in orders.items()} for m, orders in by.items()} for label, by in of.items()}
        for name, of in found.items()
    }
    keep_result("joint_models", report(found), record)
    if "WRONG" in report(found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
