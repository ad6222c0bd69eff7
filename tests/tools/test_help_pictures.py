"""The help pages' pictures."""

import re

from intrinsic_lab.tools.comfyui_source import ROOT
from intrinsic_lab.tools.help_pictures import WIDTH
from PIL import Image

MOST_BYTES, MOST_BYTES_TOGETHER = 40_000, 1_500_000


def test_every_help_page_shows_its_own_small_picture():
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "web/docs").glob("*.md")}
    files = {file.stem: file for file in (ROOT / "web/docs/pictures").iterdir()}
    assert pages.keys() == files.keys()
    for name, text in pages.items():
        assert re.findall(r"!\[.+\]\((.+)\)", text) == [f"pictures/{name}.jpg"], name
        with Image.open(files[name]) as picture:
            assert picture.width == WIDTH and picture.height <= WIDTH, name
    sizes = [file.stat().st_size for file in files.values()]
    assert max(sizes) < MOST_BYTES and sum(sizes) < MOST_BYTES_TOGETHER
