"""Pictures with all their maps and a caption, under LumiX's names: rendered scenes, a folder, or a public data set."""

from collections.abc import Sequence

from ...methods.lumix.design import COLOR, KINDS
from ..folder_data import FolderData
from ..pairs import IMAGE, CaptionedSource, SceneData
from ..set_data import SetData


def map_source(data: SceneData | FolderData | SetData, maps: Sequence[str]) -> CaptionedSource:
    """Pictures that have every one of `maps` (LumiX's names). Raises ValueError if there are none, and for held-out scenes."""
    if isinstance(data, FolderData | SetData):
        return data.aligned([KINDS[name] for name in maps if name != COLOR])
    return data.source(IMAGE)
