"""The front end's texts in other languages: locales/LANGUAGE/*.json, as ComfyUI reads them, from locales/translations.json.

That file holds every English text of the nodes and of web/*.js once, with its translations. A new or changed text is missing there until
somebody translates it: `python -m intrinsic_lab.tools.locales` tells which are, and writes the rest. It asks a ComfyUI for the nodes.
"""

import json
import re
import urllib.request
from collections.abc import Iterator, Mapping

from .batch_jobs import write_atomically
from .comfyui_source import ROOT
from .console import exit_code, say
from .demo import started_server

FOLDER = ROOT / "locales"
LANGUAGES = ("zh", "ja")
PREFIX, CATEGORY = "IntrinsicLab", "intrinsic lab"

# By English text, by language.
Translations = dict[str, dict[str, str]]


def translations() -> Translations:
    """What is translated, from locales/translations.json."""
    return json.loads((FOLDER / "translations.json").read_text(encoding="utf-8"))


def inputs_of(info: Mapping) -> Iterator[tuple[str, str, str]]:
    """(key, name as shown, tooltip) of a node's inputs, those inside choices too. info: an entry of /object_info."""
    for kind in ("required", "optional"):
        yield from _inputs(info["input"].get(kind, {}), "")


def _inputs(specs: Mapping, prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, spec in specs.items():
        options = spec[1] if len(spec) > 1 else {}
        # Keys are paths for the front end, in which a dot would open a level.
        yield f"{prefix}{name}".replace(".", "_"), options.get("display_name") or name, options.get("tooltip") or ""
        for choice in options.get("options") or ():
            if isinstance(choice, dict):
                for inner in choice["inputs"].values():
                    yield from _inputs(inner, f"{prefix}{name}.")


def node_texts(info: Mapping) -> dict:
    """The English texts of a node, in the shape of an entry of nodeDefs.json."""
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {key: {"name": name, "tooltip": tooltip} for key, name, tooltip in inputs_of(info)},
        "outputs": {str(number): {"name": name, "tooltip": tooltip} for number, (name, tooltip) in enumerate(outputs)},
    }


def texts(infos: Mapping[str, Mapping]) -> dict[str, dict]:
    """All files of a language in English, by file name. infos: /object_info."""
    own = {name: info for name, info in infos.items() if name.startswith(PREFIX)}
    categories = {part: part for info in own.values() for part in info["category"].split("/")}
    main = {"nodeCategories": categories, "intrinsicLab": {text: text for text in script_texts()}}
    return {"nodeDefs.json": {name: node_texts(info) for name, info in own.items()}, "main.json": main}


def script_texts() -> list[str]:
    """The English texts of the pack's own elements: what web/*.js give to `t`, and the ways in which a map is coloured."""
    scripts = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "web").glob("*.js"))}
    found = [json.loads(text) for script in scripts.values() for text in re.findall(r'\bt\(("(?:[^"\\]|\\.)*")', script)]
    colorings = scripts["lora_points.js"].partition("COLORINGS = {")[2].partition("};")[0]
    return list(dict.fromkeys(found + re.findall(r"^    (\w+):", colorings, re.MULTILINE)))


def leaves(tree: dict | str, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of all texts that are not empty."""
    if isinstance(tree, str):
        yield from [(path, tree)] if tree else []
        return
    for key, inner in tree.items():
        yield from leaves(inner, f"{path}.{key}" if path else key)


def translated(tree: dict | str, language: str, known: Translations) -> dict | str:
    """The same with every text in a language; what is not translated is left out, and the front end shows it in English."""
    if isinstance(tree, str):
        return known.get(tree, {}).get(language, "")
    inner = {key: translated(value, language, known) for key, value in tree.items()}
    return {key: value for key, value in inner.items() if value}


def file_text(tree: dict | str) -> str:
    """As the files are written."""
    return json.dumps(tree, ensure_ascii=False, indent=1) + "\n"


def run() -> int:
    """Writes the files; 1 if texts are not translated."""
    with started_server() as server, urllib.request.urlopen(f"{server.url}/object_info", timeout=60) as answer:
        english = texts(json.load(answer))
    known = translations()
    missing: dict[str, str] = {}
    for name, tree in english.items():
        for language in LANGUAGES:
            (FOLDER / language).mkdir(exist_ok=True)
            write_atomically(FOLDER / language / name, file_text(translated(tree, language, known)).encode())
            missing |= {text: path for path, text in leaves(tree) if not known.get(text, {}).get(language)}
    for text, path in missing.items():
        say(f"  not translated: {path}: {text}")
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(exit_code(run))
