"""The pack in ComfyUI's real front end, in a headless browser."""

import json

import pytest
from intrinsic_lab.tools.example_workflows import example_workflows
from intrinsic_lab.tools.front_end import open_workflow, prompt_of, queue

EXAMPLES = example_workflows()
BUNDLED = [example for example in EXAMPLES if not example.needs]
every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
every_bundled_example = pytest.mark.parametrize("example", BUNDLED, ids=lambda example: example.name)


def core_workflow(**load_image) -> dict:
    """A small graph of core nodes: Load Image -> Preview Image."""
    slot = {"name": "IMAGE", "type": "IMAGE", "links": [1]}
    load = {"id": 1, "type": "LoadImage", "pos": [0, 0], "size": [300, 300], "outputs": [slot], "widgets_values": ["absent.png", "image"]}
    look = {
        "id": 2,
        "type": "PreviewImage",
        "pos": [400, 0],
        "size": [200, 200],
        "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
    }
    return {
        "last_node_id": 2,
        "last_link_id": 1,
        "nodes": [{**load, **load_image}, look],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
        "version": 0.4,
    }


def test_a_missing_node_and_a_red_widget_are_noticed(page):
    assert "red widget LoadImage.image: absent.png" in open_workflow(page, core_workflow())
    assert "missing node NobodyHasThis" in open_workflow(page, core_workflow(type="NobodyHasThis"))


def test_a_graph_that_comfyui_refuses_is_noticed(page):
    open_workflow(page, core_workflow())
    assert queue(page, seconds=60) == "refused"


def test_the_front_end_knows_every_node_of_the_pack(page, client):
    ours = sorted(name for name in client.get("/object_info")[1] if name.startswith("IntrinsicLab"))
    assert ours and page.evaluate("names => names.filter(name => !LiteGraph.registered_node_types[name])", ours) == []


@every_example
def test_it_opens_with_no_missing_node_and_no_red_widget(page, example):
    problems = open_workflow(page, example.graph())
    # What a person must bring is red until it is there.
    assert [problem for problem in problems if not (example.needs and problem.startswith("red widget"))] == []


@every_example
def test_both_forms_are_the_same_graph(page, example):
    open_workflow(page, example.graph())
    made = json.loads(json.dumps(prompt_of(page)))
    assert made == example.prompt(), f"make export-workflows ARGS={example.name} writes the API form again"


@every_bundled_example
def test_queueing_it_as_a_person_does_finishes(page, example):
    open_workflow(page, example.graph())
    assert queue(page) == "execution_success"
