"""The camera that saw a picture, and the unit of its depth, as inputs of a node."""

from comfy_api.latest import io
from torch import Tensor

METRIC, RELATIVE = "metric", "relative, 0 to 1"


def camera_inputs() -> list[io.Input]:
    """Its vertical field of view, and what depth is measured in."""
    length = {"min": 0.001, "max": 10000.0, "step": 0.05}
    return [
        io.Float.Input(
            "vertical_fov",
            default=45.0,
            min=1.0,
            max=170.0,
            step=0.5,
            tooltip="Vertical field of view of the camera, degrees. Phones about 55, portraits about 25; Render Scene gives its own.",
        ),
        io.Combo.Input(
            "depth_unit",
            options=[METRIC, RELATIVE],
            default=METRIC,
            tooltip="Metric: depth is in metres, as Render Scene gives it. Relative: depth is 0 to 1, as Extract Intrinsic Maps gives it; "
            "depth_near and depth_far say how far that is.",
        ),
        io.Float.Input("depth_near", default=2.0, tooltip="Metres at depth 0; only used for relative depth.", **length),
        io.Float.Input("depth_far", default=6.0, tooltip="Metres at depth 1; only used for relative depth.", **length),
    ]


def in_metres(depth: Tensor, depth_unit: str, depth_near: float, depth_far: float) -> Tensor:
    """Depth data in metres, by what the inputs say. Relative depth is 0 at `depth_near` metres and 1 at `depth_far`."""
    return depth_near + (depth_far - depth_near) * depth if depth_unit == RELATIVE else depth
