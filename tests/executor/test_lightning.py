"""Numbers out of PyTorch Lightning's output, as version 2.6 printed it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainforge.executor.journal import Journal
from trainforge.executor.lightning import from_csv, from_line
from trainforge.executor.metrics import Patterns
from trainforge.executor.metrics import from_line as metric_of
from trainforge.executor.tables import Tables


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (
            "Epoch 1: 100%|██████| 8/8 [00:00<00:00, 552.21it/s, v_num=1, train_loss=0.0804, val_loss=0.150]",
            {"epoch": 1, "train_loss": 0.0804, "val_loss": 0.150},
        ),
        (
            "Epoch 0:  25%|██▌       | 2/8 [00:03<00:09,  1.52s/it, v_num=1, train_loss=2.1e-5]\x1b[A",
            {"epoch": 0, "train_loss": 2.1e-5},
        ),
        (
            "Epoch 1/1  ━━ 8/8 0:00:00 • 0:00:00 1062.36it/s v_num: 0.000 train_loss: 0.267 val_loss: 0.231",
            {"epoch": 1, "train_loss": 0.267, "val_loss": 0.231},
        ),
        ("│         test_loss         │    0.4508552849292755     │", {"test_loss": 0.4508552849292755}),
        ("        test_loss           0.4508552849292755", {"test_loss": 0.4508552849292755}),
    ],
)
def test_what_it_prints(line: str, values: dict[str, float]) -> None:
    assert from_line(line) == values


@pytest.mark.parametrize(
    "line",
    [
        "Epoch 1:   0%|          | 0/8 [00:00<?, ?it/s, v_num=1, train_loss=0.109, val_loss=0.197]",
        "Epoch 0:  25%|██▌       | 2/8 [00:00<00:00, 574.96it/s]",
        "Validation DataLoader 0: 100%|██████████| 8/8 [00:00<00:00, 1531.68it/s]\x1b[A",
        "Epoch 3: loss=0.500, acc=0.800",
        "┃        Test metric        ┃       DataLoader 0        ┃",
        "metrics {'test_loss': tensor(0.3050)}",
        "Epoch 1: " + "a=1, " * 1000,
    ],
)
def test_what_reports_nothing(line: str) -> None:
    assert from_line(line) == {}


def test_numbers_that_are_none_and_patterns_of_the_manifest() -> None:
    bar = "Epoch 2:  50%|█████     | 4/8 [00:00<00:00, 9.1it/s, v_num=1, loss=nan]"
    metric = metric_of(bar, 0)
    assert metric is not None
    assert (metric.epoch, metric.values) == (2, {"loss": None})
    chosen = metric_of(bar, 0, Patterns.of({"part": r"(\d+)%"}))
    assert chosen is not None
    assert chosen.values == {"part": 50}


def test_rows_of_its_log_are_read_once_also_where_the_header_changes() -> None:
    first = "epoch,step,train_loss\n0,1,0.67\n0,3,0.52\n"
    rows, taken = from_csv(first + "0,5,0.", 0)
    assert (rows[1], taken) == ({"epoch": 0, "step": 3, "train_loss": 0.52}, 2)
    again = "epoch,step,train_loss,val_loss\n0,1,0.67,\n0,3,0.52,\n0,5,0.31,\n0,7,,0.34\n"
    rows, taken = from_csv(again, taken)
    assert rows == [
        {"epoch": 0, "step": 5, "train_loss": 0.31},
        {"epoch": 0, "step": 7, "val_loss": 0.34},
    ]
    assert from_csv("epoch,step\n0,1\n", taken) == ([], 4), "it is being written anew"


def test_its_log_is_followed_over_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", lambda: None)
    path = tmp_path / "work" / "lightning_logs" / "version_0" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("epoch,step,train_loss\n0,1,0.67\n0,3,0.52\n")
    Tables(journal, [tmp_path / "work"], 0).look()
    path.write_text("epoch,step,train_loss,val_loss\n0,1,0.67,\n0,3,0.52,\n0,3,,0.34\n")
    Tables(journal, [tmp_path / "work"], 0).look()
    said = [record.data for record in journal.after(0)]
    assert [(data["step"], data["values"]) for data in said] == [
        (1, {"train_loss": 0.67}), (3, {"train_loss": 0.52}), (3, {"val_loss": 0.34}),
    ]  # fmt: skip
    journal.close()


@given(st.text() | st.text().map("Epoch 1: 10%| 1/8 [0:0<0, 1it/s, a={}]".format))
def test_any_text_is_survived(text: str) -> None:
    assert all(isinstance(value, float) for value in from_line(text).values())
    from_csv(text, 0)
    assert not math.isnan(from_csv(text, 0)[1])
