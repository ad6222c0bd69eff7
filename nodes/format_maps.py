"""Format nodes: the look of a map, changed without computing the map again."""

import json

from comfy_api.latest import io

from ..methods import formats
from ..methods.maps import MAPS, image_from_map, linear_from_srgb, map_from_image, require_normals
from .native.map_sockets import image_of, map_input
from .native.node import Node
from .native.schema import schema

CATEGORY = "intrinsic lab/format"
PER_PICTURE, PER_SEQUENCE, FIXED, RAW = "per picture", "per sequence", "fixed range", "raw"
NEAR_DARK, NEAR_BRIGHT = "near dark, far bright", "near bright, far dark"
COLOR, DATA = "colors, 0 to 1", "data, -1 to 1"
SRGB, LINEAR = "sRGB", "linear"


def _normal_options(of_what: str, default_hint: str) -> list[io.Input]:
    """The inputs that both normal nodes share."""
    return [
        io.Combo.Input(
            "convention",
            options=list(formats.NORMAL_CONVENTIONS),
            default=formats.NORMAL_CONVENTIONS[0],
            tooltip=f"The convention of {of_what}. OpenGL: green grows upwards (Blender, Unity, glTF, this pack's own data). "
            "DirectX: green grows downwards (Unreal, 3ds Max). Both: camera space, red to the right, blue to the viewer. OpenCV: green "
            f"grows downwards, blue away from the viewer (Omnidata, computer vision). {default_hint}",
        ),
        io.Boolean.Input(
            "flip_x", default=False, tooltip=f"Negate X (red) of {of_what}: off means X points right. Comes on top of the convention."
        ),
        io.Boolean.Input("flip_y", default=False, tooltip=f"Negate Y (green) of {of_what}, on top of what the convention does."),
        io.Boolean.Input("flip_z", default=False, tooltip=f"Negate Z (blue) of {of_what}: off means Z points towards the viewer."),
    ]


class FormatNormals(Node):
    """Normal data -> normal map of a convention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabFormatNormals",
            display_name="Format Normals",
            category=CATEGORY,
            description="Turns normal data (camera space, -1 to 1) into a normal map for other programs: OpenGL, DirectX or OpenCV, "
            "as colours or as data.",
            search_aliases=["normal map", "opengl normals", "directx normals", "flip green", "normalize normals"],
            inputs=[
                map_input(
                    "normal",
                    "Normal data as this pack's nodes give it: camera space, OpenGL axes (X right, Y up, Z towards the "
                    "viewer), -1 to 1. "
                    "A normal map picture goes through Read Normals from Colors first.",
                ),
                *_normal_options("the result", "Default: OpenGL."),
                io.Boolean.Input("renormalize", default=True, tooltip="Give every vector length 1 again, e.g. after blending or resizing."),
                io.Combo.Input(
                    "output",
                    options=[COLOR, DATA],
                    default=COLOR,
                    tooltip="Colours: (vector + 1) / 2, what a normal map file holds; save it without any colour management. "
                    "Data: the vectors themselves, -1 to 1, for float files and for other nodes of this pack.",
                ),
            ],
            outputs=[io.Image.Output(display_name="normal", tooltip="The normal map in the chosen convention; never clamped.")],
        )

    @classmethod
    def execute(cls, normal, convention, flip_x, flip_y, flip_z, renormalize, output) -> io.NodeOutput:
        data = map_from_image(image_of(normal, "normal"), 3, "normal")
        require_normals(data, "normal")
        return io.NodeOutput(
            formats.format_normals(
                data,
                convention,
                flip_x=flip_x,
                flip_y=flip_y,
                flip_z=flip_z,
                renormalize=renormalize,
                as_color=output == COLOR,
            )
        )


class NormalsFromColor(Node):
    """Normal map picture -> normal data."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabNormalsFromColor",
            display_name="Read Normals from Colors",
            category=CATEGORY,
            description="Reads a normal map picture (colours 0 to 1) into normal data (camera space, OpenGL, -1 to 1), for the "
            "other nodes of this pack.",
            search_aliases=["normal map to data", "decode normals", "load normal map"],
            inputs=[
                io.Image.Input(
                    "picture", tooltip="A camera-space normal map picture, 0 to 1: colour = (vector + 1) / 2, not sRGB-corrected."
                ),
                *_normal_options("the picture", "Choose what the picture was made with."),
                io.Boolean.Input("renormalize", default=True, tooltip="Give every vector length 1; undoes the rounding of 8-bit files."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="normal", tooltip="Normal data: camera space, OpenGL (X right, Y up, Z to the viewer), -1 to 1."
                )
            ],
        )

    @classmethod
    def execute(cls, picture, convention, flip_x, flip_y, flip_z, renormalize) -> io.NodeOutput:
        colors = map_from_image(picture, 3, "the normal map picture")
        return io.NodeOutput(
            formats.normals_from_color(colors, convention, flip_x=flip_x, flip_y=flip_y, flip_z=flip_z, renormalize=renormalize)
        )


class AlbedoFromPicture(Node):
    """Albedo picture -> albedo data."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabAlbedoFromPicture",
            display_name="Read Albedo from Picture",
            category=CATEGORY,
            description="Reads an sRGB picture of albedo or shading (ComfyUI's own models and image files give such) into linear data, for "
            "the other nodes of this pack. A photo read as albedo keeps its own light.",
            search_aliases=["srgb to linear", "base color", "albedo texture", "load albedo", "marigold albedo", "decode albedo"],
            inputs=[io.Image.Input("picture", tooltip="An sRGB picture, 0 to 1. Grey pictures work; alpha is dropped.")],
            outputs=[io.Image.Output(display_name="albedo", tooltip="Albedo data: LINEAR (not sRGB), 0 to 1.")],
        )

    @classmethod
    def execute(cls, picture) -> io.NodeOutput:
        return io.NodeOutput(linear_from_srgb(map_from_image(picture, 3, "the albedo picture", grey=True)))


def _percentile_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "low_percentile",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="This share of the pixels (percent) may be nearer than `near`. 0: near is the nearest pixel. 1 or 2 ignores outliers.",
        ),
        io.Float.Input(
            "high_percentile",
            default=100.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="This share of the pixels (percent) is nearer than `far`. 100: far is the farthest pixel. 98 or 99 ignores outliers.",
        ),
    ]


class FormatDepth(Node):
    """Depth data -> normalised depth, and the range used."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        unbounded = {"min": -1e6, "max": 1e6, "step": 0.001}
        return schema(
            node_id="IntrinsicLabFormatDepth",
            display_name="Format Depth",
            category=CATEGORY,
            description="Chooses the range of depth data (per picture, per sequence, fixed, raw) and whether near is bright or "
            "dark; gives the range as numbers.",
            search_aliases=["normalize depth", "depth to picture", "invert depth", "depth range", "depth flicker", "remap depth"],
            inputs=[
                map_input("depth", "Depth data, larger is farther: relative (0 to 1) or metric. The mean of its channels is taken."),
                io.DynamicCombo.Input(
                    "range",
                    options=[
                        io.DynamicCombo.Option(PER_PICTURE, _percentile_inputs()),
                        io.DynamicCombo.Option(PER_SEQUENCE, _percentile_inputs()),
                        io.DynamicCombo.Option(
                            FIXED,
                            [
                                io.Float.Input("near", default=0.0, tooltip="This depth becomes 0; in the unit of the data.", **unbounded),
                                io.Float.Input("far", default=1.0, tooltip="This depth becomes 1; in the unit of the data.", **unbounded),
                            ],
                        ),
                        io.DynamicCombo.Option(RAW, []),
                    ],
                    tooltip="Per picture: each picture fills 0 to 1. Per sequence: one range for the whole batch, so that a "
                    "video does not flicker. "
                    "Fixed range: near and far in the data's unit. Raw: values are not scaled.",
                ),
                io.Combo.Input(
                    "look",
                    options=[NEAR_DARK, NEAR_BRIGHT],
                    default=NEAR_BRIGHT,
                    tooltip="Of the picture only. Near bright is what depth ControlNets and most depth nodes use. With `raw`, "
                    "near bright mirrors "
                    "the values within the batch's own range.",
                ),
                io.Boolean.Input(
                    "clamp",
                    default=False,
                    tooltip="Cut the picture to 0..1. Off keeps what lies outside the range. Does nothing with `raw`.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="picture",
                    tooltip="Depth for the eye or for a ControlNet, 0 to 1 in the range, near bright or dark as chosen.",
                ),
                io.Image.Output(
                    display_name="depth",
                    tooltip="Depth data in the range: near 0, far 1, larger is farther, never clamped; `raw`: as it came.",
                ),
                io.Float.Output(
                    display_name="near",
                    tooltip="The depth that became 0 (of several pictures with their own ranges: the smallest), in the unit that came in.",
                ),
                io.Float.Output(
                    display_name="far",
                    tooltip="The depth that became 1 (of several pictures with their own ranges: the largest), in the unit that came in.",
                ),
                io.String.Output(display_name="ranges", tooltip="JSON: [[near, far], ...], one pair for each picture of the batch."),
            ],
        )

    @classmethod
    def execute(cls, depth, look, clamp, range=None) -> io.NodeOutput:
        data = map_from_image(image_of(depth, "depth"), 1, "depth")
        rule = _range_rule(range)
        span = rule(data)
        near, far = float(span.near.min()), float(span.far.max())
        if range["range"] == RAW:
            scaled = data
            picture = formats.near_bright(data, near, far) if look == NEAR_BRIGHT else data
        else:
            scaled = formats.normalize_depth(data, span)
            picture = formats.near_bright(scaled) if look == NEAR_BRIGHT else scaled
            picture = picture.clamp(0, 1) if clamp else picture
        pairs = list(zip(span.near.flatten().tolist(), span.far.flatten().tolist(), strict=True))
        return io.NodeOutput(image_from_map(picture), image_from_map(scaled), near, far, json.dumps(pairs))


def _range_rule(choice: dict | None) -> formats.RangeRule:
    choice = choice or {}
    kind = choice.get("range")
    if kind == PER_PICTURE:
        return formats.range_per_picture(choice["low_percentile"], choice["high_percentile"])
    if kind == PER_SEQUENCE:
        return formats.range_per_sequence(choice["low_percentile"], choice["high_percentile"])
    if kind == FIXED:
        return formats.range_fixed(choice["near"], choice["far"])
    if kind == RAW:
        return formats.range_per_sequence()
    raise ValueError(f"there is no depth range {kind!r}: choose one of {PER_PICTURE}, {PER_SEQUENCE}, {FIXED}, {RAW}.")


def _taken_map(default: str) -> io.Input:
    """Which map of a bundle a node takes that serves several."""
    return io.Combo.Input(
        "taken_map",
        display_name="map to take",
        options=list(MAPS),
        default=default,
        optional=True,  # graphs saved before there were bundles have none
        advanced=True,
        tooltip="Which of the maps is taken where whole maps are connected; else without effect.",
    )


class FormatColor(Node):
    """Linear albedo or shading -> sRGB or linear, with exposure."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabFormatColor",
            display_name="Format Albedo or Shading",
            category=CATEGORY,
            description="Turns linear albedo or shading into sRGB for the eye, or keeps it linear for calculation, with exposure in stops.",
            search_aliases=["linear to srgb", "gamma", "exposure", "washed out albedo", "tone"],
            inputs=[
                map_input("map", "Albedo, shading or specular data: LINEAR (not sRGB), nominally 0 to 1, as this pack gives it."),
                io.Combo.Input(
                    "encoding",
                    options=[SRGB, LINEAR],
                    default=SRGB,
                    tooltip="sRGB: for viewing, PNG files, and colour textures. Linear: for EXR files, rendering and "
                    "calculation; looks dark on a screen. Also for roughness and metallic, which are shown as they are.",
                ),
                io.Float.Input(
                    "exposure",
                    default=0.0,
                    min=-20.0,
                    max=20.0,
                    step=0.1,
                    tooltip="Stops: each doubles the linear light (+1 = x2, -1 = x0.5). Applied before the encoding.",
                ),
                io.Boolean.Input("clamp", default=False, tooltip="Cut the result to 0..1. Off keeps values above 1 and below 0."),
                _taken_map("albedo"),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The map in the chosen encoding.")],
        )

    @classmethod
    def execute(cls, map, encoding, exposure, clamp, taken_map="albedo") -> io.NodeOutput:
        linear = map_from_image(image_of(map, taken_map), 3, "map", grey=True)
        return io.NodeOutput(formats.format_color(linear, srgb=encoding == SRGB, exposure_stops=exposure, clamp=clamp))


class ColorMap(Node):
    """One-channel data -> colours."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        value = {"min": -1e6, "max": 1e6, "step": 0.001}
        return schema(
            node_id="IntrinsicLabColorMap",
            display_name="Apply Color Map",
            category=CATEGORY,
            description="Shows one-channel data (depth, an error) in colours. For the eye only: the result is no data any more.",
            search_aliases=["turbo", "viridis", "magma", "colorize depth", "heatmap", "false color"],
            inputs=[
                map_input("values", "One-channel data, e.g. depth; the mean of its channels is taken."),
                io.Combo.Input(
                    "color_map",
                    options=list(formats.COLOR_MAPS),
                    default=formats.COLOR_MAPS[0],
                    tooltip="turbo: rainbow with the most visible detail. viridis, magma: brightness grows evenly, also in "
                    "print. grey: black to white.",
                ),
                io.Float.Input("low", default=0.0, tooltip="The value that gets the first colour; also what lies beyond it.", **value),
                io.Float.Input(
                    "high", default=1.0, tooltip="The value that gets the last colour. Smaller than low turns the map round.", **value
                ),
                _taken_map("depth"),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="sRGB colours, 0 to 1.")],
        )

    @classmethod
    def execute(cls, values, color_map, low, high, taken_map="depth") -> io.NodeOutput:
        return io.NodeOutput(formats.color_map(map_from_image(image_of(values, taken_map), 1, "values"), color_map, low, high))


NODES = [FormatNormals, NormalsFromColor, FormatDepth, FormatColor, ColorMap, AlbedoFromPicture]
