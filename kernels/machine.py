"""What numbers were made on, in words without the host's name."""

import os
import platform
from pathlib import Path

import torch


def machine() -> str:
    """Processor, cores and version of torch."""
    model = platform.processor() or platform.machine()
    cpu_file = Path("/proc/cpuinfo")
    if cpu_file.exists():
        model = next((line.split(":")[1].strip() for line in cpu_file.read_text().splitlines() if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__.split('+')[0]}"


def machine_and_card() -> str:
    """`machine`, after the graphics card if there is one."""
    card = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return card + machine()
