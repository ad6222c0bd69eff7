"""Looks at a training while it runs: what they show, how often, and that the run does not notice."""

import time
from dataclasses import replace

import pytest
import torch
from intrinsic_lab.methods.intrinsic_lora.multi_step import AUGMENTED, MULTI
from intrinsic_lab.methods.maps import normal_picture
from intrinsic_lab.scenes import render_scenes
from intrinsic_lab.training.history import BACKGROUND, History, loss_curve, with_sample
from intrinsic_lab.training.ildm import IntrinsicVaeConfig, JointConfig, JointSceneData, train_intrinsic_vae, train_joint_lora
from intrinsic_lab.training.intrinsic_lora import IntrinsicLoraConfig, train_intrinsic_lora
from intrinsic_lab.training.look import with_looks
from intrinsic_lab.training.loop import LoopConfig
from intrinsic_lab.training.lumix import LumixConfig, train_lumix
from intrinsic_lab.training.pairs import SceneData
from intrinsic_lab.training.scene_pictures import HELD_OUT_SEEDS
from PIL import ImageColor

SCENES = SceneData(count=4, size=32)


def shown_by(train, config, folder):
    """The samples of a run of two steps, whose losses are those of the same run without looks."""
    samples: list = []
    losses = []
    for look in (None, samples.append):
        loop = replace(config.loop, output=folder / str(look is None))
        trained = train(replace(config, loop=loop), **({} if look is None else {"on_sample": look}))
        losses.append((trained[1] if isinstance(trained, tuple) else trained.history).losses)
    assert losses[0] == losses[1] and len(samples) == 2
    return samples


def check(samples, names, true):
    """Rows of pictures of the held-out scene; what is learnt changes with the steps, what is true does not."""
    exact = render_scenes([HELD_OUT_SEEDS.start], 32, 32)
    for sample in samples:
        assert [list(row) for row in sample] == names
        assert all(picture.shape == (32, 32, 3) and 0 <= picture.min() <= picture.max() <= 1 for row in sample for picture in row.values())
        assert torch.allclose(sample[-1][true], normal_picture(exact.normal_bhwc)[0].float(), atol=1e-5)
    first, last = samples[0][0], samples[-1][0]
    assert any((first[name] - last[name]).abs().max() > 1e-4 for name in first)


@pytest.mark.parametrize("method", [MULTI, AUGMENTED])
def test_multi_step_maps_are_shown(tiny_base, tmp_path, method):
    config = IntrinsicLoraConfig(
        tiny_base, "normal", LoopConfig(tmp_path, 2, learning_rate=0.05, checkpoint_every=1), SCENES, rank=4, method=method
    )
    check(shown_by(train_intrinsic_lora, config, tmp_path), [["picture", "learnt so far", "true"]], "true")


def test_both_of_ildms_trainings_are_shown(tiny_base, tmp_path):
    loop, data = LoopConfig(tmp_path, 2, learning_rate=0.05, checkpoint_every=1), JointSceneData(SCENES)
    names = ["depth", "normal", "segmentation", "line"]
    vae = IntrinsicVaeConfig(tiny_base, loop, data, batch=2)
    rows = [[f"{name} so far" for name in names], [f"true {name}" for name in names]]
    check(shown_by(train_intrinsic_vae, vae, tmp_path / "vae"), rows, "true normal")
    made = tmp_path / "vae/True/intrinsic_vae"
    joint = JointConfig(tiny_base, made, loop, data, rank=4, batch=2)
    rows = [["picture so far", *rows[0]], ["true picture", *rows[1]]]
    samples = shown_by(train_joint_lora, joint, tmp_path / "joint")
    check(samples, rows, "true normal")
    exact = render_scenes([HELD_OUT_SEEDS.start], 32, 32)
    assert torch.allclose(samples[0][1]["true picture"], exact.image_bhwc[0], atol=1e-5)


def test_maps_of_a_tensor_lora_are_shown(flux_base, tmp_path):
    loop = LoopConfig(tmp_path, 2, learning_rate=0.05, checkpoint_every=1)
    config = LumixConfig(flux_base, loop, SCENES, batch=2, rank=2, text_tokens=8)
    names = ["albedo", "irradiance", "color", "depth", "normal"]
    rows = [[f"{name} so far" for name in names], [f"true {name}" for name in names]]
    check(shown_by(train_lumix, config, tmp_path), rows, "true normal")


def test_looks_that_take_long_are_few(tmp_path):
    seen, module = [], torch.nn.Linear(1, 1).train()

    def look():
        assert not module.training and not torch.is_grad_enabled()
        seen.append(1)
        time.sleep(0.02)
        return []

    looking = with_looks(None, LoopConfig(tmp_path, 60, checkpoint_every=2), module, look, lambda sample: None)
    for step in range(1, 61):
        looking(step, 1.0, 1.0)
    # The next one would be due 0.4 s after the first: only the last step has one.
    assert len(seen) == 2 and module.training
    free = with_looks(None, LoopConfig(tmp_path, 6, checkpoint_every=2), module, lambda: seen.append(1), lambda sample: None)
    for step in range(1, 7):
        time.sleep(0.01)
        free(step, 1.0, 1.0)
    assert len(seen) == 2 + 3


def test_a_sample_lies_below_the_curve_each_picture_under_its_name():
    history = History()
    for loss in (1.0, 0.5, 0.2):
        history.add(loss, 1.0)
    white = torch.ones(8, 8, 3)
    sheet = with_sample(loss_curve(history), [{"one": white, "two": 0 * white}, {"three": white, "four": white}])
    assert sheet.size == (640, 320 + 2 * (26 + 320))
    points = [sheet.getpixel(point) for point in ((160, 500), (480, 500), (160, 850), (480, 850), (630, 330))]
    assert points == [(255,) * 3, (0,) * 3, (255,) * 3, (255,) * 3, ImageColor.getrgb(BACKGROUND)]
