"""What every trainer's command line does alike, with the smallest training that each can run."""

import contextlib
import importlib
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator

import pytest
import torch
from intrinsic_lab.training import command_line, loop
from intrinsic_lab.training.checkpoint import CHECKPOINT

# Trainer -> the fixture of its base, its command, what it writes.
TRAINERS = {
    "intrinsic_lora": ("tiny_base", "--map depth --size 32 --rank 4", "depth.safetensors"),
    "ildm": ("tiny_base", "vae --size 32", "intrinsic_vae/config.json"),
    "lumix": ("flux_base", "--size 32 --rank 4 --text-tokens 8", "lumix.safetensors"),
    "generators": ("vqgan_folder", "vqgan-lora --map shading --size 16 --rank 4 --targets wide", "shading.safetensors"),
}
Command = Callable[..., int]


@pytest.fixture(params=TRAINERS)
def trainer(request) -> str:
    return request.param


@pytest.fixture
def command(trainer, request, tmp_path, caplog) -> Command:
    """Runs the trainer's command line with further options; the output folder is `tmp_path`. It must leave Ctrl+C as it was."""
    base, words, _ = TRAINERS[trainer]
    main = importlib.import_module(f"intrinsic_lab.training.{trainer}.__main__").main
    shared = ["--base", str(request.getfixturevalue(base)), "--output", str(tmp_path), "--scenes", "2", "--batch", "1"]
    caplog.set_level(logging.INFO)

    def run(*options: str) -> int:
        before = signal.getsignal(signal.SIGINT)
        caplog.clear()
        try:
            return main([*words.split(), *shared, *options])
        finally:
            assert signal.getsignal(signal.SIGINT) is before

    return run


@pytest.fixture
def pressed_at(monkeypatch) -> Callable[[int], contextlib.AbstractContextManager]:
    """Presses Ctrl+C in the middle of a step, as often as `times`."""
    usual = loop._optimiser_step

    @contextlib.contextmanager
    def press(at: int, times: int = 1) -> Iterator[None]:
        def step(*arguments):
            if arguments[-1] == at:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            return usual(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "_optimiser_step", step)
            yield

    return press


def test_ctrl_c_ends_the_step_keeps_a_checkpoint_and_the_same_command_goes_on(trainer, command, pressed_at, tmp_path, caplog):
    result = tmp_path / TRAINERS[trainer][2]
    with pressed_at(1):
        assert command("--steps", "3") == 130
    assert f"stopped and saved in {tmp_path}: run the same command to go on" in caplog.text
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 2 and not result.exists()
    assert command("--steps", "3") == 0
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 3 and result.is_file()
    assert "written: " in caplog.text


def test_ctrl_c_pressed_again_does_not_wait_for_the_step(command, pressed_at, tmp_path):
    with pressed_at(0, times=2), pytest.raises(KeyboardInterrupt):
        command("--steps", "2")
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_loss_that_is_not_finite_is_told_in_words(command, tmp_path, caplog):
    assert command("--steps", "8", "--learning-rate", "1e30") == 2
    assert "the loss became " in caplog.text and "lower the learning rate" in caplog.text and str(tmp_path) in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on files")
def test_a_full_disk_is_told_in_words_and_leaves_the_old_checkpoint(command, tmp_path, caplog):
    """A limit on the size of files stands in for the disk: everything but a checkpoint fits."""
    import resource

    assert command("--steps", "1") == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[tmp_path / CHECKPOINT]) * 3 // 4, usual[1]))
    try:
        assert command("--steps", "2") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert f"{tmp_path / CHECKPOINT} could not be written" in caplog.text and "free some disk space" in caplog.text
    assert "Traceback" not in caplog.text
    after = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after.keys() == before.keys() and all(after[path] == before[path] for path in before if path.name != "config.json")


def test_other_settings_and_impossible_ones_are_refused_in_words(command, tmp_path, caplog):
    assert command("--steps", "1") == 0
    for options, told in (
        (["--seed", "4"], "seed was 0, now 4"),
        (["--batch", "0"], "at least 1"),
        (["--minutes", "1", "--schedule", "cosine"], "choose constant"),
        (["--data", str(tmp_path / "nowhere")], "nowhere does not exist"),
    ):
        assert command("--steps", "1", *options) == 2
        assert told in caplog.text and "Traceback" not in caplog.text


def test_the_loops_options_reach_the_run(command, tmp_path):
    asked = {"mixed_precision": "bf16", "accumulation": 2, "ema_decay": 0.5, "warmup": 1, "weight_decay": 0.1, "clip_norm": 0.5}
    asked |= {"schedule": "cosine", "checkpoint_every": 1, "seed": 3, "learning_rate": 0.01, "steps": 2}
    assert command(*(word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", str(value)))) == 0
    kept = json.loads((tmp_path / "config.json").read_text())
    assert {name: kept[name] for name in asked} == asked


def test_a_command_of_limited_minutes_ends_and_goes_on(command, tmp_path):
    assert command("--steps", "100000000", "--minutes", "0.001") == 0
    done = torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"]
    assert command("--steps", str(done + 1)) == 0
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == done + 1


def test_progress_is_the_mean_loss_since_the_last_line(caplog):
    caplog.set_level(logging.INFO)
    report = command_line.console_report("depth", every=2)
    for step, loss in enumerate((1.0, 2.0, 5.0, 6.0), 1):
        report(step, loss, 90.0)
    assert caplog.messages == ["depth step 2 loss 1.5000, 1.5 min left", "depth step 4 loss 5.5000, 1.5 min left"]
