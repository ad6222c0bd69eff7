"""Saved graphs as ComfyUI's front end and registry want them: `python -m intrinsic_lab.tools.saved_graphs` mends all that the pack brings.

The front end's schema knows no null but those of free sockets, and graphs by UUIDs. Whoever opens a graph without the pack is
told what to install by `cnr_id` and `ver` in a node's properties, names of the Comfy registry.
"""

import json
import re
import uuid
from pathlib import Path
from typing import Any

from .batch_jobs import write_atomically
from .comfyui_source import NEWEST, ROOT
from .console import say

FOLDERS = ("example_workflows", "docs/workflows", "subgraphs")
PREFIX = "IntrinsicLab"
# Only the front end has them: no pack to install.
_DRAWN = ("MarkdownNote", "Note", "PrimitiveNode", "Reroute")


def saved_graphs() -> list[Path]:
    """Every graph that the pack brings: templates, workflows of the documentation, blueprints."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.json"))]


def version_of_pack() -> str:
    """The version that pyproject.toml states."""
    [version] = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return version


def mended(graph: dict, name: str) -> dict:
    """The graph with a UUID of its own (made from its name), without nulls that say nothing, its nodes with registry name and version."""
    graph = _without_nulls(graph)
    if not _is_uuid(graph.get("id")):
        graph = {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"intrinsic-lab/{name}")), **{key: graph[key] for key in graph if key != "id"}}
    subgraphs = graph.get("definitions", {}).get("subgraphs", [])
    own = {subgraph["id"] for subgraph in subgraphs}
    for node in [node for part in (graph, *subgraphs) for node in part["nodes"]]:
        if node["type"] not in (*_DRAWN, *own):
            node["properties"] = {**node.get("properties", {}), **_source(node["type"])}
    return graph


def _source(node_type: str) -> dict[str, str]:
    if node_type.startswith(PREFIX):
        return {"cnr_id": "intrinsic-lab", "ver": version_of_pack()}
    return {"cnr_id": "comfy-core", "ver": NEWEST.version}


def _without_nulls(part: Any) -> Any:
    match part:
        case dict():
            return {
                # A free socket's link is null, as a widget's value may be.
                key: value if key == "widgets_values" else _without_nulls(value)
                for key, value in part.items()
                if value is not None or key in ("link", "links")
            }
        case list():
            return [_without_nulls(value) for value in part]
    return part


def _is_uuid(text: Any) -> bool:
    try:
        return uuid.UUID(text).int != 0
    except (AttributeError, TypeError, ValueError):
        return False


def mend(path: Path) -> bool:
    """Mends a graph's file in place, indented as it was; whether it had to."""
    text = path.read_text(encoding="utf-8")
    graph = json.loads(text)
    # Texts for equal graphs are equal: of a dictionary the order counts too.
    new = mended(graph, path.stem)
    if json.dumps(new) == json.dumps(graph):
        return False
    indent = len(text.split("\n", 2)[1]) - len(text.split("\n", 2)[1].lstrip())
    write_atomically(path, (json.dumps(new, indent=indent, ensure_ascii=False) + "\n").encode())
    return True


if __name__ == "__main__":
    found = [path for path in saved_graphs() if mend(path)]
    say(f"{len(found)} of {len(saved_graphs())} graphs were mended.")
