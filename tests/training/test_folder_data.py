"""Pairs from a folder: values, layouts, conventions, and what is said when the folder is not right."""

from dataclasses import replace

import numpy
import pytest
import torch
from intrinsic_lab.methods.maps import linear_from_srgb, normal_from_picture
from intrinsic_lab.training.folder_data import FewPairs, FolderData, read_picture
from intrinsic_lab.training.pairs import MaskedSource
from PIL import Image


def write(path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numpy.asarray(pixels, dtype=numpy.uint8)).save(path)


def write_16_bit(path, pixels_chw: torch.Tensor) -> None:
    """A 16-bit PNG, written chunk by chunk."""
    import struct
    import zlib

    channels, height, width = pixels_chw.shape
    rows = pixels_chw.movedim(0, -1).numpy().astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("layout", ["image/{}.png {}/{}.png", "{}.png {}_{}.png", "{}_image.png {}_{}.png"])
def test_each_layout_finds_the_same_pairs(tmp_path, layout):
    picture_path, map_path = layout.split()
    for number, name in enumerate(("a", "b_depth_of_field")):
        write(tmp_path / picture_path.format(name), numpy.full((16, 16, 3), 50 + number))
        for kind in ("depth", "normal"):
            order = (kind, name) if "/" in map_path else (name, kind)
            write(tmp_path / map_path.format(*order), numpy.full((16, 16, 3), 100 + number))
    pairs = FolderData(tmp_path, 16).source("normal")
    assert len(pairs) == 2
    assert (pairs.read("image", [0, 1])[:, 0, 0, 0] * 255).tolist() == pytest.approx([50, 51])
    assert pairs.read("normal", [1]).shape == (1, 3, 16, 16)


def test_the_short_side_is_resized_and_the_centre_cropped(tmp_path):
    # Left, middle and right thirds: the centre crop of a 3:1 picture is the middle one.
    wide = numpy.zeros((20, 60, 3))
    wide[:, 20:40] = 200
    wide[:, 40:] = 100
    write(tmp_path / "image/a.png", wide)
    write(tmp_path / "albedo/a.png", wide)
    assert (FolderData(tmp_path, 8).source("albedo").read("image", [0])[..., 1:-1] * 255 - 200).abs().max() < 1
    exact = FolderData(tmp_path, 20).source("albedo").read("albedo", [0])
    assert torch.equal(exact * 255, torch.full((1, 3, 20, 20), 200.0))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_maps_keep_all_bits(tmp_path, channels):
    values = torch.arange(channels * 64).reshape(channels, 8, 8) * 7 + 30_000
    write_16_bit(tmp_path / "a.png", values)
    color = values[:1] if channels < 3 else values[:3]
    assert torch.equal((read_picture(tmp_path / "a.png") * 65535).round(), color.float().expand(3, 8, 8))


def test_depth_is_stretched_and_near_is_dark(tmp_path):
    values = 20_000 + 100 * torch.arange(64).reshape(1, 8, 8)
    write_16_bit(tmp_path / "depth/a.png", values)
    write(tmp_path / "image/a.png", numpy.zeros((8, 8, 3)))
    wanted = (torch.arange(64) / 63).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    torch.testing.assert_close(FolderData(tmp_path, 8).source("depth").read("depth", [0]), wanted, rtol=0, atol=1e-5)
    bright = FolderData(tmp_path, 8, depth="near_bright").source("depth").read("depth", [0])
    torch.testing.assert_close(bright, 1 - wanted, rtol=0, atol=1e-5)


def test_normals_are_unit_vectors_with_green_up(tmp_path):
    write(tmp_path / "image/a.png", numpy.zeros((32, 32, 3)))
    pixels = numpy.full((32, 32, 3), (128, 220, 200))
    pixels[:, ::2] = (250, 128, 140)
    write(tmp_path / "normal/a.png", pixels)
    opengl = FolderData(tmp_path, 16).source("normal").read("normal", [0]).movedim(1, -1)
    length = (2 * opengl - 1).norm(dim=-1)
    torch.testing.assert_close(length, torch.ones_like(length), rtol=0, atol=1e-5)
    for convention, signs in (("directx", (1.0, -1.0, 1.0)), ("opencv", (1.0, -1.0, -1.0))):
        other = FolderData(tmp_path, 16, normals=convention).source("normal").read("normal", [0]).movedim(1, -1)
        flipped = normal_from_picture(opengl) * torch.tensor(signs)
        torch.testing.assert_close(normal_from_picture(other), flipped, rtol=0, atol=1e-5)


def test_linear_albedo_becomes_the_srgb_picture_the_vae_sees(tmp_path):
    write(tmp_path / "image/a.png", numpy.zeros((8, 8, 3)))
    write(tmp_path / "albedo/a.png", numpy.full((8, 8, 3), 51))
    linear = FolderData(tmp_path, 8, colors="linear").source("albedo").read("albedo", [0])
    torch.testing.assert_close(linear_from_srgb(linear), torch.full((1, 3, 8, 8), 0.2), rtol=0, atol=1e-5)
    assert (FolderData(tmp_path, 8).source("albedo").read("albedo", [0]) - 0.2).abs().max() < 1e-6


def test_maps_of_one_channel_are_grey_as_they_are(tmp_path):
    write(tmp_path / "image/a.png", numpy.zeros((8, 8, 3)))
    values = 5_000 + 700 * torch.arange(64).reshape(1, 8, 8)
    write_16_bit(tmp_path / "roughness/a.png", values)
    write(tmp_path / "metallic/a.png", numpy.full((8, 8, 3), (10, 20, 60)))
    folder = FolderData(tmp_path, 8, colors="linear")
    torch.testing.assert_close(folder.source("roughness").read("roughness", [0]), (values / 65535).expand(1, 3, 8, 8), rtol=0, atol=1e-6)
    assert (folder.source("metallic").read("metallic", [0]) * 255 - 30).abs().max() < 1e-4


def test_highlights_are_colors(tmp_path):
    write(tmp_path / "image/a.png", numpy.zeros((8, 8, 3)))
    write(tmp_path / "specular/a.png", numpy.full((8, 8, 3), 51))
    linear = FolderData(tmp_path, 8, colors="linear").source("specular").read("specular", [0])
    torch.testing.assert_close(linear_from_srgb(linear), torch.full((1, 3, 8, 8), 0.2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["{}/{}.png mask/{}.PNG", "{1}_{0}.png {}_mask.jpg"])
def test_what_a_mask_leaves_out_is_neither_shown_nor_stretched_over(tmp_path, layout, caplog):
    map_path, mask_path = layout.split()
    depth, known = numpy.full((8, 8, 3), 250), numpy.full((8, 8), 255)
    depth[:, :2], depth[:, 2], known[:, 3:] = 40, 80, 0
    for name in ("a", "b"):
        write(tmp_path / ("image/{}.png" if "/" in map_path else "{}.png").format(name), depth)
        write(tmp_path / map_path.format("depth", name), depth)
    Image.fromarray(known.astype(numpy.uint8)).save(mask := tmp_path / mask_path.format("b").replace("mask/b", "b"), format="PNG")
    if "/" in mask_path:
        (tmp_path / "mask").mkdir()
        mask = mask.rename(tmp_path / "mask/b.PNG")
    source = FolderData(tmp_path, 8, depth="near_bright").source("depth")
    assert isinstance(source, MaskedSource) and "1 of 2 pictures" in caplog.text and "have no mask" in caplog.text
    whole, masked = source.read("depth", [0, 1])
    assert source.masks([0]).all() and torch.equal(source.masks([1])[0, 0], torch.from_numpy(known > 0))
    # Near is bright in the file, and dark in the pack's own picture.
    assert whole[0, 0, 0] == 1 and whole[0, 0, 7] == 0
    assert (masked[:, :, :2] == 1).all() and not masked[:, :, 2:].any()
    aligned = FewPairs(tmp_path, 8, labels=2).aligned(["depth"])
    assert aligned.masked and source.chosen([1]).masks([0]).sum() == 24
    assert source.identity("depth") != replace(source, mask_files=(None, None)).identity("depth")
    Image.fromarray(known[:4].astype(numpy.uint8)).save(mask, format="PNG")
    with pytest.raises(ValueError, match=r"is 8 x 4, .* 8 x 8: a mask must have its map's size"):
        source.read("depth", [1])


def test_a_picture_may_be_called_like_a_map(tmp_path):
    for name in ("finish_line", "kitchen", "kitchen_line", "kitchen_roughness"):
        write(tmp_path / f"{name}.png", numpy.zeros((8, 8, 3)))
    for name in ("finish_line", "kitchen"):
        write(tmp_path / f"{name}_normal.png", numpy.zeros((8, 8, 3)))
    assert [path.name for path in FolderData(tmp_path, 8).source("normal").pictures] == ["finish_line.png", "kitchen.png"]


def test_files_without_a_partner_are_left_out_and_named_in_the_log(tmp_path, caplog):
    for name in ("a", "b"):
        write(tmp_path / f"image/{name}.png", numpy.zeros((8, 8, 3)))
    write(tmp_path / "normal/a.png", numpy.zeros((8, 8, 3)))
    assert len(FolderData(tmp_path, 8).source("normal")) == 1
    assert "1 files" in caplog.text and "left out" in caplog.text


def test_a_changed_file_changes_the_identity(tmp_path):
    for kind in ("image", "normal"):
        write(tmp_path / kind / "a.png", numpy.zeros((8, 8, 3)))
    pairs = FolderData(tmp_path, 8).source("normal")
    before = pairs.identity("normal"), pairs.identity("image")
    write(tmp_path / "normal/a.png", numpy.random.default_rng(0).integers(0, 255, (8, 8, 3)))
    assert pairs.identity("normal") != before[0] and pairs.identity("image") == before[1]


def test_wrong_folders_and_files_are_told_clearly(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist: give a folder that holds pictures"):
        FolderData(tmp_path / "nowhere").source("normal")
    write(tmp_path / "a.png", numpy.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match=r"1 pictures and 0 normal maps but no pair: wanted NAME.png with NAME_normal.png"):
        FolderData(tmp_path).source("normal")
    write(tmp_path / "depth/a.png", numpy.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match=r"image does not exist: put the pictures there"):
        FolderData(tmp_path).source("depth")
    write(tmp_path / "image/a.png", numpy.zeros((8, 16, 3)))
    with pytest.raises(ValueError, match=r"a.png is 8 x 8, its picture 16 x 8: a pair must show the same view"):
        FolderData(tmp_path, 8).source("depth").read("depth", [0])
    write_16_bit(tmp_path / "depth/a.png", torch.zeros(3, 8, 16, dtype=torch.int32))
    (tmp_path / "depth/a.png").write_bytes((tmp_path / "depth/a.png").read_bytes()[:45])
    with pytest.raises(ValueError, match=r"a.png cannot be read as a picture"):
        FolderData(tmp_path, 8).source("depth").read("depth", [0])
    (tmp_path / "image/a.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"a.png cannot be read as a picture"):
        FolderData(tmp_path, 8).source("depth").read("image", [0])
    (tmp_path / "image/a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.jpg and a.png in .* have the same name"):
        FolderData(tmp_path).source("depth")
    with pytest.raises(ValueError, match="depth is 'far'"):
        FolderData(tmp_path, depth="far")
