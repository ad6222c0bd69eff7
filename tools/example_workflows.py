"""The example workflows: which there are, what each needs beside the pack, and their two forms.

example_workflows/NAME.json is the graph, example_workflows/api/NAME.json the prompt made of it by the real front end.
example_workflows/index.json says per name what must be brought: {"NAME": {"needs": ["a checkpoint"]}}; an empty list
means that the bundled weights are enough.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from .comfyui_source import ROOT

FOLDER = ROOT / "example_workflows"


@dataclass(frozen=True)
class ExampleWorkflow:
    """One example: its name and what a person must bring to run it."""

    name: str
    needs: tuple[str, ...]

    @property
    def graph_path(self) -> Path:
        return FOLDER / f"{self.name}.json"

    @property
    def api_path(self) -> Path:
        return FOLDER / "api" / f"{self.name}.json"

    @property
    def thumbnail_path(self) -> Path:
        return FOLDER / f"{self.name}.jpg"

    def graph(self) -> dict:
        return json.loads(self.graph_path.read_text(encoding="utf-8"))

    def prompt(self) -> dict:
        return json.loads(self.api_path.read_text(encoding="utf-8"))


def example_workflows() -> list[ExampleWorkflow]:
    """All examples, by name. Raises ValueError if index.json and the folder do not name the same ones."""
    index_path = FOLDER / "index.json"
    index = json.loads(index_path.read_text(encoding="utf-8")) if index_path.is_file() else {}
    names = {path.stem for path in FOLDER.glob("*.json")} - {"index"}
    if names != set(index):
        raise ValueError(f"example_workflows/ holds {sorted(names)}, its index.json names {sorted(index)}: make them the same.")
    return [ExampleWorkflow(name, tuple(index[name]["needs"])) for name in sorted(names)]
