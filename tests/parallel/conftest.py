"""The ranks of all tests here, started once, and how long their examples may take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.parallel.ranks import Ranks

# The first example of ranks connects them; how long that takes says nothing.
settings.register_profile("ranks", deadline=None)
settings.load_profile("ranks")


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    found = Ranks()
    yield found
    found.close()
