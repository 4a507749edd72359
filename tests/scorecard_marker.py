"""Carries the marker `scorecard` into the test results, where tool/dev/scorecard.py counts it."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties += [("scorecard", marker.args[0]) for marker in item.iter_markers("scorecard")]
