"""Lamps placed by hand against float64 equations written out pixel by pixel, and shadows whose edge is known."""

import json
import math

import pytest
import torch
from intrinsic_lab.methods import lamps
from intrinsic_lab.methods.lamps import Lamp, Lighting, Scene, lamps_text, moved, parse_lamps, relit
from intrinsic_lab.methods.maps import linear_from_srgb, unit_normals


def random_scene(height=5, width=7, seed=0) -> Scene:
    draw = torch.Generator().manual_seed(seed)

    def rand(channels):
        return torch.rand(1, height, width, channels, generator=draw, dtype=torch.float64)

    normal = unit_normals(rand(3) * 2 - torch.tensor([1.0, 1.0, 0.5]))
    return Scene(rand(3), normal, rand(1), rand(3), rand(1), rand(1))


def pixel(scene: Scene, row: int, column: int, placed: list[Lamp], lighting: Lighting) -> list[float]:
    """sRGB of one pixel, by the equations of the docstrings: Lambert, GGX with pi written out, no shadows."""
    height, width = scene.albedo_bhw3.shape[1:3]
    at = [of[0, row, column].tolist() for of in (scene.albedo_bhw3, scene.normal_bhw3, scene.relative_bhw1, scene.shading_bhw3)]
    albedo, normal, [deep], old = at
    roughness, metallic = (float(of[0, row, column]) for of in (scene.roughness_bhw1, scene.metallic_bhw1))
    place = (((column + 0.5) / width - 0.5) * 2 * width / height, (0.5 - (row + 0.5) / height) * 2, -lighting.relief * deep)
    shading = [lighting.ambient + lighting.original * share for share in old]
    mirrored = [0.0, 0.0, 0.0]
    dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))  # noqa: E731
    for lamp in placed:
        source = ((lamp.x - 0.5) * 2 * width / height, (0.5 - lamp.y) * 2, lamp.height)
        way = [a - b for a, b in zip(source, place, strict=True)]
        far = math.sqrt(dot(way, way))
        towards = [share / far for share in way]
        lit = max(0.0, dot(normal, towards)) * min(1.0, (lamp.reach / far) ** 2) * lamp.intensity
        red, green, blue = (int(lamp.color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        received = [
            lit * float(linear_from_srgb(torch.tensor(share, dtype=torch.float64))) * own
            for share, own in zip((red, green, blue), lighting.color, strict=True)
        ]
        half = [a + b for a, b in zip(towards, (0, 0, 1), strict=True)]
        half = [share / math.sqrt(dot(half, half)) for share in half]
        a2 = max(roughness**2, 0.01) ** 2
        distribution = a2 / (math.pi * (max(0, dot(normal, half)) ** 2 * (a2 - 1) + 1) ** 2)
        n_l, n_v, k = max(1e-3, dot(normal, towards)), max(1e-4, normal[2]), (roughness + 1) ** 2 / 8
        shadowing = (n_l / (n_l * (1 - k) + k)) * (n_v / (n_v * (1 - k) + k)) / (4 * n_l * n_v)
        for channel in range(3):
            base = 0.04 * (1 - metallic) + albedo[channel] * metallic
            fresnel = base + (1 - base) * (1 - half[2]) ** 5
            # Irradiance in units of pi: a white diffuser shows as 1 what it receives as 1.
            mirrored[channel] += math.pi * distribution * shadowing * fresnel * received[channel] * (1 - roughness * (1 - metallic))
            shading[channel] += received[channel]
    light = [a * (1 - metallic) * s + m for a, s, m in zip(albedo, shading, mirrored, strict=True)]
    return [12.92 * share if share <= 0.0031308 else 1.055 * share ** (1 / 2.4) - 0.055 for share in light]


def test_lambert_and_highlights_are_the_equations_written_out():
    scene = random_scene()
    placed = [Lamp(0.1, 0.9, 0.4, "#ff8040", 1.3, 0.7), Lamp(1.4, -0.2, 2.0, "#4080ff", 0.6, 3.0)]
    lighting = Lighting((0.9, 0.7, 0.5), ambient=0.15, original=0.25, relief=0.8, shadows=0.0)
    picture, _ = relit(scene, placed, lighting)
    for row in range(5):
        for column in range(7):
            assert picture[0, row, column].tolist() == pytest.approx(pixel(scene, row, column, placed, lighting), abs=1e-6)


@pytest.mark.parametrize("lamp_height", [0.5, 1.0])
def test_the_edge_of_a_shadow_lies_where_the_ray_over_the_edge_meets_the_ground(lamp_height):
    # A step: the left half lies at height 0, the right half at -1. The lamp stands over the left half.
    width = height = 200
    relative = torch.zeros(1, height, width, 1)
    relative[:, :, width // 2 :] = 1
    lamp = Lamp(x=0.25, y=0.5, height=lamp_height)
    place = lamps.surface_places(relative, relief=1.0)
    seen = lamps.visibility(place, lamp.position(width, height), hardness=1.0)[0, height // 2, :, 0]
    # 48 steps find it to a few hundredths of the way.
    # In picture space the lamp is at x = -0.5, the edge at 0: the ray goes down by 1 over 0.5 / lamp_height.
    edge = round((0.5 / lamp_height + 1) / 2 * width)
    assert (seen[: width // 2] == 1).all()
    assert (seen[width // 2 + 3 : edge - 12] < 0.25).all() and (seen[edge + 3 :] > 0.9).all()
    soft = lamps.visibility(place, lamp.position(width, height), hardness=0.0)[0, height // 2, :, 0]
    assert ((soft > 0.1) & (soft < 0.9)).sum() > ((seen > 0.1) & (seen < 0.9)).sum() + 10


def test_lamps_are_read_back_as_they_were_written_and_nonsense_is_told():
    placed = [Lamp(0.2, 0.4), Lamp(color="#102030", intensity=2.5)]
    assert parse_lamps(lamps_text([placed])) == [placed]
    assert parse_lamps(lamps_text([placed, placed[:1]])) == [placed, placed[:1]]
    assert parse_lamps("[]") == [[]] and parse_lamps('[{"x": 1}]') == [[Lamp(x=1)]]
    ends = moved(Lamp(0, 0, 1), Lamp(1, 0.5, 2, "#000000"), 3)
    assert [(lamp.x, lamp.y, lamp.height, lamp.color) for lamp in ends] == [
        (0, 0, 1, "#ffffff"),
        (0.5, 0.25, 1.5, "#ffffff"),
        (1, 0.5, 2, "#ffffff"),
    ]
    wrong = [
        "",
        "{}",
        "[1]",
        '[{"z": 1}]',
        '[{"x": "a"}]',
        '[{"x": NaN}]',
        '[{"color": "red"}]',
        '[{"color": 7}]',
        '[{"intensity": -1}]',
        "[" * 9999,
    ]
    wrong.append(json.dumps([{}] * 9))
    for text in wrong:
        with pytest.raises(ValueError, match=r"lamp|colour"):
            parse_lamps(text)
