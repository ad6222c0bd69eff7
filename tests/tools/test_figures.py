"""README and docs: what is measured says where it comes from, and equals its record."""

import json
import re

import pytest
import yaml
from intrinsic_lab.tools import figures
from intrinsic_lab.tools.console import WorkbenchError

ROOT = figures.ROOT
# Decimal numbers that are the field's, not ours: thresholds of angles and of delta1, settings of upstream.
PUBLISHED = {"11.25", "22.5", "1.25", "7.5", "0.7"}


def test_every_figure_of_the_pages_equals_its_record_and_every_decimal_number_is_one():
    texts = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in figures.pages()}
    assert [name for name, text in texts.items() if figures.renewed(text) != text] == [], "make docs writes them anew"
    assert sum(text.count("<!--=") for text in texts.values()) > 50
    unmarked = {
        name: [said for said in figures.unmarked(text) if said.split()[-1].strip("(") not in PUBLISHED] for name, text in texts.items()
    }
    assert {name: said for name, said in unmarked.items() if said} == {}


def test_a_figure_is_the_mean_of_its_seeds_written_as_asked(tmp_path, monkeypatch):
    (tmp_path / "made_up.json").write_text(json.dumps({"a / b": [{"seeds": [0.25, 0.75]}], "share": 0.5, "all": 12345.0}))
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    figures._record.cache_clear()
    told = {"made_up > a / b > 0 > seeds : ~.2f": ".50", "made_up > a / b > 0 > seeds : std .3f": "0.354", "made_up > share : .0%": "50%"}
    told["made_up > all : ,.0f"] = "12,345"
    page = "\n".join(f"x <!--= {source} -->old<!--/--> y" for source in told)
    assert figures.renewed(page) == "\n".join(f"x <!--= {source} -->{text}<!--/--> y" for source, text in told.items())
    assert [said.split()[-1] for said in figures.unmarked(f"{page} takes 3.7 s with SD 1.5, `0.2` or .4")] == ["3.7", ".4"]
    for wrong in ("made_up > none : .1f", "none > a : .1f", "made_up > a / b > 7 : .1f"):
        with pytest.raises(WorkbenchError):
            figures.renewed(f"<!--= {wrong} --><!--/-->")
    figures._record.cache_clear()


def test_readme_is_short_and_every_page_is_in_the_menu():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = [page for entry in menu for page in ([entry] if isinstance(entry, str) else next(iter(entry.values())))]
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_links_between_readme_and_docs_lead_somewhere():
    for page in figures.pages():
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
