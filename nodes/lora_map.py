"""A shelf of LoRAs as a map to walk: like lies near like."""

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from .lora_space import CATEGORY, INDEX_TOOLTIP, NAME_TOOLTIP, NONE, Index, listed_names, parts_input
from .native.lora_library import lora_collection
from .native.lora_library.files import BUNDLED_MARK
from .native.lora_library.lora_collection import LoraCollection, shown_name
from .native.node import Node
from .native.schema import schema

if TYPE_CHECKING:
    from ..methods.lora_space.lora_map import Point

# Of dates, in seconds: file systems hold stranger ones.
LATEST = 4e9


class LoRAMap(Node):
    """The collection as a map on which similar LoRAs lie together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabLoRAMap",
            display_name="Draw LoRA Map",
            category=CATEGORY,
            description=(
                "Draws all LoRAs of an index as a map: what lies together does alike. Groups are named by their folders or training tags. "
                "In the node, point at a dot to see its preview picture; click it to choose that LoRA, here and in Find Similar LoRAs. "
                "The wheel zooms, dragging pans, a lasso lists LoRAs, the search box finds them by name."
            ),
            search_aliases=["lora map", "lora atlas", "cluster loras", "lora space", "visualize loras"],
            is_output_node=True,
            inputs=[
                Index.Input("lora_index", tooltip=INDEX_TOOLTIP),
                parts_input(),
                io.Int.Input("clusters", default=0, min=0, max=100, tooltip="How many groups. 0: as many as the map shows."),
                io.Int.Input("size", default=1024, min=256, max=4096, step=64, tooltip="Sides of the picture in pixels."),
                io.Combo.Input(
                    "selected",
                    options=[NONE, *lora_collection.lora_names()],
                    default=NONE,
                    tooltip="The LoRA that is marked and put out. A click on the map sets it.",
                ),
                # Named `seed`, the front end would draw another one for every run.
                io.Int.Input("layout_seed", default=0, min=0, max=2**31 - 1, optional=True, tooltip="Another seed, another layout."),
                io.String.Input(
                    "listed",
                    default="",
                    optional=True,
                    tooltip="LoRAs that are put out as lora_names, names with | between. A lasso on the map writes it.",
                ),
            ],
            outputs=[
                io.Image.Output("IMAGE", display_name="image", tooltip="The map."),
                io.AnyType.Output("LORA_NAME", display_name="lora_name", tooltip=f"The selected LoRA. {NAME_TOOLTIP}"),
                io.String.Output("TEXT", display_name="text", tooltip="Places and groups as JSON; places from 0 to 1, from the top left."),
                io.AnyType.Output(
                    "LORA_NAMES",
                    display_name="lora_names",
                    is_output_list=True,
                    tooltip=f"The listed LoRAs; without any, the selected one. {NAME_TOOLTIP}",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        lora_index: LoraCollection,
        subnetwork: str,
        clusters: int,
        size: int,
        selected: str = NONE,
        layout_seed: int = 0,
        listed: str = "",
    ) -> io.NodeOutput:
        from ..methods.lora_space import lora_map

        with lora_index.open() as index:
            drawn = lora_map.map_loras(
                index,
                family=lora_index.family,
                subnetwork=subnetwork,
                folder=lora_index.folder,
                clusters=clusters or None,
                seed=layout_seed,
                report=lora_collection.progress_report(),
            )
        # The map's own names have no mark.
        marked = [] if selected == NONE else [selected.removesuffix(BUNDLED_MARK)]
        image = torch.tensor(lora_map.draw_map(drawn, size, marked)).float().unsqueeze(0) / 255
        places = {
            "family": drawn.family,
            "points": [_place(point, lora_index.collection) for point in drawn.points],
            "clusters": [{"label": c.label, "size": c.size, "x": c.x, "y": c.y, "color": c.color} for c in drawn.clusters],
        }
        return io.NodeOutput(
            image, selected, json.dumps(places, ensure_ascii=False), listed_names(listed) or [selected], ui={"lora_map": [places]}
        )


def _place(point: "Point", collection: str) -> dict[str, Any]:
    """Of a dot: its name, its place, and what it can be coloured by. date: of the file, in UTC."""
    entry = point.entry
    found = {"name": shown_name(entry, collection), "x": point.x, "y": point.y, "cluster": point.cluster}
    date = datetime.fromtimestamp(min(max(entry.mtime_ns / 1e9, 0), LATEST), timezone.utc).date()
    return found | {"family": entry.family, "variant": entry.variant, "date": date.isoformat()}


NODES = [LoRAMap]
