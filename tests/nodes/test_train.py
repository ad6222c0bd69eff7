"""What training nodes promise beside the training itself: names, places, and a process left as it was."""

import sys
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from intrinsic_lab.nodes import train
from intrinsic_lab.nodes.native.training import files as training_files
from intrinsic_lab.nodes.native.training import session as training
from intrinsic_lab.nodes.native.training.files import SCENES, Destination, lora_destination, name_problem, publish, require_free
from intrinsic_lab.nodes.native.training.session import Settings, Watcher, require_packages, train_in_graph, training_session
from intrinsic_lab.tools.comfyui_source import ROOT
from intrinsic_lab.training.history import History
from intrinsic_lab.training.loop import Diverged, Interrupted

SETTINGS = Settings("nano (bundled)", "rendered scenes", "run", 3, 1e-3, 1)


@pytest.fixture(autouse=True)
def comfyui_folders(tmp_path, monkeypatch):
    """Two models/loras folders, of which the first takes results, and folders of the test's own for input and output."""
    places = [str(tmp_path / "loras"), str(tmp_path / "more loras")]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", (places, {".safetensors"}))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))


def test_every_node_has_tooltips_a_help_page_and_a_number_that_stays():
    for node in train.NODES:
        declared = node.define_schema()
        assert declared.is_output_node and declared.category == "intrinsic lab/training" and declared.search_aliases
        assert all(one.tooltip for one in (*declared.inputs, *declared.outputs)), declared.node_id
        names = [one.id for one in declared.inputs]
        # The front end gives inputs of these names a new value after every run.
        assert len(set(names)) == len(names) and not {"seed", "noise_seed"} & set(names)
        page = (ROOT / "web/docs" / f"{declared.node_id}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {declared.display_name}\n")
        assert all(f"`{name}`" in page for name in names), declared.node_id


def test_every_shared_input_is_a_setting():
    known = set(Settings.__dataclass_fields__)
    own = {"map", "rank", "kind", "gradient_checkpointing", "intrinsic_vae", "attention", "lora", "base_dtype", "method", "reading"}
    for node in train.NODES:
        assert {one.id for one in node.define_schema().inputs} - own <= known


@pytest.mark.parametrize("name", ["normals", "my map 2", "v1.2", "größe", "日本語", "a-b_c", "comet", "console"])
def test_plain_names_are_taken(name):
    assert name_problem(name) is None


@pytest.mark.parametrize("name", ["", " a", "a ", ".", "..", "a/b", "a\\b", "/a", "c:a", "a\0", "a\n", "NUL", "com1.x", "ü" * 51])
def test_other_names_are_refused_with_what_to_do(name):
    assert name_problem(name)
    with pytest.raises(ValueError):
        training_files.run_folder(name)


def test_only_folders_of_the_input_directory_are_data(tmp_path):
    for name in ("input/pairs", "input/.hidden", "secret"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "input/file.png").touch()
    assert list(training_files.data_folders()) == ["pairs"]
    for name in ("../secret", str(tmp_path / "secret"), ".hidden", "file.png", ""):
        with pytest.raises(ValueError, match="There is no data folder"):
            training_files.data_folder(name)


def test_lists_offer_only_folders_that_hold_what_the_node_reads(tmp_path):
    for file in (
        "3d/model.glb",
        "empty/notes.txt",
        "photos/a.png",
        "flat/a.png",
        "flat/a_depth.png",
        "deep/image/a.png",
        "deep/normal/a.png",
    ):
        (tmp_path / "input" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "input" / file).touch()
    assert training_files.pair_folders() == ["deep", "flat"]
    assert training_files.data_set_folders() == ["deep", "flat", "photos"]
    [data] = [one for one in train.NODES[0].define_schema().inputs if one.id == "data"]
    assert data.options == [SCENES, "deep", "flat"]


def test_a_result_replaces_its_own_earlier_one_and_nothing_else(tmp_path):
    run, other, result = tmp_path / "run", tmp_path / "other", tmp_path / "result.safetensors"
    place = lora_destination("x")
    assert place == Destination(str(Path("intrinsic_lab/x.safetensors")), tmp_path / "loras/intrinsic_lab/x.safetensors")
    for content in (b"one", b"two"):
        result.write_bytes(content)
        publish(run, result, place)
        assert place.path.read_bytes() == content
    with pytest.raises(ValueError, match="choose another name"):
        publish(other, result, place)
    place.path.write_bytes(b"of a person")
    with pytest.raises(ValueError, match="choose another name"):
        require_free(run, place)
    assert place.path.read_bytes() == b"of a person"
    assert [path.name for path in place.path.parent.iterdir()] == ["x.safetensors"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    run, place = tmp_path / "run", Destination("intrinsic_lab/depth.safetensors", Path("/proc/loras/intrinsic_lab/depth.safetensors"))
    with pytest.raises(ValueError, match=r"^intrinsic_lab/depth.safetensors cannot be written .*make ComfyUI's folder for it writable"):
        require_free(run, place)


def test_a_folder_that_was_half_put_in_place_is_the_runs_own(tmp_path):
    run, result = tmp_path / "run", tmp_path / "result"
    result.mkdir()
    for name in ("config.json", "weights.safetensors"):
        (result / name).write_text(name)
    place = Destination("vae/x", tmp_path / "vae/x")
    publish(run, result, place)
    (place.path / "config.json").unlink()
    require_free(run, place)
    publish(run, result, place)
    assert sorted(path.name for path in place.path.iterdir()) == ["config.json", "weights.safetensors"]
    (place.path / "notes.txt").write_text("of a person")
    with pytest.raises(ValueError, match="choose another name"):
        require_free(run, place)


def test_a_session_has_gradients_and_leaves_the_process_as_it_was():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(True)
    try:
        others = Accelerator(cpu=True, mixed_precision="bf16")
        threads = torch.get_num_threads()
        with torch.inference_mode():
            torch.manual_seed(5)
            before = torch.get_rng_state()
            with training_session():
                assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
                weight = torch.ones(2, requires_grad=True)
                (weight * torch.rand(2)).sum().backward()
                assert weight.grad is not None
                torch.manual_seed(9)
                torch.set_num_threads(threads + 1)
                assert Accelerator(cpu=True, mixed_precision="no").mixed_precision == "no"
            assert torch.is_inference_mode_enabled() and torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == threads
        assert others.mixed_precision == "bf16" and others.device == PartialState().device
    finally:
        AcceleratorState._reset_state(True)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ValueError, match=r"Training needs accelerate, which is not installed .*: run `pip install \"accelerate>="):
        require_packages()


def test_an_interrupt_reaches_the_loop_in_its_own_words_and_comfyui_in_comfyuis():
    watcher = Watcher()
    watcher.begin(3, History())
    watcher.step(1, 0.5, 1.0)
    for call in (lambda: watcher.step(2, 0.5, 1.0), lambda: watcher.encoded("image", 1, 2)):
        comfy.model_management.interrupt_current_processing(True)
        with pytest.raises(Interrupted):
            call()
        assert not comfy.model_management.processing_interrupted()

    def cancelled(settings):
        raise Interrupted

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train_in_graph(SETTINGS, lora_destination("run"), cancelled)


def test_a_diverging_run_is_told_in_the_nodes_words():
    def diverges(settings):
        raise Diverged("the loss became nan", 7, Path("/some/where"))

    with pytest.raises(ValueError, match=r"^The loss became nan at step 7: lower learning_rate, and choose another name\. The last"):
        train_in_graph(SETTINGS, lora_destination("run"), diverges)


def test_previews_come_at_most_once_in_a_while(monkeypatch):
    seen, now = [], [100.0]

    class Bar:
        def __init__(self, total):
            pass

        def update_absolute(self, value, total, preview):
            seen.append((value, total, preview is not None))

    monkeypatch.setattr(training.comfy.utils, "ProgressBar", Bar)
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    watcher = Watcher()
    watcher.begin(4, History([1.0], [1]))
    watcher.encoded("image", 5, 9)
    for step, later in ((1, 0), (2, 0.5), (3, 0.4), (4, 0.2)):
        now[0] += later
        watcher.step(step, 0.1, 0.0)
    assert seen == [(5, 9, False), (1, 4, True), (2, 4, False), (3, 4, False), (4, 4, True)]
    assert watcher.history.losses == [1.0, 0.1, 0.1, 0.1, 0.1]


def test_a_base_in_half_precision_asks_for_mixed_precision():
    shared = {"base": "nano FLUX (bundled)", "data": "rendered scenes", "name": "half", "steps": 1, "learning_rate": 1e-3, "batch": 1}
    with pytest.raises(ValueError, match="set mixed_precision"):
        train.TrainTensorLoRA.execute(rank=2, base_dtype="bfloat16", **shared)
