"""The nano FLUX base: a FLUX.1 transformer and a T5 encoder of the `scenes` world, small enough to travel in the repository.

VAE, CLIP and CLIP's vocabulary are those of the nano base (`assets/nano`); trained here are the transformer and the T5, on pictures
and their captions, never on maps.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..atomic import write_text
from ..backbones.backbone import TextEmbeddings
from ..backbones.flux import PATCH, predict_velocity
from ..command_line import console_report
from ..loop import LoopConfig, train
from ..losses import draw_times
from ..scene_pictures import BASE_SEEDS
from .base import EMPTY_PROMPT_SHARE, encode_pictures, tokenize
from .text import add_words, caption_words
from .vae import LATENT_CHANNELS, save_record

TEXT_TOKENS = 48
TEXT_WIDTH = 64
SCENES = 6_000
BATCH = 16
# At a constant rate, so that a run can end anywhere; the average takes the place of a falling rate.
BASE = LoopConfig(Path("flux"), steps=2900, learning_rate=1e-3, warmup=100, ema_decay=0.998, checkpoint_every=100, betas=(0.9, 0.99))
# Sentence pieces: a word of the captions, a letter of any other word.
WORD_SCORE, LETTER_SCORE, SPACE = -5.0, -12.0, "\u2581"


def write_t5_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json of a T5 that knows the captions' words as one piece each."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import Unigram

    words = sorted(caption_words())
    letters = sorted({chr(code) for code in range(33, 127)} - {"<", ">"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (SPACE, LETTER_SCORE)]
    pieces += [(SPACE + word, WORD_SCORE) for word in words] + [(letter, LETTER_SCORE) for letter in letters]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    settings = {
        "tokenizer_class": "T5TokenizerFast",
        "model_max_length": TEXT_TOKENS,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    }
    for name, text in {"tokenizer.json": tokenizer.to_str(pretty=True), "tokenizer_config.json": json.dumps(settings, indent=1)}.items():
        write_text(folder / name, text)


def build_t5(vocabulary: int):
    """T5EncoderModel with random weights: 2 layers of 64."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=128,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def build_transformer(pooled_width: int):
    """FluxTransformer2DModel of 2.9 M parameters, 2 double-stream and 4 single-stream blocks of 144.

    Every block's gates and the output begin at zero (adaLN-Zero, Peebles and Xie 2023).
    """
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=LATENT_CHANNELS * PATCH**2,
        num_layers=2,
        num_single_layers=4,
        num_attention_heads=4,
        attention_head_dim=36,
        axes_dims_rope=(4, 16, 16),
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=pooled_width,
        guidance_embeds=False,
    )
    for name, module in transformer.named_modules():
        # The modulation layers; a single-stream block's own output is also called proj_out.
        if name.endswith((".norm.linear", ".norm1.linear", ".norm1_context.linear")) or name in ("norm_out.linear", "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def build_scheduler():
    """FLUX.1's schedule, with the shift of its smallest pictures whatever the size."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=0.5)


@dataclass(frozen=True)
class LatentCaptions:
    """Latents `[n, c, h, w]` of pictures, and of their captions the T5 tokens `[n, 48]` and the pooled CLIP embedding `[n, width]`.

    The last row of tokens and pooled is the empty prompt's.
    """

    latents: Tensor
    tokens: Tensor
    pooled: Tensor


@torch.no_grad()
def pooled_embeddings(text_encoder, tokenizer, texts: Sequence[str]) -> Tensor:
    """CLIP's state at the end of each text, `[n, width]`."""
    tokens = tokenize(tokenizer, texts)
    return torch.cat([text_encoder(part).pooler_output for part in tokens.split(256)]).float()


class Velocity(nn.Module):
    """Transformer and T5 as one module, so that one optimiser trains both."""

    def __init__(self, transformer, text_encoder):
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder

    def forward(self, latent_bchw: Tensor, time_b: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        context = self.text_encoder(tokens).last_hidden_state
        return predict_velocity(self.transformer, latent_bchw, time_b, TextEmbeddings(context, pooled=pooled))


class FluxTask:
    """Flow matching (Lipman et al. 2023) towards noise - latent, with prompts left out one time in ten."""

    def __init__(self, transformer, text_encoder, data: LatentCaptions, batch: int):
        self.module, self.data, self.batch = Velocity(transformer, text_encoder), data, batch

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.data.latents), (self.batch,), generator=draw)
        texts = torch.where(torch.rand(self.batch, generator=draw) < EMPTY_PROMPT_SHARE, len(self.data.latents), rows)
        latents = self.data.latents[rows]
        time, noise = draw_times(self.batch, draw), torch.randn(latents.shape, generator=draw)
        device = next(module.parameters()).device
        tokens, pooled = self.data.tokens[texts].to(device), self.data.pooled[texts].to(device)
        latents, time, noise = latents.to(device), time.to(device), noise.to(device)
        noisy = torch.lerp(latents, noise, time[:, None, None, None])
        return functional.mse_loss(module(noisy, time, tokens, pooled).float(), noise - latents)

    def save(self, folder: Path) -> None:
        self.module.transformer.save_pretrained(folder / "transformer")
        self.module.text_encoder.save_pretrained(folder / "text_encoder_2")


def train_flux(runs: Path, assets: Path, steps: int | None = None) -> None:
    """Transformer and T5 on the latents of pictures, then `assets/nano_flux` with what is shared with `assets/nano`."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer, T5TokenizerFast

    nano, config = assets / "nano", replace(BASE, output=runs / "flux", steps=steps or BASE.steps)
    write_t5_tokenizer(config.output / "tokenizer_2")
    vae = AutoencoderKL.from_pretrained(nano, subfolder="vae", torch_dtype=torch.float32).to(memory_format=torch.channels_last)
    latents, captions = encode_pictures(vae, BASE_SEEDS[:SCENES], config.output / "latents.safetensors")
    clip = CLIPTextModel.from_pretrained(nano, subfolder="text_encoder", torch_dtype=torch.float32).eval()
    pooled = pooled_embeddings(clip, CLIPTokenizer.from_pretrained(nano, subfolder="tokenizer"), [*captions, ""])
    tokenizer = T5TokenizerFast.from_pretrained(config.output / "tokenizer_2")
    tokens = tokenizer([*captions, ""], padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt").input_ids
    torch.manual_seed(0)
    task = FluxTask(build_transformer(pooled.shape[1]), build_t5(len(tokenizer)), LatentCaptions(latents, tokens, pooled), BATCH)
    history = train(task, config, report=console_report("flux"))
    last = history.losses[-100:]
    record = {"config": vars(config), "minutes": history.seconds / 60, "final_loss": sum(last) / len(last)}
    save_record(config.output, record | {"batch": BATCH, "scenes": SCENES})
    export(config.output, assets)


def extend_t5_tokenizer(folder: Path, target: Path, text_encoder, kinds: Sequence[str]) -> None:
    """As `text.extend_tokenizer`, for T5's pieces."""
    from tokenizers import Tokenizer

    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    before = Tokenizer.from_file(str(folder / "tokenizer.json"))
    known = {piece for piece, _ in described["model"]["vocab"]}
    new = [SPACE + word for word in sorted(caption_words(kinds)) if SPACE + word not in known]
    add_words(text_encoder, [before.encode(word.removeprefix(SPACE), add_special_tokens=False).ids for word in new])
    described["model"]["vocab"] += [[piece, WORD_SCORE] for piece in new]
    shutil.copytree(folder, target, dirs_exist_ok=True)
    text = json.dumps(described, indent=2, ensure_ascii=False)
    write_text(target / "tokenizer.json", text)


def further(folder: Path, config: LoopConfig, seeds: Sequence[int], kinds: Sequence[str], batch: int, settings: dict):
    """Train the transformer and the T5 of a diffusers folder on (FLUX parts of `further`). Returns both and the history.

    The T5's tokenizer, which knows the words of these kinds of scenes, is left in `config.output`.
    """
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    def load(kind, part: str):
        return kind.from_pretrained(folder, subfolder=part, torch_dtype=torch.float32)

    transformer, t5 = load(FluxTransformer2DModel, "transformer"), load(T5EncoderModel, "text_encoder_2")
    words = config.output / "tokenizer_2"
    extend_t5_tokenizer(folder / "tokenizer_2", words, t5, kinds)
    vae = load(AutoencoderKL, "vae").to("cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)
    kept = config.output / f"latents-{seeds[0]}-{len(seeds)}"
    latents, captions = zip(*(encode_pictures(vae, seeds, kept / f"{kind}.safetensors", kind=kind) for kind in kinds), strict=True)
    texts = [*(caption for part in captions for caption in part), ""]
    pooled = pooled_embeddings(load(CLIPTextModel, "text_encoder").eval(), CLIPTokenizer.from_pretrained(folder / "tokenizer"), texts)
    tokenizer = T5TokenizerFast.from_pretrained(words)
    tokens = tokenizer(texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt").input_ids
    task = FluxTask(transformer.train(), t5.train(), LatentCaptions(torch.cat(latents), tokens, pooled), batch)
    history = train(task, config, report=console_report("flux", every=100), settings=settings)
    return transformer, t5, history


def export(base: Path, assets: Path) -> None:
    """Write what the run in `base` made as one diffusers folder of fp16 safetensors, `assets/nano_flux`, with the run's record."""
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    nano, target = assets / "nano", assets / "nano_flux"
    pipeline = FluxPipeline(
        scheduler=build_scheduler(),
        vae=AutoencoderKL.from_pretrained(nano, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(nano, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(nano, subfolder="tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(base / "text_encoder_2"),
        tokenizer_2=T5TokenizerFast.from_pretrained(base / "tokenizer_2"),
        transformer=FluxTransformer2DModel.from_pretrained(base / "transformer"),
    )
    pipeline.to(torch.float16).save_pretrained(target)
    # transformers 5 calls its tokenizer T5Tokenizer; in earlier versions that name stands for one that needs sentencepiece.
    index = (target / "model_index.json").read_text().replace('"T5Tokenizer"', '"T5TokenizerFast"')
    write_text(target / "model_index.json", index)
    # As they are, so that the repository holds them once.
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(nano / part, target / part, dirs_exist_ok=True)
    shutil.copytree(base / "tokenizer_2", target / "tokenizer_2", dirs_exist_ok=True)
    save_record(target, json.loads((base / "record.json").read_text()))
