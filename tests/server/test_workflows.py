"""The example workflows that need files which do not come with the pack, over the API; the others run in test_front_end.py."""

import pytest
from intrinsic_lab.tools.example_workflows import example_workflows

LACKING = [example for example in example_workflows() if example.needs]


@pytest.mark.parametrize("example", LACKING, ids=lambda example: example.name)
def test_one_that_needs_more_is_refused_with_the_name_of_what_is_missing(client, example):
    status, reply = client.post("/prompt", {"prompt": example.prompt()})
    # What does not need it may run all the same: Picture to Maps shows its pictures by itself.
    assert status == 400 or "IntrinsicLabPictureToMaps" in str(example.prompt())
    assert "Value not in list" in str(reply["node_errors"])


def test_other_peoples_converters_make_the_same_prompts_of_the_graphs(client):
    """comfy-draftsman and comfy-cli, where they are installed: .github/workflows/ecosystem.yml does that."""
    model = pytest.importorskip("comfy_draftsman.graph.model")
    cli = pytest.importorskip("comfy_cli.workflow_to_api")
    known = client.get("/object_info")[1]

    def ours(prompt: dict) -> dict:
        # Viewers of core hold what only its own front end knows.
        return {key: node["inputs"] for key, node in prompt.items() if node["class_type"].startswith("IntrinsicLab")}

    for example in example_workflows():
        assert ours(model.Workflow.from_ui(example.graph()).to_api(known)) == ours(example.prompt()), example.name
        assert ours(cli.convert_ui_to_api(example.graph(), known)) == ours(example.prompt()), example.name
