"""A checkpoint in one file, written by core, is the same base as its diffusers folder: same parts, same LoRA."""

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import comfy.ops
import pytest
import safetensors.torch
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from intrinsic_lab.data import Pair
from intrinsic_lab.evaluate.predictions import ModelPredictions
from intrinsic_lab.tests.nodes.conftest import (
    CLIP_VOCABULARY,
    T5_VOCABULARY,
    _unet,
    edit_json,
    tiny_clip,
    tiny_schedule,
    tiny_vae,
    write_model_folder,
)
from intrinsic_lab.tests.nodes.test_backbones import PUBLISHED
from intrinsic_lab.tools.comfyui_source import find_comfyui
from intrinsic_lab.training.single_file import SingleFile, text_encoders
from intrinsic_lab.training.single_file.checkpoint import Checkpoint
from intrinsic_lab.training.single_file.flux import load_transformer
from intrinsic_lab.training.single_file.unet import load_unet

PROMPT = "a red cube, lit from the left"


# Heads of 64, as all published text encoders have.
clip = partial(tiny_clip, width=64, heads=1)


def sd15() -> tuple[dict, dict]:
    unet = _unet(widths=(32, 64), attention=(True, False), cross_attention_dim=64, attention_head_dim=8)
    return {"unet": unet, "vae": tiny_vae(), "text_encoder": clip("quick_gelu")}, tiny_schedule()


def sd21() -> tuple[dict, dict]:
    unet = _unet(widths=(64, 128), cross_attention_dim=64, attention_head_dim=(1, 2), use_linear_projection=True)
    return {"unet": unet, "vae": tiny_vae(), "text_encoder": clip("gelu")}, tiny_schedule()


def sdxl() -> tuple[dict, dict]:
    unet = _unet(
        widths=(32, 64, 128),
        attention=(False, True, True),
        transformer_layers_per_block=(1, 2, 3),
        cross_attention_dim=64 + 64,
        attention_head_dim=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=48 + 6 * 256,
    )
    texts = {"text_encoder": clip("quick_gelu"), "text_encoder_2": clip("gelu", projection=48)}
    return {"unet": unet, "vae": tiny_vae(scaling_factor=0.13025), **texts}, tiny_schedule()


def flux() -> tuple[dict, dict]:
    from diffusers import FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, num_attention_heads=1, joint_attention_dim=64, pooled_projection_dim=64
    )
    vae = tiny_vae(16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159)
    t5 = T5Config(vocab_size=T5_VOCABULARY, d_model=64, d_kv=64, d_ff=48, num_layers=1, num_heads=1, feed_forward_proj="gated-gelu")
    texts = {"text_encoder": clip("quick_gelu"), "text_encoder_2": T5EncoderModel(t5)}
    schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    return {"transformer": transformer.eval(), "vae": vae, **texts}, schedule


FAMILIES = {
    "sd15": (sd15, "StableDiffusionPipeline"),
    "sd21": (sd21, "StableDiffusionPipeline"),
    "sdxl": (sdxl, "StableDiffusionXLPipeline"),
    "flux": (flux, "FluxPipeline"),
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """family -> (diffusers folder with tokenizers, the same as a checkpoint that core wrote), made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(family: str) -> tuple[Path, Path]:
        if family not in made:
            made[family] = write_twins(tmp_path_factory.mktemp(family), family)
        return made[family]

    return make


def write_twins(place: Path, family: str) -> tuple[Path, Path]:
    import comfy.sd
    from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
    from intrinsic_lab.training.single_file.text_encoders import clip_tokenizer, t5_tokenizer

    build, pipeline = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        parts, schedule = build()
    folder = write_model_folder(place / "folder", parts, schedule, pipeline)
    loaded = load_pipeline(folder, dtype=torch.float32, text_dtype=torch.float32)
    file = place / f"{family}.safetensors"
    comfy.sd.save_checkpoint(str(file), loaded.model, loaded.clip, loaded.vae)
    if family == "flux":
        # Core adds them as identities; published files have none.
        weights = safetensors.torch.load_file(file)
        safetensors.torch.save_file({name: weight for name, weight in weights.items() if "quant_conv" not in name}, file)
    if family == "sd21":
        # Published files have one layer more, which SD 2.x does not hear.
        weights = safetensors.torch.load_file(file)
        last, more = (f"cond_stage_model.model.transformer.resblocks.{layer}." for layer in (2, 3))
        weights |= {name.replace(last, more): weight.clone() for name, weight in weights.items() if name.startswith(last)}
        safetensors.torch.save_file(weights, file)
    index = {name: ["transformers" if name.startswith("text") else "diffusers", type(part).__name__] for name, part in parts.items()}
    index |= {"scheduler": ["diffusers", schedule["_class_name"]], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {"tokenizer_2": ["transformers", "CLIPTokenizer"], "feature_extractor": [None, None], "image_encoder": [None, None]}
    edit_json(folder / "model_index.json", **index)
    # As the published folders have them.
    clip_tokenizer("!" if family == "sd21" else "<|endoftext|>").save_pretrained(folder / "tokenizer")
    if family in ("sdxl", "flux"):
        (t5_tokenizer() if family == "flux" else clip_tokenizer("!")).save_pretrained(folder / "tokenizer_2")
    return folder, file


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_of_a_file_is_that_of_its_folder(family, twins):
    from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
    from intrinsic_lab.training.bases import base_at
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

    folder, file = map(base_at, twins(family))
    kinds = {"unet": UNet2DConditionModel, "transformer": FluxTransformer2DModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    kinds["text_encoder_2"] = T5EncoderModel if family == "flux" else CLIPTextModelWithProjection
    parts = [part for part in kinds if (folder.path / part).is_dir()]
    assert len(parts) >= 3
    for part in parts:
        expected, found = (base.module(kinds[part], part) for base in (folder, file))
        assert type(found) is type(expected)
        weights = found.state_dict()
        assert weights.keys() == expected.state_dict().keys()
        assert all(torch.equal(weights[name], weight) for name, weight in expected.state_dict().items()), part
        if part == "vae":
            assert all(found.config[name] == expected.config[name] for name in ("scaling_factor", "shift_factor"))
    words = [base.tokenizer(CLIPTokenizer, "tokenizer")(PROMPT, padding="max_length", max_length=77).input_ids for base in (folder, file)]
    assert words[0] == words[1]


@dataclass(frozen=True)
class Shapes(Checkpoint):
    """A checkpoint without numbers."""

    def weights(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name: torch.empty(shape, device="meta") for name, shape in self.below(prefix).items()}


SD21 = PUBLISHED["SD 1.5 / SD 2.1"] | {"num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True, "context_dim": 1024}


# Millions of parameters, as the published models have, and heads, which no shape tells.
@pytest.mark.parametrize(
    ("layout", "millions", "heads"),
    [(PUBLISHED["SD 1.5 / SD 2.1"], 860, 8), (SD21, 866, (5, 10, 20, 20)), (PUBLISHED["SDXL"], 2567, (5, 10, 20))],
    ids=["SD 1.5", "SD 2.1", "SDXL"],
)
def test_unets_of_published_sizes_are_built_from_their_shapes(layout, millions, heads):
    network = UNetModel(**layout, device="meta", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    unet = load_unet(Shapes(Path("published"), shapes_of(network)))
    assert round(sum(weight.numel() for weight in unet.parameters()) / 1e6) == millions and unet.config.attention_head_dim == heads


def test_flux_of_the_published_size_is_built_from_its_shapes():
    widths = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0}
    depths = {
        "num_heads": 24,
        "depth": 19,
        "depth_single_blocks": 38,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "patch_size": 2,
        "txt_ids_dims": [],
    }
    options = {"qkv_bias": True, "guidance_embed": True, "device": "meta", "dtype": torch.float32}
    network = Flux(image_model="flux", **widths, **depths, **options, operations=comfy.ops.disable_weight_init)
    transformer = load_transformer(Shapes(Path("published"), shapes_of(network)))
    assert round(sum(weight.numel() for weight in transformer.parameters()) / 1e6) == 11901


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {f"model.diffusion_model.{name}": tuple(weight.shape) for name, weight in network.state_dict().items()}


def test_what_a_file_predicts_is_known_by_its_marks_and_for_sd_2_by_its_biases(tmp_path):
    unet, bias = "model.diffusion_model.", "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    sd2 = {f"{unet}input_blocks.0.0.weight": torch.zeros(1), "cond_stage_model.model.ln_final.bias": torch.zeros(1)}
    for content, prediction in (
        (sd2 | {bias: torch.tensor([0.05, -0.05])}, "epsilon"),
        (sd2 | {bias: torch.tensor([0.2, -0.2])}, "v_prediction"),
        ({f"{unet}input_blocks.0.0.weight": torch.zeros(1), bias: torch.tensor([0.2, -0.2])}, "epsilon"),
        ({f"{unet}input_blocks.0.0.weight": torch.zeros(1), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, "v_prediction"),
    ):
        safetensors.torch.save_file(content, tmp_path / "model.safetensors")
        scheduler = SingleFile(tmp_path / "model.safetensors").scheduler()
        assert scheduler.config.prediction_type == prediction
        assert (float(scheduler.alphas_cumprod[-1]) < 1e-6) == ("ztsnr" in content)


def test_a_base_without_a_comfyui_says_where_to_name_it(monkeypatch, tmp_path):
    monkeypatch.setattr(text_encoders, "_PACK", tmp_path / "custom_nodes" / "intrinsic-lab")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    with pytest.raises(ValueError, match="set COMFYUI_PATH to ComfyUI's folder"):
        text_encoders.clip_tokenizer()
    monkeypatch.setenv("COMFYUI_PATH", str(find_comfyui()))
    assert len(text_encoders.clip_tokenizer()) == CLIP_VOCABULARY


def loop(output: Path):
    from intrinsic_lab.training.loop import LoopConfig

    return LoopConfig(output, 3)


def trained(base: Path, output: Path) -> dict[str, torch.Tensor]:
    from intrinsic_lab.training.intrinsic_lora import IntrinsicLoraConfig, train_intrinsic_lora
    from intrinsic_lab.training.pairs import SceneData

    config = IntrinsicLoraConfig(base, "depth", loop(output), SceneData(count=2, size=32), batch=1, rank=2)
    return safetensors.torch.load_file(train_intrinsic_lora(config).weights)


def far(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The distance of what two LoRAs learnt (it starts at 0), as a share of the second's. Where weights lie changes a step's last bits."""
    assert found.keys() == expected.keys()
    learnt = [name for name in sorted(expected) if name.endswith(("lora_up.weight", "G3"))]
    one, other = (torch.cat([tensors[name].flatten() for name in learnt]) for tensors in (found, expected))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_an_intrinsic_lora_learns_the_same_from_a_file_a_half_file_a_ckpt_and_a_folder(family, twins, tmp_path):
    folder, file = twins(family)
    expected = trained(folder, tmp_path / "folder")
    assert far(trained(file, tmp_path / "file"), expected) < 1e-3
    pair, picture = Pair("a", file, file), torch.rand(40, 56, 3, generator=torch.Generator().manual_seed(1))
    lora = tmp_path / "file" / "depth.safetensors"
    made = [ModelPredictions(base, lora, "depth", size=32).predict(pair, picture) for base in (folder, file)]
    assert torch.allclose(*made, atol=1e-3) and made[0].std() > 1e-3
    if family == "sd21":
        return
    weights = safetensors.torch.load_file(file)
    # As Lightning writes them, with what is no weight beside the state.
    torch.save({"state_dict": weights, "global_step": 3, "callbacks": {"best": "x"}}, tmp_path / "model.ckpt")
    assert far(trained(tmp_path / "model.ckpt", tmp_path / "ckpt"), expected) < 1e-3
    safetensors.torch.save_file({name: weight.half() for name, weight in weights.items()}, tmp_path / "half.safetensors")
    assert 1e-6 < far(trained(tmp_path / "half.safetensors", tmp_path / "half"), expected) < 0.2
    other = {name: 1.1 * weight for name, weight in weights.items()}
    safetensors.torch.save_file(other, tmp_path / "other.safetensors")
    assert far(trained(tmp_path / "other.safetensors", tmp_path / "other"), expected) > 0.5


def test_files_that_trainers_cannot_use_are_refused_in_words(twins, tmp_path):
    from intrinsic_lab.training.intrinsic_lora import load_base

    weights = safetensors.torch.load_file(twins("sd15")[1])
    network = {name: weight for name, weight in weights.items() if name.startswith("model.")}
    damaged = {name: weight for name, weight in weights.items() if "output_blocks.1.0.in_layers.2" not in name}
    transformer = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 1), "vector_in.in_layer.weight": torch.zeros(1, 1)}
    quantised = weights | {"model.diffusion_model.out.2.scale_weight": torch.zeros(1)}
    for name, content, message in (
        (
            "other",
            {"blocks.0.attn.qkv.weight": torch.zeros(3, 1)},
            r"other.safetensors is no checkpoint of Stable Diffusion 1.x, .* blocks.0",
        ),
        ("network", network, "network.safetensors holds no VAE"),
        ("damaged", damaged, r"the UNet in damaged.safetensors lacks 2 weights \(up_blocks.0.resnets.1.conv1"),
        ("flux1-dev", transformer, "flux1-dev.safetensors holds a transformer alone"),
        ("fp8", quantised, "quantised weights with scales"),
    ):
        safetensors.torch.save_file(content, tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=message):
            load_base(tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="extra embeddings"):
        load_base(twins("sdxl")[1])
    (tmp_path / "cut.safetensors").write_bytes(twins("sd15")[1].read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut.safetensors is not a complete safetensors file"):
        load_base(tmp_path / "cut.safetensors")

    class Code:
        def __reduce__(self):
            return (exit, (3,))

    torch.save({"state_dict": {**weights, "model.diffusion_model.more": Code()}}, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match=r"in code.ckpt, .*Quitter stands where a tensor was expected"):
        load_base(tmp_path / "code.ckpt")


def test_the_training_node_offers_checkpoints_and_trains_on_one(twins, tmp_path, monkeypatch):
    import folder_paths
    from intrinsic_lab.nodes.train import TrainLoRA

    file = twins("sd15")[1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(file.parent)], {".safetensors"}))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(TrainLoRA, "hidden", None, raising=False)
    base = TrainLoRA.define_schema().inputs[0]
    assert base.options[-1] == file.name and base.options[0] != file.name
    settings = {"name": "one", "steps": 2, "learning_rate": 1e-3, "batch": 1, "size": 32, "scenes": 2, "data": "rendered scenes"}
    TrainLoRA.execute(map="depth", rank=2, base=file.name, **settings)
    assert (tmp_path / "loras/intrinsic_lab/one.safetensors").is_file()
    before = TrainLoRA.fingerprint_inputs(base=file.name)
    file.touch()
    assert TrainLoRA.fingerprint_inputs(base=file.name) != before


def test_a_joint_lora_and_its_vae_learn_the_same_from_a_file_and_a_folder(twins, tmp_path):
    from intrinsic_lab.training.ildm import IntrinsicVaeConfig, JointConfig, JointSceneData, train_intrinsic_vae, train_joint_lora
    from intrinsic_lab.training.pairs import SceneData

    scenes, results = JointSceneData(SceneData(count=2, size=32)), []
    for base in twins("sdxl"):
        output = tmp_path / base.suffix / "out"
        vae = IntrinsicVaeConfig(base, loop(output / "vae"), scenes, batch=1)
        train_intrinsic_vae(vae)
        lora = JointConfig(base, vae.weights, loop(output / "lora"), scenes, rank=2, batch=1)
        results.append(safetensors.torch.load_file(train_joint_lora(lora).weights))
    assert far(*results) < 1e-3


def test_a_tensor_lora_learns_the_same_from_a_file_and_a_folder(twins, tmp_path):
    from intrinsic_lab.training.lumix import LumixConfig, train_lumix
    from intrinsic_lab.training.pairs import SceneData

    results = []
    for base in twins("flux"):
        config = LumixConfig(base, loop(tmp_path / base.suffix / "out"), SceneData(count=2, size=32), rank=2, text_tokens=16)
        results.append(safetensors.torch.load_file(train_lumix(config).weights))
    assert far(*results) < 1e-3
