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
