"""`python -m intrinsic_lab.evaluate.loras`: the folders of a shelf against its weights."""

import csv

import pytest
from intrinsic_lab.evaluate.loras import main
from intrinsic_lab.methods.lora_space.agreement import adjusted_rand_index, normalized_mutual_information
from intrinsic_lab.tests.methods.lora_space_shelf import make_lora, save_lora


def test_folders_that_are_styles_are_found_and_shuffled_ones_are_not(tmp_path, capsys):
    for style in range(3):
        for number in range(4):
            lora = make_lora(10 * style + number, style, rank=4 if number % 2 else 8, noise=0.2)
            save_lora(tmp_path / "shelf" / f"style {style}" / f"{number}.safetensors", lora)
            save_lora(tmp_path / "mixed" / f"drawer {number % 3}" / f"{style}{number}.safetensors", lora)
    save_lora(tmp_path / "shelf" / "alone.safetensors", make_lora(99, 5))
    (tmp_path / "shelf" / "style 0" / "broken.safetensors").write_bytes(b"no")
    found = {}
    for shelf in ("shelf", "mixed"):
        database = tmp_path / f"{shelf}.sqlite"
        assert main([str(tmp_path / shelf), "--output", str(tmp_path / "out" / shelf), "--database", str(database)]) == 0
        text = (tmp_path / "out" / shelf / "table.md").read_text()
        assert text in capsys.readouterr().out
        row = next(line for line in text.splitlines() if line.startswith("| ours, shipped"))
        found[shelf], spread = zip(*([float(number) for number in cell.split("±")] for cell in row.split("|")[3:-1]), strict=True)
        with (tmp_path / "out" / shelf / "loras.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        # The list is the map's own clustering, and the table's numbers are its agreement with the folders.
        folders, clusters = ([line[name] for line in lines] for name in ("folder", "cluster"))
        assert len(lines) == 12 and len(set(clusters)) == 3
        agreement = [normalized_mutual_information(folders, clusters), adjusted_rand_index(folders, clusters)]
        assert found[shelf][3:] == pytest.approx(agreement, abs=5e-3)
        # Four LoRAs of each: halves of styles that are told apart find each other too, halves of shuffled ones differ.
        assert (spread[2] == 0) == (shelf == "shelf")
    assert found["shelf"] == (1, 1, 1, 1, 1)
    assert found["mixed"][0] < 0.5 and found["mixed"][4] < 0.2
    assert "12 LoRAs of 3 styles, ranks [4, 8]" in (tmp_path / "out" / "shelf" / "table.md").read_text()


def test_a_shelf_without_folders_is_told_what_to_do(tmp_path, caplog):
    for number in range(3):
        save_lora(tmp_path / "shelf" / f"{number}.safetensors", make_lora(number))
    options = ["--output", str(tmp_path / "out"), "--database", str(tmp_path / "index.sqlite")]
    assert main([str(tmp_path / "shelf"), *options]) == 2
    assert "put those that belong together into a folder each" in caplog.text and not (tmp_path / "out").exists()
    assert main([str(tmp_path / "none"), *options]) == 2 and "none is not a folder" in caplog.text
