"""The pack beside everything in core that changes a MODEL, before and after its own nodes.

    python -m intrinsic_lab.benchmarks.core_patches

On the bundled nano models, for every node of core that takes a MODEL and gives one and for every entry of a MODEL's options
(`core_model_patches`):

* Extract: two maps in one forward, a LoRA per row, against core running the MODEL with each LoRA merged. The single step has no guidance,
  so nothing that acts on guidance may act on it: core is asked without (`_network_alone`).
* I-LDM at schedule 0: picture rows against core's sampling of the same rows.
* LumiX at strength 0: the colour map against core's sampling of the same rows.

Each has to be equal to core under the same change, to float32's rounding, or to refuse in words. A cell that is neither is an error, and
the command then ends with 1.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .core_model_patches import LEFT_OUT, Needs, Parts, Patch, core_nodes, entries, other_model, plain_lora, write_hypernetwork
from .extraction_cost import start_comfyui
from .measuring import RESULTS, ROOT, keep_result, markdown_table

NAME = "core_patches"
ASSETS = ROOT / "assets"
# Relative, of float32 through a few steps; what a change moves is larger.
LARGEST_ERROR = 1e-4
SEED, STEPS, CFG, SIDE = 7, 2, 2.5, 16
MAPS = ("normal", "depth")
EQUAL, OWN, REFUSED, CORE_STOPS, OTHER, WRONG = "as without", "as core", "refused", "core stops", "other networks", "WRONG"
# Of guidance and of the choice of rows: the single step has neither.
GUIDANCE = ("sampler_", "denoise_mask_function", "disable_cfg1_optimization", "context_handler")


@dataclass(frozen=True)
class Method:
    """One of the pack's methods on a MODEL, and what core makes of the same. apply: its nodes. ours, core: of a patched MODEL."""

    name: str
    plain: Any
    parts: Parts
    apply: Callable[[Any], Any]
    ours: Callable[[Any], Tensor]
    core: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Cell:
    """What a change does to a method. effect: how far core's result moves; error: ours from core's; both relative."""

    verdict: str
    words: str = ""
    effect: float = 0.0
    error: float = 0.0


def relative_error(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def judge(method: Method, patch: Patch, unchanged: Tensor) -> dict[str, Cell]:
    """Before and after the method's own nodes. unchanged: core's result without the change."""
    try:
        changed = method.core(patch(method.plain, method.parts))
    except Needs as need:
        cell = Cell(OTHER, f"needs {need}")
        return {"before": cell, "after": cell}
    except Exception as error:
        cell = Cell(CORE_STOPS, f"{type(error).__name__}: {error}")
        return {"before": cell, "after": cell}
    orders = {
        "before": lambda: method.apply(patch(method.plain, method.parts)),
        "after": lambda: patch(method.apply(method.plain), method.parts),
    }
    return {order: _cell(method, make, changed, relative_error(changed, unchanged)) for order, make in orders.items()}


def _cell(method: Method, make: Callable[[], Any], changed: Tensor, effect: float) -> Cell:
    try:
        found = method.ours(make())
    except ValueError as error:
        return Cell(REFUSED, str(error), effect)
    except Exception as error:
        return Cell(WRONG, f"{type(error).__name__}: {error}", effect)
    error = relative_error(found, changed)
    # NaN is no agreement.
    if not error < LARGEST_ERROR:
        return Cell(WRONG, f"{error:.1e} from core", effect, error)
    return Cell(EQUAL if effect < LARGEST_ERROR else OWN, "", effect, error)


def _parts(pipeline: Any, files: dict[str, str]) -> Parts:
    context = pipeline.clip.encode_from_tokens_scheduled(pipeline.clip.tokenize(""))
    return Parts(
        {
            "MODEL": other_model(pipeline.model),
            "CLIP": pipeline.clip,
            "CONDITIONING": context,
            "LATENT_OPERATION": lambda latent, **options: latent * 0.9,
            "LORA_MODEL": plain_lora(pipeline.model),
            "LATENT": {"samples": torch.zeros(1, 16, SIDE, SIDE)},
        },
        files,
    )


def _noise(rows: int, pictures: int) -> Tensor:
    return torch.randn(pictures, 16, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED)).repeat(rows // pictures, 1, 1, 1)


def _sampled(model: Any, pipeline: Any, rows: int, pictures: int, guidance: float | None = None) -> Tensor:
    """What KSampler gives for rows that share the noise of their picture."""
    import comfy.sample
    import node_helpers

    prompts = [pipeline.clip.encode_from_tokens_scheduled(pipeline.clip.tokenize(text)) for text in ("a red ball", "")]
    if guidance is not None:
        prompts = [node_helpers.conditioning_set_values(prompt, {"guidance": guidance}) for prompt in prompts]
    latent = torch.zeros(rows, 16, SIDE, SIDE)
    torch.manual_seed(SEED)
    return comfy.sample.sample(model, _noise(rows, pictures), STEPS, CFG, "euler", "normal", *prompts, latent, disable_pbar=True, seed=SEED)


def _network_alone(model: Any, timestep: float, latent: Tensor, prompt: list) -> Tensor:
    """Core's own network on a latent at a timestep, through one step of core's sampler, with guidance taken out of the MODEL's options."""
    import comfy.samplers
    from comfy.patcher_extension import WrappersMP

    from ..nodes.native.backbones.unet import ImageToImage

    clone = model.clone()
    clone.add_object_patch("model_sampling", ImageToImage(clone.model.model_config))
    clone.model_options = {name: value for name, value in clone.model_options.items() if not name.startswith(GUIDANCE)}
    left_out = (WrappersMP.PREDICT_NOISE, WrappersMP.SAMPLER_SAMPLE)
    clone.wrappers = {kind: by_key for kind, by_key in clone.wrappers.items() if kind not in left_out}
    sigma = clone.get_model_object("model_sampling").sigma(torch.tensor([timestep]))

    def once(denoise: Callable, x: Tensor, sigmas: Tensor, extra_args: dict, **options: Any) -> Tensor:
        return denoise(clone.model.process_latent_in(latent), sigmas[:1].expand(len(latent)), **extra_args)

    guider = comfy.samplers.CFGGuider(clone)
    guider.set_conds(prompt, prompt)
    sigmas = torch.cat([sigma, torch.zeros(1)])
    torch.manual_seed(SEED)
    return guider.sample(torch.zeros_like(latent), latent, comfy.samplers.KSAMPLER(once), sigmas, disable_pbar=True)


def extract_method(pipeline: Any, files: dict[str, str]) -> Method:
    import comfy.sd
    import comfy.utils

    from ..methods.intrinsic_lora.recipe import Recipe
    from ..methods.maps import MAPS as TABLE
    from ..nodes.extract import ApplyIntrinsicLoRA
    from ..nodes.native.batch_rows.row_lora import carried_maps
    from ..nodes.native.joint_sampling.single_step import make_generator
    from ..nodes.native.lora_library.files import BUNDLED_MARK

    latent = _noise(2, 2)
    loras = {name: comfy.utils.load_torch_file(str(ASSETS / f"nano_{name}.safetensors")) for name in MAPS}
    recipes: dict[str, Recipe] = {}

    def apply(model: Any) -> Any:
        for name in MAPS:
            model = ApplyIntrinsicLoRA.execute(model, f"nano/{name}{BUNDLED_MARK}", name, 1.0)[0]
        recipes.update({name: carried.recipe for name, carried in carried_maps(model).items()})
        return model

    def ours(model: Any) -> Tensor:
        generator = make_generator(model, pipeline.clip, pipeline.vae, recipes, assign=True)
        rows = [row for row in range(len(MAPS)) for _ in latent]
        torch.manual_seed(SEED)
        return generator.predict(latent.repeat(len(MAPS), 1, 1, 1), rows)

    def core(model: Any) -> Tensor:
        maps = []
        for name, lora in loras.items():
            merged = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
            prompt = pipeline.clip.encode_from_tokens_scheduled(pipeline.clip.tokenize(TABLE[name].prompt))
            maps.append(_network_alone(merged, 999.0, latent, prompt))
        return torch.cat(maps)

    return Method("Extract", pipeline.model, _parts(pipeline, files), apply, ours, core)


def ildm_method(pipeline: Any, files: dict[str, str]) -> Method:
    from ..methods.ildm.schedules import constant_schedule
    from ..nodes.ildm import NO_LORA, CrossDomainAttention
    from ..nodes.native.lora_library.files import BUNDLED_MARK

    def apply(model: Any) -> Any:
        return CrossDomainAttention.execute(model, constant_schedule(0.0), "nano/ildm" + BUNDLED_MARK, 1.0, NO_LORA)[0]

    return Method(
        "I-LDM at schedule 0",
        pipeline.model,
        _parts(pipeline, files),
        apply,
        lambda model: _sampled(model, pipeline, 4, 2)[:2],
        # As many rows: some guidance goes by a row's place in the batch (VideoLinearCFGGuidance).
        lambda model: _sampled(model, pipeline, 4, 2)[:2],
    )


def lumix_method(pipeline: Any, files: dict[str, str]) -> Method:
    from ..methods.lumix.design import COLOR, MAP_NAMES
    from ..nodes.lumix import AS_TRAINED, ApplyTensorLoRA
    from ..nodes.native.lora_library.files import BUNDLED_MARK

    count, color = len(MAP_NAMES), MAP_NAMES.index(COLOR)

    def rows(model: Any) -> Tensor:
        return _sampled(model, pipeline, count, 1, guidance=3.5)[color : color + 1]

    def apply(model: Any) -> Any:
        return ApplyTensorLoRA.execute(model, "nano/lumix" + BUNDLED_MARK, 0.0, AS_TRAINED)[0]

    return Method("LumiX at strength 0", pipeline.model, _parts(pipeline, files), apply, rows, rows)


def methods(folder: Path) -> list[Method]:
    """All three on the bundled models; files that nodes choose from are written to `folder`."""
    import folder_paths
    from safetensors.torch import save_file

    from ..nodes.native.loading.diffusers_folder import load_pipeline

    made = []
    for name, kinds in (("nano", (extract_method, ildm_method)), ("nano_flux", (lumix_method,))):
        pipeline = load_pipeline(ASSETS / name, dtype=torch.float32, text_dtype=torch.float32)
        save_file(plain_lora(pipeline.model), folder / f"{name}.safetensors")
        write_hypernetwork(folder / "hypernetwork.pt", (64, 128))
        for kind, endings in (("loras", {".safetensors"}), ("hypernetworks", {".pt"})):
            folder_paths.folder_names_and_paths[kind] = ([str(folder)], endings)
        files = {"lora_name": f"{name}.safetensors", "hypernetwork_name": "hypernetwork.pt"}
        made += [kind(pipeline, files) for kind in kinds]
    return made


def judge_all(found: Iterable[Method], patches: dict[str, Patch], progress: Callable[[str], None] = lambda text: None) -> dict[str, dict]:
    """By change, by method, by order: the cells."""
    cells: dict[str, dict] = {name: {} for name in patches}
    for method in found:
        unchanged = method.core(method.plain)
        if (error := relative_error(method.ours(method.apply(method.plain)), unchanged)) > LARGEST_ERROR:
            raise RuntimeError(f"{method.name} is {error} from core where nothing is changed: nothing is reported.")
        for name, patch in patches.items():
            progress(f"{method.name}: {name}")
            cells[name][method.name] = judge(method, patch, unchanged)
    return cells


def report(cells: dict[str, dict]) -> str:
    names = list(next(iter(cells.values())))
    head = ["in core", *(f"{name}, {order}" for name in names for order in ("before", "after"))]
    rows = [
        [name, *(of_method[method][order].verdict for method in names for order in ("before", "after"))]
        for name, of_method in cells.items()
    ]
    counts = Counter(cell.verdict for cell in _all(cells))
    worst = max((cell.error for cell in _all(cells) if cell.verdict in (EQUAL, OWN)), default=0.0)
    words = sorted({cell.words for cell in _all(cells) if cell.verdict == REFUSED})
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    lines = [markdown_table(head, rows), "", f"{len(cells)} changes: {told}; largest difference from core where equal {worst:.1e}."]
    lines += ["", "Refused in these words:", "", *(f"* {text}" for text in words)]
    wrong = [
        f"* {name}, {method}, {order}: {c.words}"
        for name, of in cells.items()
        for method, cs in of.items()
        for order, c in cs.items()
        if c.verdict == WRONG
    ]
    return "\n".join([*lines, *(["", "Wrong:", "", *wrong] if wrong else [])])


def _all(cells: dict[str, dict]) -> list[Cell]:
    return [cell for of_method in cells.values() for by_order in of_method.values() for cell in by_order.values()]


def _recorded() -> dict[str, dict]:
    changes = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))["changes"]
    return {
        change: {method: {order: Cell(**cell) for order, cell in by_order.items()} for method, by_order in of_method.items()}
        for change, of_method in changes.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="the changes whose names hold one of these; the others stay as they are recorded"
    )
    only = parser.parse_args().only
    start_comfyui()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        found = methods(Path(name))
        patches = {name: patch for name, patch in (core_nodes() | entries()).items() if not only or any(word in name for word in only)}
        cells = judge_all(found, patches, lambda text: print(text, file=sys.stderr))
    cells = (_recorded() if only else {}) | cells
    record = {
        change: {method: {order: vars(cell) for order, cell in by_order.items()} for method, by_order in of_method.items()}
        for change, of_method in cells.items()
    }
    keep_result(NAME, report(cells), {"left out": LEFT_OUT, "changes": record})
    if any(cell.verdict == WRONG for cell in _all(cells)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
