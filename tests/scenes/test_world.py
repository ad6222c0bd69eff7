"""Scenes of all kinds: maps against an oracle in float64, and what is true of every kind."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from intrinsic_lab.scenes import KINDS, WORLD, Scenes, Style, Worlds, render, render_scenes, sample_scenes
from intrinsic_lab.scenes.parameters import COLOR_WORDS, ROOM_SURFACES
from intrinsic_lab.scenes.sampling import kind_of
from intrinsic_lab.scenes.world import kinds, shapes
from intrinsic_lab.scenes.world.light import light_at
from intrinsic_lab.scenes.world.plan import CLEAR, Camera, Light, Material, Part, Plan, pack
from intrinsic_lab.scenes.world.trace import SKY_DEPTH, blocked, cut
from torch.nn.functional import normalize

spec = importlib.util.spec_from_file_location("world_oracle", Path(__file__).with_name("world_oracle.py"))
oracle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracle)

PLANNED = tuple(kinds.PLANNED)
MAPS = ("image_bhwc", "albedo_bhwc", "shading_bhwc", "specular_bhwc", "depth_bhw1", "normal_bhwc", "roughness_bhw1", "metallic_bhw1")
MAPS += ("segmentation_bhw", "line_bhw1")
GRAY = Material((0.5, 0.5, 0.5))
SOLIDS = {
    "ball": (shapes.TURNED, shapes.BALL),
    "cylinder": (shapes.TURNED, shapes.CYLINDER),
    "cone": (shapes.TURNED, shapes.frustum(0.2)),
    "vase": (shapes.TURNED, (0.35, 0.05, 0.5)),
    "bowl": (shapes.TURNED, shapes.BOWL),
    "box": (shapes.BOX, ()),
    "bevelled": (shapes.BEVELLED, ()),
    "hexagon": (shapes.HEXAGON, ()),
    "roof": (shapes.ROOF, ()),
    "pyramid": (shapes.PYRAMID, ()),
    "torus": (shapes.TORUS, (0.3,)),
    "blend": (shapes.BLEND, (0, -0.4, 0, 0.5, 0.3, 0.2, 0, 0.3, -0.4, 0.3, 0.1, 0.25, 0, 0.5, 0.2, 0.2, *(0, 0, 0, -9) * 2)),
    "bumpy": (shapes.BUMPY, (5.0, 0.08, 0.3, 1.2, 2.5)),
}


def rays_and_points(maps) -> tuple[torch.Tensor, torch.Tensor]:
    """World directions of depth 1 and places of the pixels, `[b, h, w, 3]` float64."""
    scenes, (height, width) = maps.scenes, maps.segmentation_bhw.shape[1:]
    tangent = torch.tan(torch.deg2rad(scenes.vertical_fov_degrees.double()) / 2)[:, None, None]
    x = (((torch.arange(width, dtype=torch.float64) + 0.5) / width * 2 - 1) * width / height * tangent).expand(-1, height, -1)
    y = ((1 - (torch.arange(height, dtype=torch.float64) + 0.5) / height * 2)[:, None] * tangent).expand(-1, -1, width)
    rays = torch.einsum("bhwa,bax->bhwx", torch.stack([x, y, -torch.ones_like(x)], -1), scenes.camera_axes.double())
    return rays, scenes.camera_position.double()[:, None, None] + rays * maps.depth_bhw1


def lone(part: Part) -> Worlds:
    """A plan with one part before a far wall."""
    camera = Camera((0.4, 0.9, 3.0), ((1.0, 0.0, 0.0), (0.0, 0.98, -0.199), (0.0, 0.199, 0.98)), 40.0)
    lamp = Light(True, (1.0, 2.5, 2.0), (0.7, 0.7, 0.7), 0.0, 2.0)
    plan = Plan(
        "a solid", camera, ("solid",), (part,), (GRAY,) * 6, (lamp,), (0.3,) * 3, (0.1,) * 3, ((0.3,) * 3,) * 3, (-4, -2, -4), (4, 4, 4)
    )
    return Worlds((0,), ("closeup",), (plan,))


@pytest.mark.parametrize("name", SOLIDS)
def test_a_solid_is_where_its_definition_says_and_its_normals_are_the_definitions_slope(name):
    shape, form = SOLIDS[name]
    axes = normalize(torch.tensor([[0.8, 0.3, -0.5], [-0.1, 0.9, 0.4]], dtype=torch.float64), dim=-1)
    first = axes[0]
    second = normalize(axes[1] - (axes[1] @ first) * first, dim=0)
    rows = tuple(tuple(row.tolist()) for row in (first, second, torch.linalg.cross(first, second)))
    part = Part(shape, (0.1, 0.2, -0.1), (0.9, 0.8, 0.7), GRAY, rows, form)
    maps = render(lone(part), 72, 80)
    on_it = maps.segmentation_bhw == ROOM_SURFACES
    rays, points = rays_and_points(maps)
    assert on_it.sum() > 500

    # The silhouette: rays that pass through the solid, by 2500 steps along each.
    steps = torch.linspace(1.5, 5.0, 2500, dtype=torch.float64)
    expected = torch.zeros_like(on_it)
    first_inside = torch.full(on_it.shape, float("inf"), dtype=torch.float64)
    for y in range(72):
        places = maps.scenes.camera_position.double() + rays[0, y, :, None] * steps[:, None]
        inside = oracle.inside_part(part, places.flatten(0, 1)).view(80, -1) < 0
        expected[0, y] = inside.any(-1)
        first_inside[0, y] = torch.where(inside.any(-1), steps[inside.long().argmax(-1)], float("inf"))
    assert (expected != on_it).double().mean() < 0.003  # what a step or a float32 decides at the rim
    both = expected & on_it
    behind = (first_inside - maps.depth_bhw1[..., 0].double())[both]
    assert behind.min() > -1e-4 and behind.quantile(0.98) < 2 * (steps[1] - steps[0])

    place = points[on_it].requires_grad_()
    value = oracle.inside_part(part, place)
    assert value.abs().max() < 2e-4 and value.abs().median() < 2e-6
    (slope,) = torch.autograd.grad(value.sum(), place)
    normal = torch.einsum("bhwa,bax->bhwx", maps.normal_bhwc.double(), maps.scenes.camera_axes.double())[on_it]
    degrees = torch.rad2deg(torch.acos((normalize(slope, dim=-1) * normal).sum(-1).clamp(-1, 1)))
    assert degrees.median() < 0.01 and (degrees > 0.1).double().mean() < 0.02  # edges, where two planes meet
    assert (maps.normal_bhwc.norm(dim=-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("kind", PLANNED)
def test_each_pixel_shows_the_first_thing_on_its_ray(kind):
    maps = render_scenes(range(4), 11, 12, kind=kind)
    rays, points = rays_and_points(maps)
    early = counted = 0
    for row, plan in enumerate(maps.scenes.drawn):
        on, depth = maps.segmentation_bhw[row].flatten(), maps.depth_bhw1[row].flatten().double()
        flat_rays, flat_points = rays[row].flatten(0, 1), points[row].flatten(0, 1)
        seen = depth < SKY_DEPTH - 1e-3
        # Something is there ...
        value = oracle.nearest_miss(plan, flat_points[seen])
        assert value.abs().max() < 5e-3 and value.abs().median() < 1e-5
        thing = torch.stack([
            oracle.inside_part(part, flat_points).abs().masked_fill(on != ROOM_SURFACES + part.thing, float("inf")) for part in plan.parts
        ]).amin(0)  # fmt: skip
        assert thing[on >= ROOM_SURFACES].max() < 5e-3
        # ... and nothing before it.
        share = torch.linspace(0.002, 0.998, 600, dtype=torch.float64)
        places = maps.scenes.camera_position[row].double() + flat_rays[:, None] * (depth[:, None] * share)[..., None]
        before = oracle.nearest_miss(plan, places.flatten(0, 1)).view(len(depth), -1).amin(-1)
        early += (before < -1e-3).sum().item()
        counted += len(depth)
    assert early / counted < 0.006  # a grazed rim


@pytest.mark.parametrize("kind", PLANNED)
def test_normals_are_those_of_the_depth_by_finite_differences(kind):
    maps = render_scenes(range(4), 112, 112, kind=kind)
    _, points = rays_and_points(maps)
    points = torch.einsum("bhwx,bax->bhwa", points - maps.scenes.camera_position.double()[:, None, None], maps.scenes.camera_axes.double())
    across, up = points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, :-2, 1:-1] - points[:, 2:, 1:-1]
    measured = normalize(torch.linalg.cross(across, up), dim=-1)
    exact, surface = maps.normal_bhwc.double(), maps.segmentation_bhw
    middle = exact[:, 1:-1, 1:-1]
    smooth = torch.ones_like(middle[..., 0], dtype=torch.bool)
    for rows, columns in (
        (slice(0, -2), slice(1, -1)),
        (slice(2, None), slice(1, -1)),
        (slice(1, -1), slice(0, -2)),
        (slice(1, -1), slice(2, None)),
    ):
        smooth &= (surface[:, rows, columns] == surface[:, 1:-1, 1:-1]) & ((exact[:, rows, columns] * middle).sum(-1) > 0.985)
    degrees = torch.rad2deg(torch.acos((measured * middle).sum(-1).clamp(-1, 1)))[smooth]
    assert smooth.double().mean() > 0.6
    assert degrees.median() < 0.1 and degrees.quantile(0.95) < 2.5
    facing = (maps.normal_bhwc.double() * normalize(-points_of_view(maps), dim=-1)).sum(-1)
    assert (facing > -1e-2).double().mean() > 0.999


def points_of_view(maps) -> torch.Tensor:
    """Rays in camera space."""
    rays, _ = rays_and_points(maps)
    return torch.einsum("bhwx,bax->bhwa", rays, maps.scenes.camera_axes.double())


@pytest.mark.parametrize("kind", PLANNED)
def test_picture_is_albedo_times_shading_plus_specular_in_srgb_and_nothing_clips(kind):
    maps = render_scenes(range(12), 40, 40, kind=kind)
    linear = maps.albedo_bhwc.double() * maps.shading_bhwc.double() + maps.specular_bhwc.double()
    assert linear.min() >= 0 and linear.max() <= 1 + 1e-6
    expected = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert (maps.image_bhwc.double() - expected).abs().max() < 1e-5
    assert maps.specular_bhwc.min() >= 0 and maps.specular_bhwc.max() > 0.02


def test_the_lists_of_kinds_offer_what_can_be_drawn():
    assert ("room", *PLANNED) == KINDS


def test_rooms_have_no_highlights():
    maps = render_scenes([1, 2], 16, 16)
    assert (maps.specular_bhwc == 0).all() and (maps.roughness_bhw1 == 1).all() and (maps.metallic_bhw1 == 0).all()


@pytest.mark.parametrize("kind", PLANNED)
def test_maps_stay_within_their_documented_ranges(kind):
    maps = render_scenes(range(100, 116), 32, 32, kind=kind)
    assert all(torch.isfinite(getattr(maps, name)).all() for name in MAPS)
    for name in ("image_bhwc", "albedo_bhwc", "shading_bhwc", "roughness_bhw1", "metallic_bhw1"):
        assert getattr(maps, name).min() >= 0 and getattr(maps, name).max() <= 1
    assert maps.depth_bhw1.min() > 0.01 and maps.depth_bhw1.max() <= SKY_DEPTH * 1.0001
    assert (maps.normal_bhwc.norm(dim=-1) - 1).abs().max() < 1e-5
    # A picture one can look at: neither black nor white, and not of one colour.
    mean, spread = maps.image_bhwc.mean((1, 2, 3)), maps.image_bhwc.std((1, 2, 3))
    assert mean.min() > 0.06 and mean.max() < 0.92 and mean.median() > 0.25 and spread.min() > 0.02


def test_the_sky_is_a_wall_behind_everything_that_faces_the_viewer():
    maps = render_scenes(range(12), 40, 40, kind="landscape")
    sky = maps.segmentation_bhw == 1
    assert 0.1 < sky.double().mean() < 0.8
    assert ((maps.depth_bhw1[..., 0] - SKY_DEPTH).abs()[sky] < 1e-3).all() and (maps.depth_bhw1[..., 0][~sky] <= SKY_DEPTH).all()
    assert torch.equal(maps.normal_bhwc[sky], torch.tensor([0.0, 0.0, 1.0]).expand(int(sky.sum()), 3))
    assert (maps.shading_bhwc[sky] == 1).all() and (maps.specular_bhwc[sky] == 0).all() and (maps.metallic_bhw1[sky] == 0).all()
    # Rays that meet nothing, and only they, by the oracle.
    rays, _ = rays_and_points(maps)
    up = rays[..., 1] > 0.3
    assert sky[up].double().mean() > 0.7


def test_shadow_rays_are_blocked_by_what_stands_between():
    worlds = sample_scenes(range(6), kind="clutter")
    table, tiles = pack(worlds.drawn), cut(9, 11)
    dice = torch.Generator().manual_seed(5)
    origin = (
        torch.rand(3, 6, 99, generator=dice) * torch.tensor([2.0, 0.4, 2.0])[:, None, None] - torch.tensor([1.0, -0.01, 1.0])[:, None, None]
    )
    direction = normalize(torch.randn(3, 6, 99, generator=dice), dim=0)
    reach = torch.rand(6, 99, generator=dice) * 2
    found = blocked(table, origin, direction, reach, torch.ones(6, 99, dtype=torch.bool), tiles)
    wrong = counted = 0
    for row, plan in enumerate(worlds.drawn):
        start = origin[:, row].T.double()
        # From outside all parts, as shadow rays are.
        free = torch.stack([oracle.inside_part(part, start) for part in plan.parts]).amin(0) > 1e-3
        share = torch.linspace(0, 1, 1500, dtype=torch.float64)
        places = start[:, None] + direction[:, row].T.double()[:, None] * (reach[row].double()[:, None] * share)[..., None]
        inside = torch.stack([oracle.inside_part(part, places.flatten(0, 1)).view(99, -1).amin(-1) for part in plan.parts]).amin(0) < 0
        wrong += (inside != found[row])[free].sum().item()
        counted += free.sum().item()
    assert counted > 300 and wrong / counted < 0.01
    assert 0.1 < found.double().mean() < 0.9


def test_light_of_a_plan_on_its_maps_gives_the_shading_where_nothing_is_near():
    floor_only = replace(lone(Part(shapes.BOX, (50, 50, 50), (0.1, 0.1, 0.1), GRAY)).drawn[0], high=(1e3, 1e3, 1e3), low=(-1e3, 0.0, -1e3))
    maps = render(Worlds((0,), ("outdoor",), (floor_only,)), 40, 40)
    lit = (maps.segmentation_bhw == 0)[0]
    _, points = rays_and_points(maps)
    towards = torch.tensor([1.0, 2.5, 2.0], dtype=torch.float64) - points[0]
    distance = towards.norm(dim=-1)
    # A floor looks straight up: ambient `above`, and the lamp by its cosine and the square of its distance over its reach.
    expected = 0.3 + 0.7 * (towards[..., 1] / distance) * ((2.0 / distance) ** 2).clamp(max=1)
    assert lit.sum() > 300
    assert (maps.shading_bhwc[0] - expected[..., None])[lit].abs().max() < 1e-4


def test_a_highlight_is_where_a_mirror_would_show_the_lamp_and_a_metals_has_its_colour():
    def ball(metallic: float) -> Worlds:
        material = Material((0.8, 0.3, 0.1), roughness=0.25, metallic=metallic)
        return lone(Part(shapes.TURNED, (0.0, 0.6, 0.0), (0.8, 0.8, 0.8), material, form=shapes.BALL))

    plastic, metal = render(ball(0.0), 96, 96), render(ball(1.0), 96, 96)
    _, points = rays_and_points(plastic)
    scenes = plastic.scenes
    normals = torch.einsum("bhwa,bax->bhwx", plastic.normal_bhwc.double(), scenes.camera_axes.double())[0]
    view = normalize(scenes.camera_position.double() - points[0], dim=-1)
    light = normalize(torch.tensor([1.0, 2.5, 2.0], dtype=torch.float64) - points[0], dim=-1)
    on_ball = plastic.segmentation_bhw[0] == ROOM_SURFACES
    mirrored = ((2 * (normals * view).sum(-1, keepdim=True) * normals - view) * light).sum(-1).masked_fill(~on_ball, -1)
    brightest = plastic.specular_bhwc[0].sum(-1).masked_fill(~on_ball, -1)
    best, found = divmod(int(mirrored.argmax()), 96), divmod(int(brightest.argmax()), 96)
    assert max(abs(a - b) for a, b in zip(best, found, strict=True)) <= 2
    white, colored = plastic.specular_bhwc[0][found], metal.specular_bhwc[0][found]
    assert white.max() / white.min() < 1.6 and colored[0] > 1.5 * colored[2]
    assert (metal.albedo_bhwc[0][on_ball] == 0).all() and (metal.metallic_bhw1[0][on_ball] == 1).all()
    assert torch.allclose(plastic.roughness_bhw1[0][on_ball], torch.tensor(0.25))


def test_a_lamp_with_a_size_gives_soft_borders_and_a_point_hard_ones():
    def half_seen(size: float) -> float:
        plan = lone(Part(shapes.BOX, (0.0, -0.4, 0.0), (0.4, 0.1, 0.4), GRAY)).drawn[0]
        table, tiles = pack([replace(plan, lights=(replace(plan.lights[0], size=size),))]), cut(64, 64)
        grid = torch.linspace(-1.5, 1.5, 64)
        floor = torch.stack([grid.repeat(64), torch.full((64 * 64,), -1.5), grid.repeat_interleave(64)])[:, None]
        up = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 1, 64 * 64)
        *_, seen = light_at(table, 0, floor, up, torch.zeros(1, 64 * 64, dtype=torch.int64), torch.full((1, 64 * 64), 1e-3), tiles)
        assert seen.min() == 0 and seen.max() == 1
        return ((seen > 0.05) & (seen < 0.95)).double().mean().item()

    assert half_seen(0.5) > 2.5 * half_seen(0.0) > 0


@pytest.mark.parametrize("kind", [*PLANNED, WORLD])
def test_a_scene_does_not_depend_on_its_batch(kind):
    batch = render_scenes(range(40, 46), 33, 28, kind=kind)
    for row in (0, 3, 5):
        alone = render_scenes([40 + row], 33, 28, kind=kind)
        assert alone.captions[0] == batch.captions[row]
        for name in MAPS:
            difference = (getattr(alone, name)[0].double() - getattr(batch, name)[row].double()).abs()
            assert (difference > 1e-4).double().mean() < 2e-3 and difference.median() < 1e-6, name


def test_in_the_world_each_seed_is_a_scene_of_its_kind():
    world = render_scenes(range(12), 24, 24, kind=WORLD)
    assert world.scenes.kinds == tuple(kind_of(seed) for seed in range(12)) and len(set(world.scenes.kinds)) > 3
    for row, kind in enumerate(world.scenes.kinds):
        alone = render_scenes([row], 24, 24, kind=kind)
        assert alone.captions[0] == world.captions[row]
        assert (alone.image_bhwc[0] - world.image_bhwc[row]).abs().median() < 1e-5
    assert {kind_of(seed) for seed in range(100)} == set(KINDS)


def test_rows_of_worlds_are_worlds():
    worlds = sample_scenes(range(8), kind=WORLD)
    tail = worlds[5:]
    assert len(tail) == 3 and tail.seeds == (5, 6, 7) and tail.captions == worlds.captions[5:]
    assert torch.equal(tail.camera_axes, worlds.camera_axes[5:]) and torch.equal(tail.camera_position, worlds.camera_position[5:])
    assert torch.equal(render(tail, 8, 8).scenes.vertical_fov_degrees, worlds.vertical_fov_degrees[5:])


@pytest.mark.parametrize("height, width", [(1, 1), (7, 13), (1, 40), (50, 3)])
def test_any_size_gives_whole_maps_of_it(height, width):
    maps = render_scenes(range(7), height, width, kind=WORLD)
    for name in MAPS:
        assert getattr(maps, name).shape[:3] == (7, height, width) and torch.isfinite(getattr(maps, name)).all()


def test_captions_keep_to_few_words_and_name_what_the_picture_shows():
    words, named, visible = set(), 0, 0
    for kind in PLANNED:
        maps = render_scenes(range(30), 32, 32, kind=kind)
        for row, plan in enumerate(maps.scenes.drawn):
            words |= set(re.findall(r"[a-z]+", plan.caption))
            assert "nothing" not in plan.caption and len(plan.caption) < 260
            shown = {
                plan.names[surface - ROOM_SURFACES] for surface in maps.segmentation_bhw[row].unique().tolist() if surface >= ROOM_SURFACES
            }
            said = {name for name in plan.names if name in plan.caption}
            named, visible = named + len(said), visible + len(said & shown)
    assert len(words) < 150
    assert visible / named > 0.85  # a thing may stand behind another


def test_a_style_limits_colours_and_light_of_every_kind():
    style = Style(colors=("red", "blue"), textures=(0, 1), light_azimuth_degrees=90.0, ambient=0.1, light_color=(1.0, 0.5, 0.2))
    for kind in PLANNED:
        for plan in sample_scenes(range(8), style, kind).drawn:
            said = {word for word in re.findall(r"[a-z]+", plan.caption) if word in COLOR_WORDS}
            assert said <= {"red", "blue", "orange"}  # an orange is a fruit too
            assert max(plan.above) <= 0.1 + 1e-6
            assert {part.material.pattern for part in plan.parts} <= {0, 1}
            side = plan.caption.rsplit("light from ", 1)[-1]
            assert side in ("right", "above") or side.endswith("no sun")


def test_light_stays_within_one_and_parts_are_solids():
    for kind in PLANNED:
        for plan in sample_scenes(range(40), kind=kind).drawn:
            for channel in range(3):
                assert plan.above[channel] + sum(light.color[channel] for light in plan.lights) <= 1 + 1e-6
            for part in plan.parts:
                assert min(part.half) > 0
                axes = torch.tensor(part.axes, dtype=torch.float64)
                assert torch.allclose(axes @ axes.T, torch.eye(3, dtype=torch.float64), atol=1e-6)


def test_the_camera_stands_in_no_part():
    for kind in PLANNED:
        for plan in sample_scenes(range(60), kind=kind).drawn:
            eye = torch.tensor([plan.camera.position], dtype=torch.float64)
            assert oracle.nearest_miss(plan, eye).min() > 0


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="no kind of scene 'moon': choose room, interior"):
        render_scenes([1], 8, 8, kind="moon")
    with pytest.raises(ValueError, match="no seeds came"):
        sample_scenes([], kind=WORLD)


def test_a_camera_changes_the_picture_alone_and_the_same_way_each_time():
    exact, taken, again = (render_scenes(range(9), 40, 44, kind=WORLD, camera=camera) for camera in (False, True, True))
    assert torch.equal(taken.image_bhwc, again.image_bhwc) and taken.image_bhwc.min() >= 0 and taken.image_bhwc.max() <= 1
    changed = (exact.image_bhwc - taken.image_bhwc).abs().mean((1, 2, 3))
    assert changed.min() > 1e-3 and changed.mean() < 0.15
    assert all(torch.equal(getattr(exact, name), getattr(taken, name)) for name in MAPS[1:])
    alone = render_scenes([4], 40, 44, kind=WORLD, camera=True)
    assert (alone.image_bhwc[0] - taken.image_bhwc[4]).abs().median() < 1e-4
    assert isinstance(render_scenes([1], 8, 8, camera=True).scenes, Scenes) and CLEAR.clouds == 0
