"""Patterns of materials: each is the share of the second colour, 0..1, over a place `[3, n]` in cycles."""

import torch
from torch import Tensor

NOISE_SIDE = 32
_NOISE = torch.rand(NOISE_SIDE**3, generator=torch.Generator().manual_seed(20))


def noise(place: Tensor) -> Tensor:
    """Smooth noise of one cell a cycle, 0..1, [n]."""
    cell = place.floor()
    x, y, z = smooth = place - cell
    x, y, z = smooth * smooth * (3 - 2 * smooth)
    # Where a coordinate ends and begins anew, every 32 cycles.
    (i, j, k), (i1, j1, k1) = cell.long() & 31, (cell.long() + 1) & 31
    i, i1, j, j1 = i * NOISE_SIDE**2, i1 * NOISE_SIDE**2, j * NOISE_SIDE, j1 * NOISE_SIDE

    def across(row: Tensor) -> Tensor:
        return torch.lerp(_NOISE[row + k], _NOISE[row + k1], z)

    near = torch.lerp(across(i + j), across(i + j1), y)
    return torch.lerp(near, torch.lerp(across(i1 + j), across(i1 + j1), y), x)


def fractal(place: Tensor, octaves: int = 4) -> Tensor:
    """Noise over halving lengths, 0..1."""
    total, weight = torch.zeros_like(place[0]), 0.5
    for octave in range(octaves):
        total += weight * noise(place * 2**octave + 7.3 * octave)
        weight /= 2
    return total / (1 - 2 * weight)


def plain(place: Tensor) -> Tensor:
    return torch.zeros_like(place[0])


def checkered(place: Tensor) -> Tensor:
    return (2 * place).floor().sum(0) % 2


def striped(place: Tensor) -> Tensor:
    x, y, z = place
    return (3 * (x + 0.35 * y + 0.2 * z)).floor() % 2


def marbled(place: Tensor) -> Tensor:
    x, y, z = place + 0.9 * fractal(place * 1.5, 3)
    vein = (3 * (x + 0.6 * y + 0.4 * z)).sin().abs()
    return (1 - vein) ** 2


def mottled(place: Tensor) -> Tensor:
    return ((fractal(place) - 0.5) * 2.2 + 0.5).clamp(0, 1)


def wooden(place: Tensor) -> Tensor:
    """Rings about an axis along x, with grain, seen in a plank."""
    x, y, z = place
    wave = noise(torch.stack([0.4 * x, 1.5 * y, 1.5 * z]))
    ring = (torch.hypot(y + 0.31, z - 0.17) * 5 + 2.2 * wave) % 1
    grain = noise(torch.stack([1.1 * x, 24 * y, 24 * z]))
    return (0.65 * ring + 0.35 * grain).clamp(0, 1)


def _courses(across: Tensor, up: Tensor, length: float, gap: float) -> Tensor:
    """1 between stones that are laid in courses of half a cycle, else 0."""
    course = (2 * up).floor()
    along = across / length + 0.5 * (course % 2)
    return ((along % 1 < gap / length) | ((2 * up) % 1 < 2 * gap)).float()


def brick(place: Tensor) -> Tensor:
    """Courses of bricks on upright faces (the mortar is the second colour), each brick a little different."""
    x, y, z = place
    across = x + z
    shade = noise(torch.stack([(across + 0.5 * (2 * y).floor()).floor() * 3.7, (2 * y).floor() * 5.3, torch.zeros_like(x)]))
    return torch.maximum(_courses(across, y, 1.0, 0.05), 0.35 * shade)


def tiled(place: Tensor) -> Tensor:
    """Square tiles with joints."""
    joints = (place % 1 < 0.06).sum(0).clamp(max=1).float()
    shade = noise(place.floor() * 3.3)
    return torch.maximum(joints, 0.25 * shade)


def woven(place: Tensor) -> Tensor:
    """Threads over and under."""
    x, y, z = place * 12.566
    return 0.5 + 0.25 * (x.sin() * (y + z).sin()) + 0.25 * ((2 * x).sin() + (2 * (y + z)).sin()) / 2


def plaid(place: Tensor) -> Tensor:
    """Bands across bands, as on a cloth."""
    bands = [
        0.5 * ((at % 1 < 0.35).float() + 0.6 * ((at % 1 > 0.5) & (at % 1 < 0.58))).clamp(max=1) for at in (place[0], place[1] + place[2])
    ]
    return bands[0] + bands[1]


def dotted(place: Tensor) -> Tensor:
    """Dots in every second cell."""
    around = ((2 * place) % 1 - 0.5).square().sum(0)
    return ((around < 0.14) & (((2 * place).floor().sum(0) % 2) == 0)).float()


def lined(place: Tensor) -> Tensor:
    """Stripes of unlike widths."""
    x, y, z = place
    at = 2 * (x + 0.02 * y + 0.5 * z)
    return (noise(torch.stack([at.floor() * 1.7, torch.zeros_like(x), torch.zeros_like(x)])) > 0.5).float()


# The words of captions; the first four are the textures of rooms' styles.
PATTERNS = {
    "": plain,
    "checkered": checkered,
    "striped": striped,
    "marbled": marbled,
    "mottled": mottled,
    "wooden": wooden,
    "brick": brick,
    "tiled": tiled,
    "woven": woven,
    "plaid": plaid,
    "dotted": dotted,
    "lined": lined,
}
PATTERN_IDS = {word: index for index, word in enumerate(PATTERNS)}
# Cycles over which a pattern turns, at its finest, relative to its scale: finer than a pixel, it fades to its mean.
FINEST = {"woven": 4.0, "brick": 2.0, "checkered": 2.0, "striped": 3.0, "dotted": 2.0, "wooden": 3.0, "lined": 2.0, "mottled": 2.0}
_FINEST = torch.tensor([FINEST.get(word, 1.0) for word in PATTERNS])
_MEAN = torch.tensor([0.0, 0.5, 0.5, 0.2, 0.5, 0.5, 0.3, 0.25, 0.5, 0.4, 0.14, 0.5])


def share_of(pattern: Tensor, place: Tensor, footprint: Tensor) -> Tensor:
    """Share of the second colour [n]. pattern: ids [n]; place: cycles [3, n]; footprint: of a pixel, in cycles [n]."""
    share = torch.zeros_like(footprint)
    for index, function in enumerate(PATTERNS.values()):
        if index:
            chosen = (pattern == index).nonzero()[:, 0]
            if len(chosen):
                share[chosen] = function(place[:, chosen])
    fade = (1.5 - footprint * _FINEST[pattern] * 2).clamp(0, 1)
    mean = _MEAN[pattern]
    return mean + (share - mean) * fade
