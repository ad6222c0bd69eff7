"""Tiny random diffusers-format folders, built once per session, for every test that needs a whole model."""

import json
import shutil
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

# A seed of the weights, by family: the folders are the same in every run.
SEEDS = {"sd15": 1, "sd21": 2, "sdxl": 3, "pixart": 4, "flux": 5, "nano": 6}
CLIP_VOCABULARY, T5_VOCABULARY = 49408, 32128
FAMILIES = ("sd15", "sd21", "sdxl", "pixart", "flux", "nano")


def write_own_tokenizer(folder: Path) -> int:
    """CLIP's byte-pair format with a vocabulary of its own; returns the number of tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    merges = [("r", "e"), ("re", "d</w>"), ("b", "l"), ("u", "e</w>"), ("bl", "ue</w>")]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", **{f"{kind}_token": "<|endoftext|>" for kind in ("eos", "unk", "pad")}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}))
    return len(tokens)


def tiny_clip(
    act: str = "quick_gelu",
    width: int = 32,
    layers: int = 3,
    vocabulary: int = CLIP_VOCABULARY,
    projection: int | None = None,
    heads: int = 2,
):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=act,
        projection_dim=projection or width,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def _t5(width: int = 32):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=T5_VOCABULARY, d_model=width, d_kv=16, d_ff=48, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    return T5EncoderModel(config).eval()


def tiny_vae(channels: int = 4, widths=(32, 64, 64, 96), **options):
    from diffusers import AutoencoderKL

    levels = len(widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=channels,
        **options,
    ).eval()


def _unet(channels: int = 4, widths=(32, 64), attention=(True, True), **options):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
        **options,
    ).eval()


def tiny_schedule(prediction: str = "epsilon", **options) -> dict:
    return {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        **options,
    }


def _sd15() -> tuple[dict, dict]:
    unet = _unet(widths=(32, 64), cross_attention_dim=32, attention_head_dim=2)
    return {"unet": unet, "vae": tiny_vae(), "text_encoder": tiny_clip()}, tiny_schedule()


def _sd21() -> tuple[dict, dict]:
    unet = _unet(widths=(32, 96), cross_attention_dim=32, attention_head_dim=(2, 6), use_linear_projection=True, upcast_attention=True)
    schedule = tiny_schedule("v_prediction", beta_end=0.011, rescale_betas_zero_snr=True)
    return {"unet": unet, "vae": tiny_vae(), "text_encoder": tiny_clip("gelu")}, schedule


def _sdxl() -> tuple[dict, dict]:
    pooled = 48
    unet = _unet(
        widths=(32, 64, 96),
        attention=(False, True, True),
        transformer_layers_per_block=(1, 2, 3),
        cross_attention_dim=32 + 64,
        attention_head_dim=(2, 4, 6),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=pooled + 6 * 256,
    )
    texts = {"text_encoder": tiny_clip(), "text_encoder_2": tiny_clip("gelu", width=64, projection=pooled)}
    return {"unet": unet, "vae": tiny_vae(scaling_factor=0.13025), **texts}, tiny_schedule()


def _pixart() -> tuple[dict, dict]:
    from diffusers import PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=48,
        sample_size=64,
        caption_channels=32,
        use_additional_conditions=True,
    ).eval()
    schedule = tiny_schedule(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", _class_name="DPMSolverMultistepScheduler")
    return {"transformer": transformer, "vae": tiny_vae(), "text_encoder": _t5()}, schedule


def _flux() -> tuple[dict, dict]:
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    vae = tiny_vae(16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159)
    schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    return {"transformer": transformer, "vae": vae, "text_encoder": tiny_clip(), "text_encoder_2": _t5()}, schedule


def _nano(vocabulary: int) -> tuple[dict, dict]:
    unet = _unet(16, widths=(64, 96), cross_attention_dim=32, attention_head_dim=2)
    vae = tiny_vae(16, widths=(32, 64, 64, 96), scaling_factor=0.7, shift_factor=0.2)
    return {"unet": unet, "vae": vae, "text_encoder": tiny_clip(layers=2, vocabulary=vocabulary)}, tiny_schedule()


PIPELINES = {
    "sd15": "StableDiffusionPipeline",
    "sd21": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "pixart": "PixArtAlphaPipeline",
    "flux": "FluxPipeline",
    "nano": "StableDiffusionPipeline",
}
PARTS = {"sd15": _sd15, "sd21": _sd21, "sdxl": _sdxl, "pixart": _pixart, "flux": _flux}


def build_model_folder(folder: Path, family: str) -> Path:
    """Write a tiny random model of a family ("nano": SD-like, 16 latent channels, own vocabulary) as diffusers does; returns `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(SEEDS[family])
        parts, schedule = _nano(write_own_tokenizer(folder / "tokenizer")) if family == "nano" else PARTS[family]()
    return write_model_folder(folder, parts, schedule, PIPELINES[family])


def write_model_folder(folder: Path, parts: dict, schedule: dict, pipeline: str) -> Path:
    """Write a model's parts as diffusers does; returns `folder`."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(schedule))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return folder


@pytest.fixture(scope="session")
def sd15_folder(tmp_path_factory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("models") / "sd15", "sd15")


@pytest.fixture(scope="session")
def sd21_folder(tmp_path_factory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("models") / "sd21", "sd21")


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("models") / "sdxl", "sdxl")


@pytest.fixture(scope="session")
def pixart_folder(tmp_path_factory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("models") / "pixart", "pixart")


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("models") / "flux", "flux")


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory) -> Path:
    """SD-like with 16 latent channels, widths that are no whole multiples, and its own vocabulary: the shape of the bundled model."""
    return build_model_folder(tmp_path_factory.mktemp("models") / "nano", "nano")


@pytest.fixture(scope="session")
def folders(sd15_folder, sd21_folder, sdxl_folder, pixart_folder, flux_folder, nano_folder):
    """Every family's folder by its name."""
    found = (sd15_folder, sd21_folder, sdxl_folder, pixart_folder, flux_folder, nano_folder)
    return dict(zip(FAMILIES, found, strict=True))


@pytest.fixture(scope="session")
def loaded(folders):
    """Each family's folder, loaded once in float32."""
    pipelines = {}

    def load(family):
        from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline

        if family not in pipelines:
            pipelines[family] = load_pipeline(folders[family], dtype=torch.float32, text_dtype=torch.float32)
        return pipelines[family]

    return load


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal noise, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest absolute difference of two tensors of one shape."""
    assert one.shape == other.shape
    return (one - other).abs().max().item()


def copy_of(folder: Path, place: Path) -> Path:
    """A copy of a session's folder, free to be changed."""
    return Path(shutil.copytree(folder, place / "model"))


def edit_json(path: Path, **changes) -> None:
    """Set entries of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
