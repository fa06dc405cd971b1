"""Which checkpoints are whole, and how they get from one machine to another."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from trainforge.executor import checkpoints
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


# --- parts of several nodes -----------------------------------------------------------------------------


def node(folder: Path, rank: int, attempt: int = 1, nodes: int = 2) -> Checkpoints:
    made = Checkpoints(folder / f"node-{rank}-{attempt}", attempt, rank, nodes)
    made.files.mkdir(parents=True, exist_ok=True)
    return made


def keep(checkpoints: Checkpoints, store: Store) -> Keeper:
    return Keeper(checkpoints, store, 0, fail)


def test_parts_of_all_nodes_make_a_checkpoint_for_any_machine(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), "job", keep=1)
    first, second = node(tmp_path, 0), node(tmp_path, 1)
    for step in (1, 2):
        for each in (first, second):
            write(each, f"step-{step}/shard-{each.rank}", f"{step}/{each.rank}", age=9 - step)
            write(each, f"step-{step}/config", f"of {each.rank}", age=9 - step)
    keep(first, store).look(time.time())
    assert store.complete() == [], "the second node's parts are missing"
    write(second, "step-2/shard-1", "being written")
    keep(second, store).look(time.time() - 5)
    assert [made.key for made in store.complete()] == ["1/step-1"], "the newest of which all is there"
    other = node(tmp_path, 1, attempt=2, nodes=3)
    other.restore(store)
    assert keys(other) == ["1/step-1"]
    folder = Path(other.path("1/step-1"))
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "shard-0": "1/0", "shard-1": "1/1", "config": "of 0",
    }  # fmt: skip
    same = node(tmp_path, 1, attempt=3)
    same.restore(store)
    assert Path(same.path("1/step-1"), "config").read_text() == "of 1", "each node finds its own again"


def test_older_parts_go_when_a_newer_checkpoint_is_complete(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), "job", keep=1)
    nodes = [node(tmp_path, rank) for rank in (0, 1)]
    for step in range(3):
        for each in nodes:
            write(each, f"step-{step}", "x", age=9 - step)
            keep(each, store).look(time.time())
    keep(nodes[0], store).look(time.time())
    left = {(marker.name, marker.rank) for marker in store.markers()}
    assert {("step-2", 0), ("step-2", 1)} <= left
    assert not {name for name, _ in left} & {"step-0"}


def test_what_one_node_alone_writes_is_complete_once_the_others_are_known_to_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "LACKING_S", 0.0)
    store = Store(str(tmp_path / "store"), "job", keep=1)
    first, second = node(tmp_path, 0), node(tmp_path, 1)
    for number in range(2):
        write(first, "last", f"newest {number}", age=9 - number)
        keep(first, store).look(time.time())
    assert store.complete() == []
    keep(second, store).look(time.time())
    assert [made.key for made in store.complete()] == ["1/last"]
    third = node(tmp_path, 0, attempt=2, nodes=1)
    third.restore(store)
    assert Path(third.path("1/last")).read_text() == "newest 1"


def test_a_node_that_has_ended_is_waited_for_no_more(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), "job", keep=1)
    first, second = node(tmp_path, 0), node(tmp_path, 1)
    write(first, "step-1", "x", age=9)
    keep(second, store).end(time.time())
    keep(first, store).look(time.time())
    assert [made.key for made in store.complete()] == ["1/step-1"]


def test_parts_that_were_overwritten_are_never_mixed(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), "job", keep=2)
    first, second = node(tmp_path, 0), node(tmp_path, 1)
    for each, times in ((first, 2), (second, 1)):
        for number in range(times):
            write(each, f"last/shard-{each.rank}", f"step {number}", age=9 - number)
            keep(each, store).look(time.time())
    assert len(store.markers()) == 2
    assert store.complete() == []


def test_a_node_offers_its_own_part_as_the_same_of_as_many_nodes_alone(tmp_path: Path) -> None:
    first = node(tmp_path, 0)
    write(first, "step-1", "x", age=9)
    first.seal(0, time.time())
    folder = first.files.parent
    assert keys(Checkpoints(folder, 2, 0, 2)) == ["1/step-1"]
    for rank, nodes in ((1, 2), (0, 3), (0, 1)):
        changed = Checkpoints(folder, 2, rank, nodes)
        assert keys(changed) == []
        assert changed.only_parts()
