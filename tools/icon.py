"""Draws docs/icon.png, the pack's icon in the Comfy registry: one ball as normals, depth, albedo and shading."""

import numpy as np
from PIL import Image

from .comfyui_source import ROOT
from .console import say

ICON = ROOT / "docs" / "icon.png"
SIDE, OVERSAMPLED = 256, 4


def icon() -> Image.Image:
    """SIDE x SIDE pixels: top left normals (OpenGL), top right depth (near bright), bottom left albedo, bottom right shading."""
    across = (np.arange(SIDE * OVERSAMPLED) + 0.5) / (SIDE * OVERSAMPLED) * 2 - 1
    x, y = np.meshgrid(across, -across)
    square = 1 - (x**2 + y**2) / 0.9**2
    z = np.sqrt(square.clip(0))
    normal = np.stack([x / 0.9, y / 0.9, z], axis=-1)
    stripes = (np.floor(8 * np.arctan2(normal[..., 0], z + 1e-6) / np.pi + 8) % 2)[..., None]
    shading = (normal @ np.array([0.48, 0.6, 0.64])).clip(0) * 0.85 + 0.15
    grey = [np.repeat(part[..., None], 3, axis=-1) for part in (z * 0.8 + 0.2, shading)]
    albedo = stripes * np.array([0.93, 0.5, 0.2]) + (1 - stripes) * np.array([0.98, 0.86, 0.62])
    top = np.where(x[..., None] < 0, normal / 2 + 0.5, grey[0])
    ball = np.where(y[..., None] > 0, top, np.where(x[..., None] < 0, albedo, grey[1]))
    picture = np.where(square[..., None] > 0, ball, np.array([0.09, 0.1, 0.13]))
    return Image.fromarray((picture * 255).round().astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    icon().save(ICON, optimize=True)
    say(f"{ICON.relative_to(ROOT)}: {ICON.stat().st_size} bytes")
