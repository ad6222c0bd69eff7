"""Frames of a sequence: one scale and shift, anchors, bounded memory."""

import weakref

import pytest
import torch
from intrinsic_lab.methods.intrinsic_lora.anchor import AnchoredForward, attend_with_anchor
from intrinsic_lab.methods.intrinsic_lora.extract import ExtractSettings, Generator, plan_extraction
from intrinsic_lab.methods.intrinsic_lora.sequence import Steadied, extract_sequence, robust_scale_and_shift, sequence_parts
from intrinsic_lab.methods.intrinsic_lora.tiles import fit_scale_and_shift


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def surface(seed=0):
    """A depth map with slopes and steps, [h, w, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 56), indexing="ij")
    return (0.4 * y + 0.2 * x + 0.3 * (draw(5, 7, seed=seed).repeat_interleave(8, 0).repeat_interleave(8, 1) > 0.5))[..., None]


def steadied(frames):
    steady = Steadied()
    return [steady(frame) for frame in frames]


def test_scaled_and_shifted_copies_of_one_depth_come_out_equal():
    depth = surface()
    scales, shifts = 0.5 + 1.5 * draw(9, seed=1), draw(9, seed=2) - 0.5
    frames = [scale * depth + shift for scale, shift in zip(scales, shifts, strict=True)]
    assert max((frame - frames[0]).abs().max() for frame in frames) > 0.3
    assert max((frame - frames[0]).abs().max() for frame in steadied(frames)) < 1e-5


def test_what_is_new_in_a_frame_does_not_move_the_rest():
    depth = surface()
    seen = 1.7 * depth - 0.2
    seen[10:30, 5:35] = 3.0
    kept = torch.ones(40, 56, dtype=torch.bool)
    kept[10:30, 5:35] = False
    _, second = steadied([depth, seen])
    assert (second - depth)[kept].abs().max() < 0.01
    # A plain least-squares fit, on the other hand, follows the newcomer.
    scale, shift = fit_scale_and_shift(seen.flatten(), depth.flatten())
    assert (seen * scale + shift - depth)[kept].abs().max() > 0.1


def test_noise_does_not_let_a_long_sequence_fade():
    depth = surface()
    frames = [depth + 0.05 * torch.randn(depth.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert steadied(frames)[-1].std() == pytest.approx(float(depth.std()), rel=0.05)
    # Fitted by a regression to the frame before, each would lose a share of its spread.
    chained = frames[0]
    for frame in frames[1:]:
        scale, shift = fit_scale_and_shift(frame.flatten(), chained.flatten())
        chained = frame * scale + shift
    assert chained.std() < 0.5 * depth.std()


def test_after_a_cut_frames_have_the_scale_of_the_first_after_it():
    other = surface(seed=7).flip(0) * 3 + 2
    *_, before, cut, after = steadied([surface(), 2 * surface(), other, 0.5 * other + 1])
    torch.testing.assert_close(before, surface(), atol=1e-5, rtol=0)
    assert torch.equal(cut, other)
    torch.testing.assert_close(after, other, atol=1e-4, rtol=0)


def test_flat_and_inverted_frames_keep_their_scale():
    depth = surface()
    assert robust_scale_and_shift(torch.full_like(depth, 0.3), depth).scale == 1
    assert robust_scale_and_shift(-depth, depth).scale == 1


@pytest.mark.parametrize(("frames", "pictures", "every"), [(1, 1, None), (10, 3, None), (10, 2, 0), (11, 4, 5), (7, 9, 3), (5, 2, 1)])
def test_parts_cover_each_frame_once_and_fit_with_their_anchor(frames, pictures, every):
    parts = sequence_parts(frames, pictures, every)
    assert [frame for part in parts for frame in range(part.start, part.stop)] == list(range(frames))
    for part in parts:
        behind = part.anchor < part.start
        assert part.stop - part.start + behind <= pictures
        if every is None:
            assert not behind
        else:
            assert {frame // every * every if every else 0 for frame in range(part.start, part.stop)} == {part.anchor}


def test_a_forward_without_room_for_an_anchor_is_refused():
    with pytest.raises(ValueError, match="leaves no room for an anchor"):
        sequence_parts(4, 1, 0)


class Flickering:
    """A generator of one cell a pixel, whose depth is scaled and shifted by each picture's corner; notes what it holds on to."""

    def __init__(self, anchored=False):
        self.seen, self.alive = [], []
        self.generator = Generator(self.encode, self.predict, lambda latents: latents.movedim(1, -1), 1)
        if anchored:
            self.generator = Generator(self.encode, self.predict, self.generator.decode, 1, {}, self.read_anchor)

    def encode(self, pictures):
        self.alive.append(sum(ref() is not None for ref in self.seen))
        latents = pictures.movedim(-1, 1).clone()
        self.seen.append(weakref.ref(latents))
        return latents

    def predict(self, latents, maps):
        assert all(index == 0 for index in maps)
        return latents * (1 + latents[:, :, :1, :1]) - latents[:, :, :1, 1:2]

    def read_anchor(self, latents, maps, anchors):
        return self.predict(latents, maps) + latents[anchors]


def run(frames, pictures, anchored=False, every=None, **settings):
    model = Flickering(anchored)
    settings = ExtractSettings(0, **settings)
    plan = plan_extraction(frames[:pictures], ["depth"], settings, 1)
    done = []
    parts = sequence_parts(len(frames), pictures, every)
    for _, maps in extract_sequence(frames, ["depth"], model.generator, settings, plan, parts):
        done.append(maps["depth"].clone())
    return torch.cat(done), model


def moving(frames=10):
    """A surface whose corner changes from frame to frame."""
    video = surface().expand(frames, 40, 56, 3).clone()
    video[:, 0, :2] = draw(frames, 2, 1, seed=3)
    return video


def test_the_chunk_size_does_not_change_the_result_and_no_chunk_is_kept():
    whole, _ = run(moving(), 10)
    for pictures in (1, 3):
        parted, model = run(moving(), pictures)
        torch.testing.assert_close(parted, whole, atol=1e-6, rtol=0)
        # When a chunk begins, nothing of those before is left.
        assert max(model.alive) == 0
    # The corner itself differs, the rest is one and the same.
    assert (whole - whole[:1])[:, 1:].abs().max() < 1e-4


@pytest.mark.parametrize("settings", [{}, {"mirrored_average": True}, {"tile_size": 32, "tile_overlap": 8}], ids=str)
def test_with_anchors_each_frame_reads_its_own_wherever_chunks_end(settings):
    whole, _ = run(moving(), 10, True, 4, **settings)
    for pictures in (2, 3):
        torch.testing.assert_close(run(moving(), pictures, True, 4, **settings)[0], whole, atol=1e-6, rtol=0)
    other, _ = run(moving(), 10, True, 0, **settings)
    assert (other - whole).abs().max() > 1e-3, "the frames from 4 on should read another anchor"


@pytest.mark.parametrize("windows", [1, 2])
def test_attention_with_an_anchor_equals_the_equation_in_float64(windows):
    anchors, weight, heads = (0, 0, 0, 3, 3), 0.3, 2
    query, key, value = (torch.randn(5 * windows, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in range(3))
    out = attend_with_anchor(AnchoredForward(anchors, weight), query, key, value, heads)
    for row in range(5 * windows):
        anchor = anchors[row // windows] * windows + row % windows
        for head in (slice(0, 6), slice(6, 12)):
            scores = query[row, :, head] @ key[row, :, head].T / 6**0.5
            values = value[row, :, head]
            if anchor != row:
                scores = torch.cat([scores, query[row, :, head] @ key[anchor, :, head].T / 6**0.5 + torch.tensor(weight).double().log()], 1)
                values = torch.cat([values, value[anchor, :, head]])
            assert (scores.softmax(-1) @ values - out[row, :, head]).abs().max() < 1e-6


def test_another_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="Self-attention ran on 3 rows"):
        attend_with_anchor(AnchoredForward((0, 0), 1.0), *(torch.randn(3, 4, 8),) * 3, 2)
