"""New light on maps."""

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..methods import lamps as by_hand
from ..methods import relight
from ..methods.maps import MAPS, MapBundle, map_from_image, require_normals, srgb_from_linear, unit_normals
from ..methods.maps.bundle import of_one_size
from .native.camera import camera_inputs, in_metres
from .native.map_sockets import Maps, image_of
from .native.node import Node
from .native.schema import schema

BY_HAND, DIRECTIONAL, POINT = "by hand", "directional", "point"
# The live picture in the node has at most so many pixels a side.
LIVE_SIDE = 1024


def _directional_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "azimuth",
            default=45.0,
            min=-180.0,
            max=180.0,
            step=1.0,
            tooltip="Degrees. Where the light comes from: 0 from the viewer, 90 from the right, -90 from the left, 180 from "
            "behind the scene.",
        ),
        io.Float.Input(
            "elevation",
            default=35.0,
            min=-90.0,
            max=90.0,
            step=1.0,
            tooltip="Degrees. 0 level with the camera, 90 straight from above, -90 from below.",
        ),
    ]


def _point_inputs() -> list[io.Input]:
    place = {"min": -1000.0, "max": 1000.0, "step": 0.05}
    length = {"min": 0.001, "max": 10000.0, "step": 0.05}
    return [
        io.Float.Input("x", default=1.0, tooltip="Metres to the right of the camera (negative: left).", **place),
        io.Float.Input("y", default=1.0, tooltip="Metres above the camera (negative: below).", **place),
        io.Float.Input(
            "z", default=-1.0, tooltip="Metres from the camera along the view: negative is in front of it, positive behind.", **place
        ),
        io.Float.Input(
            "reach",
            default=2.0,
            tooltip="Metres up to which the lamp has its full intensity; beyond, it falls with the square of the distance.",
            **length,
        ),
        *camera_inputs(),
    ]


def _by_hand_inputs() -> list[io.Input]:
    share = {"min": 0.0, "max": 1.0, "step": 0.05}
    return [
        io.String.Input(
            "lamps",
            default=by_hand.lamps_text([[by_hand.Lamp()]]),
            multiline=False,
            tooltip="The lamps as JSON; drag them over the picture in the node instead. x, y: shares of width and height from the top "
            "left; height above the nearest surface in halves of the picture's height; color, intensity, reach. A list of such lists: "
            "one list a frame. Place Lamp makes this text.",
        ),
        io.Float.Input(
            "relief",
            default=0.6,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="How deep the scene is, from its nearest to its farthest surface, in halves of the picture's height. Needs `depth`.",
        ),
        io.Float.Input("shadows", default=0.8, tooltip="How dark shadows are; 0: none. They are found in the depth.", **share),
        io.Float.Input("hardness", default=0.4, tooltip="0: wide, soft edges of shadows. 1: sharp ones.", **share),
    ]


class Relight(Node):
    """Albedo + normal (+ shading, depth) + a light -> picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabRelight",
            display_name="Relight from Maps",
            category="intrinsic lab/scene",
            description="Puts new light on a picture by its albedo and normals: picture = sRGB(albedo x shading). By hand: run it once, "
            "then drag lamps over the picture in the node; it follows at once, with shadows from the depth.",
            search_aliases=["relighting", "change light", "light direction", "shading", "lamp", "lambert", "shadows", "light position"],
            has_intermediate_output=True,
            inputs=[
                io.Image.Input(
                    "albedo", optional=True, tooltip="Albedo data: LINEAR (not sRGB), nominally 0 to 1. Needed, here or in `maps`."
                ),
                io.Image.Input(
                    "normal",
                    optional=True,
                    tooltip="Normal data, -1 to 1: camera space, OpenGL (X right, Y up, Z towards the viewer). Not a normal map picture. "
                    "Needed, here or in `maps`.",
                ),
                io.DynamicCombo.Input(
                    "light",
                    options=[
                        io.DynamicCombo.Option(BY_HAND, _by_hand_inputs()),
                        io.DynamicCombo.Option(DIRECTIONAL, _directional_inputs()),
                        io.DynamicCombo.Option(POINT, _point_inputs()),
                    ],
                    tooltip="By hand: lamps dragged over the picture, with shadows. Directional: parallel light from far away, like the "
                    "sun. Point: a lamp at a place in metres; needs depth.",
                ),
                io.Color.Input("color", default="#ffffff", tooltip="Colour of the light, sRGB, #rrggbb."),
                io.Float.Input(
                    "intensity",
                    default=0.8,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Linear irradiance of a surface that faces the light; 1 makes a white surface white.",
                ),
                io.Float.Input("ambient", default=0.2, min=0.0, max=100.0, step=0.05, tooltip="Linear white light from everywhere."),
                io.Float.Input(
                    "original_light",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of the original shading stays; the new light adds to it. 0: only the new light. 1: a lamp "
                    "is added to the picture. "
                    "Needs `shading`.",
                ),
                io.Image.Input("shading", optional=True, tooltip="Original shading data: LINEAR (not sRGB). Used by original_light."),
                io.Image.Input(
                    "depth",
                    optional=True,
                    tooltip="Depth data, larger is farther; where the surfaces are: for a point light, and by hand (else all is flat).",
                ),
                io.Image.Input(
                    "roughness", optional=True, tooltip="Roughness, 0 (mirror) to 1 (dull): highlights of lamps placed by hand."
                ),
                io.Image.Input(
                    "metallic", optional=True, tooltip="Metalness, 0 to 1: metals mirror their albedo. For lamps placed by hand."
                ),
                Maps.Input(
                    "maps",
                    optional=True,
                    tooltip="Whole maps, e.g. from Picture to Maps: what is not connected by itself above is taken from them.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The relit picture, sRGB; never clamped."),
                io.Image.Output(display_name="shading", tooltip="The new shading data: LINEAR (not sRGB)."),
                io.String.Output(display_name="lamps", tooltip="The lamps placed by hand, as JSON; empty for the other lights."),
            ],
        )

    @classmethod
    def execute(
        cls,
        color,
        intensity,
        ambient,
        original_light,
        light=None,
        albedo=None,
        normal=None,
        shading=None,
        depth=None,
        roughness=None,
        metallic=None,
        maps: MapBundle | None = None,
    ) -> io.NodeOutput:
        sockets = {"albedo": albedo, "normal": normal, "shading": shading, "depth": depth, "roughness": roughness, "metallic": metallic}
        images = {name: image for name, socket in sockets.items() if (image := _given(name, socket, maps)) is not None}
        for name in ("albedo", "normal"):
            if name not in images:
                raise ValueError(f"there is no {name} to light: connect it, or maps that have it.")
        if original_light > 0 and "shading" not in images:
            raise ValueError(f"original_light is {original_light:g}, but no shading is connected: connect it, or set original_light to 0.")
        lit = of_one_size(
            {name: map_from_image(image, MAPS[name].channels, name, grey=not MAPS[name].vector) for name, image in images.items()}
        )
        require_normals(lit["normal"], "normal")
        lit["normal"] = unit_normals(lit["normal"])
        of_all: tuple[float, ...] = tuple(intensity * channel for channel in by_hand.linear_color(color))
        live = _live_maps(cls, lit)
        if (light or {}).get("light") == BY_HAND:
            lighting = by_hand.Lighting(of_all, ambient, original_light, light["relief"], light["shadows"], light["hardness"])
            frames = by_hand.parse_lamps(light["lamps"])
            picture, new_shading = _relit_by_hand(lit, frames, lighting)
            text = by_hand.lamps_text(frames)
            return io.NodeOutput(picture, new_shading, text, ui={"relight": [live | {"lamps": text}]})
        red, green, blue = of_all
        shine, place = _light_and_places(light, (red, green, blue), lit.get("depth"))
        new_shading = ambient + shine(lit["normal"], place)
        if original_light > 0:
            new_shading = new_shading + original_light * lit["shading"]
        return io.NodeOutput(relight.relight(lit["albedo"], new_shading), new_shading, "", ui={"relight": [live]})


def _given(name: str, image: torch.Tensor | None, maps: MapBundle | None) -> torch.Tensor | None:
    """A map's own input, else that map of the whole maps; None where neither has it."""
    if image is not None or maps is None or name not in maps.maps:
        return image
    return image_of(maps, name)


def _scene(maps: dict[str, torch.Tensor]) -> by_hand.Scene:
    depth = maps.get("depth")
    relative = torch.zeros_like(maps["albedo"][..., :1]) if depth is None else by_hand.relative_depth(depth)
    return by_hand.Scene(maps["albedo"], maps["normal"], relative, maps.get("shading"), maps.get("roughness"), maps.get("metallic"))


def _relit_by_hand(
    maps: dict[str, torch.Tensor], frames: list[list[by_hand.Lamp]], lighting: by_hand.Lighting
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and shadings: of each picture with the lamps of its frame; one picture, or one frame of lamps, serves all."""
    pictures, lamps = len(maps["albedo"]), len(frames)
    if 1 not in (pictures, lamps) and pictures != lamps:
        raise ValueError(f"there are {pictures} pictures and lamps for {lamps} frames: give as many of each, or one of either.")
    results = []
    progress = comfy.utils.ProgressBar(max(pictures, lamps))
    for frame in range(max(pictures, lamps)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        row = min(frame, pictures - 1)
        scene = _scene({name: values[row : row + 1] for name, values in maps.items()})
        results.append(by_hand.relit(scene, frames[min(frame, lamps - 1)], lighting))
        progress.update(1)
    picture, shading = (torch.cat(parts) for parts in zip(*results, strict=True))
    return picture, shading


def _live_maps(cls, maps: dict[str, torch.Tensor]) -> dict[str, object]:
    """The first picture's maps as 8-bit files for `web/relight.js`, by name: albedo and shading in sRGB, depth in two channels.

    shading_top: what white of the shading's file stands for.
    """
    first = {name: values[:1].cpu() for name, values in maps.items()}
    height, width = first["albedo"].shape[1:3]
    shrink = min(1.0, LIVE_SIDE / max(height, width))
    if shrink < 1:
        size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        first = {name: _resized(values, size) for name, values in first.items()}
    steps = (by_hand.relative_depth(first["depth"]) * 65535).round() if "depth" in first else torch.zeros_like(first["albedo"][..., :1])
    coarse = (steps / 256).floor()
    top = max(1.0, float(first["shading"].max())) if "shading" in first else 1.0
    one = torch.ones_like(steps)
    files = {
        "albedo": srgb_from_linear(first["albedo"].clamp(0, 1)),
        "normal": (unit_normals(first["normal"]) + 1) / 2,
        "depth": torch.cat([coarse, steps - 256 * coarse, 0 * one], -1) / 255,
        "surface": torch.cat([first.get("roughness", one), first.get("metallic", 0 * one), 0 * one], -1),
    }
    if "shading" in first:
        files["shading"] = srgb_from_linear((first["shading"] / top).clamp(0, 1))
    # Core cuts off what is left of a byte: rounded here, and a little more, it stays the byte that is meant.
    shown = {name: (values.clamp(0, 1) * 255).round().add(0.25) / 255 for name, values in files.items()}
    saved = {name: ui.PreviewImage(values.expand(-1, -1, -1, 3), cls=cls).as_dict()["images"][0] for name, values in shown.items()}
    return {"maps": saved, "shading_top": top, "shines": bool({"roughness", "metallic"} & first.keys())}


def _resized(values_bhwc: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(values_bhwc.movedim(-1, 1), size, mode="area").movedim(1, -1)


def _light_and_places(
    choice: dict | None, color: tuple[float, float, float], depth: torch.Tensor | None
) -> tuple[relight.Light, torch.Tensor | None]:
    choice = choice or {}
    kind = choice.get("light")
    if kind == DIRECTIONAL:
        return relight.directional_light(relight.direction_from_angles(choice["azimuth"], choice["elevation"]), color), None
    if kind != POINT:
        raise ValueError(f"there is no light {kind!r}: choose {BY_HAND}, {DIRECTIONAL} or {POINT}.")
    if depth is None:
        raise ValueError("a point light needs to know where the surfaces are: connect depth, or choose a directional light.")
    depth = in_metres(depth, choice["depth_unit"], choice["depth_near"], choice["depth_far"])
    lamp = relight.point_light((choice["x"], choice["y"], choice["z"]), color, choice["reach"])
    return lamp, relight.camera_points(depth, choice["vertical_fov"])


class PlaceLamp(Node):
    """One lamp, or its way through a sequence, for Relight from Maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        share = {"min": -4.0, "max": 5.0, "step": 0.01}
        length = {"min": -10.0, "max": 100.0, "step": 0.05}
        return schema(
            node_id="IntrinsicLabPlaceLamp",
            display_name="Place Lamp",
            category="intrinsic lab/scene",
            description="A lamp for Relight from Maps (light: by hand) as numbers: to set it from other nodes, to chain several, or to "
            "move one through a sequence.",
            search_aliases=["light position", "animate light", "moving light", "add light", "lamp"],
            inputs=[
                io.Float.Input("x", default=0.3, tooltip="Share of the picture's width from the left; it may lie outside.", **share),
                io.Float.Input("y", default=0.25, tooltip="Share of the picture's height from the top; it may lie outside.", **share),
                io.Float.Input(
                    "height",
                    default=0.6,
                    tooltip="Above the nearest surface, in halves of the picture's height. Below 0: inside.",
                    **length,
                ),
                io.Color.Input("color", default="#ffffff", tooltip="Colour of the lamp, sRGB, #rrggbb."),
                io.Float.Input(
                    "intensity", default=1.0, min=0.0, max=1000.0, step=0.05, tooltip="1 makes a white surface beside it white."
                ),
                io.Float.Input(
                    "reach",
                    default=1.0,
                    min=0.001,
                    max=1000.0,
                    step=0.05,
                    tooltip="Halves of the picture's height up to which it has its full intensity; beyond, it falls with the square.",
                ),
                io.Int.Input("frames", default=1, min=1, max=4096, tooltip="1: it stays. More: it moves evenly to the place below."),
                io.Float.Input("to_x", default=0.7, tooltip="Where it is in the last frame; only used with more than one.", **share),
                io.Float.Input("to_y", default=0.25, tooltip="Where it is in the last frame; only used with more than one.", **share),
                io.Float.Input("to_height", default=0.6, tooltip="Its height in the last frame; only used with more than one.", **length),
                io.String.Input(
                    "lamps",
                    optional=True,
                    force_input=True,
                    tooltip="Lamps to add this one to: of another Place Lamp, or of Relight from Maps.",
                ),
            ],
            outputs=[io.String.Output(display_name="lamps", tooltip="For `lamps` of Relight from Maps, light: by hand.")],
        )

    @classmethod
    def execute(cls, x, y, height, color, intensity, reach, frames, to_x, to_y, to_height, lamps=None) -> io.NodeOutput:
        first = by_hand.Lamp(x, y, height, color, intensity, reach)
        way = by_hand.moved(first, by_hand.Lamp(to_x, to_y, to_height, color, intensity, reach), frames)
        others = by_hand.parse_lamps(lamps) if lamps else [[]]
        if 1 not in (len(others), frames) and len(others) != frames:
            raise ValueError(f"this lamp moves through {frames} frames, the others through {len(others)}: give both the same number.")
        count = max(len(others), frames)
        return io.NodeOutput(
            by_hand.lamps_text([[*others[min(frame, len(others) - 1)], way[min(frame, frames - 1)]] for frame in range(count)])
        )


NODES = [Relight, PlaceLamp]
