"""Files that strangers, editors and other systems leave: one of them may never take the pack or the server down."""

import json
import logging
import os
import shutil
from pathlib import Path

import folder_paths
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intrinsic_lab.data.folder import matched
from intrinsic_lab.methods.ildm.schedules import LAST_POSITION, parse_positions, parse_table, table_schedule
from intrinsic_lab.methods.lora_space.index import LoraIndex
from intrinsic_lab.methods.lora_space.scan import list_files
from intrinsic_lab.methods.lumix.tensor_lora.file import config_of_state
from intrinsic_lab.methods.plain_files import read_json, read_text
from intrinsic_lab.nodes import IntrinsicLabExtension
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.nodes.native.loading.folder_files import ModelFolderError
from intrinsic_lab.nodes.native.paths import BUNDLED, model_folders
from intrinsic_lab.nodes.native.training import files as training_files
from intrinsic_lab.tools.batch_jobs import RECORD_NAME, Job, collect_jobs, is_done
from intrinsic_lab.training.folder_data import FolderData
from PIL import Image
from safetensors.torch import save_file

NODES = {}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=8) | st.just("AutoencoderKL"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["_class_name", "a"]), inner, max_size=2),
    max_leaves=5,
)
KEYS = st.sampled_from(["_class_name", "addition_embed_type", "use_linear_projection", "block_out_channels", "unet", "x"])
CONTENT = st.dictionaries(KEYS, VALUES, max_size=4).map(lambda value: json.dumps(value).encode()) | st.sampled_from(
    [b"", b"{}", b"[]", b"{", b"\xff\xfe{\0", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"_class_name": []}', b"9" * 5000, b"\0" * 10]
)
KINDS = st.sampled_from(["file", "pipe", "folder", "dangling", "loop"])


async def _node_list():
    return await IntrinsicLabExtension().get_node_list()


@pytest.fixture(scope="module")
def nodes():
    import asyncio

    return asyncio.run(_node_list())


def put(path: Path, kind: str, content: bytes = b"{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_bytes(content)
    else:
        path.symlink_to(path.with_name("nowhere") if kind == "dangling" else path.parent)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """ComfyUI's folders, empty, of the test's own."""
    for category in ("diffusers", "vae", "checkpoints", "loras"):
        (tmp_path / category).mkdir()
        endings = folder_paths.folder_names_and_paths[category][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, category, ([str(tmp_path / category)], endings))
    (tmp_path / "input").mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


PLACES = (
    "diffusers/x/model_index.json",
    "diffusers/x/unet/config.json",
    "diffusers/x/transformer/config.json",
    "diffusers/x/config.json",
    "vae/x/config.json",
    "vae/x.ckpt",
    "vae/x.yaml",
    "vae/x.pkl",
    "loras/x.safetensors",
    "loras/x.bin",
    "checkpoints/x.safetensors",
    "input/x",
    "input/.x",
)


@settings(max_examples=40)
@given(data=st.data())
def test_no_entry_of_a_model_folder_keeps_a_node_from_being_listed(folders, nodes, outcomes, data):
    for entry in folders.iterdir():
        shutil.rmtree(entry)
        entry.mkdir()
    folder_paths.filename_list_cache.clear()
    for place in data.draw(st.lists(st.sampled_from(PLACES), unique=True, min_size=1, max_size=6)):
        put(folders / place, data.draw(KINDS), data.draw(CONTENT))
    # A pipe that is opened would hang here.
    offered = [node.define_schema() for node in nodes]
    assert "nano (bundled)" in training_files.base_names("sd15", "sd21")
    outcomes[f"trees, every one of {len(offered)} nodes listed"] += 1


def test_a_bad_model_folder_is_left_out_of_the_bases_and_said_once(folders, caplog):
    put(folders / "diffusers/hostile/model_index.json", "file")
    put(folders / "diffusers/hostile/transformer/config.json", "file", b'{"_class_name": []}')
    put(folders / "diffusers/.hidden/model_index.json", "file")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert "nano (bundled)" in (bases := training_files.base_names("sd15")) and "hostile" not in bases
    assert sum("hostile" in record.message for record in caplog.records) == 1
    assert "hostile" in model_folders() and ".hidden" not in model_folders()


def linked_nano(tmp_path_factory) -> Path:
    """The bundled model, each file a link that can be replaced."""
    folder = tmp_path_factory.mktemp("model") / "nano"
    shutil.copytree(BUNDLED / "nano", folder, copy_function=os.symlink)
    return folder


def load_or_refuse(folder: Path, outcomes) -> None:
    try:
        load_pipeline(folder)
        outcomes["loaded"] += 1
    except ModelFolderError as error:
        assert str(folder.parent) not in str(error)
        outcomes["refused in words"] += 1


PARTS = {part: json.loads((BUNDLED / "nano" / part / "config.json").read_text()) for part in ("unet", "vae", "text_encoder")}
PARTS["scheduler"] = json.loads((BUNDLED / "nano/scheduler/scheduler_config.json").read_text())


@settings(max_examples=25)
@given(data=st.data())
def test_a_config_with_one_wrong_value_loads_or_is_refused_in_words(tmp_path_factory, outcomes, data):
    part = data.draw(st.sampled_from(sorted(PARTS)))
    name = data.draw(st.sampled_from(sorted(PARTS[part])))
    wrong = data.draw(VALUES | st.sampled_from([[10**9] * 3, [], 10**9, -1, 0, {"a": 1}]))
    folder = linked_nano(tmp_path_factory)
    config = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    config.unlink()
    config.write_text(json.dumps(PARTS[part] | {name: wrong}))
    load_or_refuse(folder, outcomes)


NANO_FILES = sorted(
    path.relative_to(BUNDLED / "nano") for path in (BUNDLED / "nano").rglob("*") if path.is_file() and path.name != "record.json"
)


@settings(max_examples=25)
@given(data=st.data())
def test_a_model_with_one_damaged_file_loads_or_is_refused_in_words(tmp_path_factory, outcomes, data):
    file = data.draw(st.sampled_from(NANO_FILES))
    folder = linked_nano(tmp_path_factory)
    whole = (BUNDLED / "nano" / file).read_bytes()
    flipped = bytearray(whole)
    flipped[data.draw(st.integers(0, min(2000, len(whole) - 1)))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / file).unlink()
    put(folder / file, data.draw(KINDS), data.draw(st.sampled_from([bytes(flipped), whole[: len(whole) // 2]]) | CONTENT))
    load_or_refuse(folder, outcomes)


@settings(max_examples=150)
@given(text=st.text(alphabet="0123456789-,: .٣", max_size=24))
def test_positions_and_tables_are_bounded_whatever_is_written(text, outcomes):
    for parse in (parse_positions, lambda written: table_schedule(parse_table(written))):
        try:
            found = parse(text)
            assert not isinstance(found, tuple) or max(found) <= LAST_POSITION
            outcomes["read"] += 1
        except ValueError:
            outcomes["refused in words"] += 1


def test_a_range_of_twenty_million_positions_is_refused_before_it_is_a_list():
    with pytest.raises(ValueError, match=f"goes beyond {LAST_POSITION}"):
        parse_positions("0-20000000")
    with pytest.raises(ValueError, match="names block 100000000"):
        config_of_state({"double_blocks.100000000.processor.kv_tt_lora.G2": torch.zeros(5, 4, 2, 2)}, {})


@settings(max_examples=150)
@given(content=st.binary(max_size=40) | st.text(max_size=20).flatmap(lambda text: st.sampled_from([text.encode(), text.encode("utf-16")])))
def test_every_file_is_text_or_refused_by_name(tmp_path_factory, outcomes, content):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_bytes(content)
    for read in (read_text, read_json):
        try:
            read(path)
            outcomes["read"] += 1
        except ValueError as error:
            assert "some.txt" in str(error)
            outcomes["refused in words"] += 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_captions_are_read_in_whatever_an_editor_wrote(tmp_path, encoding):
    for kind in ("image", "depth"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / kind / "a.png")
    (tmp_path / "image" / "a.txt").write_bytes("ein grünes Café".encode(encoding))
    assert FolderData(tmp_path, 16).aligned(["depth"]).captions == ("ein grünes Café",)


def test_hidden_files_and_pipes_are_no_pictures(tmp_path):
    for name in ("a.png", "a_depth.png", "._a.png", "._a_depth.png", ".hidden/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    for name in ("p.png", "p_depth.png"):
        os.mkfifo(tmp_path / name)
    assert [pair.name for pair in matched(tmp_path, "depth")] == ["a"]
    assert [job.picture.name for job in collect_jobs([tmp_path], tmp_path / "out")] == ["a.png", "a_depth.png"]


def test_a_batch_keeps_apart_names_that_only_differ_in_case_and_believes_no_damaged_record(tmp_path):
    pictures = tmp_path / "in"
    pictures.mkdir()
    for name in ("IMG_1.JPG", "img_1.png"):
        (pictures / name).write_bytes(b"x")
    jobs = collect_jobs([pictures], tmp_path / "out")
    assert len({str(job.folder).casefold() for job in jobs}) == 2
    job = Job(None, tmp_path / "out")
    job.folder.mkdir()
    (job.folder / "depth.png").write_bytes(b"x")
    record = {"graph": "g", "picture": None, "files": ["depth.png"]}
    (job.folder / RECORD_NAME).write_text(json.dumps(record))
    assert is_done(job, "g")
    (job.folder / "depth.png").write_bytes(b"")
    assert not is_done(job, "g")
    for content in ("[]", "{}", '{"files": 3}', '{"files": [3]}', "[" * 100_000):
        (job.folder / RECORD_NAME).write_text(content)
        assert not is_done(job, "g")
    (job.folder / RECORD_NAME).unlink()
    os.mkfifo(job.folder / RECORD_NAME)
    assert not is_done(job, "g")


def test_names_of_one_file_are_one_lora_and_pipes_and_hidden_ones_are_none(tmp_path):
    (tmp_path / "z.safetensors").write_bytes(b"x")
    (tmp_path / "a.safetensors").symlink_to(tmp_path / "z.safetensors")
    os.link(tmp_path / "z.safetensors", tmp_path / "zz.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"x")
    (tmp_path / "._z.safetensors").write_bytes(b"x")
    put(tmp_path / ".hidden" / "b.safetensors", "file")
    os.mkfifo(tmp_path / "pipe.safetensors")
    listing = list_files([tmp_path, tmp_path])
    assert sorted(file.name for file in listing.files) == ["other.safetensors", "z.safetensors"]
    assert [(os.path.basename(path), "no regular file" in reason) for path, reason in listing.problems] == [("pipe.safetensors", True)]


def test_halves_of_letters_and_numbers_in_a_header_keep_no_lora_from_the_index(tmp_path):
    layer = {f"lora_unet_conv_in.{name}": torch.ones(1, 1) for name in ("lora_down.weight", "lora_up.weight")}
    save_file(layer, tmp_path / "good.safetensors", {"modelspec.title": "good"})
    whole = (tmp_path / "good.safetensors").read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for name, entry, renamed in (
        ("title", {"modelspec.title": "\ud800", "ss_sd_model_name": "\udfff"}, "lora_unet_conv_in"),
        ("number", {"intrinsic_lab.timestep": 0, "modelspec.title": None, "ss_steps": [1]}, "lora_unet_conv_in"),
        ("module", {}, "\ud800"),
    ):
        header = json.loads(whole[8:start].decode().replace("lora_unet_conv_in", json.dumps(renamed)[1:-1])) | {"__metadata__": entry}
        text = json.dumps(header).encode()
        (tmp_path / f"{name}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + whole[start:])
    with LoraIndex(tmp_path / "index.sqlite") as index:
        found = index.update([tmp_path])
        assert found.added == 4 and [os.path.basename(problem.path) for problem in found.problems] == ["module.safetensors"]
        assert len(index.entries()) == 3
