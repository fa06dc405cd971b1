"""The types of the fixtures that run commands."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

Cli = Callable[..., subprocess.CompletedProcess[str]]
Git = Callable[..., str]
