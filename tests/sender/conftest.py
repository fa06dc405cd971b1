from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.web import Web, web


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Web]:
    """The sender's web application, with no loop running behind it."""
    with web(tmp_path) as made:
        yield made
