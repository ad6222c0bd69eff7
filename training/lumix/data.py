"""Pictures with all their maps and a caption, under LumiX's names: rendered scenes, or a folder."""

from collections.abc import Sequence

from ...methods.lumix.design import COLOR, KINDS
from ..folder_data import FolderData
from ..pairs import IMAGE, CaptionedSource, SceneData


def map_source(data: SceneData | FolderData, maps: Sequence[str]) -> CaptionedSource:
    """Pictures that have every one of `maps` (LumiX's names). Raises ValueError if there are none, and for held-out scenes."""
    if isinstance(data, FolderData):
        return data.aligned([KINDS[name] for name in maps if name != COLOR])
    return data.source(IMAGE)
