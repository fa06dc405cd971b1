"""Which checkpoints are whole, and how they get from one machine to another."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from trainforge.executor.checkpoint_store import Store
from trainforge.executor.checkpoints import Checkpoints, Keeper


def machine(folder: Path, attempt: int = 1) -> Checkpoints:
    made = Checkpoints(folder, attempt)
    made.files.mkdir(parents=True, exist_ok=True)
    return made


def write(checkpoints: Checkpoints, name: str, text: str, age: float = 0) -> None:
    path = checkpoints.files / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


def keys(checkpoints: Checkpoints) -> list[str]:
    return [seal.key for seal in checkpoints.whole()]


def fail(words: str) -> None:
    raise AssertionError(words)


def test_what_changed_after_its_seal_is_not_gone_on_from(tmp_path: Path) -> None:
    here = machine(tmp_path)
    write(here, "step-1", "whole", age=9)
    write(here, "step-2/model", "being written")
    write(here, "step-3.tmp", "aside", age=9)
    write(here, ".hidden", "aside", age=9)
    assert [seal.name for seal in here.seal(0, time.time() - 5)] == ["step-1"]
    assert keys(here) == ["1/step-1"]
    assert Path(here.path("1/step-1")).read_text() == "whole"
    write(here, "step-1", "half of the ne")
    assert keys(here) == []
    assert here.path("1/step-1") == ""


def test_what_an_earlier_attempt_left_half_written_is_never_sealed(tmp_path: Path) -> None:
    write(machine(tmp_path), "step-1", "half", age=60)
    later = machine(tmp_path, attempt=2)
    write(later, "step-2", "whole", age=5)
    assert [seal.key for seal in later.seal(time.time() - 30, time.time())] == ["2/step-2"]


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_another_machine_goes_on_from_the_store(tmp_path: Path, form: str) -> None:
    url = form.format(tmp_path / "store")
    one, other = machine(tmp_path / "one"), machine(tmp_path / "other", attempt=2)
    keeper = Keeper(one, Store(url, "job", keep=2), 0, fail)
    for step in range(4):
        write(one, f"step-{step}/model", f"weights {step}", age=10 - step)
        write(one, f"step-{step}/deep", "optimizer", age=10 - step)
        write(one, "last", f"newest {step}", age=9.5 - step)
        keeper.look(time.time())
    store = Store(url, "job", keep=2)
    assert [marker.key for marker in store.markers()] == ["1/last", "1/step-3"]
    assert len(list((tmp_path / "store" / "job").iterdir())) == 4, "two contents and their markers"
    other.restore(store)
    assert Path(other.path("1/last")).read_text() == "newest 3"
    assert keys(other) == ["1/last"]
    write(other, "step-9/model", "its own")
    Keeper(other, store, 0, fail).look(time.time() + 1)
    assert keys(other)[0] == "2/step-9", "a later attempt's is newer, whatever the clocks say"
    third = machine(tmp_path / "third", attempt=3)
    third.restore(store)
    assert Path(third.path("2/step-9"), "model").read_text() == "its own"
    store.clear()
    assert store.markers() == []


def test_a_store_that_lost_content_says_so_and_the_training_begins_anew(tmp_path: Path) -> None:
    one, other = machine(tmp_path / "one"), machine(tmp_path / "other", attempt=2)
    store = Store(str(tmp_path / "store"), "job", keep=1)
    write(one, "step-1", "weights", age=5)
    Keeper(one, store, 0, fail).look(time.time())
    (content,) = (tmp_path / "store" / "job").glob("1-*/file")
    content.write_text("torn")
    with pytest.raises(OSError, match="another size"):
        other.restore(store)
    assert keys(other) == []


def test_trouble_with_the_store_is_told_once_and_tried_again(tmp_path: Path) -> None:
    here = machine(tmp_path / "here")
    (tmp_path / "store").write_text("not a folder")
    told: list[str] = []
    keeper = Keeper(here, Store(str(tmp_path / "store"), "job", keep=1), 0, told.append)
    write(here, "step-1", "weights", age=5)
    keeper.look(time.time())
    keeper.look(time.time())
    assert len(told) == 1, told
    (tmp_path / "store").unlink()
    keeper.look(time.time())
    assert len(Store(str(tmp_path / "store"), "job", keep=1).markers()) == 1
