from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.browser import launched
from support.web import Web, web


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Of a module, as a browser that is open keeps other tests of its process from running a loop."""
    with launched() as browser:
        yield browser


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Web]:
    """The sender's web application, with no loop running behind it."""
    with web(tmp_path) as made:
        yield made
