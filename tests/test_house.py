"""The house keeps its order: who imports whom, what is never called, and what loading the pack costs."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib
import yaml
from intrinsic_lab.tools.comfyui_source import find_comfyui

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "nodes": {"nodes", "methods", "scenes", "training", "data", "evaluate", "kernels"},
    "evaluate": {"evaluate", "training", "data", "methods", "kernels"},
    "training": {"training", "methods", "scenes", "data", "kernels"},
    "data": {"data", "methods", "kernels"},
    "methods": {"methods", "kernels"},
    "kernels": {"kernels"},
    "scenes": {"scenes"},
}
COMFYUI_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "execution",
    "server",
    "node_helpers",
    "latent_preview",
}
NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
# Splits a pickle into its opcodes and follows none: for files that only exist as pickles, such as StyleGAN's and training states.
READS_PICKLES_AS_DATA = Path("methods/pickled_weights.py")
LATE = ("diffusers", "peft", "triton", "transformers", "accelerate")
ROOMS = sorted(MAY_IMPORT)
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line, "absolute" or "relative", module path from the top or from the repository root) of every import in a file."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, "absolute", tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if not node.level:
                yield node.lineno, "absolute", module
                continue
            origin = package[: len(package) - node.level + 1]
            for alias in node.names:
                yield node.lineno, "relative", (*origin, *module, alias.name)


def calls(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    """(line, dotted name, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def test_there_is_something_to_check():
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(ROOMS)


def test_imports_run_one_way_between_the_rooms():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {'.'.join(module)}"
        for path in SOURCES
        for line, kind, module in imports(path)
        if kind == "relative"
        and module[0] not in MAY_IMPORT[path.relative_to(ROOT).parts[0]]
        # Experiments train and judge: they stand on both.
        and not (module[0] == "evaluate" and path.is_relative_to(ROOT / "training" / "experiments"))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_nano_models_and_the_experiments_stand_on_top_of_training_and_no_trainer_needs_a_benchmark():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {'.'.join(module)}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "training")
        for line, kind, module in imports(path)
        if kind == "relative"
        and (
            any(module[:2] == ("training", top) and not path.is_relative_to(ROOT / "training" / top) for top in ("nano", "experiments"))
            or any("benchmark" in part for part in module)
        )
    ]
    assert not wrong, "\n".join(wrong)


def test_the_pack_imports_itself_relatively():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {'.'.join(module)}"
        for path in SOURCES
        for line, kind, module in imports(path)
        # `nodes` is ComfyUI's own module where nodes/ imports it absolutely.
        if kind == "absolute" and module[0] in {"intrinsic_lab", "tools", "tests", *ROOMS} and module[0] != "nodes"
    ]
    assert not wrong, "\n".join(wrong)


def test_only_nodes_imports_comfyui():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {'.'.join(module)}"
        for path in SOURCES
        for line, kind, module in imports(path)
        if kind == "absolute" and module[0] in {*COMFYUI_MODULES, "nodes"} and path.relative_to(ROOT).parts[0] != "nodes"
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_unpickles_and_nothing_runs_text_as_code():
    wrong = []
    for path in SOURCES:
        # `from pickle import UnpicklingError` only names what torch.load(weights_only=True) raises.
        wrong += [
            f"{path.relative_to(ROOT)}:{line} imports {module[0]}"
            for line, _, module in imports(path)
            if module[0] in NEVER_IMPORTED and ("UnpicklingError" not in path.read_text(encoding="utf-8") or module[0] != "pickle")
        ]
        for line, name, call in calls(path):
            weights_only = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords)
            unpickles = name.startswith("pickle.") or (name == "torch.load" and not weights_only)
            if name in ("eval", "exec", "compile", "__import__", "os.system") or unpickles:
                wrong.append(f"{path.relative_to(ROOT)}:{line} calls {name}")
    assert not wrong, "\n".join(wrong)


def test_one_module_reads_pickles_and_it_can_make_nothing_that_they_name():
    parsing = {path.relative_to(ROOT) for path in SOURCES for _, _, module in imports(path) if module[0] == "pickletools"}
    assert parsing == {READS_PICKLES_AS_DATA}
    source = ROOT / READS_PICKLES_AS_DATA
    assert not {module[0] for _, _, module in imports(source)} & {"importlib", "builtins", "operator", "inspect", "sys", "os"}
    # What an unpickler needs to get from a name to a thing.
    assert not {name for _, name, _ in calls(source)} & {"getattr", "setattr", "vars", "globals", "locals", "torch.load", "open"}


def test_library_code_does_not_print():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        # A command of its own may talk on the terminal, and what benchmarks print their tables with.
        if path.name not in ("__main__.py", "benchmarking.py") and '__name__ == "__main__"' not in path.read_text(encoding="utf-8")
        for line, name, _ in calls(path)
        if name == "print"
    ]
    assert not wrong, "\n".join(wrong)


def test_nodes_send_nobody_to_a_command_that_comfyui_manager_does_not_install():
    for path in (ROOT / "nodes").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert not [text for text in texts if "python -m intrinsic_lab" in text], f"{path.name}: name a node, or what else is there"


def test_help_pages_and_notes_in_graphs_say_how_a_command_that_they_name_comes_to_be():
    pages = [*ROOT.glob("web/docs/*.md"), *ROOT.glob("example_workflows/*.json"), *ROOT.glob("docs/workflows/*.json")]
    naming = [page for page in pages if "python -m intrinsic_lab" in page.read_text(encoding="utf-8")]
    assert len(naming) > 5
    assert [page.name for page in naming if "pip install -e" not in page.read_text(encoding="utf-8")] == []


def test_every_folder_of_code_is_a_package():
    missing = {str(path.parent.relative_to(ROOT)) for path in SOURCES if not (path.parent / "__init__.py").is_file()}
    assert not missing


def test_comfyui_loads_the_pack_without_importing_what_is_used_later():
    script = f"""
import asyncio, sys
sys.path.insert(0, {str(find_comfyui())!r})
from comfy.cli_args import args
args.cpu = True
import nodes, folder_paths, comfy.sd, comfy_api.latest
before = set(sys.modules)
loaded = asyncio.run(nodes.load_custom_node({str(ROOT)!r}))
ours = sorted(name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("IntrinsicLab"))
late = sorted({{name.split(".")[0] for name in set(sys.modules) - before}} & set({LATE!r}))
print("RESULT", loaded, len(ours), late)
"""
    quiet = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], env=quiet, capture_output=True, text=True, timeout=180, check=False)
    result = re.search(r"^RESULT (\w+) (\d+) (.*)$", done.stdout, re.M)
    assert result, done.stderr[-3000:]
    assert result[1] == "True" and int(result[2]) > 0, done.stderr[-3000:]
    assert result[3] == "[]"


def test_the_root_imports_nothing_when_it_is_imported():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_oldest_python_is_the_same_wherever_it_is_named():
    settings = pyproject()
    oldest = settings["project"]["requires-python"].removeprefix(">=")
    assert settings["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    # mypy refuses what the standard library of that version does not have.
    assert settings["tool"]["mypy"]["python_version"] == oldest
    for file in ("README.md", "tools/environment.py"):
        assert f"Python {oldest} or newer" in (ROOT / file).read_text(encoding="utf-8"), file


def test_what_is_bundled_is_as_large_as_the_readme_says_and_below_its_limit():
    size = sum(path.stat().st_size for path in (ROOT / "assets").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert size < 48e6
    assert f"| everything, offline | bundled | here | | {size / 1e6:.0f} MB |" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_packaged_files_exist():
    for pattern in pyproject()["tool"]["setuptools"]["package-data"]["intrinsic_lab"]:
        assert next(ROOT.glob(pattern), None), pattern


def test_every_room_is_type_checked():
    packages = {name.removeprefix("intrinsic_lab.") for name in pyproject()["tool"]["mypy"]["packages"]}
    assert packages == {*ROOMS, "tools"}
    assert not [path for path in SOURCES if re.search(r"#\s*(type:\s*ignore(?!\[)|mypy:)", path.read_text(encoding="utf-8"))]


def test_hooks_and_workflows_run_what_the_makefile_and_the_environment_have():
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split())
    workflows = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github/workflows").glob("*.yml")}
    steps = {name: [step for job in flow["jobs"].values() for step in job["steps"]] for name, flow in workflows.items()}
    assert [step["run"] for step in steps["test.yml"] if "run" in step] == ["make lint", "make test"]
    assert {"lint", "test"} <= targets
    # YAML 1.1 reads the key `on` as true.
    assert workflows["publish.yml"][True] == {"push": {"tags": ["v*"]}}
    assert all("@v" in step["uses"] for listed in steps.values() for step in listed if "uses" in step)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"].split()[0] for hook in hooks] == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]


def test_dependencies_have_lower_bounds_only_and_are_the_same_for_comfyui_manager():
    project = pyproject()["project"]
    listed = [line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert listed == project["dependencies"]
    for requirement in (*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)):
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?>=[0-9.]+(; python_version (<|>=) '3\.\d+')?", requirement), requirement


PAGES = ["ARCHITECTURE.md", "CONTRIBUTING.md", *(f"{room}/README.md" for room in (*ROOMS, "assets", "benchmarks", "tests", "tools", "web"))]


def named_files(text: str, name: str = "*", room: Path = ROOT) -> Iterator[tuple[str, list[Path]]]:
    """(what a page says, the files it means) of every file or folder that a page names by its path, from the top or from its room.

    NAME stands for `name`.
    """
    for said in re.findall(r"`([\w.*/-]+/[\w.*-]+)/?(?::\w+)?`", text):
        yield said, [*ROOT.glob(said.replace("NAME", name)), *room.glob(said.replace("NAME", name))]


def test_every_file_that_the_pages_for_strangers_name_is_there():
    missing = [
        f"{page}: {said}"
        for page in PAGES
        for said, files in named_files((ROOT / page).read_text(encoding="utf-8"), room=(ROOT / page).parent)
        if not files and said != "try/except"
    ]
    assert not missing, "\n".join(missing)


def names_in_code(path: Path) -> Iterator[str]:
    """Every identifier and every text without spaces: what code goes by, where prose does not count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name
            case ast.ImportFrom(module=module, names=aliases):
                yield from (module or "", *(alias.name for alias in aliases))
            case ast.Constant(value=str(text)) if not any(character.isspace() for character in text):
                yield text


@pytest.mark.parametrize(
    ("recipe", "example"), [("A map", "metallic"), ("A backbone", "pixart"), ("A LoRA format", "loha"), ("A data set", "iiw")]
)
def test_a_recipe_names_every_file_that_knows_its_subject(recipe, example):
    recipes = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Recipes")[1].split("\n## ")[0]
    section = recipes.split(f"### {recipe}\n")[1].split("\n### ")[0]
    named = {file for _, files in named_files(section, example) for file in files}
    # The kinds of weights share helpers; which families of LoRAs there are is a table of its own, named in the other recipe.
    named |= {*(ROOT / "methods/lora/formats").glob("*.py"), ROOT / "methods/lora/families.py", ROOT / "nodes/lora_space.py"}
    # So do the public data sets with the maps that they have.
    named |= set((ROOT / "data").glob("*.py"))
    code = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "scenes"]
    knowing = {path for path in code if any(example in name.lower() for name in names_in_code(path))}
    assert knowing - named == set()
    assert knowing, "the example is gone: choose another"
