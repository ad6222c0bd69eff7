"""Tiny random models in diffusers format, made once per session, and how to run the trainer in a process of its own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from intrinsic_lab.tests.training.tiny_models import write_flux_base, write_vqgan


def write_tiny_base(folder: Path) -> Path:
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(32, 32, 32),
            layers_per_block=1,
            latent_channels=4,
            scaling_factor=0.5,
        )
        text = CLIPTextConfig(
            vocab_size=600,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            eos_token_id=599,
            bos_token_id=598,
        )
        text_encoder = CLIPTextModel(text)
    words = folder.parent / "words"
    words.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = letters + [f"{letter}</w>" for letter in letters]
    vocabulary += [f"<unused{number}>" for number in range(598 - len(vocabulary))] + ["<|startoftext|>", "<|endoftext|>"]
    (words / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(words, model_max_length=77)
    pipeline = StableDiffusionPipeline(vae, text_encoder, tokenizer, unet, DDPMScheduler(), None, None, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    # transformers 5 writes tokenizer.json alone; published folders hold these two.
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(words / name, folder / "tokenizer" / name)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def flux_base(tmp_path_factory) -> Path:
    return write_flux_base(tmp_path_factory.mktemp("base") / "flux")


@pytest.fixture(scope="session")
def vqgan_folder(tmp_path_factory) -> Path:
    return write_vqgan(tmp_path_factory.mktemp("vqgan") / "tiny")


@pytest.fixture
def start_trainer():
    """Starts `python -m intrinsic_lab.training.intrinsic_lora` on the CPU with the given options; ended with the test.

    launcher: what stands in python's place. module: another command of the pack, with its first words.
    """
    started: list[subprocess.Popen] = []

    def start(
        base: Path, output: Path, options: str, launcher: tuple[str, ...] = (sys.executable,), module: str = "training.intrinsic_lora"
    ) -> subprocess.Popen:
        command = [*launcher, "-m", *f"intrinsic_lab.{module}".split()]
        command += ["--base", str(base), "--output", str(output), *options.split()]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        # A launcher's children too, should it hang.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
