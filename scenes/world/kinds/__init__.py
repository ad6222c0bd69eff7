"""The kinds of scenes: each draws the plan of one scene from its dice."""

from collections.abc import Callable

from ..draw import Draw
from ..plan import Plan
from .closeup import closeup
from .clutter import clutter
from .interior import interior
from .landscape import landscape
from .outdoor import outdoor
from .tabletop import tabletop

PLANNED: dict[str, Callable[[Draw], Plan]] = {
    "interior": interior,
    "tabletop": tabletop,
    "closeup": closeup,
    "clutter": clutter,
    "outdoor": outdoor,
    "landscape": landscape,
}
