"""Materials and things of the procedural scenes. Every thing stands on z = 0 around the origin; sizes in metres."""

from dataclasses import replace
from math import cos, pi, sin
from random import Random

from ..world.plan import vector
from .plan import Material, Part, Vector, placed

COLORS: dict[str, Vector] = {
    "red": (0.55, 0.05, 0.04),
    "orange": (0.75, 0.25, 0.04),
    "yellow": (0.75, 0.55, 0.08),
    "green": (0.08, 0.35, 0.09),
    "teal": (0.04, 0.35, 0.36),
    "blue": (0.05, 0.14, 0.5),
    "purple": (0.27, 0.08, 0.42),
    "pink": (0.75, 0.32, 0.4),
    "white": (0.78, 0.77, 0.74),
    "gray": (0.3, 0.3, 0.31),
    "brown": (0.28, 0.13, 0.06),
    "beige": (0.6, 0.47, 0.32),
}
METALS: dict[str, Vector] = {"gold": (0.9, 0.62, 0.22), "copper": (0.86, 0.46, 0.33), "steel": (0.62, 0.63, 0.65)}


def shade(color: Vector, factor: float) -> Vector:
    """A colour made lighter or darker, within what surfaces reflect."""
    return vector(min(0.9, max(0.02, value * factor)) for value in color)


def wood(rng: Random) -> Material:
    color = shade(rng.choice([COLORS["brown"], COLORS["beige"], (0.4, 0.2, 0.08)]), rng.uniform(0.7, 1.3))
    roughness = rng.uniform(0.25, 0.6)
    return Material("wooden", (color, shade(color, 0.5)), (roughness, roughness + 0.15), "wave", rng.uniform(2, 6), bump=0.001)


def brick(rng: Random) -> Material:
    color = rng.choice([(0.38, 0.12, 0.07), (0.5, 0.3, 0.2), COLORS["gray"], COLORS["white"]])
    return Material(
        "brick", (shade(color, rng.uniform(0.8, 1.2)), shade(color, 0.6)), (0.8, 0.95), "brick", rng.uniform(1.5, 3), bump=0.006
    )


def tiles(rng: Random) -> Material:
    first, second = rng.sample([COLORS[name] for name in ("white", "gray", "beige", "teal", "blue", "brown")], 2)
    return Material("tiled", (first, second), (rng.uniform(0.08, 0.3), rng.uniform(0.1, 0.4)), "checker", rng.uniform(1.5, 4))


def plaster(rng: Random) -> Material:
    color = shade(COLORS[rng.choice(["white", "beige", "white", "pink", "teal", "yellow"])], rng.uniform(0.8, 1.1))
    return Material("plastered", (color, shade(color, 0.88)), (0.85, 0.95), "noise", rng.uniform(2, 6), bump=0.002)


def cloth(rng: Random) -> Material:
    color = COLORS[rng.choice(list(COLORS))]
    texture = rng.choice(["checker", "wave", "magic", "voronoi"])
    return Material("cloth", (color, shade(color, rng.uniform(0.35, 0.8))), (0.85, 1.0), texture, rng.uniform(5, 14), bump=0.001)


def stone(rng: Random) -> Material:
    color = rng.choice([COLORS["gray"], COLORS["beige"], (0.2, 0.2, 0.19), COLORS["white"]])
    texture = rng.choice(["noise", "voronoi", "noise"])
    return Material("stone", (color, shade(color, rng.uniform(0.4, 0.7))), (0.7, 0.95), texture, rng.uniform(2, 7), bump=0.004)


def marble(rng: Random) -> Material:
    color = COLORS[rng.choice(["white", "beige", "gray", "green"])]
    return Material("marble", (shade(color, 1.05), shade(color, 0.4)), (0.05, 0.2), rng.choice(["magic", "noise"]), rng.uniform(1.5, 4))


def grass(rng: Random) -> Material:
    color = (rng.uniform(0.08, 0.2), rng.uniform(0.17, 0.3), rng.uniform(0.03, 0.07))
    return Material("grassy", (color, shade(color, 0.45)), (0.9, 1.0), "noise", rng.uniform(1, 4), bump=0.02)


def soil(rng: Random) -> Material:
    color = rng.choice([COLORS["brown"], (0.5, 0.38, 0.22), COLORS["beige"], (0.75, 0.77, 0.8)])
    return Material("sandy", (color, shade(color, 0.7)), (0.85, 1.0), "noise", rng.uniform(1, 5), bump=0.02)


def metal(rng: Random) -> Material:
    name = rng.choice(list(METALS))
    roughness = rng.uniform(0.08, 0.4)
    color = METALS[name]
    return Material(name, (color, shade(color, 0.85)), (roughness, min(1.0, roughness + 0.15)), "noise", 6.0, metallic=1.0)


def glossy(rng: Random) -> Material:
    name = rng.choice(list(COLORS))
    roughness = rng.uniform(0.04, 0.3)
    return Material(name, (COLORS[name], COLORS[name]), (roughness, roughness))


def matte(rng: Random) -> Material:
    name = rng.choice(list(COLORS))
    return Material(name, (COLORS[name], shade(COLORS[name], 0.8)), (0.7, 1.0), rng.choice(["none", "noise"]), rng.uniform(3, 8))


def printed(rng: Random) -> Material:
    """A print in two colours."""
    first, second = rng.sample(list(COLORS), 2)
    roughness = rng.uniform(0.15, 0.7)
    texture = rng.choice(["checker", "wave", "voronoi", "magic", "noise"])
    return Material(f"{first} and {second}", (COLORS[first], COLORS[second]), (roughness, roughness), texture, rng.uniform(6, 20))


def any_material(rng: Random) -> Material:
    return rng.choices([glossy, matte, printed, metal, wood, marble, stone], [4, 2, 4, 3, 2, 1, 1])[0](rng)


def box(size: Vector, place: Vector, material: Material, **more) -> Part:
    """A cuboid whose underside's centre is at `place`."""
    return Part("cube", size, (place[0], place[1], place[2] + size[2] / 2), material, **more)


def rod(radius: float, height: float, place: Vector, material: Material) -> Part:
    return Part("cylinder", (2 * radius, 2 * radius, height), (place[0], place[1], place[2] + height / 2), material, smooth=True)


def lathe(profile: list[tuple[float, float]], material: Material) -> Part:
    """A body of revolution from the (radius, height) of its outline, from the bottom up."""
    radius, height = max(r for r, _ in profile), max(z for _, z in profile)
    return Part("lathe", (2 * radius, 2 * radius, height), (0, 0, height / 2), material, smooth=True, profile=tuple(profile))


def table(rng: Random, width: float, depth: float, height: float) -> list[Part]:
    material = rng.choice([wood, wood, marble, glossy])(rng)
    legs = material if rng.random() < 0.6 else metal(rng)
    inset = rng.uniform(0.05, 0.15)
    corners = [(x * (width / 2 - inset), y * (depth / 2 - inset), 0.0) for x in (-1, 1) for y in (-1, 1)]
    if rng.random() < 0.5:
        parts = [rod(0.03, height - 0.04, corner, legs) for corner in corners]
    else:
        parts = [box((0.06, 0.06, height - 0.04), corner, legs, bevel=0.008) for corner in corners]
    return [*parts, box((width, depth, 0.04), (0, 0, height - 0.04), material, bevel=0.01)]


def chair(rng: Random) -> list[Part]:
    material, seat = wood(rng), rng.choice([wood, cloth, glossy])(rng)
    height = rng.uniform(0.42, 0.5)
    parts = [box((0.04, 0.04, height), (x, y, 0), material, bevel=0.006) for x in (-0.19, 0.19) for y in (-0.19, 0.19)]
    parts.append(box((0.44, 0.44, 0.05), (0, 0, height), seat, bevel=0.02))
    parts += [box((0.04, 0.04, 0.5), (x, 0.2, height), material, bevel=0.006) for x in (-0.19, 0.19)]
    if rng.random() < 0.5:
        bars = rng.randint(2, 4)
        step = (0.0, 0.0, 0.36 / bars)
        return [*parts, box((0.36, 0.02, 0.06), (0, 0.2, height + 0.12), material, bevel=0.006, repeat=(bars, step))]
    return [*parts, box((0.4, 0.03, 0.28), (0, 0.2, height + 0.2), seat, bevel=0.012)]


def shelf(rng: Random) -> list[Part]:
    """A bookcase with books and a few vessels in it."""
    material = rng.choice([wood, glossy])(rng)
    width, depth, boards, gap = rng.uniform(0.8, 1.3), 0.3, rng.randint(3, 5), rng.uniform(0.32, 0.42)
    parts = [box((0.03, depth, boards * gap), (x * width / 2, 0, 0), material, bevel=0.004) for x in (-1, 1)]
    parts.append(box((width, depth, 0.03), (0, 0, 0), material, bevel=0.004, repeat=(boards + 1, (0.0, 0.0, gap))))
    parts.append(box((width, 0.01, boards * gap), (0, depth / 2, 0), material))
    for level in range(boards):
        x = -width / 2 + 0.04
        until = rng.uniform(0.3, 1.0) * width - width / 2 - 0.08
        while x < until:
            thick = rng.uniform(0.025, 0.06)
            size = (thick, rng.uniform(0.16, 0.22), rng.uniform(0.2, gap - 0.06))
            parts.append(box(size, (x + thick / 2, 0, level * gap + 0.03), matte(rng) if rng.random() < 0.7 else printed(rng)))
            x += thick + 0.004
        if x < width / 2 - 0.25:
            parts += placed(vessel(rng, 0.2), ((x + width / 2) / 2, 0, level * gap + 0.03))
    return parts


def sofa(rng: Random) -> list[Part]:
    material = cloth(rng)
    width = rng.uniform(1.4, 2.0)
    soft = {"bevel": 0.05, "smooth": True}
    parts = [box((width, 0.85, 0.25), (0, 0, 0.12), material, **soft), box((width, 0.22, 0.5), (0, 0.32, 0.35), material, **soft)]
    parts += [box((0.2, 0.85, 0.5), (x * width / 2, 0, 0.12), material, **soft) for x in (-1, 1)]
    cushion = printed(rng)
    return [*parts, box((0.42, 0.14, 0.4), (rng.uniform(-0.4, 0.4), 0.12, 0.36), cushion, turn=(-0.3, 0, 0), subdivide=2, smooth=True)]


def vessel(rng: Random, height: float = 0.3) -> list[Part]:
    """A vase, bottle, bowl or goblet."""
    material = rng.choice([glossy, printed, metal, marble, matte])(rng)
    radius = height * rng.uniform(0.25, 0.45)
    outline = rng.choice(
        [
            [(0.5, 0), (1, 0.35), (0.8, 0.6), (0.4, 0.85), (0.55, 1)],
            [(0.8, 0), (0.85, 0.1), (0.85, 0.55), (0.3, 0.75), (0.28, 1)],
            [(0.35, 0), (0.5, 0.06), (1, 0.55), (1.25, 1), (1.2, 1), (0.9, 0.55), (0.3, 0.12)],
            [(0.7, 0), (0.65, 0.04), (0.12, 0.1), (0.12, 0.5), (0.8, 0.7), (0.75, 1), (0.7, 1), (0.7, 0.72)],
        ]
    )
    return [lathe([(r * radius, z * height) for r, z in outline], material)]


def lamp(rng: Random) -> list[Part]:
    """A floor lamp 1.6 m high; its light belongs at (0, 0, 1.45)."""
    stem, screen = metal(rng), replace(matte(rng), texture="none")
    top = lathe([(0.22, 0), (0.14, 0.28)], screen)
    return [rod(0.14, 0.03, (0, 0, 0), stem), rod(0.012, 1.35, (0, 0, 0.03), stem), *placed([top], (0, 0, 1.3))]


def plant(rng: Random, height: float) -> list[Part]:
    """Leaves around stalks in a pot."""
    leaf = Material("leafy", ((0.06, 0.22, 0.05), (0.14, 0.34, 0.08)), (0.3, 0.5), "noise", 8.0)
    radius = 0.22 * height
    pot = lathe([(0.7 * radius, 0), (radius, 0.3 * height), (0.85 * radius, 0.3 * height)], matte(rng))
    parts = [pot, rod(0.02 * height, 0.5 * height, (0, 0, 0.2 * height), leaf)]
    count = rng.randint(7, 14)
    for number in range(count):
        angle, tilt, length = 2.4 * number, rng.uniform(0.3, 1.1), rng.uniform(0.3, 0.5) * height
        reach, rise = length / 2 * sin(tilt), length / 2 * cos(tilt)
        place = (cos(angle) * reach, sin(angle) * reach, (0.4 + 0.3 * number / count) * height + rise)
        parts.append(Part("sphere", (0.14 * height, 0.02 * height, length), place, leaf, (tilt, 0, angle + pi / 2), smooth=True))
    return parts


def tree(rng: Random, height: float) -> list[Part]:
    bark = replace(wood(rng), roughness=(0.85, 0.95))
    green = rng.choice([(0.05, 0.18, 0.04), (0.12, 0.25, 0.05), (0.35, 0.2, 0.04), (0.07, 0.15, 0.09)])
    leaves = Material("leafy", (green, shade(green, 0.5)), (0.8, 0.95), "noise", 3.0, bump=0.05)
    parts = [rod(0.035 * height, 0.6 * height, (0, 0, -0.1 * height), bark)]
    if rng.random() < 0.4:
        for level in range(4):
            width, base = (0.5 - 0.1 * level) * height, (0.2 + 0.18 * level) * height
            part = Part("cone", (width, width, 0.3 * height), (0, 0, base + 0.15 * height), leaves)
            parts.append(replace(part, subdivide=1, displace=0.02 * height, displace_size=0.08 * height))
        return parts
    for _ in range(rng.randint(3, 6)):
        size = rng.uniform(0.3, 0.5) * height
        place = (rng.uniform(-0.15, 0.15) * height, rng.uniform(-0.15, 0.15) * height, rng.uniform(0.5, 0.8) * height)
        parts.append(Part("rock", (size, size, 0.8 * size), place, leaves, displace=0.25 * size, displace_size=0.3 * size, smooth=True))
    return parts


def rock(rng: Random, size: float) -> list[Part]:
    extents = (size * rng.uniform(0.7, 1.3), size * rng.uniform(0.7, 1.3), size * rng.uniform(0.5, 0.9))
    smooth = rng.random() < 0.6
    return [Part("rock", extents, (0, 0, 0.3 * extents[2]), stone(rng), smooth=smooth, displace=0.3 * size, displace_size=0.5 * size)]


def house(rng: Random) -> list[Part]:
    wall, roof = rng.choice([brick, plaster, wood])(rng), rng.choice([brick, matte, wood])(rng)
    width, depth, height = rng.uniform(3, 5), rng.uniform(3, 5), rng.uniform(2.4, 3.2)
    frame = glossy(rng)
    parts = [box((width, depth, height + 0.5), (0, 0, -0.5), wall, hole=((0, -depth / 2, 0.25), (1.0, 0.6, 1.1)))]
    parts.append(box((0.06, 0.06, 1.1), (0, -depth / 2 + 0.05, height / 2 - 0.55), frame))
    parts.append(box((0.9, 0.05, 2.0), (0.36 * width, -depth / 2, 0), frame))
    return [*parts, Part("pyramid", (1.2 * width, 1.2 * depth, 1.6), (0, 0, height + 0.8), roof)]


def arch(rng: Random, width: float, height: float) -> list[Part]:
    """A wall with a round passage."""
    opening = ((0, 0, -0.2 * height), (0.55 * width, 2, 0.55 * width))
    return [box((width, 0.5, height), (0, 0, 0), rng.choice([brick, stone, plaster])(rng), hole=opening, hole_round=True)]


def column(rng: Random, height: float) -> list[Part]:
    material = rng.choice([marble, stone, plaster])(rng)
    ends = box((0.5, 0.5, 0.15), (0, 0, 0), material, bevel=0.03, repeat=(2, (0.0, 0.0, height - 0.15)))
    return [ends, rod(0.18, height - 0.3, (0, 0, 0.15), material)]


def stairs(rng: Random, steps: int) -> list[Part]:
    return [box((1.6, 0.32, 0.17), (0, 0, 0), rng.choice([stone, wood, marble])(rng), bevel=0.01, repeat=(steps, (0.0, 0.3, 0.17)))]


def fence(rng: Random, length: float) -> list[Part]:
    material = rng.choice([wood, glossy])(rng)
    count = round(length / 0.25)
    pickets = box((0.1, 0.03, 0.9), (-length / 2, 0, 0), material, repeat=(count, (0.25, 0.0, 0.0)))
    return [pickets, box((length, 0.03, 0.08), (-0.1, 0.03, 0.2), material, repeat=(2, (0.0, 0.0, 0.45)))]


def framed_print(rng: Random) -> list[Part]:
    """A picture for a wall at y = 0, seen from -y; its lower edge at z = 0."""
    width, height = rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.8)
    frame = rng.choice([wood, metal, glossy])(rng)
    return [
        box((width, 0.03, height), (0, -0.015, 0), frame, bevel=0.006),
        box((width - 0.1, 0.01, height - 0.1), (0, -0.031, 0.05), printed(rng)),
    ]


def solid(rng: Random, size: float) -> tuple[str, list[Part]]:
    """(its name, parts) of one thing for a table, about `size` high."""
    name = rng.choice(["monkey", "ball", "box", "ring", "vase", "cone", "cylinder", "pierced block", "stone", "knob", "plant", "stack"])
    material = any_material(rng)
    half = size / 2
    if name == "monkey":
        return f"{material.name} monkey head", [Part("monkey", (size * 1.3, size, size), (0, 0, half), material, smooth=True, subdivide=2)]
    if name == "ball":
        return f"{material.name} ball", [Part("sphere", (size, size, size), (0, 0, half), material, smooth=True)]
    if name == "box":
        return f"{material.name} box", [box((size, size * rng.uniform(0.6, 1.2), size * 0.8), (0, 0, 0), material, bevel=0.04 * size)]
    if name == "ring":
        return f"{material.name} ring", [Part("torus", (size, size, 0.28 * size), (0, 0, 0.14 * size), material, smooth=True)]
    if name == "cone":
        return f"{material.name} cone", [Part("cone", (0.8 * size, 0.8 * size, size), (0, 0, half), material, smooth=True)]
    if name == "cylinder":
        return f"{material.name} cylinder", [rod(0.35 * size, 0.9 * size, (0, 0, 0), material)]
    if name == "pierced block":
        block = box((size, size, size), (0, 0, 0), material, hole=((0, 0, 0), (0.7 * size, 3 * size, 0.7 * size)), hole_round=True)
        return f"pierced {material.name} block", [block]
    if name == "stone":
        return "stone", rock(rng, size)
    if name == "knob":
        part = Part(
            "cube", (size, size, size), (0, 0, half), material, subdivide=3, displace=0.15 * size, displace_size=0.4 * size, smooth=True
        )
        return f"{material.name} lump", [part]
    if name == "plant":
        return "plant", plant(rng, 1.6 * size)
    if name == "stack":
        cubes = [box((0.5 * size,) * 3, (0.0, 0.0, 0.5 * size * level), any_material(rng), bevel=0.02 * size) for level in range(2)]
        return "stack of cubes", [moved for cube in cubes for moved in placed([cube], (0, 0, 0), rng.uniform(0, 1))]
    return "vase", vessel(rng, 1.4 * size)
