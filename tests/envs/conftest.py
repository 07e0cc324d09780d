"""A network small enough that an episode costs nothing, and the options that describe it."""

import pytest

SMALL = {"task": "digits", "layers": 6, "width": 16, "heads": 2}


@pytest.fixture
def small() -> dict[str, object]:
    return dict(SMALL)
