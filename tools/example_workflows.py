"""The example workflows, what each needs beside the pack, and their two forms.

FOLDER/NAME.json is the graph, FOLDER/api/NAME.json the prompt made of it by the real front end. Those in example_workflows/
are the templates of ComfyUI's browser: a template's file name is its title, those that run with what the pack brings begin with
a number. Those in docs/workflows/ are for who reads the documentation.
What a person must bring stands in the graph itself: "extra": {"intrinsic_lab": {"needs": ["a checkpoint"]}}; where nothing
stands, the bundled weights are enough. Every other JSON file in example_workflows/ would show up as a template.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from .comfyui_source import ROOT

TEMPLATES = ROOT / "example_workflows"
DOCUMENTED = ROOT / "docs" / "workflows"


@dataclass(frozen=True)
class ExampleWorkflow:
    """One example: its name, what a person must bring to run it, and the folder that it is in."""

    name: str
    needs: tuple[str, ...]
    folder: Path

    @property
    def is_template(self) -> bool:
        return self.folder == TEMPLATES

    @property
    def graph_path(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def api_path(self) -> Path:
        return self.folder / "api" / f"{self.name}.json"

    @property
    def thumbnail_path(self) -> Path:
        return self.folder / f"{self.name}.jpg"

    def graph(self) -> dict:
        return json.loads(self.graph_path.read_text(encoding="utf-8"))

    def prompt(self) -> dict:
        return json.loads(self.api_path.read_text(encoding="utf-8"))


def example_workflows() -> list[ExampleWorkflow]:
    """All examples, the templates first, by name."""
    found = []
    for path in [path for folder in (TEMPLATES, DOCUMENTED) for path in sorted(folder.glob("*.json"))]:
        extra = json.loads(path.read_text(encoding="utf-8")).get("extra", {})
        found.append(ExampleWorkflow(path.stem, tuple(extra.get("intrinsic_lab", {}).get("needs", ())), path.parent))
    return found


def example_workflow(name: str) -> ExampleWorkflow:
    """The example of this name. Raises ValueError if there is none."""
    for example in example_workflows():
        if example.name == name:
            return example
    raise ValueError(f"There is no example workflow {name!r}: wanted is one of {', '.join(one.name for one in example_workflows())}.")
