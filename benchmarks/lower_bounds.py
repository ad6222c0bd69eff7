"""The oldest packages that pyproject.toml allows, in an environment of their own: does every trainer take its steps, does a pickled LoRA load?

`uv pip install --resolution lowest-direct` takes what the nodes and the extra `train` name at its lower bound. Needs a package index and
6 GB, and Python 3.11, for which such old packages still have wheels. `make bench ARGS=lower_bounds`.
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
# {out}: what the trainings before it wrote; {assets}: the bundled models.
SHORT = "--steps 2 --batch 1 --threads 1"
TRAININGS = {
    "Intrinsic LoRA": f"intrinsic_lora --base {{assets}}/nano --map depth --scenes 2 --size 64 --output {{out}}/one {SHORT}",
    "Intrinsic LoRA, in steps": f"intrinsic_lora --base {{assets}}/nano --map normal --method multi --scenes 2 --size 64 --output {{out}}/many {SHORT}",
    "Intrinsic LoRA, on FLUX": f"intrinsic_lora --base {{assets}}/nano_flux --map depth --scenes 2 --size 64 --output {{out}}/flux {SHORT}",
    "I-LDM, intrinsic VAE": f"ildm vae --base {{assets}}/nano --scenes 2 --size 64 --output {{out}}/vae {SHORT}",
    "I-LDM, LoRA": f"ildm lora --base {{assets}}/nano --scenes 2 --size 64 --output {{out}}/joint {SHORT}",
    "LumiX": f"lumix --base {{assets}}/nano_flux --scenes 2 --size 64 --output {{out}}/lumix {SHORT}",
    "VQGAN LoRA": "generators --threads 1 vqgan-lora --base {assets}/nano_vqgan --map depth --scenes 2 --size 64 --output {out}/vqgan --steps 2 --batch 1",
    "GAN": "generators --threads 1 gan --scenes 4 --output {out}/gan --steps 2 --batch 2",
    "GAN LoRA": "generators --threads 1 gan-lora --base {out}/gan/gan --map depth --teacher {assets}/nano --adapter {assets}/nano_depth.safetensors "
    "--teacher-size 64 --pictures 2 --output {out}/gan_lora --steps 2 --batch 1",
}
PICKLED_LORA = """
import sys, torch
from intrinsic_lab.methods.lora import lora_file
tensors, _ = lora_file.load_tensors(lora_file.Path(sys.argv[1]))
torch.save(tensors, sys.argv[2])
read, _ = lora_file.load_tensors(lora_file.Path(sys.argv[2]))
assert tensors.keys() == read.keys() and all(torch.equal(tensors[name], read[name]) for name in tensors)
"""
VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"


def make_environment() -> tuple[Path, list[str]]:
    """(its interpreter, names of the packages that are at their lower bound), made anew where the bounds have changed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    python, wanted = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "asked.txt"
    if not wanted.is_file() or wanted.read_text(encoding="utf-8") != "\n".join(asked):
        WORKSPACE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, step("Installing the oldest packages that are allowed"):
            remedy = f"read {LOG}; it needs a package index."
            run_logged([sys.executable, "-m", "pip", "install", "--no-input", "--target", folder, "uv"], LOG, remedy)
            uv = Path(folder) / "bin" / "uv"
            run_logged([uv, "venv", "--clear", "--python", "3.11", ENVIRONMENT], LOG, remedy)
            (Path(folder) / "asked.txt").write_text("\n".join(asked), encoding="utf-8")
            install = [uv, "pip", "install", "--python", python, "--resolution", "lowest-direct", "--requirement", f"{folder}/asked.txt"]
            run_logged(install, LOG, remedy)
        wanted.write_text("\n".join(asked), encoding="utf-8")
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
    return done.stdout, time.monotonic() - start


def main() -> None:
    python, packages = make_environment()
    versions = json.loads(run(python, "-c", VERSIONS, *packages)[0])
    rows, assets = [], ROOT / "assets"
    with tempfile.TemporaryDirectory() as out:
        for name, command in TRAININGS.items():
            module, *options = (part.format(assets=assets, out=out) for part in command.split())
            rows.append({"what": name, "seconds": round(run(python, "-m", f"intrinsic_lab.training.{module}", *options)[1], 1)})
            say(f"- {name}: 2 steps")
        rows.append(
            {
                "what": "a pickled LoRA",
                "seconds": round(run(python, "-c", PICKLED_LORA, f"{assets}/nano_depth.safetensors", f"{out}/x.pt")[1], 1),
            }
        )
    say(format_table([{"package": name, "version": version} for name, version in versions.items()]))
    say(format_table(rows))
    if result := os.environ.get("INTRINSIC_LAB_RESULT"):
        Path(result).write_text(json.dumps({"versions": versions, "ran": rows}), encoding="utf-8")


if __name__ == "__main__":
    main()
