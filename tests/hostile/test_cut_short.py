"""Files that another program cuts short while they are read: an error in words, never a signal that ends the process."""

import signal
import subprocess
import sys

import pytest
import torch
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.lora_file import kohya_state_dict
from safetensors.torch import save_file

# Each file loses its data once its header has been read; the last line is what every reader said.
READ = """
import os, shutil, sys
from pathlib import Path
from intrinsic_lab.methods.lora import lora_file, weight_file
from intrinsic_lab.methods.lumix.tensor_lora.file import read_adapter
from intrinsic_lab.training.single_file.checkpoint import open_checkpoint

whole, part = map(Path, sys.argv[1:])
head = weight_file.Reader._read_header

def cut(self):
    header = head(self)
    os.truncate(part, header.data_start + 64)
    return header

def checkpoint(path):
    opened = open_checkpoint(path)
    shutil.copy(whole, path)
    return opened.weights("")

weight_file.Reader._read_header = cut
for read in (lora_file.read_lora, read_adapter, checkpoint):
    shutil.copy(whole, part)
    try:
        read(part)
        print("read")
    except ValueError as error:
        print(error)
"""
MAPPED = """
import os, sys
from safetensors import safe_open
with safe_open(sys.argv[1], framework="pt") as file:
    os.truncate(sys.argv[1], 4096)
    print(sum(float(file.get_tensor(name).sum()) for name in file.keys()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be cut short there")
def test_a_file_that_is_cut_short_while_it_is_read_is_told_in_words(tmp_path):
    layer = LoraLayer(torch.randn(64, 2048), torch.randn(2048, 64), 1.0)
    save_file(kohya_state_dict({"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": layer}), tmp_path / "whole.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", READ, tmp_path / "whole.safetensors", tmp_path / "part.safetensors"], capture_output=True, text=True
    )
    said = done.stdout.splitlines()
    assert done.returncode == 0 and len(said) == 3, done.stderr
    assert all("part.safetensors" in line and "it ends in the middle of its data" in line for line in said), said
    # The test cuts where a mapped file would end the process.
    mapped = subprocess.run([sys.executable, "-c", MAPPED, tmp_path / "whole.safetensors"], capture_output=True)
    assert mapped.returncode == -signal.SIGBUS
