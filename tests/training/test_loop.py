"""The training loop on a small regression, against loops written out here."""

import json
import math
import time
from pathlib import Path

import numpy
import pytest
import torch
from intrinsic_lab.training import history as history_module
from intrinsic_lab.training.atomic import write_atomically
from intrinsic_lab.training.checkpoint import CHECKPOINT, CheckpointMismatch
from intrinsic_lab.training.history import History, spoken_time
from intrinsic_lab.training.loop import Interrupted, LoopConfig, learning_rate_at, step_generator, train
from PIL import Image
from torch import nn


class Regression:
    """Learns y = sum(x), with dropout; counts its saves."""

    def __init__(self, batch: int = 4, dropout: float = 0.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1))
        self.batch, self.saved = batch, 0

    def loss(self, module, draw):
        x = torch.rand(self.batch, 5, generator=draw)
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    def save(self, folder: Path) -> None:
        self.saved += 1
        torch.save(self.module.state_dict(), folder / "weights.pt")


class Diverging(Regression):
    def loss(self, module, draw):
        loss = super().loss(module, draw)
        self.steps = getattr(self, "steps", 0) + 1
        return loss * (math.nan if self.steps == 6 else 1)


def weights(task) -> list[torch.Tensor]:
    return [p.detach().clone() for p in task.module.parameters()]


def stop_at(step):
    def report(done, loss, seconds_left):
        if done == step:
            raise Interrupted

    return report


FULL = {"schedule": "cosine", "warmup": 3, "accumulation": 2, "ema_decay": 0.9, "learning_rate": 1e-2}


def test_a_resumed_run_ends_with_the_weights_and_losses_of_an_uninterrupted_one(tmp_path):
    whole, parts = Regression(dropout=0.3), Regression(dropout=0.3)
    history = train(whole, LoopConfig(tmp_path / "whole", 12, **FULL))
    config = LoopConfig(tmp_path / "parts", 12, **FULL)
    with pytest.raises(Interrupted):
        train(parts, config, report=stop_at(5))
    assert torch.load(tmp_path / "parts" / CHECKPOINT, weights_only=True)["step"] == 5 and not parts.saved
    resumed = Regression(dropout=0.3)
    torch.rand(7)
    assert train(resumed, config).losses == history.losses
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert resumed.saved == 1


def test_a_finished_run_started_again_changes_nothing(tmp_path):
    config = LoopConfig(tmp_path, 6, **FULL)
    first, again = Regression(), Regression()
    train(first, config)
    before = (tmp_path / CHECKPOINT).read_bytes()
    assert len(train(again, config).losses) == 6
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))


def test_steps_average_and_clipping_equal_a_loop_written_out_by_hand(tmp_path):
    task, expected = Regression(), Regression()
    config = LoopConfig(tmp_path, 7, learning_rate=2e-2, clip_norm=0.05, ema_decay=0.5, seed=4)
    train(task, config)
    model, parameters = expected.module, list(expected.module.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=2e-2, betas=(0.9, 0.999), weight_decay=1e-2)
    average = weights(expected)
    for step in range(7):
        optimiser.zero_grad()
        expected.loss(model, step_generator(4, step)).backward()
        assert nn.utils.clip_grad_norm_(parameters, 0.05) > 0.05
        optimiser.step()
        decay = min(0.5, (1 + step) / (10 + step))
        average = [decay * kept + (1 - decay) * p.detach() for kept, p in zip(average, parameters, strict=True)]
    for value, wanted in zip(weights(task), average, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)
    assert not torch.equal(weights(task)[0], parameters[0])


def test_accumulation_equals_the_larger_batch(tmp_path):
    small, large = Regression(batch=4), Regression(batch=8)
    first = train(small, LoopConfig(tmp_path / "small", 5, learning_rate=1e-2, accumulation=2))
    second = train(large, LoopConfig(tmp_path / "large", 5, learning_rate=1e-2))
    assert first.losses == pytest.approx(second.losses, abs=1e-6)
    for value, wanted in zip(weights(small), weights(large), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-5)


def test_learning_rates_follow_warmup_and_cosine():
    config = LoopConfig(Path("x"), 100, learning_rate=1.0, schedule="cosine", warmup=4)
    assert learning_rate_at(config, 0) == pytest.approx(0.25)
    assert learning_rate_at(config, 50) == pytest.approx(0.5)
    assert learning_rate_at(config, 99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert learning_rate_at(LoopConfig(Path("x"), 100, learning_rate=0.3), 70) == pytest.approx(0.3)


def test_bf16_computes_in_bf16_and_leaves_the_module_in_float32(tmp_path):
    seen = []

    class Watching(Regression):
        def loss(self, module, draw):
            seen.append((torch.is_autocast_enabled("cpu"), torch.nn.functional.linear(torch.ones(1, 2), torch.ones(2, 2)).dtype))
            return super().loss(module, draw)

    task = Watching()
    history = train(task, LoopConfig(tmp_path / "bf16", 30, learning_rate=2e-2, mixed_precision="bf16"))
    assert seen[0] == (True, torch.bfloat16)
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert all(p.dtype == torch.float32 for p in task.module.parameters())
    x = torch.rand(3, 5)
    first, last = task.module[0], task.module[3]
    exact = nn.functional.linear(nn.functional.linear(x, first.weight, first.bias).tanh(), last.weight, last.bias)
    assert torch.equal(task.module(x), exact)
    # Another precision in the same process.
    train(Watching(), LoopConfig(tmp_path / "no", 1))
    assert seen[-1] == (False, torch.float32)


def test_a_run_leaves_its_settings_and_its_loss_curve(tmp_path):
    history = train(Regression(), LoopConfig(tmp_path, 8, ema_decay=0.5), settings={"map": "depth"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["steps"] == 8 and config["ema_decay"] == 0.5 and config["task"] == {"map": "depth"}
    assert "cores, torch " in config["machine"]
    assert json.loads((tmp_path / "loss.json").read_text())["losses"] == history.losses
    with Image.open(tmp_path / "loss.png") as curve:
        # Dark, and its brightest pixels stand out.
        assert curve.size == (640, 320) and curve.convert("L").getextrema()[1] > 180 > 60 > numpy.median(numpy.asarray(curve.convert("L")))
    told = [spoken_time(seconds) for seconds in (7.4, 89, 734, 5370, 12000)]
    assert told == ["7 s", "89 s", "12 min", "1 h 30 min", "3 h 20 min"]


def test_what_a_run_has_done_is_told_without_starting_it(tmp_path):
    config = LoopConfig(tmp_path, 4)
    assert config.checkpoint({"map": "depth"}).history() == History()
    history = train(Regression(), config, settings={"map": "depth"})
    assert LoopConfig(tmp_path, 9).checkpoint({"map": "depth"}).history() == history
    for wanted, settings, changes in (
        (LoopConfig(tmp_path, 4, seed=1), {"map": "normal"}, {"map": ("depth", "normal"), "seed": (0, 1)}),
        (LoopConfig(tmp_path, 3), {"map": "depth"}, {"steps": (4, 3)}),
    ):
        with pytest.raises(CheckpointMismatch) as refused:
            wanted.checkpoint(settings).history()
        assert refused.value.changes == changes


def test_a_run_of_limited_minutes_ends_as_if_its_last_step_had_been_asked_for_and_goes_on_exactly(tmp_path):
    class Slow(Regression):
        def loss(self, module, draw):
            time.sleep(0.05)
            return super().loss(module, draw)

    def config(folder, steps, minutes=None):
        return LoopConfig(tmp_path / folder, steps, learning_rate=1e-2, ema_decay=0.9, checkpoint_every=2, minutes=minutes)

    limited, left = Slow(dropout=0.3), []
    started = time.perf_counter()
    history = train(limited, config("limited", 10**9, 0.3 / 60), report=lambda step, loss, seconds: left.append(seconds))
    assert time.perf_counter() - started >= 0.3 and 1 <= history.steps <= 6 and limited.saved == 1
    assert max(left) <= 0.3 and left[-1] == 0
    asked = Regression(dropout=0.3)
    assert train(asked, config("asked", history.steps)).losses == history.losses
    assert all(torch.equal(a, b) for a, b in zip(weights(limited), weights(asked), strict=True))
    first = history.steps
    # Each call has its own time; then the same run goes on to a number of steps.
    more = train(Slow(dropout=0.3), config("limited", 10**9, 0.1 / 60))
    assert first < more.steps <= first + 2
    longer, whole = Regression(dropout=0.3), Regression(dropout=0.3)
    train(longer, config("limited", more.steps + 3, 1.0))
    train(whole, config("whole", more.steps + 3))
    assert all(torch.equal(a, b) for a, b in zip(weights(longer), weights(whole), strict=True))


def test_a_history_keeps_so_many_losses_of_a_run_of_any_length_and_the_later_ones_of_every_step(monkeypatch):
    monkeypatch.setattr(history_module, "MOST_LOSSES", 40)
    history = History()
    for step in range(1, 1001):
        history.add(float(step), 0.5)
        assert len(history.losses) <= 40 and history.steps == step
    assert history.losses == [float(step) for step in history.loss_steps] and history.seconds == 500
    assert history.loss_steps[0] == 1 and history.loss_steps[-20:] == list(range(981, 1001))
    assert history.loss_steps == sorted(set(history.loss_steps)) and history.final_loss(2) == 999.5


def test_a_checkpoint_from_before_losses_were_numbered_is_gone_on_with(tmp_path):
    config = LoopConfig(tmp_path / "old", 6)
    train(Regression(), LoopConfig(tmp_path / "old", 4))
    path = tmp_path / "old" / CHECKPOINT
    state = torch.load(path, weights_only=True)
    del state["loss_steps"]
    torch.save(state, path)
    assert config.checkpoint().history().loss_steps == [1, 2, 3, 4]
    assert train(Regression(), config).losses == train(Regression(), LoopConfig(tmp_path / "whole", 6)).losses


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learning_rate": 3e-4}, "learning_rate was 0.0001, now 0.0003"),
        ({"ema_decay": 0.5}, "ema_decay was 0.0, now 0.5"),
        ({"schedule": "cosine"}, "schedule was constant, now cosine"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_kept(tmp_path, change, told):
    train(Regression(), LoopConfig(tmp_path, 4), settings={"map": "depth"})
    before = (tmp_path / CHECKPOINT).read_bytes(), (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=told):
        train(Regression(), LoopConfig(tmp_path, 6, **change), settings={"map": "depth"})
    with pytest.raises(ValueError, match="map was depth, now normal"):
        train(Regression(), LoopConfig(tmp_path, 6), settings={"map": "normal"})
    with pytest.raises(ValueError, match="is at step 4, 3 were asked for"):
        train(Regression(), LoopConfig(tmp_path, 3), settings={"map": "depth"})
    assert ((tmp_path / CHECKPOINT).read_bytes(), (tmp_path / "config.json").read_bytes()) == before


def test_more_steps_continue_a_constant_run_exactly(tmp_path):
    whole, longer = Regression(), Regression()
    train(whole, LoopConfig(tmp_path / "whole", 9))
    train(Regression(), LoopConfig(tmp_path / "longer", 4))
    train(longer, LoopConfig(tmp_path / "longer", 9))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(longer), strict=True))


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(RuntimeError, match="loss became nan at step 5"):
        train(Diverging(), LoopConfig(tmp_path, 9, checkpoint_every=2))
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["step"] == 4 and all(torch.isfinite(p).all() for p in state["parameters"])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "kept"
    path.write_text("old")

    def fill_the_disk(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fill_the_disk)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"] and path.read_text() == "old"


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"minutes": 0},
        {"minutes": 5, "schedule": "cosine"},
        {"accumulation": 0},
        {"ema_decay": 1.0},
        {"schedule": "linear"},
        {"learning_rate": 0.0},
        {"mixed_precision": "fp8"},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        LoopConfig(**({"output": Path("x"), "steps": 3} | wrong))


def test_a_module_without_parameters_to_train_is_refused(tmp_path):
    task = Regression()
    task.module.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        train(task, LoopConfig(tmp_path, 3))
    assert not list(tmp_path.iterdir())
