"""A campaign of hostile inputs: what came of each is counted, and the counts are printed at the end."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

# Drawn from the tests' names alone: the same inputs in every run, so that a failure comes back.
settings.register_profile("hostile", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
settings.load_profile("hostile")
COUNTS: dict[str, Counter] = {}


@pytest.fixture
def outcomes(request) -> Counter:
    """Of this test: (what it came to) -> how often."""
    return COUNTS.setdefault(request.node.originalname, Counter())


def pytest_terminal_summary(terminalreporter) -> None:
    if not COUNTS:
        return
    terminalreporter.section("hostile inputs by outcome")
    for name, counts in COUNTS.items():
        terminalreporter.write_line(f"{name}: {', '.join(f'{count} {outcome}' for outcome, count in counts.most_common())}")
