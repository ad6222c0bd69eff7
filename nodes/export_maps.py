"""Maps out into other programs: an EXR file, a game engine's textures, a mesh."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import Types, io
from comfy_execution.graph_utils import ExecutionBlocker

from ..methods.depth_mesh import depth_mesh
from ..methods.formats import NORMAL_CONVENTIONS
from ..methods.maps import MAPS, MapBundle, require_map
from ..methods.maps.bundle import PICTURE
from ..methods.textures import TARGETS
from ..training.atomic import write_json
from .native.camera import camera_inputs, in_metres
from .native.map_files import About, write_exr, write_mesh, write_textures
from .native.map_sockets import Maps, data_of
from .native.node import Node
from .native.node_text import show_on_node
from .native.schema import schema

EXR, NO_MESH, MESH = "EXR", "none", "from depth"
NO_MESH_SAID = f"No mesh was made: set 'mesh' of Export Maps to '{MESH}', or disconnect this output."
HALF, FULL = "half (16-bit)", "float (32-bit)"


def _targets() -> list[io.DynamicCombo.Option]:
    exr = [
        io.Combo.Input(
            "precision",
            options=[HALF, FULL],
            default=HALF,
            tooltip="Half floats are what Blender and Nuke write for colours; depth always has 32 bits.",
        ),
        io.Combo.Input(
            "normals",
            options=list(NORMAL_CONVENTIONS),
            default=NORMAL_CONVENTIONS[0],
            tooltip="Axes of the normals, which stay in camera space. OpenGL: Blender, Nuke. DirectX: Y down. OpenCV: Y down, Z away.",
        ),
    ]
    bits = io.Combo.Input("bits", options=["8", "16"], default="8", tooltip="Bits per channel of the PNG files; depth always has 16.")
    return [io.DynamicCombo.Option(EXR, exr), *(io.DynamicCombo.Option(name, [bits]) for name in TARGETS)]


def _mesh_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "edge",
            default=0.05,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="The mesh is cut open where neighbouring pixels differ in depth by more than this share. Smaller: more cuts. 0: none.",
        ),
        io.Int.Input("step", default=1, min=1, max=64, tooltip="A vertex at every so many pixels. 2 makes a quarter of the triangles."),
    ]


class ExportMaps(Node):
    """MAPS or single maps -> files in the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabExportMaps",
            display_name="Export Maps",
            category="intrinsic lab/maps",
            description="Saves maps for other programs into ComfyUI's output folder: all as layers of one EXR file (Blender, Nuke), or as "
            "textures for Unreal, Unity, Blender or glTF (their normals, ORM, colour spaces); and a textured mesh from the depth (GLB).",
            search_aliases=[
                *["exr", "save maps", "save exr", "multilayer exr", "unreal", "unity", "blender", "gltf", "glb", "nuke", "game textures"],
                *["orm", "mask map", "depth to mesh", "3d mesh", "displacement", "save normal map"],
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                Maps.Input(
                    "maps",
                    optional=True,
                    tooltip="Whole maps, e.g. from Picture to Maps; a map that is connected by itself takes the place of theirs.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="maps/picture",
                    tooltip="Name of the files, in ComfyUI's output folder; a / makes folders. A number is added, as in Save Image.",
                ),
                io.DynamicCombo.Input(
                    "target",
                    options=_targets(),
                    tooltip="EXR: one file with all maps as layers, linear and unclamped. Unreal, Unity, Blender, glTF: a folder of PNG "
                    "files with that program's names, normals and packing.",
                ),
                io.DynamicCombo.Input(
                    "mesh",
                    options=[io.DynamicCombo.Option(NO_MESH, []), io.DynamicCombo.Option(MESH, _mesh_inputs())],
                    tooltip="From depth: also a GLB file, the surfaces as a mesh with the picture on it. Needs depth, and image or albedo.",
                ),
                *camera_inputs(),
                # At the end, where maps that come later are appended.
                io.Image.Input(PICTURE, optional=True, tooltip="The picture itself, sRGB, 0 to 1."),
                *(io.Image.Input(name, optional=True, tooltip=kind.tooltip) for name, kind in MAPS.items()),
            ],
            outputs=[
                io.File3DGLB.Output(display_name="mesh", tooltip="The first picture's mesh, for core's Preview 3D and Save 3D Model."),
                io.String.Output(display_name="files", tooltip="What was written, one a line, as paths inside the output folder."),
            ],
        )

    @classmethod
    def execute(
        cls, filename_prefix, target, mesh, vertical_fov, depth_unit, depth_near, depth_far, maps: MapBundle | None = None, **single
    ) -> io.NodeOutput:
        read = {name: data_of(name, image) for name, image in single.items() if image is not None}
        whole = dict(MapBundle({**(maps.maps if maps else {}), **read}).maps)
        for name, values in whole.items():
            require_map(values, name)
        if "depth" in whole:
            whole["depth"] = in_metres(whole["depth"], depth_unit, depth_near, depth_far)
        elif mesh["mesh"] == MESH:
            raise ValueError(f"a mesh needs depth (the maps are {', '.join(whole)}): connect it, or set mesh to {NO_MESH}.")
        batch, height, width = next(iter(whole.values())).shape[:3]
        output = Path(folder_paths.get_output_directory())
        place, name, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, str(output), width, height)
        progress = comfy.utils.ProgressBar(batch)
        written: list[Path] = []
        for row in range(batch):
            comfy.model_management.throw_exception_if_processing_interrupted()
            of_picture = {name: values[row : row + 1].cpu() for name, values in whole.items()}
            stem = f"{name}_{counter + row:05}_"
            folder = Path(place) if target["target"] == EXR else Path(place) / stem
            files = _write(folder, stem if target["target"] == EXR else name, of_picture, target, mesh, vertical_fov)
            written += [folder / about["file"] for about in files]
            about = {
                "made_by": "Intrinsic Lab, Export Maps",
                "for": target["target"],
                "size": [width, height],
                "vertical_fov_degrees": vertical_fov,
                "files": files,
            }
            # Last: where it is, everything is.
            write_json(folder / (f"{stem}.json" if target["target"] == EXR else "about.json"), about)
            progress.update(1)
        paths = [path.relative_to(output) for path in written]
        show_on_node(f"{len(paths)} files, from {paths[0].as_posix()} on", cls.hidden.unique_id if cls.hidden else None)
        made = Types.File3D(str(written[0]), "glb") if mesh["mesh"] == MESH else ExecutionBlocker(NO_MESH_SAID)
        shown = [_shown(path) for path in paths if path.suffix == ".png"]
        others = [_shown(path) for path in paths if path.suffix != ".png"]
        return io.NodeOutput(made, "\n".join(path.as_posix() for path in paths), ui={"images": shown, "files": others})


def _write(
    folder: Path, name: str, maps: Mapping[str, torch.Tensor], target: dict[str, Any], mesh: dict[str, Any], vertical_fov: float
) -> list[About]:
    """The files of one picture; its mesh, which more can be wrong with, is the first."""
    files = []
    if mesh["mesh"] == MESH:
        surface = depth_mesh(maps["depth"][0, ..., 0], vertical_fov, mesh["edge"], mesh["step"])
        files.append(write_mesh(folder / f"{name}.glb", surface, maps))
    if target["target"] == EXR:
        return [*files, write_exr(folder / f"{name}.exr", maps, target["normals"], target["precision"] == HALF, vertical_fov)]
    return files + write_textures(folder, name, maps, target["target"], int(target["bits"]))


def _shown(path: Path) -> dict[str, str]:
    """A written file as the front end and the API know it."""
    folder = path.parent.as_posix()
    return {"filename": path.name, "subfolder": "" if folder == "." else folder, "type": "output"}


NODES = [ExportMaps]
