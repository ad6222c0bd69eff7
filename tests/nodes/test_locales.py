"""The nodes in other languages."""

import asyncio

import pytest

pytest.importorskip("comfy_api.latest")
from intrinsic_lab.nodes import IntrinsicLabExtension
from intrinsic_lab.tools.locales import FOLDER, LANGUAGES, file_text, leaves, texts, translated, translations

AGAIN = "translate them in locales/translations.json, then run `python -m intrinsic_lab.tools.locales`"


@pytest.fixture(scope="module")
def english() -> dict[str, dict]:
    nodes = asyncio.run(IntrinsicLabExtension().get_node_list())
    return texts({node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in nodes})


def test_every_text_of_every_node_is_translated(english):
    known = translations()
    said = {text: f"{name} {path}" for name, tree in english.items() for path, text in leaves(tree)}
    missing = [
        f"{language}: {path}: {text}" for text, path in said.items() for language in LANGUAGES if not known.get(text, {}).get(language)
    ]
    assert missing == [], AGAIN
    assert sorted(known.keys() - said.keys()) == [], "nothing says these any more: delete them"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_files_that_comfyui_reads_hold_the_translations(english, language):
    known = translations()
    for name, tree in english.items():
        written = (FOLDER / language / name).read_text(encoding="utf-8")
        assert written == file_text(translated(tree, language, known)), f"{language}/{name}: {AGAIN}"
    for path, text in leaves(translated(english["nodeDefs.json"], language, known)):
        # These the front end compiles: its marks would be taken for links, plurals and variables.
        if not path.endswith(".tooltip"):
            assert not set("@|{}$") & set(text), (path, text)
