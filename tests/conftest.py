"""Makes the repository importable as `intrinsic_lab`, and ComfyUI as the first place to look where it is set up."""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if "intrinsic_lab" not in sys.modules:
    spec = importlib.machinery.ModuleSpec("intrinsic_lab", loader=None, is_package=True)
    spec.submodule_search_locations = [str(ROOT)]
    sys.modules["intrinsic_lab"] = importlib.util.module_from_spec(spec)

# Kernels are checked by Triton's interpreter where there is no GPU; it reads this when they are imported.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Everything here is small, and servers, a browser and this process share the cores: a second thread of torch's would mostly wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from intrinsic_lab.tools.comfyui_source import find_comfyui

comfyui = find_comfyui()
if comfyui is not None:
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = True
