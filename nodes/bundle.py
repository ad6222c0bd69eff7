"""Whole maps: made of single ones, opened into single ones, and read from the geometry that ComfyUI's own models give."""

from collections.abc import Callable, Iterator

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..methods.formats import picture_of
from ..methods.maps import MAPS, MapBundle, MapKind, bundle_names, image_from_map, map_from_image, map_kind
from ..methods.maps.files import FileConvention
from .native.map_sockets import Maps, data_of
from .native.node import Node
from .native.schema import schema

CATEGORY = "intrinsic lab/maps"
DATA = "data"


class BundleMaps(Node):
    """Single maps -> MAPS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabBundleMaps",
            display_name="Bundle Maps",
            category=CATEGORY,
            description="Makes one bundle of maps that belong to one picture, as data of this pack or as pictures of other nodes, read "
            "in their convention. Relight from Maps, Compare Maps and the Format nodes take it whole.",
            search_aliases=["combine maps", "merge maps", "pack maps", "marigold", "lotus", "depth anything", "bundle of material maps"],
            inputs=[
                Maps.Input("maps", optional=True, tooltip="Maps to start from; a map that is connected by itself takes its place."),
                io.Image.Input("image", optional=True, tooltip="The picture that the maps belong to, sRGB, 0 to 1."),
                *(
                    io.Combo.Input(
                        setting,
                        options=[DATA, *files.choices],
                        default=DATA,
                        tooltip=f"How {', '.join(name for name in MAPS if MAPS[name].files is files)} came. data: as this pack gives "
                        f"it. Pictures, 0 to 1: {files.meanings}.",
                    )
                    for setting, files in _settings().items()
                ),
                # At the end, where maps that come later are appended.
                *(io.Image.Input(name, optional=True, tooltip=f"{kind.tooltip} Or a picture of it.") for name, kind in MAPS.items()),
            ],
            outputs=[Maps.Output(display_name="maps", tooltip="All of them, each as data in this pack's own convention.")],
        )

    @classmethod
    def execute(cls, maps: MapBundle | None = None, **given) -> io.NodeOutput:
        as_what = {setting: given.pop(setting, DATA) for setting in _settings()}
        read = {name: _data(name, image, as_what) for name, image in given.items() if image is not None}
        return io.NodeOutput(MapBundle({**(maps.maps if maps else {}), **read}))


def _settings() -> dict[str, FileConvention]:
    """The kinds of pictures of which must be known how they came, by the name of the input that says it."""
    return {_setting(kind): kind.files for kind in MAPS.values() if kind.files.setting}


def _setting(kind: MapKind) -> str:
    return f"{kind.files.setting}_as"


def _data(name: str, image: torch.Tensor, as_what: dict[str, str]) -> torch.Tensor:
    """An IMAGE that came as said, as the map's data."""
    kind = map_kind(name)
    convention = as_what.get(_setting(kind), DATA)
    if convention != DATA:
        return kind.from_picture(kind.files.choices[convention].to_own(map_from_image(image, 3, name, grey=not kind.vector)))
    return data_of(name, image)


class OpenMaps(Node):
    """MAPS -> single maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabOpenMaps",
            display_name="Open Maps",
            category=CATEGORY,
            description="Opens a bundle of maps into one output for each, as float data.",
            search_aliases=["split maps", "unpack maps", "maps to data", "raw maps"],
            inputs=[Maps.Input("maps", tooltip="From Picture to Maps, Bundle Maps or Read Maps from Geometry.")],
            outputs=[io.Image.Output(display_name=name, tooltip=map_kind(name).tooltip) for name in bundle_names()],
        )

    @classmethod
    def execute(cls, maps: MapBundle) -> io.NodeOutput:
        return io.NodeOutput(*_each(maps, bundle_names(), lambda name, data: image_from_map(data)))


def _each(
    maps: MapBundle, names: list[str], made_of: Callable[[str, torch.Tensor], torch.Tensor]
) -> Iterator[torch.Tensor | ExecutionBlocker]:
    """What is made of each map; an output of one that is not there says so to who uses it."""
    has = ", ".join(maps.maps)
    for name in names:
        if name in maps.maps:
            yield made_of(name, maps[name])
        else:
            yield ExecutionBlocker(f"These maps have no '{name}' (they have: {has}): disconnect this output, or add the map.")


class PicturesOfMaps(Node):
    """MAPS -> pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabPicturesOfMaps",
            display_name="Show Maps as Pictures",
            category=CATEGORY,
            description="Makes a picture of each map, ready to look at, to save and to feed a ControlNet: normals as OpenGL colours, depth "
            "near bright from each picture's own range, albedo and shading in sRGB. The Format nodes offer other looks.",
            search_aliases=["maps to images", "preview maps", "controlnet maps", "view maps"],
            inputs=[Maps.Input("maps", tooltip="From Picture to Maps, Bundle Maps or Read Maps from Geometry.")],
            outputs=[
                io.Image.Output(display_name=name, tooltip=f"{kind.meaning} As a picture, 0 to 1: no data any more.")
                for name, kind in MAPS.items()
            ],
        )

    @classmethod
    def execute(cls, maps: MapBundle) -> io.NodeOutput:
        return io.NodeOutput(*_each(maps, list(MAPS), picture_of))


class MapsFromGeometry(Node):
    """MOGE_GEOMETRY or DA3_GEOMETRY -> MAPS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabMapsFromGeometry",
            display_name="Read Maps from Geometry",
            category=CATEGORY,
            description="Takes the geometry that ComfyUI's own MoGe and Depth Anything 3 nodes give as maps of this pack: picture, "
            "normals, depth in its own unit, and the camera's field of view. Nothing is rounded or turned round on the way.",
            search_aliases=["moge", "depth anything 3", "da3", "geometry to maps", "metric depth", "normals from depth"],
            inputs=[
                io.MultiType.Input(
                    "geometry",
                    [io.Custom("MOGE_GEOMETRY"), io.Custom("DA3_GEOMETRY")],
                    tooltip="From Run MoGe Inference or Run Depth Anything 3. Depth Anything's normals are computed from its depth.",
                ),
                io.Float.Input(
                    "vertical_fov",
                    default=45.0,
                    min=1.0,
                    max=170.0,
                    step=0.5,
                    tooltip="Vertical field of view of the camera, degrees; only used where the geometry does not say it (Depth Anything 3 "
                    "with one view). Phones about 55, portraits about 25.",
                ),
            ],
            outputs=[
                Maps.Output(
                    display_name="maps", tooltip="image, normal, depth (larger is farther, metres where the model knows them), as data."
                ),
                io.Mask.Output(display_name="known", tooltip="White where the model knows the geometry; sky is black."),
                io.Float.Output(display_name="vertical_fov", tooltip="Of the first picture's camera, degrees; for Relight from Maps."),
            ],
        )

    @classmethod
    def execute(cls, geometry, vertical_fov: float) -> io.NodeOutput:
        from ..methods.maps.geometry import read_geometry

        read = read_geometry(geometry, vertical_fov)
        return io.NodeOutput(read.maps, read.known_bhw.float(), read.vertical_fov_degrees[0])


NODES = [BundleMaps, OpenMaps, PicturesOfMaps, MapsFromGeometry]
