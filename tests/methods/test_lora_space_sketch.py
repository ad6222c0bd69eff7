"""Sketches depend on the changes of weights alone, keep their angles, and are the same on every machine."""

import hashlib
from dataclasses import replace

import numpy
import pytest
import torch
from intrinsic_lab.methods.lora import cache as cache_module
from intrinsic_lab.methods.lora import delta as delta_module
from intrinsic_lab.methods.lora import reading, weight_file
from intrinsic_lab.methods.lora.cache import ReadCache
from intrinsic_lab.methods.lora.delta import Full, Hadamard, Kronecker, LowRank
from intrinsic_lab.methods.lora.header import BadFile
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.lora_file import kohya_state_dict
from intrinsic_lab.methods.lora.reading import read_deltas
from intrinsic_lab.methods.lora_space import sketch as sketch_module
from intrinsic_lab.methods.lora_space.baseline import RawSpace, singular_values
from intrinsic_lab.methods.lora_space.gram import exact_cosines
from intrinsic_lab.methods.lora_space.sketch import (
    COLUMNS,
    KINDS,
    ROWS,
    SKETCH_SIZE,
    SKETCH_VERSION,
    _signs,
    packed,
    sketch,
    sketch_batches,
    subnetwork_vectors,
    unit,
    unpacked,
)
from intrinsic_lab.methods.lora_space.space import fit_pca
from intrinsic_lab.tests.methods.lora_space_shelf import MODULES, dense, make_lora, pad_rank, refactor, save_lora
from safetensors.torch import load_file, save_file

SUBNETWORKS = ("all", "attention", "feed_forward")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Twelve LoRAs of three styles and mixed ranks: (folder, paths)."""
    folder = tmp_path_factory.mktemp("shelf")
    return folder, [
        save_lora(folder / f"{number}.safetensors", make_lora(number, number % 3, rank=(4, 8)[number % 2])) for number in range(12)
    ]


def cosines(path, others, kind, subnetwork):
    """Cosines of a file's sketch with those of others."""
    vectors = [subnetwork_vectors(sketch(read_deltas(one)), subnetwork)[kind].astype(float) for one in (path, *others)]
    return numpy.array([vectors[0] @ other for other in vectors[1:]])


def twice_alpha(layers):
    return {name: LoraLayer(layer.down / 2, layer.up, layer.scale * 2) for name, layer in layers.items()}


def three_times_stronger(layers):
    return {name: LoraLayer(layer.down, layer.up, layer.scale * 3) for name, layer in layers.items()}


@pytest.mark.parametrize(
    "change",
    [refactor, lambda layers: pad_rank(layers, 11), twice_alpha, three_times_stronger],
    ids=["B R, R^-1 A", "rank padding", "alpha", "strength"],
)
def test_the_same_changes_from_other_factors_leave_every_score_equal(tmp_path, shelf, change):
    _, others = shelf
    layers = make_lora(0)
    path, same = save_lora(tmp_path / "a.safetensors", layers), tmp_path / "b.safetensors"
    save_file(kohya_state_dict(change(layers)), same)
    for subnetwork in SUBNETWORKS:
        for kind in KINDS:
            before, after = (cosines(one, others, kind, subnetwork) for one in (path, same))
            assert numpy.abs(before).max() > 0.1
            numpy.testing.assert_allclose(after, before, atol=1e-5)
        numpy.testing.assert_allclose(exact_cosines([same], others, subnetwork), exact_cosines([path], others, subnetwork), atol=1e-5)


def test_the_order_of_modules_does_not_show():
    deltas = [LowRank(name.replace(".", "_"), layer.down.flatten(1), layer.up.flatten(1)) for name, layer in make_lora(1).items()]
    first, second = sketch(deltas), sketch(reversed(deltas))
    for part in first:
        for kind in KINDS:
            numpy.testing.assert_allclose(first[part][kind], second[part][kind], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float16, 1e-6), (torch.bfloat16, 1e-4), (torch.float8_e4m3fn, 5e-3)])
def test_rounding_moves_a_sketch_by_no_more_than_the_rounding(tmp_path, dtype, close):
    path = save_lora(tmp_path / "a.safetensors", make_lora(0))
    rounded = save_lora(tmp_path / "b.safetensors", make_lora(0), dtype)
    for kind in KINDS:
        assert 1 - cosines(path, [rounded], kind, "all")[0] < close
    assert 1 - exact_cosines([path], [rounded])[0, 0] < close


def test_exact_cosines_equal_those_of_the_full_matrices(shelf):
    _, paths = shelf
    changes = [dense(make_lora(number, number % 3, rank=(4, 8)[number % 2])) for number in range(12)]
    flat = torch.stack([torch.cat([change[name].flatten() for name in sorted(change)]) for change in changes])
    wanted = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    numpy.testing.assert_allclose(exact_cosines(paths, paths), wanted, atol=1e-6)


def test_two_sided_sketches_keep_the_angles_of_the_changes(shelf):
    _, paths = shelf
    exact = exact_cosines(paths, paths)
    found = numpy.stack([cosines(path, paths, "two_sided", "all") for path in paths])
    # Random signs: the error of one cosine is about (1 - cosine^2) / sqrt(numbers kept), some hundredths here.
    assert numpy.abs(found - exact).max() < 0.15
    assert numpy.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.98


def test_output_sketches_find_a_style_that_was_trained_from_another_random_a(tmp_path):
    paths = []
    for number in range(6):
        draw, style = torch.Generator().manual_seed(number), torch.Generator().manual_seed(number % 2)
        layers = {}
        for name, (out, width, *kernel) in MODULES.items():
            down = torch.randn(8, width, *kernel, generator=draw)
            gradient = torch.randn(out, 4, generator=style) @ torch.randn(4, down[0].numel(), generator=style)
            layers[name] = LoraLayer(down, (gradient @ down.flatten(1).T).reshape(out, 8, *(1 for _ in kernel)))
        paths.append(save_lora(tmp_path / f"{number}.safetensors", layers))
    found = cosines(paths[0], paths[1:], "output", "all")
    assert found[[1, 3]].min() > found[[0, 2, 4]].max() + 0.2


def test_what_is_never_formed_has_the_sketch_of_the_matrix_it_stands_for(monkeypatch):
    # Blocks of few rows, so that several make one sketch.
    monkeypatch.setattr(delta_module, "BLOCK_NUMBERS", 250)
    torch.manual_seed(0)
    kron = Kronecker("mid_block_attn1_to_q", torch.randn(14, 4), torch.randn(6, 8), 0.3)
    products = [LowRank("", torch.randn(3, 32), torch.randn(84, 3)) for _ in range(2)]
    for one in (kron, kron.rows(kron.module, 7, 80), Hadamard(kron.module, *products, 0.7), Full(kron.module, torch.randn(70, 45).half())):
        whole = sketch([one.factors()])
        for part, kinds in sketch([one]).items():
            for kind in KINDS:
                numpy.testing.assert_allclose(kinds[kind], whole[part][kind], rtol=1e-4, atol=1e-4)


def test_sketches_are_those_of_every_other_machine():
    # Integers, so that no rounding can differ: these numbers change only together with the version of the signs.
    delta = LowRank("mid_block_attn1_to_q", torch.arange(140.0).reshape(2, 70) % 5 - 2, torch.arange(300.0).reshape(150, 2) % 7 - 3)
    found = sketch([delta])["attention"]["two_sided"]
    assert SKETCH_VERSION == 4
    assert hashlib.sha256(found.astype("<f4").tobytes()).hexdigest()[:16] == "19bd106a285a1c9b"


def test_a_sketch_is_the_sum_of_cores_that_the_definition_gives():
    # Sizes that ROWS and COLUMNS do not divide, two of one size; every sign read from the same counters, every product plain.
    torch.manual_seed(0)
    shapes = {"mid_block_attn1_to_q": (150, 70), "mid_block_attn1_to_k": (150, 70), "mid_block_attn1_to_v": (64, 90)}
    deltas = [LowRank(name, torch.randn(3, width), torch.randn(out, 3), 0.7) for name, (out, width) in shapes.items()]
    two_sided, output = numpy.zeros((ROWS, COLUMNS)), numpy.zeros((ROWS, ROWS))
    for delta in deltas:
        change = 0.7 * delta.up.double().numpy() @ delta.down.double().numpy()
        left, right = numpy.zeros((ROWS, delta.shape[0])), numpy.zeros((delta.shape[1], COLUMNS))
        left[numpy.arange(delta.shape[0]) % ROWS, numpy.arange(delta.shape[0])] = _signs(f"left {delta.shape[0]}", delta.shape[0])
        right[numpy.arange(delta.shape[1]), numpy.arange(delta.shape[1]) % COLUMNS] = _signs(f"right {delta.shape[1]}", delta.shape[1])
        flips = _signs(f"module {delta.module}", ROWS + COLUMNS)
        core = flips[:ROWS, None] * (left @ change @ right) * flips[None, ROWS:]
        two_sided += core
        output += core @ core.T / numpy.linalg.norm(core)
    found = sketch(deltas)["attention"]
    numpy.testing.assert_allclose(found["two_sided"], two_sided.ravel(), rtol=1e-4, atol=1e-4)
    wanted = output[numpy.triu_indices(ROWS, 1)]
    numpy.testing.assert_allclose(found["output"][: len(wanted)], wanted, rtol=1e-4, atol=1e-4)
    assert not found["output"][len(wanted) :].any()


def test_what_is_kept_has_a_small_fraction_of_the_error_of_random_signs(shelf):
    _, paths = shelf
    fresh = [sketch(read_deltas(path))["attention"] for path in paths]
    together = unpacked(b"".join(packed(one) for one in fresh))
    for place, kind in enumerate(KINDS):
        rows, kept = unit(numpy.stack([one[kind] for one in fresh])), unit(together[:, place])
        assert numpy.abs(rows @ rows.T - kept @ kept.T).max() < 1e-5
    zeros = {kind: numpy.zeros(SKETCH_SIZE, numpy.float32) for kind in KINDS}
    assert not unpacked(packed(zeros)).any()


def test_values_that_are_not_finite_and_empty_changes_are_refused(tmp_path):
    layers = make_lora(0)
    for value in (float("nan"), float("inf")):
        layers["mid_block.resnets.0.conv1"].up[3, 1] = value
        with pytest.raises(BadFile, match="mid_block_resnets_0_conv1 holds NaN or infinite"):
            sketch(read_deltas(save_lora(tmp_path / "a.safetensors", layers)))
    zeros = {name: LoraLayer(layer.down, torch.zeros_like(layer.up)) for name, layer in make_lora(0).items()}
    with pytest.raises(BadFile, match="all its weights are zero"):
        sketch(read_deltas(save_lora(tmp_path / "a.safetensors", zeros)))


def test_components_in_chunks_are_those_of_a_plain_decomposition():
    rows = numpy.random.default_rng(0).normal(size=(90, 40)) @ numpy.diag(numpy.linspace(3, 0.1, 40)) + 1
    pca = fit_pca(numpy.array_split(rows, 4), 7)
    centered = rows - rows.mean(0)
    _, _, right = numpy.linalg.svd(centered, full_matrices=False)
    numpy.testing.assert_allclose(numpy.abs(pca.components @ right[:7].T), numpy.eye(7), atol=1e-4)
    projected = pca.project(rows)
    wanted = centered @ pca.components.T
    numpy.testing.assert_allclose(projected, wanted / numpy.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


def test_copies_do_not_turn_rounding_into_components():
    # 80 LoRAs of which 20 differ: 19 directions, where 60 components are asked for.
    rows = numpy.random.default_rng(0).normal(size=(20, 100)).astype(numpy.float32).repeat(4, axis=0) + 1
    pca = fit_pca([rows], 60)
    wanted = numpy.diag((numpy.arange(60) < 19).astype(float))
    numpy.testing.assert_allclose(pca.components @ pca.components.T, wanted, atol=1e-4)
    centered = rows - rows.mean(0)
    exact = centered / numpy.linalg.norm(centered, axis=1, keepdims=True)
    projected = pca.project(rows)
    numpy.testing.assert_allclose(projected @ projected.T, exact @ exact.T, atol=1e-4)


def test_the_papers_form_projects_a_new_lora_closer_to_the_origin_and_calibration_undoes_it(tmp_path, shelf):
    _, paths = shelf
    # Fitted on more LoRAs than it keeps components of, so that a new one has a share that the components do not span.
    plain, calibrated = (RawSpace.fit(paths, dimensions=5, calibrated=choice) for choice in (False, True))
    new = save_lora(tmp_path / "new.safetensors", make_lora(77, style=1))
    assert numpy.linalg.norm(plain.embed(new)) < 0.9 * numpy.linalg.norm(plain.vectors, axis=1).mean()
    assert numpy.linalg.norm(calibrated.embed(new)) == pytest.approx(1)
    assert (calibrated.vectors @ calibrated.embed(new)).argmax() % 3 == 1
    numpy.testing.assert_allclose(calibrated.embed(paths[0]), calibrated.vectors[0], atol=1e-4)


def test_singular_values_are_those_of_the_full_matrix(shelf):
    _, paths = shelf
    found = singular_values(paths[0])
    for name, change in dense(make_lora(0)).items():
        wanted = torch.linalg.svdvals(change)[:8]
        wanted[4:] = 0
        numpy.testing.assert_allclose(found[name], wanted, atol=1e-5)


@pytest.mark.parametrize("kept", [1 << 20, 4000], ids=["kept", "too large to keep"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_memory_that_is_used_again_changes_nothing(tmp_path, monkeypatch, dtype, kept):
    # Ranks on both sides of COLUMNS; reads shorter than a tensor, many batches, the larger ones later; all files in one memory. Those of
    # rank 4 share their layout and nothing else: not even their alphas.
    monkeypatch.setattr(weight_file, "_SPAN_BYTES", 700)
    monkeypatch.setattr(cache_module, "_MEMORY_BYTES", kept)
    monkeypatch.setattr(reading, "_BATCH_BYTES", 2000)
    monkeypatch.setattr(sketch_module, "SCRATCH_SIZE", 1 << 12)
    cache, layouts = ReadCache(), []
    for number, rank in enumerate((4, 4, 4, 40, 4, 40, 4)):
        layers = {name: replace(layer, scale=0.25 * (1 + number)) for name, layer in make_lora(number).items()}
        path = save_lora(tmp_path / f"{number}.safetensors", pad_rank(layers, rank), dtype=dtype)
        with weight_file.Reader(path, cache) as reader:
            layouts.append(reader.header.layout)
            batches = 0

            def counted(reader=reader):
                nonlocal batches
                for batch in reading.batches_of(reader):
                    batches += 1
                    yield batch
                    for stack in batch:
                        # What is said to be good no longer must not be looked at.
                        torch._foreach_zero_(stack.up)

            found = sketch_batches(counted())
        assert batches > 2
        for part, kinds in sketch(read_deltas(path)).items():
            for kind, vector in kinds.items():
                numpy.testing.assert_allclose(found[part][kind], vector, rtol=1e-4, atol=1e-5 * numpy.abs(vector).max())
    assert layouts[0] is not layouts[1] is layouts[2] is layouts[4] is layouts[6] and layouts[3] is not layouts[5]


def test_some_modules_with_an_alpha_and_some_without(tmp_path):
    layers = make_lora(1)
    path = save_lora(tmp_path / "a.safetensors", layers)
    state = load_file(path)
    # Without one the scale is 1.
    bare = [key for key in state if key.endswith("attn1_to_q.alpha")]
    save_file({key: tensor for key, tensor in state.items() if key not in bare}, path)
    wanted = {name: replace(layer, scale=1.0) if name.endswith("attn1.to_q") else layer for name, layer in layers.items()}
    other = save_lora(tmp_path / "b.safetensors", wanted)
    with weight_file.Reader(path) as reader:
        found = sketch_batches(reading.batches_of(reader))
    for part, kinds in sketch(read_deltas(other)).items():
        for kind, vector in kinds.items():
            numpy.testing.assert_allclose(found[part][kind], vector, rtol=1e-4, atol=1e-5 * numpy.abs(vector).max())
    assert len(bare) == 1
