"""Secrets on the executor's side: in the job's environment, and nowhere that lasts or leaves."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.waiting import wait_for
from trainforge.config.errors import Forbidden, NodeFailed, NotFound, Unreachable
from trainforge.config.messages import FencingToken, NodeKey
from trainforge.config.redact import MASK, Redactor
from trainforge.executor.commands import Setup
from trainforge.executor.job_secrets import JobSecrets
from trainforge.executor.launch import RANK_PROGRAM, Launch
from trainforge.executor.supervise import Exit, Supervised

VALUE = "canary/Zq8+v71=x"
NODE = NodeKey(job="a" * 26, attempt=1, rank=0)
TOKEN = FencingToken(incarnation=1, number=1)


def supervised(root: Path, script: str, processes: int = 1) -> Supervised:
    (root / "train.py").write_text(script)
    run = root / "run"
    run.mkdir()
    found = Supervised(run)
    argv = [sys.executable, "-I", "-S", RANK_PROGRAM, str(run), "0"]
    places = ((str(rank), str(processes)) for rank in range(processes))
    ranks = tuple({"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world} for rank, world in places)
    command = [sys.executable, "-u", "train.py"]
    found.prepare(
        Launch(argv, command, root, processes, processes, dict(os.environ), starts=ranks),
        timeout_s=None, grace_s=0.3,
    )  # fmt: skip
    return found


def end(run: Supervised) -> Exit:
    return wait_for("exit", run.exit, 30)


def everything(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_training_sees_its_secrets_and_its_logs_do_not(tmp_path: Path) -> None:
    script = (
        "import os, sys, base64\n"
        "value = os.environ['HF_TOKEN']\n"
        "print(len(value), value, flush=True)\n"
        "print(base64.b64encode(b'x' + value.encode()).decode())\n"
        "for letter in value: os.write(1, letter.encode())\n"
        "print(); print('rank', os.environ['RANK'])\n"
        "print('cannot use', value, file=sys.stderr)\n"
    )
    run = supervised(tmp_path, script, processes=2)
    run.start({"env": {"HF_TOKEN": VALUE}, "mask": [VALUE]})
    assert end(run).exit_code == 0
    for rank in (0, 1):
        out = (run.run / "logs" / f"{rank}.stdout").read_text()
        assert out.splitlines()[0] == f"{len(VALUE)} {MASK}"
        assert out.splitlines()[2:] == [MASK, f"rank {rank}"]
        assert (run.run / "logs" / f"{rank}.stderr").read_text() == f"cannot use {MASK}\n"
    files = everything(tmp_path)
    assert Redactor([VALUE]).bytes(files) == files


def test_nothing_is_lost_of_a_long_output_on_its_way_through_the_masking(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "for number in range(20000): print(number, os.environ['HF_TOKEN'], 'and some more words')\n"
        "sys.stdout.write('no line end')\n"
    )
    run = supervised(tmp_path, script)
    run.start({"env": {"HF_TOKEN": VALUE}, "mask": [VALUE]})
    assert end(run).exit_code == 0
    lines = (run.run / "logs" / "0.stdout").read_text().splitlines()
    assert lines == [f"{number} {MASK} and some more words" for number in range(20000)] + ["no line end"]


def test_a_supervisor_keeps_masking_for_whoever_comes_next(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, time\n"
        "print('up', flush=True)\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.02)\n"
        "print(os.environ['HF_TOKEN'])\n"
    )
    run = supervised(tmp_path, script)
    run.start({"env": {"HF_TOKEN": VALUE}, "mask": [VALUE]})
    log = run.run / "logs" / "0.stdout"
    wait_for("training", lambda: log.exists() and "up" in log.read_text(), 30)
    later = Supervised(run.run)
    later.start()  # without secrets: it is running, so nothing happens
    (tmp_path / "go").touch()
    assert end(later).exit_code == 0
    assert log.read_text() == f"up\n{MASK}\n"


def test_a_process_that_starts_again_in_place_sees_secrets_and_its_logs_do_not(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import os\n"
        "value = os.environ['HF_TOKEN']\n"
        "print('uses', value, flush=True)\n"
        "if not os.path.exists('failed'): open('failed', 'w').close(); raise ValueError(value)\n"
    )
    run = tmp_path / "run"
    (run / "restarts").mkdir(parents=True)
    (run / "restarts" / "1.offers").write_text("{}")  # there is no checkpoint to go on from
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node=1"]
    argv += ["--max-restarts=1", "--no-python", sys.executable, "-I", "-S", RANK_PROGRAM, str(run), "0"]
    found = Supervised(run)
    command = [sys.executable, "-u", "train.py"]
    found.prepare(Launch(argv, command, tmp_path, 1, 1, dict(os.environ)), timeout_s=None, grace_s=0.3)
    found.start({"env": {"HF_TOKEN": VALUE}, "mask": [VALUE]})
    assert wait_for("exit", found.exit, 120).exit_code == 0
    out = (run / "logs" / "0.stdout").read_text()
    assert out == f"uses {MASK}\nrestart 1 in place, from the beginning\nuses {MASK}\n"
    assert f"ValueError: {MASK}" in (run / "logs" / "0.stderr").read_text()
    files = everything(tmp_path)
    assert Redactor([VALUE]).bytes(files) == files


def test_a_preparing_command_sees_secrets_and_its_log_does_not(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "setup.log", time.monotonic() + 30, lambda: False)
    env = {**os.environ, "HF_TOKEN": VALUE}
    redactor = Redactor([VALUE])
    with pytest.raises(NodeFailed) as failure:
        setup.run(
            ["/bin/sh", "-c", 'echo "a $HF_TOKEN b"; echo $HF_TOKEN >&2; exit 3'],
            cwd=tmp_path, env=env, code="environment_failed", redactor=redactor,
        )  # fmt: skip
    assert setup.log.read_text() == f"a {MASK} b\n{MASK}\n"
    assert VALUE not in str(failure.value)


# --- fetching ---------------------------------------------------------------------------------------------


def fetched(answer: Callable[[], dict[str, str]], *, own: tuple[str, ...] = ()) -> JobSecrets:
    found = JobSecrets(NODE, lambda: TOKEN, lambda *_: answer(), own)
    found.names = ["HF_TOKEN"]
    return found


def test_an_unreachable_sender_is_asked_again_and_a_refusal_is_final() -> None:
    answers: list[Exception | dict[str, str]] = [Unreachable("away"), {"HF_TOKEN": VALUE}]

    def answer() -> dict[str, str]:
        said = answers.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    found = fetched(answer)
    found.require(lambda: None, lambda _: setattr(found, "_tried", 0.0))
    assert found.values == {"HF_TOKEN": VALUE}
    for error in (NotFound("not set", code="secret_missing"), Forbidden("no", code="secret_refused")):
        answers[:] = [error]
        with pytest.raises(NodeFailed) as failure:
            fetched(answer).require(lambda: None)
        assert failure.value.code == error.code


def test_journal_records_lose_secrets_and_keep_their_form() -> None:
    found = fetched(lambda: {"HF_TOKEN": "values"}, own=("machine-token",))
    found.require(lambda: None)
    join = "tfj_" + "a" * 64
    assert found.record("metric", {"rank": 0, "values": {"my values": "x values", "n": 1.5}}) == {
        "rank": 0, "values": {f"my {MASK}": f"x {MASK}", "n": 1.5},
    }  # fmt: skip
    said = {"code": "values", "reason": f"values, machine-token, {join}, https://ada:pw@host/x", "tail": ""}
    assert found.record("ended", said) == {
        "code": "values", "reason": f"{MASK}, {MASK}, {MASK}, https://{MASK}@host/x", "tail": "",
    }  # fmt: skip
    assert found.record("published", {"path": "values"}) == {"path": "values"}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6), st.integers(0, 300))
def test_a_secret_in_a_file_is_found_wherever_the_blocks_end(
    text: bytes, cuts: list[int], place: int
) -> None:
    data = text[:place] + VALUE.encode() + text[place:]
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    redactor = Redactor([VALUE])
    assert redactor.finds(data[a:b] for a, b in pairwise(borders))
    assert redactor.finds([text]) == (VALUE.encode() in text)


def test_what_the_supervisor_is_told_is_json() -> None:
    found = fetched(lambda: {"HF_TOKEN": VALUE}, own=("machine-token",))
    assert found.private() == {}
    found.require(lambda: None)
    assert json.loads(json.dumps(found.private())) == {
        "env": {"HF_TOKEN": VALUE}, "mask": [VALUE, "machine-token"],
    }  # fmt: skip
