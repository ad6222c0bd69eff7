"""The trainers' tiny base."""

from pathlib import Path

import pytest
from intrinsic_lab.tests.training.conftest import write_tiny_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")
