"""Every example workflow that needs only the bundled weights runs over the API."""

import pytest
from intrinsic_lab.tools.example_workflows import example_workflows

EXAMPLES = example_workflows()
BUNDLED = [example for example in EXAMPLES if not example.needs]


@pytest.mark.parametrize("example", BUNDLED, ids=lambda example: example.name)
def test_its_api_form_runs_and_leaves_files(client, example):
    events, entry = client.run(example.prompt(), seconds=600)
    assert events[-1]["type"] == "execution_success", events[-1]
    assert any("filename" in str(output) for output in entry["outputs"].values())


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example.needs], ids=lambda example: example.name)
def test_one_that_needs_more_is_refused_with_the_name_of_what_is_missing(client, example):
    status, reply = client.post("/prompt", {"prompt": example.prompt()})
    # What does not need it may run all the same: Picture to Maps shows its pictures by itself.
    assert status == 400 or "IntrinsicLabPictureToMaps" in str(example.prompt())
    assert "Value not in list" in str(reply["node_errors"])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_it_has_a_thumbnail_and_every_node_a_title(example):
    assert example.thumbnail_path.read_bytes()[:3] == b"\xff\xd8\xff"
    assert all(node["_meta"]["title"] for node in example.prompt().values())
