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


def read_by_draftsman(graph: dict, known: dict) -> dict:
    return pytest.importorskip("comfy_draftsman.graph.model").Workflow.from_ui(graph).to_api(known)


def read_by_comfy_cli(graph: dict, known: dict) -> dict:
    return pytest.importorskip("comfy_cli.workflow_to_api").convert_ui_to_api(graph, known)


def read_by_comfy_test(graph: dict, known: dict) -> dict:
    converter = pytest.importorskip("comfy_test.comfyui.workflow_converter")
    converter.set_object_info(known)
    return converter.WorkflowConverter.convert_to_api(graph)


@pytest.mark.parametrize("read", [read_by_draftsman, read_by_comfy_cli, read_by_comfy_test])
def test_other_peoples_converters_make_the_same_prompts_of_the_graphs(client, read):
    """The first is part of the development environment, all are in .github/workflows/ecosystem.yml."""
    known = client.get("/object_info")[1]

    def ours(prompt: dict) -> dict:
        # Viewers of core hold what only its own front end knows; comfy-test does not know core's COLOR, which Relight from Maps asks for.
        skipped = "IntrinsicLabRelight" if read is read_by_comfy_test else None
        return {
            key: node["inputs"]
            for key, node in prompt.items()
            if node["class_type"].startswith("IntrinsicLab") and node["class_type"] != skipped
        }

    for example in example_workflows():
        assert ours(read(example.graph(), known)) == ours(example.prompt()), example.name


def test_draftsman_reads_the_prompts_and_finds_no_fault_in_graphs_that_run_at_once(client):
    model, check = pytest.importorskip("comfy_draftsman.graph.model"), pytest.importorskip("comfy_draftsman.graph.validate")
    known = client.get("/object_info")[1]
    for example in example_workflows():
        back = model.Workflow.from_api(example.prompt(), known).to_api(known)
        own = {key: node["inputs"] for key, node in example.prompt().items() if node["class_type"].startswith("IntrinsicLab")}
        assert {key: back[key]["inputs"] for key in own} == own, example.name
        found = check.validate(model.Workflow.from_ui(example.graph()), known)
        if not example.needs:
            assert [finding for finding in found if finding["level"] == "error"] == [], example.name
