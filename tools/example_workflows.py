"""The example workflows, what each needs beside the pack, and their two forms.

example_workflows/NAME.json is the graph, example_workflows/api/NAME.json the prompt made of it by the real front end.
What a person must bring stands in the graph itself: "extra": {"intrinsic_lab": {"needs": ["a checkpoint"]}}; where nothing
stands, the bundled weights are enough. Every other JSON file in that folder would show up as a template.
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
    """All examples, by name."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        extra = json.loads(path.read_text(encoding="utf-8")).get("extra", {})
        found.append(ExampleWorkflow(path.stem, tuple(extra.get("intrinsic_lab", {}).get("needs", ()))))
    return found
