"""Where a ray meets a part, in the part's own frame, whose unit is the half size: closed forms, or sphere tracing refined in float64.

Rays come as (origin, direction) `[3, n, r]`: r rays for each of n parts, the origin where a ray is nearest to the part's centre, so that
float32 loses little. form: `[k, n, 1]`; from_ `[n, r]` is the least parameter that counts. Each function gives (hit, parameter), [n, r].
Where a ray runs exactly within a plane, 0 / 0 compares as false: it misses.
"""

import math
from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import Tensor

from ..intersect import dot
from .fields import BALLS, blend, bumpy, gradient, steepest, torus

TURNED, BOX, BEVELLED, HEXAGON, ROOF, PYRAMID, TORUS, BLEND, BUMPY = range(9)
INFINITY = float("inf")
STEPS, STEPS_TOGETHER = 96, 8
CLOSE = 1e-3  # of the half size: here sphere tracing ends and Newton's method begins

# Convex solids as slabs: low <= normal . place <= high.
_CUBE = (((1, 0, 0), -1, 1), ((0, 1, 0), -1, 1), ((0, 0, 1), -1, 1))
_EDGES = tuple((normal, -1.82, 1.82) for normal in ((1, 1, 0), (1, -1, 0), (1, 0, 1), (1, 0, -1), (0, 1, 1), (0, 1, -1)))
_APOTHEM = math.sqrt(3) / 2
SLABS: dict[int, tuple[tuple[tuple[float, float, float], float, float], ...]] = {
    BOX: _CUBE,
    BEVELLED: (*_CUBE, *_EDGES),
    HEXAGON: (((0, 1, 0), -1, 1), *((normal, -_APOTHEM, _APOTHEM) for normal in ((1, 0, 0), (0.5, 0, _APOTHEM), (0.5, 0, -_APOTHEM)))),
    ROOF: (((0, 1, 0), -1, INFINITY), ((0, 0, 1), -1, 1), ((1, 0.5, 0), -INFINITY, 0.5), ((-1, 0.5, 0), -INFINITY, 0.5)),
    PYRAMID: (
        ((0, 1, 0), -1, INFINITY),
        ((1, 0.5, 0), -INFINITY, 0.5),
        ((-1, 0.5, 0), -INFINITY, 0.5),
        ((0, 0.5, 1), -INFINITY, 0.5),
        ((0, 0.5, -1), -INFINITY, 0.5),
    ),
}
FIELDS = {TORUS: torus, BLEND: blend, BUMPY: bumpy}

# A turned solid is x^2 + z^2 <= a + b y + c y^2 for |y| <= 1.
CYLINDER, BALL, DOME, BOWL = (1.0, 0.0, 0.0), (1.0, 0.0, -1.0), (0.75, -0.5, -0.25), (0.55, 0.45, 0.0)


def frustum(top: float) -> tuple[float, float, float]:
    """A cone from radius 1 below to `top` above; 0 is a point."""
    middle, slope = (1 + top) / 2, (top - 1) / 2
    return middle**2, 2 * middle * slope, slope**2


def _along(normal: tuple[float, float, float], vector: Tensor) -> Tensor:
    return sum(factor * component for factor, component in zip(normal, vector, strict=True) if factor)


def _slabs_hit(slabs, form: Tensor, origin: Tensor, direction: Tensor, from_: Tensor) -> tuple[Tensor, Tensor]:
    entries, leaves = [], []
    for normal, low, high in slabs:
        inverse, start = 1 / _along(normal, direction), _along(normal, origin)
        one, other = (low - start) * inverse, (high - start) * inverse
        entries.append(torch.minimum(one, other))
        leaves.append(torch.maximum(one, other))
    near, far = reduce(torch.maximum, entries), reduce(torch.minimum, leaves)
    return (near < far) & (near > from_), near


def _slabs_normal(slabs, form: Tensor, place: Tensor) -> Tensor:
    """Outward normal of the plane that the place lies on: the one it is furthest beyond."""
    beyond, normals = [], []
    for normal, low, high in slabs:
        along = _along(normal, place)
        for side, limit in ((1, high), (-1, -low)):
            if limit != INFINITY:
                beyond.append(side * along - limit)
                normals.append([side * component for component in normal])
    return torch.tensor(normals, dtype=place.dtype)[torch.stack(beyond).argmax(0)].T


def _turned_hit(form: Tensor, origin: Tensor, direction: Tensor, from_: Tensor) -> tuple[Tensor, Tensor]:
    q0, q1, q2 = form[:3]
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a = dx * dx + dz * dz - q2 * dy * dy
    b = ox * dx + oz * dz - (q2 * oy + q1 / 2) * dy
    c = ox * ox + oz * oz - q0 - (q1 + q2 * oy) * oy
    inside = b * b - a * c
    # Without cancellation: the roots are c / q and q / a.
    q = -(b + torch.copysign(inside.clamp(min=0).sqrt(), b))
    best = torch.full_like(q, INFINITY)
    for root in (c / q, q / a):
        valid = (inside > 0) & ((oy + root * dy).abs() <= 1) & (root > from_)
        best = torch.minimum(best, root.masked_fill(~valid, INFINITY))
    inverse = 1 / dy
    for y, limit in ((1, q0 + q1 + q2), (-1, q0 - q1 + q2)):
        cap = (y - oy) * inverse
        x, z = ox + cap * dx, oz + cap * dz
        best = torch.minimum(best, cap.masked_fill(~((x * x + z * z < limit) & (cap > from_)), INFINITY))
    return best < INFINITY, best


def _turned_normal(form: Tensor, place: Tensor) -> Tensor:
    q0, q1, q2 = form[:3]
    x, y, z = place
    mantle = torch.stack([2 * x, -(q1 + 2 * q2 * y), 2 * z])
    off_mantle = (x * x + z * z - q0 - (q1 + q2 * y) * y).abs() / dot(mantle, mantle).sqrt().clamp(min=1e-6)
    on_cap = (1 - y.abs()).abs() < off_mantle
    cap = torch.stack([torch.zeros_like(x), y.sign(), torch.zeros_like(x)])
    return torch.where(on_cap, cap, mantle)


def _field_hit(field, form: Tensor, origin: Tensor, direction: Tensor, from_: Tensor, exact: bool = True) -> tuple[Tensor, Tensor]:
    """Sphere tracing through the unit ball; rays that have left or arrived drop out every few steps. Newton's method ends it in float64,
    if it is to be exact.
    """
    speed = dot(direction, direction).sqrt()
    half_chord = (1 - dot(origin, origin)).clamp(min=0).sqrt() / speed
    at = torch.maximum(-half_chord, from_)
    part, ray = (at < half_chord).nonzero(as_tuple=True)
    form, origin, direction = form[:, part, 0], origin[:, part, ray], direction[:, part, ray]
    speed, half_chord, t, least = (of[part, ray] for of in (speed, half_chord, at, from_))
    # Some steps may end a little inside: Newton's method comes back.
    stride = 1 / (speed * steepest(form, field))
    active = torch.arange(len(t))
    arrived = torch.zeros_like(t, dtype=torch.bool)
    for _ in range(0, STEPS, STEPS_TOGETHER):
        forms, start, towards, pace, now = form[:, active], origin[:, active], direction[:, active], stride[active], t[active]
        for _ in range(STEPS_TOGETHER):
            value = field(forms, start + towards * now)
            now = now + value * pace
        t[active] = now
        near = value < CLOSE
        arrived[active] = near
        active = active[~near & (now < half_chord[active])]
    hit = torch.zeros_like(at, dtype=torch.bool)
    if not exact:
        hit[part, ray] = arrived & (t < half_chord)
        at[part, ray] = t
        return hit, at
    found = (arrived & (t < half_chord)).nonzero()[:, 0]
    form, origin, direction, t, flattest = (of[..., found].double() for of in (form, origin, direction, t, -0.03 * speed))
    for _ in range(4):
        value = field(form, origin + direction * t)
        slope = (field(form, origin + direction * (t + 1e-6)) - value) / 1e-6
        t = t - value / torch.minimum(slope, flattest)
    good = (field(form, origin + direction * t).abs() < 1e-5) & (t > least[found])
    hit[part[found], ray[found]] = good
    at[part[found], ray[found]] = t.float()
    return hit, at


def _field_normal(field, form: Tensor, place: Tensor) -> Tensor:
    form = form.double()
    return gradient(lambda at: field(form, at), place).float()


# How many of a part's numbers its shape reads.
FORM_ROWS = {TURNED: 3, TORUS: 1, BLEND: 4 * BALLS, BUMPY: 5}
HITS: dict[int, Callable] = {
    TURNED: _turned_hit,
    **{shape: partial(_slabs_hit, slabs) for shape, slabs in SLABS.items()},
    **{shape: partial(_field_hit, field) for shape, field in FIELDS.items()},
}
# Shadows need to know that something is met, not just where.
SHADOW_HITS = HITS | {shape: partial(_field_hit, field, exact=False) for shape, field in FIELDS.items()}
NORMALS: dict[int, Callable] = {
    TURNED: _turned_normal,
    **{shape: partial(_slabs_normal, slabs) for shape, slabs in SLABS.items()},
    **{shape: partial(_field_normal, field) for shape, field in FIELDS.items()},
}
