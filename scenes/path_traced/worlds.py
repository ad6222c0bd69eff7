"""Draws the plan of a scene from its seed: rooms, tables, studios, courtyards, landscapes."""

from collections.abc import Callable
from math import cos, hypot, pi, radians, sin
from random import Random

from ..world.plan import vector
from . import things
from .plan import Camera, Light, Material, Part, Plan, Sky, Vector, placed

# Warm lamp, daylight, cool daylight.
LAMP_COLORS: tuple[Vector, ...] = ((1.0, 0.78, 0.55), (1.0, 0.95, 0.88), (0.85, 0.92, 1.0))
WINDOW_SILL, WALL = 0.9, 0.2


def plan_scene(seed: int) -> Plan:
    """The scene of a seed: the same on every machine. Kinds take turns, so that any run of seeds holds all of them."""
    kind = list(KINDS)[seed % len(KINDS)]
    rng = Random(seed)
    return KINDS[kind](seed, rng)


def free_places(rng: Random, count: int, half_width: float, half_depth: float, radii: Callable[[], float]) -> list[tuple[Vector, float]]:
    """Up to `count` discs (place, radius) on the floor, inside a rectangle, that do not overlap."""
    discs: list[tuple[Vector, float]] = []
    for _ in range(40 * count):
        radius = radii()
        if radius >= min(half_width, half_depth):
            continue
        x = rng.uniform(-half_width + radius, half_width - radius)
        y = rng.uniform(-half_depth + radius, half_depth - radius)
        if all(hypot(x - place[0], y - place[1]) > radius + other for place, other in discs):
            discs.append(((x, y, 0.0), radius))
        if len(discs) == count:
            break
    return discs


def on_top(
    rng: Random, count: int, half_width: float, half_depth: float, height: float, sizes: tuple[float, float]
) -> tuple[list[tuple[str, Vector]], list[Part]]:
    """((name, place) of each, parts) of things standing on a surface of that height."""
    named: list[tuple[str, Vector]] = []
    parts: list[Part] = []
    for (x, y, _), radius in free_places(rng, count, half_width, half_depth, lambda: 0.75 * rng.uniform(*sizes)):
        name, thing = things.solid(rng, radius / 0.75)
        named.append((name, (x, y, height)))
        parts += placed(thing, (x, y, height), rng.uniform(-pi, pi))
    return named, parts


def described(named: list[tuple[str, Vector]], camera: Camera, where: str) -> str:
    """A caption: "a red ball, a vase and a chair in a room with brick walls", of the things whose middle is in view."""
    forward = _unit(vector(there - here for there, here in zip(camera.target, camera.place, strict=True)))
    inside = cos(camera.fov / 2)
    seen = []
    for name, place in named:
        towards = _unit(vector(there - here for there, here in zip(place, camera.place, strict=True)))
        if sum(a * b for a, b in zip(forward, towards, strict=True)) > inside:
            seen.append(name)
    with_article = [_a(name) for name in dict.fromkeys(seen)][:5]
    listed = " and ".join(filter(None, [", ".join(with_article[:-1]), *with_article[-1:]]))
    return f"{listed} {where}".strip()


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _unit(way: Vector) -> Vector:
    length = hypot(*way)
    return vector(value / length for value in way)


def daylight(rng: Random) -> Sky:
    """Sun and sky, from clear to hazy; the sun mostly behind the camera, which looks along y."""
    return Sky(0.15, rng.uniform(0.1, 0.5), radians(rng.uniform(12, 65)), rng.gauss(pi, 1.1))


def interior(seed: int, rng: Random) -> Plan:
    """A furnished room with a window; seen from a corner or a wall."""
    width, depth, height = rng.uniform(3.6, 5.5), rng.uniform(3.6, 5.5), rng.uniform(2.4, 3.0)
    wall, floor = (
        rng.choice([things.plaster, things.plaster, things.brick, things.wood])(rng),
        rng.choice([things.wood, things.wood, things.tiles, things.cloth, things.marble])(rng),
    )
    ceiling = Material("white", ((0.8, 0.8, 0.78),) * 2, (0.9, 0.9))
    parts = [
        things.box((width + 1, depth + 1, 0.2), (0, 0, -0.2), floor),
        things.box((width + 1, depth + 1, 0.2), (0, 0, height), ceiling),
        things.box((WALL, depth + 2 * WALL, height), (width / 2 + WALL / 2, 0, 0), wall),
        things.box((width, WALL, height), (0, depth / 2 + WALL / 2, 0), wall),
        things.box((width, WALL, height), (0, -depth / 2 - WALL / 2, 0), wall),
        things.box((width, 0.015, 0.1), (0, depth / 2 - 0.008, 0), ceiling),
    ]
    opening = (rng.uniform(1.2, 2.2), rng.uniform(1.0, 1.4))
    middle, along = WINDOW_SILL + opening[1] / 2, rng.uniform(-0.4, 0.8)
    hole = ((0.0, along, middle - height / 2), (1.0, opening[0], opening[1]))
    left = -width / 2 - WALL / 2
    parts.append(things.box((WALL, depth + 2 * WALL, height), (left, 0, 0), wall, hole=hole))
    parts += [things.box((0.05, 0.05, opening[1]), (left, along + side * opening[0] / 2, WINDOW_SILL), ceiling) for side in (-1, 0, 1)]
    parts.append(things.box((0.05, opening[0], 0.05), (left, along, middle), ceiling))
    lights = [Light("portal", (left, along, middle), (0.0, along, middle), 1.0, max(opening))]

    named: list[tuple[str, Vector]] = []
    large = rng.choice(["shelf", "shelf", "sofa", "sofa", ""])
    if large:
        thing, tall = (things.shelf(rng), 0.16) if large == "shelf" else (things.sofa(rng), 0.5)
        where = (rng.uniform(-0.25, 0.25) * width, depth / 2 - tall, 0.0)
        named.append((large, where))
        parts += placed(thing, where)
    if large != "shelf" and rng.random() < 0.8:
        where = (rng.uniform(-0.3, 0.3) * width, depth / 2, rng.uniform(1.2, 1.5))
        parts += placed(things.framed_print(rng), where)
        named.append(("picture", where))
    for (x, y, _), radius in free_places(rng, rng.randint(3, 5), width / 2 - 0.2, depth / 2 - 0.75, lambda: rng.choice([0.4, 0.45, 0.9])):
        where, yaw = (x, y + 0.1, 0.0), rng.uniform(-pi, pi)
        if radius > 0.5:
            tabletop_height = rng.uniform(0.45, 0.75)
            above, group = on_top(rng, rng.randint(1, 3), 0.5, 0.3, tabletop_height, (0.12, 0.3))
            parts += placed([*things.table(rng, 1.3, 0.8, tabletop_height), *group], where, yaw)
            named += [(name, where) for name in ("table", *(name for name, _ in above))]
            continue
        name = rng.choice(["chair", "chair", "plant", "lamp", "thing"])
        if name == "lamp":
            lights.append(Light("point", (where[0], where[1], 1.45), where, rng.uniform(15, 50), 0.06, LAMP_COLORS[0]))
        name, thing = {
            "chair": lambda: ("chair", things.chair(rng)),
            "plant": lambda: ("plant", things.plant(rng, rng.uniform(0.6, 1.2))),
            "lamp": lambda: ("lamp", things.lamp(rng)),
            "thing": lambda: things.solid(rng, rng.uniform(0.35, 0.55)),
        }[name]()
        named.append((name, where))
        parts += placed(thing, where, yaw)
    if rng.random() < 0.85:
        place = (rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), height - 0.03)
        lights.append(Light("area", place, (place[0], place[1], 0), rng.uniform(40, 120), rng.uniform(0.3, 1.0), rng.choice(LAMP_COLORS)))
    place = (rng.uniform(-0.1, 0.42) * width, -depth / 2 + 0.2, rng.uniform(0.9, 1.8))
    target = (rng.uniform(-0.2, 0.1) * width, 0.3 * depth, rng.uniform(0.4, 0.9))
    camera = Camera(place, target, radians(rng.uniform(55, 80)), rng.gauss(0, 0.02))
    sky = Sky(0.4, rng.choice([0.0, 0.01, 0.03]), radians(rng.uniform(12, 45)), rng.uniform(-2.2, -0.9))
    caption = described(named, camera, f"in a room with {wall.name} walls and {_a(floor.name)} floor")
    return Plan(seed, "interior", caption, tuple(parts), tuple(lights), sky, camera)


def tabletop(seed: int, rng: Random) -> Plan:
    """A crowd of small things on a table before a wall, near the camera."""
    material = rng.choice([things.wood, things.marble, things.cloth, things.tiles, things.stone])(rng)
    wall = rng.choice([things.plaster, things.brick, things.tiles, things.wood])(rng)
    named, group = on_top(rng, rng.randint(3, 9), 0.55, 0.35, 0.0, (0.08, 0.26))
    parts = [
        things.box((1.6, 1.0, 0.05), (0, 0, -0.05), material, bevel=0.01),
        things.box((8, 0.2, 5), (0, rng.uniform(0.7, 1.5), -1.5), wall),
        things.box((8, 8, 0.2), (0, -2.5, -1.0), things.wood(rng)),
        *group,
    ]
    lights = []
    for _ in range(rng.randint(1, 3)):
        place = (rng.uniform(-1.6, 1.6), rng.uniform(-1.6, 0.2), rng.uniform(0.7, 2.0))
        lights.append(Light("area", place, (0, 0, 0.1), rng.uniform(8, 45), rng.uniform(0.1, 1.0), rng.choice(LAMP_COLORS)))
    sky = Sky(rng.uniform(0.05, 0.4), color=rng.choice(LAMP_COLORS))
    camera = orbit(rng, (rng.uniform(-0.15, 0.15), 0, 0.1), (0.7, 1.5), (8, 55), 0.9)
    return Plan(
        seed,
        "tabletop",
        described(named, camera, f"on {_a(material.name)} table, {wall.name} wall"),
        tuple(parts),
        tuple(lights),
        sky,
        camera,
    )


def studio(seed: int, rng: Random) -> Plan:
    """One to three large things, close, between soft lights."""
    ground = rng.choice([things.matte, things.tiles, things.wood, things.marble, things.glossy, things.stone])(rng)
    named, group = on_top(rng, rng.randint(1, 3), 0.85, 0.7, 0.0, (0.5, 0.9))
    backdrop = rng.choice([things.plaster, things.matte, things.printed, things.brick])(rng)
    parts = [things.box((14, 14, 0.2), (0, 0, -0.2), ground), things.box((14, 0.2, 8), (0, rng.uniform(2, 4), -0.2), backdrop), *group]
    lights = []
    for _ in range(rng.randint(1, 3)):
        angle = rng.uniform(-pi, 0)
        place = (3 * cos(angle), 3 * sin(angle), rng.uniform(1.5, 4))
        lights.append(Light("area", place, (0, 0, 0.4), rng.uniform(60, 400), rng.uniform(0.3, 2.5), rng.choice(LAMP_COLORS)))
    sky = Sky(rng.uniform(0.1, 0.5), color=rng.choice(LAMP_COLORS))
    camera = orbit(rng, (0, 0, 0.35), (1.7, 3.2), (4, 50), 0.8)
    return Plan(
        seed, "studio", described(named, camera, f"on {_a(ground.name)} floor, studio light"), tuple(parts), tuple(lights), sky, camera
    )


def courtyard(seed: int, rng: Random) -> Plan:
    """Walls, arches, columns, stairs on paving, in daylight."""
    paving = rng.choice([things.tiles, things.stone, things.soil])(rng)
    parts = [things.box((60, 60, 0.3), (0, 0, -0.3), paving)]
    wall = rng.choice([things.brick, things.plaster, things.stone])(rng)
    named: list[tuple[str, Vector]] = []
    for number in range(-2, 3):
        if rng.random() < 0.55:
            parts += placed(things.arch(rng, 3.0, 3.5), (3.0 * number, 5, 0))
            named.append(("arch", (3.0 * number, 5.0, 1.0)))
        else:
            parts.append(things.box((3.0, 0.5, rng.uniform(2.5, 4.5)), (3.0 * number, 5, 0), wall))
    if rng.random() < 0.5:
        parts.append(things.box((0.5, 8, rng.uniform(2.0, 4.0)), (rng.choice([-4.5, 4.5]), 1, 0), wall))
    if rng.random() < 0.5:
        height = rng.uniform(2.2, 3.2)
        columns = things.column(rng, height)
        parts += [moved for x in (-3, -1, 1, 3) for moved in placed(columns, (x, 3.5, 0))]
        parts.append(things.box((7, 0.5, 0.3), (0, 3.5, height), columns[0].material, bevel=0.02))
        named.append(("row of columns", (0.0, 3.5, 1.0)))
    if rng.random() < 0.5:
        where = (rng.uniform(-2.5, 2.5), rng.uniform(0.5, 1.5), 0.0)
        parts += placed(things.stairs(rng, rng.randint(4, 8)), where, rng.uniform(-0.6, 0.6))
        named.append(("flight of stairs", where))
    for (x, y, _), radius in free_places(rng, rng.randint(2, 5), 3.5, 2.2, lambda: rng.uniform(0.4, 0.8)):
        pot = rng.random() < 0.3
        name, thing = ("plant", things.plant(rng, 1.8 * radius)) if pot else things.solid(rng, 1.1 * radius)
        parts += placed(thing, (x, y - 1.5, 0), rng.uniform(-pi, pi))
        named.append((name, (x, y - 1.5, 0.3)))
    camera = orbit(rng, (0, 1.2, rng.uniform(0.8, 1.6)), (5, 7.5), (1, 20), 0.5)
    return Plan(
        seed, "courtyard", described(named, camera, f"in a courtyard with {paving.name} ground"), tuple(parts), (), daylight(rng), camera
    )


def landscape(seed: int, rng: Random) -> Plan:
    """Hills, trees, rocks, perhaps a house or a fence, under the sky."""
    ground = rng.choice([things.grass, things.grass, things.soil])(rng)
    hills = Part("grid", (240, 240, 0), (0, 60, -4), ground, smooth=True, displace=rng.uniform(2, 14), displace_size=rng.uniform(25, 60))
    near = Part("grid", (30, 30, 0), (0, 0, 0), ground, smooth=True, displace=0.3, displace_size=3)
    skirt = things.box((60, 60, 0.2), (0, 5, -0.32), ground)
    parts = [hills, near, skirt]
    named: list[tuple[str, Vector]] = []
    if rng.random() < 0.45:
        where = (rng.uniform(-5, 5), rng.uniform(7, 11), 0.0)
        parts += placed(things.house(rng), where, rng.uniform(-0.8, 0.8))
        named.append(("house", where))
    if rng.random() < 0.35:
        where = (rng.uniform(-2, 2), rng.uniform(2, 4), -0.1)
        parts += placed(things.fence(rng, rng.uniform(5, 9)), where, rng.uniform(-0.5, 0.5))
        named.append(("fence", where))
    for (x, y, _), radius in free_places(rng, rng.randint(5, 10), 5, 5, lambda: rng.uniform(0.5, 1.5)):
        if radius > 0.9:
            parts += placed(things.tree(rng, 2.2 * radius + 1), (x, y + 2, -0.1), rng.uniform(-pi, pi))
            named.append(("tree", (x, y + 2, 1.5)))
        else:
            name, thing = rng.choice([("rock", things.rock(rng, radius)), things.solid(rng, radius)])
            parts += placed(thing, (x, y, -0.06), rng.uniform(-pi, pi))
            named.append((name, (x, y, 0.0)))
    camera = orbit(rng, (0, 1.5, rng.uniform(1.0, 2.2)), (7, 10), (-3, 9), 0.4)
    weather = daylight(rng) if rng.random() < 0.75 else Sky(1.0, color=(0.8, 0.88, 1.0))
    return Plan(seed, "landscape", described(named, camera, f"on {ground.name} hills under the sky"), tuple(parts), (), weather, camera)


def orbit(rng: Random, target: Vector, distance: tuple[float, float], degrees: tuple[float, float], spread: float) -> Camera:
    """A camera before (-y) a target, at a height of `degrees` above it and up to `spread` radians to its side."""
    radius, height, side = rng.uniform(*distance), radians(rng.uniform(*degrees)), rng.uniform(-spread, spread)
    x, y, z = target
    place = (x + radius * cos(height) * sin(side), y - radius * cos(height) * cos(side), z + radius * sin(height))
    return Camera(place, target, radians(rng.uniform(30, 62)), rng.gauss(0, 0.04))


KINDS: dict[str, Callable[[int, Random], Plan]] = {
    "interior": interior,
    "tabletop": tabletop,
    "studio": studio,
    "courtyard": courtyard,
    "landscape": landscape,
}
