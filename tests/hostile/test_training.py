"""Trainings whose checkpoints, bases and pictures are not what they were, and losses that explode."""

import math
import os
import shutil
import struct
import zlib

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intrinsic_lab.data.files import read_picture
from intrinsic_lab.training.checkpoint import CHECKPOINT, PREVIOUS, CheckpointMismatch
from intrinsic_lab.training.folder_data import FolderData
from intrinsic_lab.training.loop import Diverged, LoopConfig, train
from PIL import Image
from safetensors.torch import save_file
from torch import nn


class Line:
    """Learns a number; its gradient explodes after `good` steps, while its loss is one."""

    def __init__(self, good: int = 10**9):
        self.module, self.good, self.steps, self.saved = nn.Linear(3, 1, bias=False), good, 0, 0
        nn.init.ones_(self.module.weight)

    def loss(self, module, draw):
        self.steps += 1
        loss = module(torch.rand(2, 3, generator=draw)).square().mean()
        # sqrt at 0: the value is a number, the slope is none.
        return loss if self.steps <= self.good else loss + (module.weight * 0).sum().abs().sqrt()

    def save(self, folder):
        self.saved += 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two checkpoints, and what it goes on to."""
    folder = tmp_path_factory.mktemp("run")
    train(Line(), LoopConfig(folder, 4, checkpoint_every=2))
    whole = Line()
    train(whole, LoopConfig(tmp_path_factory.mktemp("whole"), 6))
    return folder, whole.module.weight.detach().clone()


@settings(max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_in_a_checkpoint_is_found_and_the_one_before_is_gone_on_from(run, tmp_path_factory, outcomes, data):
    folder, expected = run
    copy = tmp_path_factory.mktemp("copy")
    for name in (CHECKPOINT, PREVIOUS):
        shutil.copy(folder / name, copy / name)
    content = bytearray((copy / CHECKPOINT).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (copy / CHECKPOINT).write_bytes(content)
    task = Line()
    history = train(task, LoopConfig(copy, 6))
    assert torch.equal(task.module.weight, expected) and history.steps == 6
    outcomes["the one before" if task.steps == 4 else "nothing lost"] += 1


def test_weights_that_are_no_numbers_never_replace_a_good_checkpoint(tmp_path):
    task = Line(good=3)
    with pytest.raises(Diverged, match="weights became NaN or infinite at step 4"):
        train(task, LoopConfig(tmp_path, 4, checkpoint_every=2))
    assert not task.saved and torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 2
    with pytest.raises(ValueError, match="learning_rate is nan"):
        LoopConfig(tmp_path, 4, learning_rate=math.nan)


def test_checkpoints_that_are_all_damaged_or_pipes_are_told_of(tmp_path):
    os.mkfifo(tmp_path / CHECKPOINT)
    (tmp_path / PREVIOUS).write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="delete them to start again"):
        train(Line(), LoopConfig(tmp_path, 4))


def test_a_base_whose_weights_were_replaced_is_noticed(tmp_path):
    base, config = tmp_path / "base.safetensors", LoopConfig(tmp_path / "run", 4)
    save_file({"w": torch.zeros(100_000)}, base)
    train(Line(), LoopConfig(tmp_path / "run", 2), settings={"base": base})
    os.utime(base)
    train(Line(), LoopConfig(tmp_path / "run", 3), settings={"base": base})
    save_file({"w": torch.full((100_000,), 1e-3)}, base)
    with pytest.raises(CheckpointMismatch, match=r"other weights than base\.safetensors holds now"):
        train(Line(), config, settings={"base": base})


def _png_16_bit(path, pixels_hw3, orientation: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = pixels_hw3.shape
    raw = b"".join(b"\0" + row.tobytes() for row in (pixels_hw3.astype(">u2") * 257).reshape(height, -1))
    exif = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)) + chunk(b"eXIf", exif)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_16_bit_picture_is_turned_as_pillow_turns_one_of_8_bits(tmp_path, orientation):
    pixels = numpy.arange(5 * 7 * 3, dtype=numpy.uint8).reshape(5, 7, 3)
    _png_16_bit(tmp_path / "deep.png", pixels, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "plain.png", exif=exif)
    assert torch.equal(read_picture(tmp_path / "deep.png"), read_picture(tmp_path / "plain.png"))


def test_a_map_of_one_pixel_beside_a_picture_is_refused(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "a_depth.png")
    with pytest.raises(ValueError, match="is 1 x 1, its picture 64 x 48"):
        FolderData(tmp_path, 16).source("depth").read("depth", [0])
