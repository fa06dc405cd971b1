from __future__ import annotations

import pytest

from trainforge.sender.levels import level_of


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("epoch 3 loss 0.25", "info"),
        ("", "info"),
        ("no errors, no warnings", "info"),
        ('PROGRESS: {"step": 3}', "progress"),
        (" 42%|####      | 42/100", "progress"),
        ("WARNING: learning rate is high", "warning"),
        ("/x.py:3: FutureWarning: soon gone", "warning"),
        ("[rank0] 2026-01-01 ERROR cannot write", "error"),
        ("Traceback (most recent call last):", "error"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory", "error"),
        ("KeyError", "error"),
        ("x" * 600 + " ERROR", "info"),
    ],
)
def test_a_line_says_how_loud_it_is(line: str, level: str) -> None:
    assert level_of(line) == level
