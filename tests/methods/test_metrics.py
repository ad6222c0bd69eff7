import math

import numpy
import pytest
import torch
from intrinsic_lab.methods import metrics
from intrinsic_lab.methods.maps import MAPS, map_kind
from skimage.metrics import structural_similarity


@pytest.fixture
def random():
    return torch.Generator().manual_seed(7)


def tilted(degrees):
    """A vector this far from the z axis, towards x."""
    return [math.sin(math.radians(degrees)), 0.0, math.cos(math.radians(degrees))]


def test_normal_metrics_of_known_angles():
    prediction = torch.tensor([[[tilted(0), tilted(10)], [tilted(20), tilted(50)]]])
    reference = torch.tensor([0.0, 0.0, 1.0]).expand(1, 2, 2, 3)
    scores = MAPS["normal"].evaluation.score(prediction, reference)
    assert scores == pytest.approx(
        {"mean_degrees": 20.0, "median_degrees": 15.0, "within_11.25": 50.0, "within_22.5": 75.0, "within_30": 75.0}, abs=1e-4
    )


def test_a_tiny_angle_is_not_lost_to_rounding():
    prediction = torch.tensor(tilted(1e-3)).expand(1, 1, 1, 3)
    reference = torch.tensor([0.0, 0.0, 1.0]).expand(1, 1, 1, 3)
    assert MAPS["normal"].evaluation.score(prediction, reference)["mean_degrees"] == pytest.approx(1e-3, rel=1e-4)


def test_lengths_of_normals_do_not_matter_and_a_zero_prediction_faces_the_viewer():
    prediction = torch.tensor([[[[0.0, 0.0, 0.0], [5.0, 0.0, 5.0]]]])
    reference = torch.tensor([[[[3.0, 0.0, 0.0], [0.0, 0.0, 0.1]]]])
    angle = metrics.normal_angle_degrees(prediction, reference)
    assert angle.flatten().tolist() == pytest.approx([90.0, 45.0], abs=1e-4)


def test_pixels_without_a_reference_normal_do_not_count():
    prediction = torch.tensor([[[tilted(10), tilted(90)]]])
    reference = torch.tensor([[[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]]])
    assert MAPS["normal"].evaluation.score(prediction, reference)["mean_degrees"] == pytest.approx(10.0, abs=1e-4)
    with pytest.raises(ValueError, match=r"no normal .* in picture 0"):
        MAPS["normal"].evaluation.score(prediction, torch.zeros_like(prediction))


def test_depth_is_judged_after_the_best_scale_and_shift(random):
    reference = 1 + 4 * torch.rand(2, 9, 7, 1, generator=random)
    scores = MAPS["depth"].evaluation.score(0.25 * reference - 3, reference)
    assert scores == pytest.approx({"abs_rel": 0.0, "rmse": 0.0, "delta1": 100.0}, abs=1e-6)


def test_depth_metrics_equal_numpy_least_squares_under_a_mask(random):
    reference = 1 + 4 * torch.rand(3, 11, 13, 1, generator=random)
    prediction = torch.rand(3, 11, 13, 1, generator=random) + 0.2 * reference
    mask = torch.rand(3, 11, 13, generator=random) > 0.4
    reference[1, :2] = 0.0  # no measurement there
    scores = MAPS["depth"].evaluation.metrics(prediction, reference, mask.float())
    for i in range(3):
        inside = (mask[i] & (reference[i, ..., 0] > 0)).numpy()
        p, r = prediction[i, ..., 0].double().numpy()[inside], reference[i, ..., 0].double().numpy()[inside]
        (scale, shift), *_ = numpy.linalg.lstsq(numpy.stack([p, numpy.ones_like(p)], 1), r, rcond=None)
        aligned = scale * p + shift
        assert scores["abs_rel"][i] == pytest.approx(numpy.mean(numpy.abs(aligned - r) / r), rel=1e-9)
        assert scores["rmse"][i] == pytest.approx(numpy.sqrt(numpy.mean((aligned - r) ** 2)), rel=1e-9)
        assert scores["delta1"][i] == pytest.approx(100 * numpy.mean(numpy.maximum(aligned / r, r / aligned) < 1.25), rel=1e-9)


def test_depth_metrics_of_a_constant_prediction_are_those_of_the_mean():
    reference = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 2, 2, 1)
    scores = MAPS["depth"].evaluation.score(torch.full_like(reference, 0.7), reference)
    assert scores == pytest.approx({"abs_rel": (2 + 0.5 + 0 + 0.5) / 4, "rmse": math.sqrt(14 / 4), "delta1": 25.0}, rel=1e-6)


def test_an_aligned_depth_below_zero_is_never_within_delta1():
    # Unguarded, a negative ratio passes max(p / r, r / p) < 1.25.
    reference = torch.tensor([0.01, 0.01, 5.0]).reshape(1, 1, 3, 1)
    prediction = torch.tensor([-2.0, 0.0, 1.0]).reshape(1, 1, 3, 1)
    scale, shift = metrics.align_scale_shift(prediction, reference)
    aligned = (scale * prediction.flatten() + shift).tolist()
    assert aligned[0] < 0
    expected = sum(a > 0 and max(a / r, r / a) < 1.25 for a, r in zip(aligned, reference.flatten().tolist(), strict=True)) / 3
    assert MAPS["depth"].evaluation.score(prediction, reference)["delta1"] == pytest.approx(100 * expected)


def test_exchanged_near_and_far_give_a_negative_scale():
    reference = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
    scale, shift = metrics.align_scale_shift(1 - reference, reference)
    assert (scale.item(), shift.item()) == pytest.approx((-1.0, 1.0))


def test_rmse_of_colors_by_hand():
    reference = torch.full((1, 11, 11, 3), 0.5)
    prediction = reference.clone()
    prediction[0, 0, 0] = torch.tensor([0.5, 0.8, 0.1])
    assert MAPS["albedo"].evaluation.score(prediction, reference)["rmse"] == pytest.approx(math.sqrt((0.09 + 0.16) / (121 * 3)), rel=1e-6)


def test_ssim_equals_scikit_image(random):
    reference = torch.rand(2, 24, 31, 3, generator=random)
    prediction = reference + 0.2 * torch.randn(2, 24, 31, 3, generator=random)
    wanted = [
        structural_similarity(
            r.double().numpy(),
            p.double().numpy(),
            channel_axis=-1,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for r, p in zip(reference, prediction, strict=True)
    ]
    assert metrics.ssim(prediction, reference).tolist() == pytest.approx(wanted, rel=1e-9)


def test_ssim_under_a_mask_leaves_out_what_is_far_from_it(random):
    reference = torch.rand(1, 40, 60, 3, generator=random)
    prediction = reference.clone()
    prediction[:, :, 40:] = torch.rand(1, 40, 20, 3, generator=random)
    mask = torch.zeros(1, 40, 60)
    mask[:, :, :30] = 1
    assert metrics.ssim(prediction, reference, mask).item() == pytest.approx(1.0)
    assert metrics.ssim(prediction, reference).item() < 0.9


def grosse_lmse(prediction, reference, mask, window=20, step=10):
    """Loops over the windows, each with its own least-squares scale, in float64 numpy."""
    error = total = 0.0
    height, width = mask.shape
    for top in range(0, height - window + 1, step):
        for left in range(0, width - window + 1, step):
            rows, columns = slice(top, top + window), slice(left, left + window)
            m = mask[rows, columns, None].repeat(3, -1)
            p, r = prediction[rows, columns][m], reference[rows, columns][m]
            scale = (p @ r) / (p @ p) if p @ p > 1e-12 else 0.0
            error += ((scale * p - r) ** 2).sum()
            total += (r**2).sum()
    return error / total


def test_lmse_equals_a_loop_over_windows(random):
    reference = torch.rand(2, 47, 63, 3, generator=random)
    prediction = torch.rand(2, 47, 63, 3, generator=random)
    mask = torch.rand(2, 47, 63, generator=random) > 0.3
    wanted = [grosse_lmse(p.double().numpy(), r.double().numpy(), m.numpy()) for p, r, m in zip(prediction, reference, mask, strict=True)]
    assert metrics.lmse(prediction, reference, mask).tolist() == pytest.approx(wanted, rel=1e-9)


def test_lmse_does_not_see_a_scale_and_black_scores_one(random):
    reference = torch.rand(1, 40, 40, 3, generator=random)
    assert metrics.lmse(0.3 * reference, reference).item() == pytest.approx(0.0, abs=1e-9)
    assert metrics.lmse(torch.zeros_like(reference), reference).item() == 1.0
    with pytest.raises(ValueError, match="the reference is black"):
        metrics.lmse(reference, torch.zeros_like(reference))


def test_a_batch_is_the_mean_of_its_pictures_and_one_mask_serves_all(random):
    reference = torch.rand(3, 21, 22, 3, generator=random)
    prediction = torch.rand(3, 21, 22, 3, generator=random)
    mask = (torch.rand(1, 21, 22, generator=random) > 0.5).float()
    single = [MAPS["shading"].evaluation.score(prediction[i : i + 1], reference[i : i + 1], mask) for i in range(3)]
    together = MAPS["shading"].evaluation.score(prediction, reference, mask)
    assert together == pytest.approx({name: sum(scores[name] for scores in single) / 3 for name in together}, rel=1e-9)


def test_nan_counts_only_inside_the_mask():
    reference = torch.full((1, 12, 12, 3), 0.5)
    prediction = reference.clone()
    prediction[0, 3, 4] = float("nan")
    mask = torch.ones(1, 12, 12)
    mask[0, 3, 4] = 0
    assert MAPS["albedo"].evaluation.score(prediction, reference, mask)["rmse"] == 0.0
    with pytest.raises(ValueError, match="the prediction is NaN or infinite at 1 pixels"):
        MAPS["albedo"].evaluation.score(prediction, reference)


@pytest.mark.parametrize(
    ("map_name", "prediction", "reference", "mask", "message"),
    [
        ("albedo", (1, 12, 12, 3), (1, 12, 13, 3), None, "of one size"),
        ("normal", (1, 4, 4, 1), (1, 4, 4, 1), None, "3 channel"),
        ("depth", (0, 4, 4, 1), (0, 4, 4, 1), None, "at least one picture"),
        ("albedo", (1, 12, 12, 3), (1, 12, 12, 3), (1, 12, 11), "the mask came as"),
        ("albedo", (2, 12, 12, 3), (2, 12, 12, 3), (3, 12, 12), "the mask came as"),
        ("albedo", (1, 1, 1, 3), (1, 1, 1, 3), None, "at least 11 x 11"),
        ("taste", (1, 4, 4, 3), (1, 4, 4, 3), None, "no map called 'taste'"),
    ],
)
def test_maps_that_cannot_be_judged_are_refused_with_the_reason(map_name, prediction, reference, mask, message):
    with pytest.raises(ValueError, match=message):
        map_kind(map_name).evaluation.score(torch.ones(prediction), torch.ones(reference), None if mask is None else torch.ones(mask))


def test_an_empty_mask_is_refused_and_names_the_picture():
    mask = torch.ones(2, 12, 12)
    mask[1] = 0
    with pytest.raises(ValueError, match="no pixel of picture 1"):
        MAPS["albedo"].evaluation.score(torch.ones(2, 12, 12, 3), torch.ones(2, 12, 12, 3), mask)


def test_values_of_one_channel_by_hand():
    prediction, reference = torch.tensor([0.1, 0.5]).reshape(1, 1, 2, 1), torch.tensor([0.4, 0.9]).reshape(1, 1, 2, 1)
    scores = MAPS["roughness"].evaluation.score(prediction, reference)
    assert scores == pytest.approx({"rmse": math.sqrt((0.09 + 0.16) / 2), "mae": 0.35}, rel=1e-6)
    masked = MAPS["roughness"].evaluation.score(prediction, reference, torch.tensor([[[0.0, 1.0]]]))
    assert masked == pytest.approx({"rmse": 0.4, "mae": 0.4}, rel=1e-6)


def test_a_scene_without_highlights_can_be_measured():
    black, grey = torch.zeros(1, 4, 4, 3), torch.full((1, 4, 4, 3), 0.25)
    assert MAPS["specular"].evaluation.score(grey, black) == pytest.approx({"rmse": 0.25, "mae": 0.25})


def test_every_metric_has_a_label(random):
    for kind in MAPS.values():
        maps = 0.1 + torch.rand(1, 20, 20, kind.channels, generator=random)
        scores = kind.evaluation.score(maps, maps)
        assert scores.keys() <= metrics.LABELS.keys() and kind.evaluation.main in scores


@pytest.mark.parametrize("map_name", MAPS)
def test_the_error_picture_averages_to_the_metric(map_name, random):
    evaluation, channels = MAPS[map_name].evaluation, MAPS[map_name].channels
    reference = 0.1 + torch.rand(1, 20, 20, channels, generator=random)
    prediction = torch.rand(1, 20, 20, channels, generator=random)
    error, counted = evaluation.error(prediction, reference, None)
    power = 2 if evaluation.main == "rmse" else 1
    assert counted.all()
    assert (error**power).mean() ** (1 / power) == pytest.approx(evaluation.score(prediction, reference)[evaluation.main], rel=1e-9)
