"""Pictures and maps of a batch of plans."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..intersect import dot
from .light import shade, sky_color
from .patterns import share_of
from .plan import ROOM_ROWS, Plan, Table, pack
from .trace import SKY_ROW, cut, first_hit, normals_of

# Shadow rays start this far above a surface: metres, and a share of the distance to the camera.
OFFSET_METRES, OFFSET_SHARE = 5e-4, 6e-4


def render_plans(
    plans: Sequence[Plan], height: int, width: int, camera_rays: Callable[[Table, int, int], tuple[Tensor, Tensor]]
) -> tuple[dict[str, Tensor], Tensor]:
    """Planes `[c, b, h * w]` by the name of their map, and surface ids `[b, h * w]`.

    camera_rays: from a table, height and width to unit directions [3, b, p] and their component along the optical axis [b, p].
    """
    table = pack(plans)
    direction, along_axis = camera_rays(table, height, width)
    origin = table.camera_position.T[..., None]
    tiles = cut(height, width)
    distance, row = first_hit(table, origin, direction, along_axis, tiles)
    point = origin + direction * distance
    place, normal = normals_of(table, point, row)
    base, surface = _material(table, row, place, normal, direction, distance, height)
    offset = OFFSET_METRES + OFFSET_SHARE * distance
    shading, highlights = shade(table, point, normal, -direction, row, base, surface, offset, tiles)
    albedo = base * (1 - surface[1])
    # A shoulder as films have: highlights keep their colour and fill what the diffuse light leaves up to white, so that nothing clips.
    brightest, room = highlights.amax(0).clamp(min=1e-6), (1 - (albedo * shading).amax(0)).clamp(min=1e-6)
    specular = highlights * (room * (1 - (-brightest / room).exp()) / brightest)

    scene, pixel = (row == SKY_ROW).nonzero(as_tuple=True)
    camera_normal = torch.einsum("baw,wbp->abp", table.camera_axes, normal)
    outdoors = table.high[scene, 1] > 100
    scene, pixel = scene[outdoors], pixel[outdoors]
    albedo[:, scene, pixel] = sky_color(table, direction[:, scene, pixel], scene)
    shading[:, scene, pixel] = 1
    specular[:, scene, pixel] = 0
    surface[:, scene, pixel] = torch.tensor([[1.0], [0.0]])
    camera_normal[:, scene, pixel] = torch.tensor([[0.0], [0.0], [1.0]])

    part = (row - ROOM_ROWS).clamp(min=0)
    segmentation = torch.where(row >= ROOM_ROWS, ROOM_ROWS + table.thing.gather(1, part), row)
    planes = {
        "albedo": albedo,
        "shading": shading,
        "specular": specular,
        "roughness": surface[:1],
        "metallic": surface[1:],
        "depth": (distance * along_axis)[None],
        "normal": camera_normal,
    }
    return planes, segmentation


def _material(
    table: Table, row: Tensor, place: Tensor, normal: Tensor, direction: Tensor, distance: Tensor, height: int
) -> tuple[Tensor, Tensor]:
    """Base colour [3, b, p], and roughness and metallic [2, b, p]."""
    rows = table.pattern.shape[1]
    column = (row + rows * torch.arange(len(table))[:, None]).flatten()
    of = table.materials[:, column]
    scale = of[6]
    pixel_angle = 2 * (table.vertical_fov_degrees.deg2rad() / 2).tan() / height
    slant = dot(normal, direction).abs().clamp(min=0.05)
    footprint = (distance * pixel_angle[:, None] / slant).flatten() * scale
    share = share_of(table.pattern.flatten()[column], place.flatten(1) * scale + of[7:10], footprint)
    base = of[:3] + (of[3:6] - of[:3]) * share
    return base.view(3, *row.shape), of[10:12].reshape(2, *row.shape)
