"""The oldest Python and packages that pyproject.toml allows, on their own: every trainer takes two steps, a pickled LoRA is read.

`uv pip install --resolution lowest-direct` takes what the nodes and the extra `train` name at its lower bound. Needs a package index and
6 GB. `make bench ARGS=lower_bounds`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tomllib

from ..tools.comfyui_source import ROOT
from ..tools.console import WorkbenchError, format_table, run_logged, say, step
from ..tools.environment import WORKSPACE

ENVIRONMENT = WORKSPACE / "lower_bounds"
LOG = WORKSPACE / "lower_bounds.log"
# OUT: what the trainings before it wrote; ASSETS: the bundled models.
_STEPS = "--steps 2 --batch 2"
_SCENES = "--scenes 2 --size 64"
TRAININGS = {
    "Intrinsic LoRA": f"intrinsic_lora --base ASSETS/nano --map depth --output OUT/one {_SCENES} {_STEPS}",
    "Intrinsic LoRA, in steps": f"intrinsic_lora --base ASSETS/nano --map normal --method multi --output OUT/many {_SCENES} {_STEPS}",
    "I-LDM, intrinsic VAE": f"ildm vae --base ASSETS/nano --output OUT/vae {_SCENES} {_STEPS}",
    "I-LDM, LoRA": f"ildm lora --base ASSETS/nano --intrinsic-vae ASSETS/nano/intrinsic_vae --output OUT/joint {_SCENES} {_STEPS}",
    "LumiX": f"lumix --base ASSETS/nano_flux --output OUT/lumix {_SCENES} {_STEPS}",
    "VQGAN LoRA": f"generators vqgan-lora --base ASSETS/nano_vqgan --map depth --output OUT/vqgan {_SCENES} {_STEPS}",
    "GAN": f"generators gan --scenes 2 --output OUT {_STEPS}",
    "GAN LoRA": "generators gan-lora --base OUT/gan --map depth --teacher ASSETS/nano --adapter ASSETS/nano_depth.safetensors "
    f"--teacher-size 64 --pictures 2 --output OUT/gan_lora {_STEPS}",
}
PICKLED_LORA = """
import sys, torch
from intrinsic_lab.methods.lora import lora_file
tensors, _ = lora_file.load_tensors(lora_file.Path(sys.argv[1]))
torch.save(tensors, sys.argv[2])
read, _ = lora_file.load_tensors(lora_file.Path(sys.argv[2]))
assert tensors.keys() == read.keys() and all(torch.equal(tensors[name], read[name]) for name in tensors)
"""
VERSIONS = """
import importlib.metadata as m, json, platform, sys
print(json.dumps({"python": platform.python_version()} | {name: m.version(name) for name in sys.argv[1:]}))
"""


def make_environment() -> tuple[Path, list[str]]:
    """(its interpreter, names of the packages that are at their lower bound), made anew where the bounds have changed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    oldest = project["requires-python"].removeprefix(">=")
    python, wanted, text = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "asked.txt", "\n".join([f"# Python {oldest}", *asked])
    if not wanted.is_file() or wanted.read_text(encoding="utf-8") != text:
        WORKSPACE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, step("Installing the oldest packages that are allowed"):
            remedy = f"read {LOG}; it needs a package index."
            run_logged([sys.executable, "-m", "pip", "install", "--no-input", "--target", folder, "uv"], LOG, remedy)
            uv = Path(folder) / "bin" / "uv"
            run_logged([uv, "venv", "--clear", "--python", oldest, ENVIRONMENT], LOG, remedy)
            (Path(folder) / "asked.txt").write_text(text, encoding="utf-8")
            install = [uv, "pip", "install", "--python", python, "--resolution", "lowest-direct", "--requirement", f"{folder}/asked.txt"]
            run_logged(install, LOG, remedy)
        wanted.write_text(text, encoding="utf-8")
    return python, [name.partition(">=")[0] for name in asked]


def run(python: Path, *arguments: str) -> tuple[str, float]:
    """What Python printed, and how many seconds it took. Raises WorkbenchError with its last lines where it failed."""
    environment = {**os.environ, "PYTHONPATH": str(WORKSPACE / "packages"), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    done = subprocess.run([python, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = "\n".join(done.stderr.splitlines()[-20:])
        raise WorkbenchError(
            f"{' '.join(arguments[:4])} failed:\n{lines}", "raise the lower bound in pyproject.toml and methods/extras.py."
        )
    return done.stdout, round(time.monotonic() - start, 1)


def main() -> None:
    python, packages = make_environment()
    versions = json.loads(run(python, "-c", VERSIONS, *packages)[0])
    rows, assets = [], str(ROOT / "assets")
    with tempfile.TemporaryDirectory() as out:
        for name, command in TRAININGS.items():
            module, *options = command.replace("ASSETS", assets).replace("OUT", out).split()
            rows.append({"what": f"{name}, 2 steps", "seconds": run(python, "-m", f"intrinsic_lab.training.{module}", *options)[1]})
            say(f"- {name}")
        pickled = run(python, "-c", PICKLED_LORA, f"{assets}/nano_depth.safetensors", f"{out}/lora.pt")
        rows.append({"what": "a pickled LoRA is read", "seconds": pickled[1]})
    say(format_table([{"package": name, "version": version} for name, version in versions.items()]))
    say(format_table(rows))
    if result := os.environ.get("INTRINSIC_LAB_RESULT"):
        Path(result).write_text(json.dumps({"versions": versions, "ran": rows}), encoding="utf-8")


if __name__ == "__main__":
    main()
