"""Declaring a node on every supported ComfyUI."""

import dataclasses

import pytest

pytest.importorskip("comfy_api.latest")
from comfy_api.latest import io
from intrinsic_lab.nodes.native import schema as schema_module


def test_a_declared_schema_equals_cores_own():
    fields = {
        "node_id": "IntrinsicLabSomething",
        "display_name": "Do Something",
        "category": "intrinsic lab",
        "search_aliases": ["something"],
    }
    assert schema_module.schema(**fields) == io.Schema(**fields)


def test_an_optional_field_is_dropped_where_comfyui_does_not_know_it(monkeypatch):
    older = dataclasses.make_dataclass("Schema", [("node_id", str)])
    monkeypatch.setattr(schema_module.io, "Schema", older)
    assert schema_module.schema(node_id="IntrinsicLabSomething", search_aliases=["something"]) == older("IntrinsicLabSomething")


def test_a_misspelt_field_is_refused():
    with pytest.raises(TypeError, match="categroy"):
        schema_module.schema(node_id="IntrinsicLabSomething", categroy="intrinsic lab")
