"""Sets the pack up, runs it, tests it and measures it: the commands behind `make`. Standard library only.

Everything that needs more than the standard library runs in .venv, as `python -m intrinsic_lab....`
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.comfyui_server import comfyui_server, device_arguments, free_port, is_free
from tools.comfyui_source import NEWEST, OLDEST, ROOT, bring_front_end, bring_release, version_of
from tools.console import WorkbenchError, exit_code, say, step
from tools.environment import LOG, WORKSPACE, set_up, venv_python

USUAL_PORT = 8188


def in_environment(comfyui: Path, *arguments: str, **variables: str) -> int:
    """Runs Python with `arguments` in .venv, with COMFYUI_PATH set; returns its exit code."""
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui), **variables}
    process = subprocess.Popen([str(venv_python()), *arguments], cwd=ROOT, env=environment)
    # Whoever ends this process means the child too, which may hold a server.
    for name in ("SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):
            signal.signal(number, lambda number, _frame: process.send_signal(number))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The terminal sent Ctrl-C to the child too: it cleans up, its exit code tells.
            continue


def setup(_options: argparse.Namespace) -> int:
    """make .venv, bring ComfyUI, link the pack, look for chromium"""
    start = time.monotonic()
    set_up()
    say(f"Ready in {time.monotonic() - start:.1f} s. Try `make demo` next, or `make serve`.")
    return 0


def demo(options: argparse.Namespace) -> int:
    """extract the maps of a picture (or of a rendered scene) with a real ComfyUI graph"""
    image, out = (path and Path(path).expanduser().resolve() for path in (options.image, options.out))
    if image and not image.is_file():
        raise WorkbenchError(f"There is no picture {image}.", "give the path of a PNG or JPEG file: make demo IMAGE=photo.jpg")
    chosen = [f"--image={image}"] if image else []
    return in_environment(set_up(browser=False), "-m", "intrinsic_lab.tools.demo", *chosen, f"--out={out}")


def test(options: argparse.Namespace) -> int:
    """run the test-suite, with the smoke run on the oldest supported ComfyUI"""
    comfyui = set_up()
    with step(f"Providing ComfyUI {OLDEST.version} for the smoke run") as notes:
        oldest = bring_release(OLDEST, venv_python(), LOG)
        notes.append(f"ComfyUI {version_of(oldest)} in {oldest}")
    variables = {"OLDEST_COMFYUI_PATH": str(oldest)}
    if options.front_end:
        with step(f"Providing front end {options.front_end}"):
            variables["INTRINSIC_LAB_FRONT_END"] = str(bring_front_end(options.front_end, venv_python(), LOG))
    return in_environment(comfyui, "-m", "pytest", *options.arguments, **variables)


def lint(_options: argparse.Namespace) -> int:
    """check style, types and pages"""
    comfyui = set_up(browser=False)
    checks = (("ruff", "format", "--check", "."), ("ruff", "check", "."), ("mypy",))
    return int(any([*(in_environment(comfyui, "-m", *check) for check in checks), _build_pages(comfyui, "--quiet")]))


def docs(_options: argparse.Namespace) -> int:
    """take the figures of README and docs from benchmarks/results, and build the pages of docs/ into .comfyui/site"""
    comfyui = set_up(browser=False)
    return in_environment(comfyui, "-m", "intrinsic_lab.tools.figures") or _build_pages(comfyui)


def _build_pages(comfyui: Path, *options: str) -> int:
    # Else mkdocs tells of its successors at every run.
    return in_environment(comfyui, "-m", "mkdocs", "build", *options, f"--site-dir={WORKSPACE / 'site'}", NO_MKDOCS_2_WARNING="1")


def bench(options: argparse.Namespace) -> int:
    """run every benchmark: tables to the terminal, JSON to benchmarks/results"""
    return in_environment(set_up(browser=False), "-m", "intrinsic_lab.tools.bench", *options.arguments)


def serve(options: argparse.Namespace) -> int:
    """run ComfyUI with the pack until Ctrl-C"""
    if any(argument.split("=")[0] == "--port" for argument in options.arguments):
        raise WorkbenchError("ARGS holds --port, but the workbench chooses the port.", "write it so: make serve PORT=8200")
    comfyui = set_up(browser=False)
    arguments = [*device_arguments(), *_models_of(comfyui), *options.arguments]
    port = options.port or (USUAL_PORT if is_free(USUAL_PORT) else free_port())
    say("- Starting ComfyUI" if port in (options.port, USUAL_PORT) else f"- Starting ComfyUI (port {USUAL_PORT} is taken)")
    with comfyui_server(venv_python(), comfyui, WORKSPACE, arguments, port=port) as server:
        say(f"    ComfyUI is at {server.url} and stops with Ctrl-C; what it says goes to {server.log}.")
        say(f"    Models go to {server.base / 'models'}, pictures come to {server.base / 'output'}.")
        try:
            code = server.process.wait()
        except KeyboardInterrupt:
            say("")
            return 0
        raise WorkbenchError(f"ComfyUI ended by itself with exit code {code}.", f"read {server.log}.")


def workflows(options: argparse.Namespace) -> int:
    """run every example workflow that needs only bundled weights"""
    return in_environment(set_up(browser=False), "-m", "intrinsic_lab.tools.run_workflows", *options.arguments)


def export_workflows(options: argparse.Namespace) -> int:
    """write example_workflows/api/*.json from example_workflows/*.json through the real front end"""
    return in_environment(set_up(), "-m", "intrinsic_lab.tools.export_workflows", *options.arguments)


def nano(options: argparse.Namespace) -> int:
    """train the bundled nano weights further, judge the result, and keep it if it is better"""
    comfyui = set_up(browser=False)
    if options.arguments:
        return in_environment(comfyui, "-m", "intrinsic_lab.training.nano", *options.arguments)
    code = in_environment(comfyui, "-m", "intrinsic_lab.training.nano", "further", "--minutes", str(options.budget))
    return code or in_environment(comfyui, "-m", "intrinsic_lab.benchmarks.nano_gate", "--install")


def _models_of(comfyui: Path) -> list[str]:
    """Lets the server see the models of the person's own ComfyUI, which itself stays as it is."""
    models = comfyui / "models"
    if comfyui.name == f"ComfyUI-{NEWEST.version}" or not models.is_dir():
        return []
    folders = [folder.name for folder in sorted(models.iterdir()) if folder.is_dir()]
    listing = WORKSPACE / "own_models.yaml"
    lines = ["own_comfyui:", f"    base_path: {models}", *(f"    {name}: {name}" for name in folders)]
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["--extra-model-paths-config", str(listing)]


def main() -> int:
    """Runs one command; the exit code is the command's own, or 2 if a step failed."""
    parser = argparse.ArgumentParser(prog="workbench.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (setup, demo, test, lint, docs, bench, serve, workflows, export_workflows, nano):
        entry = commands.add_parser(command.__name__.replace("_", "-"), help=command.__doc__)
        entry.set_defaults(command=command)
        if command is demo:
            entry.add_argument("--image", help="the picture (default: a rendered scene)")
            entry.add_argument("--out", default="output/demo", help="folder of the maps")
        elif command is test:
            entry.add_argument("--front-end", metavar="VERSION", help="of ComfyUI's front end, in the browser (default: the installed one)")
        elif command is serve:
            entry.add_argument("--port", type=int, help=f"default: {USUAL_PORT}, or a free one where that is taken")
        elif command is nano:
            entry.add_argument("--budget", type=float, default=60.0, metavar="MINUTES", help="time for the training (%(default)s)")
        if command in (test, bench, serve, workflows, export_workflows, nano):
            entry.add_argument("arguments", nargs="*", help="handed on; write -- before the first")
    options = parser.parse_args()
    return exit_code(lambda: options.command(options))


if __name__ == "__main__":
    raise SystemExit(main())
