"""The journal and the follower: nothing lost, nothing double, whatever is torn off at the end."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainforge.config.messages import Log, Note, Phase
from trainforge.executor.follow import CUT, LINE_LIMIT, Follower, take
from trainforge.executor.journal import Journal


def lines_of(journal: Journal) -> list[str]:
    text = "".join(record.data["text"] for record in everything(journal) if record.kind == "log")
    return text.splitlines()


def everything(journal: Journal) -> list[object]:
    found: list[object] = []
    while batch := journal.after(len(found)):
        found += batch
    return found


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("phase", Phase(phase="checkout"))
    journal.close()
    again = Journal(tmp_path / "j")
    again.append("phase", Phase(phase="data", detail="ä"))
    assert [record.n for record in again.after(0)] == [1, 2]
    assert again.find("phase") == again.after(1)[0]
    assert again.find("ended") is None
    again.close()
    assert again.after(0) == []


def test_every_torn_tail_leaves_whole_steps() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "j")
        journal = Journal(path)
        journal.append("note", Note(text="one"))
        first = path.stat().st_size
        journal.append_step(
            [("note", Note(text="two")), ("log", Log(rank=0, text="three\n"))], {"f": (5, False)}
        )
        journal.close()
        whole = path.read_bytes()
        for size in range(len(whole) + 1):
            path.write_bytes(whole[:size])
            torn = Journal(path)
            expected = 0 if size < first else 1 if size < len(whole) else 3
            assert torn.last == expected
            assert torn.positions == ({"f": [5, False]} if expected == 3 else {})
            torn.append("note", Note(text="after"))
            torn.close()
            assert [json.loads(line)["n"] for line in path.read_bytes().splitlines()] == list(
                range(1, expected + 2)
            )


def test_batches_are_bounded(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for _ in range(40):
        journal.append("log", Log(rank=0, text="x" * 200_000))
    for _ in range(1100):
        journal.append("note", Note(text="n"))
    sizes = []
    number = 0
    while batch := journal.after(number):
        assert batch[0].n == number + 1
        sizes.append((len(batch), sum(len(record.model_dump_json()) for record in batch)))
        number += len(batch)
    assert number == 1140
    assert all(count <= 1000 and size < 4 * 2**20 for count, size in sizes)
    journal.close()


@given(
    parts=st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b"a\n", b"\r", b"x" * 70]), max_size=30),
    kills=st.sets(st.integers(0, 30)),
)
def test_followed_once_whatever_is_killed(parts: list[bytes], kills: set[int]) -> None:
    """Whole lines as they were written, in order, however often the follower is killed in between."""
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder, "0.stdout"), Path(folder, "j")
        source.touch()
        journal = Journal(path)
        follower = Follower(journal)
        follower.add(source, 0, "stdout")
        for number, part in enumerate(parts):
            with source.open("ab") as file:
                file.write(part)
            follower.step()
            if number in kills:
                journal.close()
                journal = Journal(path)
                follower = Follower(journal)
                follower.add(source, 0, "stdout")
        follower.drain()
        written = b"".join(parts).removesuffix(b"\n").split(b"\n") if b"".join(parts) else []
        expected = [line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace") for line in written]
        text = "".join(record.data["text"] for record in everything(journal) if record.kind == "log")  # type: ignore[attr-defined]
        assert text == "".join(line + "\n" for line in expected).replace("\0", "\N{REPLACEMENT CHARACTER}")
        journal.close()


def test_a_very_long_line_is_cut_once(tmp_path: Path) -> None:
    source = tmp_path / "0.stdout"
    source.write_bytes(b"before\n" + b"x" * 2**20 + b"\nafter\n")
    journal = Journal(tmp_path / "j")
    follower = Follower(journal)
    follower.add_ranks(tmp_path)
    follower.drain()
    lines = lines_of(journal)
    assert [line[:10] for line in lines] == ["before", "x" * 10, "after"]
    assert len(lines[1]) == LINE_LIMIT + len(CUT)
    journal.close()


def test_what_was_written_first_is_told_first(tmp_path: Path) -> None:
    """A traceback comes after what was printed before it, a warning before what was printed after it."""
    big = [f"line {number}" for number in range(60_000)]
    files = {"0.stdout": "\n".join(big) + "\n", "0.stderr": "Traceback\n"}
    for second, (name, text) in enumerate(files.items()):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (second, second))
    (tmp_path / "1.stdout").write_text("late\n")
    (tmp_path / "1.stderr").write_text("early\n")
    os.utime(tmp_path / "1.stderr", (1, 1))
    journal = Journal(tmp_path / "j")
    follower = Follower(journal)
    follower.add_ranks(tmp_path)
    follower.drain()
    lines = lines_of(journal)
    assert [line for line in lines if line not in {"early", "late"}] == [*big, "Traceback"]
    assert lines.index("early") < lines.index("late")
    journal.close()


def test_half_a_line_waits_and_a_progress_bar_shows_its_last_state() -> None:
    assert take(b"half", cutting=False, final=False).size == 0
    assert take(b"half", cutting=False, final=True).text == "half\n"
    assert take(b"1%\r2%\r3%\r\n", cutting=False, final=False).text == "3%\n"
    bar = take(b"50%\r" * 2000 + b"51", cutting=False, final=False)
    assert (bar.text, bar.size) == ("50%\n", 8000)


def test_a_flood_is_cut_off_with_one_note(tmp_path: Path) -> None:
    source = tmp_path / "0.stdout"
    journal = Journal(tmp_path / "j")
    follower = Follower(journal, limit=1000)
    follower.add_ranks(tmp_path)
    for _ in range(50):
        with source.open("a") as file:
            file.write("flood " * 100 + "\n")
        follower.add_ranks(tmp_path)
        follower.step()
    assert len(lines_of(journal)) < 5
    assert len([record for record in journal.after(0) if record.kind == "note"]) == 1
    journal.close()


@pytest.mark.parametrize("junk", [b"", b"garbage", b'{"n": 1', b"\x00\xff\n"])
def test_a_damaged_end_is_cut(tmp_path: Path, junk: bytes) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("note", Note(text="kept"))
    journal.close()
    with (tmp_path / "j").open("ab") as file:
        file.write(junk)
    again = Journal(tmp_path / "j")
    assert again.last == 1
    again.close()
