"""What headers say of a LoRA's training, and what hostile ones cannot do."""

import json

import pytest
from intrinsic_lab.methods.lora.training_facts import MAX_TAGS, MAX_TEXT, TrainingFacts, training_facts

DEEP = "[" * 100_000


def test_facts_are_read_as_trainers_write_them():
    kohya = {
        "ss_tag_frequency": json.dumps({"10_sks": {"sks cat": 20, "outdoors": 3}, "5_reg": {"outdoors": 30}}),
        "ss_sd_model_name": "sd_xl_base_1.0.safetensors",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_steps": "1600",
        "ss_max_train_steps": "3200",
        "ss_resolution": "(1024, 768)",
        "ss_training_finished_at": "1714564800.25",
        "modelspec.trigger_phrase": " sks cat ",
    }
    assert training_facts(kohya) == TrainingFacts(
        "sks cat", ("outdoors", "sks cat"), "sd_xl_base_1.0.safetensors", 1600, "1024x768", "2024-05-01"
    )
    # ai-toolkit; modelspec's own date and size count first.
    toolkit = {
        "training_info": json.dumps({"step": 2000, "epoch": 31}),
        "ss_base_model_version": "flux1",
        "modelspec.resolution": "512x512",
    }
    toolkit |= {"modelspec.date": "2025-01-02T03:04:05", "ss_training_started_at": "1714564800"}
    assert training_facts(toolkit) == TrainingFacts("", (), "flux1", 2000, "512x512", "2025-01-02")
    assert training_facts({}) == TrainingFacts("", (), "", None, "", "")


@pytest.mark.parametrize(
    "metadata",
    [
        {
            "ss_tag_frequency": DEEP,
            "training_info": DEEP,
            "ss_resolution": "9" * 10**6,
            "ss_steps": "9" * 10**6,
            "modelspec.date": "x" * 10**6,
        },
        {
            "ss_tag_frequency": json.dumps({"a": {"x" * 10**6: 3, **{f"tag {n}": n for n in range(1000)}}}),
            "ss_training_finished_at": "1e300",
        },
        {
            "modelspec.trigger_phrase": "y" * 10**6,
            "ss_sd_model_name": "z" * 10**6,
            "ss_training_finished_at": "nan",
            "training_info": "[1]",
        },
        {"modelspec.trigger_phrase": 7, "ss_tag_frequency": ["a"], "ss_steps": {"a": 1}, "modelspec.date": None, "ss_resolution": 3},
        {"ss_steps": "-3", "training_info": '{"step": 1e400}', "ss_tag_frequency": '{"a": {"b": "many"}}', "ss_training_started_at": "inf"},
    ],
)
def test_whatever_a_header_holds_the_facts_are_short(metadata):
    facts = training_facts(metadata)
    texts = [facts.trigger, facts.base, facts.resolution, facts.date, *facts.tags]
    assert all(len(text) <= MAX_TEXT for text in texts) and len(facts.tags) <= MAX_TAGS
    assert (facts.steps, facts.resolution, facts.date) == (None, "", "")
