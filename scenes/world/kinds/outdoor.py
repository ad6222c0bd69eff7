"""Streets, parks and yards under a sky."""

from ..draw import Draw
from ..plan import Plan
from ..stage import Stage
from ..things.outdoor import animal, bench, bush, car, fence, house, person, street_lamp, tree
from ..things.small import solid, stone
from ..weather import open_air

GROUNDS = {"street": ("road", "square"), "park": ("grass", "grass", "earth", "snow"), "yard": ("grass", "sand", "square", "earth", "snow")}
FURNITURE = {
    "street": (person, person, street_lamp, tree, solid, bush),
    "park": (tree, tree, tree, bush, bush, bench, stone, person, fence, animal),
    "yard": (solid, solid, solid, stone, fence, tree, bush, person, bench, animal),
}
# Metres across or high.
SIZES = {tree: (2.5, 7), bush: (0.7, 1.8), stone: (0.4, 1.6), solid: (0.4, 1.5), fence: (3, 7), person: (1.5, 1.85), animal: (0.5, 1.1)}


def outdoor(draw: Draw) -> Plan:
    place = draw.pick(tuple(GROUNDS))
    height = draw.pick((draw.between(0.3, 1.0), draw.between(1.2, 1.9), draw.between(1.2, 1.9), draw.between(2.5, 7.0)))
    eye, far = (draw.between(-1, 1), height, 0.0), draw.between(6, 14)
    aim = (draw.between(-0.3, 0.3) * far, height * draw.between(0.3, 1.1) + draw.between(-0.4, 1.2), -far)
    stage = Stage(draw, draw.camera(eye, aim, (38, 70), roll=7), 0.3)
    stage.keep_free(eye[0], eye[2], 1.0)

    if place == "street":
        for side in (-1, 1):
            for row in range(draw.count(1, 2)):
                depth = -9 - 11 * row
                facing = -side * 1.4 + draw.between(-0.2, 0.2)
                stage.stand(house(draw, draw.between(5, 8)), (side * 7.5 - 1, side * 7.5 + 1), (depth - 2, depth), facing)
        for _ in range(draw.count(1, 2)):
            stage.stand(car(draw), (-4, 4), (-14, -4.5), draw.pick((1.57, 0.3)) + draw.between(-0.4, 0.4))
    elif draw.chance(0.5):
        stage.stand(house(draw, draw.between(4, 7)), (-6, 6), (-20, -11), draw.between(-0.7, 0.7))
    for _ in range(draw.count(6, 10)):
        make, near = draw.pick(FURNITURE[place]), draw.between(1.5, 3.7) ** 2
        thing = make(draw, draw.between(*SIZES[make])) if make in SIZES else make(draw)
        stage.stand(thing, (-0.5 * near - 0.5, 0.5 * near + 0.5), (-near - 1.5, -near), draw.between(-0.6, 0.6))
    for _ in range(draw.count(0, 5)):
        stage.stand(tree(draw, draw.between(3, 9)), (-22, 22), (-42, -18))

    around = open_air(draw, 0.0, GROUNDS[place])
    return stage.plan(around, f"a {place}{stage.listed(' with ')} {around.words}")
