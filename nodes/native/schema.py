"""One way to declare a node on every supported ComfyUI."""

import dataclasses

from comfy_api.latest import io

# Fields that some supported version does not know; a node works without them.
_OPTIONAL_FIELDS = {"search_aliases", "essentials_category", "has_intermediate_output"}


def schema(**fields) -> io.Schema:
    """`io.Schema` without those optional fields that this ComfyUI does not know.

    Raises TypeError for a field that no version knows, as `io.Schema` does.
    """
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known or name not in _OPTIONAL_FIELDS})
