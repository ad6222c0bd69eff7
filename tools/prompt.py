"""A ComfyUI graph in API form: reading it, setting its inputs, telling whether it has changed."""

import hashlib
import json
from pathlib import Path

Prompt = dict[str, dict]


class BatchError(Exception):
    """The batch cannot run: a wrong argument, a wrong graph, or no server."""


def load_prompt(path: Path) -> Prompt:
    """Reads a graph in API form: node id -> {"class_type", "inputs"}. Raises BatchError if the file is something else."""
    try:
        # Editors on Windows put a byte order mark before it.
        prompt = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BatchError(f"{path} cannot be read as a graph: {error}") from error
    if isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list):
        raise BatchError(f"{path} is a graph for the editor; wanted is its API form: in ComfyUI, Workflow > Export (API).")
    if not isinstance(prompt, dict) or not prompt or not all(isinstance(node, dict) and "class_type" in node for node in prompt.values()):
        raise BatchError(f"{path} is no ComfyUI graph in API form: wanted is an object of nodes with a class_type each.")
    for node in prompt.values():
        node.setdefault("inputs", {})
        # ComfyUI's node replacement fails with HTTP 500 on a node without a title.
        node.setdefault("_meta", {}).setdefault("title", node["class_type"])
    return prompt


def find_node(prompt: Prompt, name: str) -> str:
    """The id of the node with this id or title. Raises BatchError if there is none, or several with the title."""
    if name in prompt:
        return name
    titled = [node_id for node_id, node in prompt.items() if node["_meta"]["title"] == name]
    if len(titled) == 1:
        return titled[0]
    known = ", ".join(f"{node_id} ({node['_meta']['title']})" for node_id, node in prompt.items())
    problem = f"{len(titled)} nodes have the title" if titled else "no node has the id or title"
    raise BatchError(f"{problem} {name!r}; the graph's nodes are: {known}.")


def set_input(prompt: Prompt, assignment: str) -> None:
    """Applies NODE.INPUT=VALUE to the graph; VALUE is JSON, else text. Raises BatchError if the node or input is not there."""
    target, equals, text = assignment.partition("=")
    node_name, dot, input_name = target.partition(".")
    if not equals or not dot:
        raise BatchError(f"--set {assignment!r} is not of the form NODE.INPUT=VALUE.")
    node = prompt[find_node(prompt, node_name)]
    if input_name not in node["inputs"]:
        known = ", ".join(node["inputs"]) or "none"
        raise BatchError(f"node {node_name} ({node['class_type']}) has no input {input_name!r}; it has: {known}.")
    try:
        node["inputs"][input_name] = json.loads(text)
    except ValueError:
        node["inputs"][input_name] = text


# What takes the pictures or videos of a batch: a loader of core -> its input.
LOADERS = {"LoadImage": "image", "LoadVideo": "file"}


def picture_input(prompt: Prompt, wanted: str | None) -> tuple[str, str]:
    """The (node id, input name) that takes the picture or video: `wanted` as NODE or NODE.INPUT, else the graph's only loader in use.

    A graph that has none but starts from one Render Scene, or from the Create Video of one Render Camera Move, as the examples do, gets a
    loader in its place.
    """
    if wanted:
        name, _, input_name = wanted.partition(".")
        node_id = find_node(prompt, name)
        input_name = input_name or LOADERS.get(prompt[node_id]["class_type"], "image")
        if input_name not in prompt[node_id]["inputs"]:
            raise BatchError(f"node {name} has no input {input_name!r}; it has: {', '.join(prompt[node_id]['inputs'])}.")
        return node_id, input_name
    links = [value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list) and len(value) == 2]
    slots = {node_id: {slot for source, slot in links if source == node_id} for node_id in prompt}
    loaders = [node_id for node_id, node in prompt.items() if node["class_type"] in LOADERS and slots[node_id]]
    # A scene whose exact maps are used cannot be any other picture.
    scenes = {
        node_id: node["class_type"]
        for node_id, node in prompt.items()
        if node["class_type"] in ("IntrinsicLabRenderScene", "IntrinsicLabRenderCameraMove") and slots[node_id] == {0}
    }
    if not loaders and len(scenes) == 1:
        [(scene, rendered)] = scenes.items()
        if rendered == "IntrinsicLabRenderScene":
            return _replace_by(prompt, scene, "LoadImage")
        videos = [
            node_id
            for node_id, node in prompt.items()
            if node["class_type"] == "CreateVideo" and node["inputs"].get("images") == [scene, 0] and slots[node_id]
        ]
        if len(videos) == 1:
            return _replace_by(prompt, videos[0], "LoadVideo")
    if len(loaders) != 1:
        raise BatchError(
            f"the graph uses {len(loaders)} nodes of {' and '.join(LOADERS)}: say with --input-node which one takes the pictures or videos."
        )
    return loaders[0], LOADERS[prompt[loaders[0]]["class_type"]]


def _replace_by(prompt: Prompt, node_id: str, loader: str) -> tuple[str, str]:
    prompt[node_id] = {"class_type": loader, "inputs": {LOADERS[loader]: ""}, "_meta": {"title": loader}}
    return node_id, LOADERS[loader]


def graph_hash(prompt: Prompt, target: tuple[str, str] | None) -> str:
    """Identifies what the graph computes: its nodes and inputs, without titles and without the picture."""
    nodes = {node_id: {"class_type": node["class_type"], "inputs": dict(node["inputs"])} for node_id, node in prompt.items()}
    if target:
        nodes[target[0]]["inputs"][target[1]] = None
    return hashlib.sha256(json.dumps(nodes, sort_keys=True).encode()).hexdigest()
