"""Nodes from their first order to their last: real git, real processes, real HTTP."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.executors import Project, ended, forgotten, joined, running, story
from support.scripts import FAILING
from support.sender_double import NodeState, SenderDouble
from support.waiting import wait_for
from trainforge.config.messages import ForgetOrder, PublishOrder, StopOrder
from trainforge.executor.agent import Agent

PLAIN = """\
import json, os
from pathlib import Path
print("hello from", os.environ["TRAINFORGE_JOB_ID"])
for epoch in range(1, 4):
    print(f"PROGRESS: {json.dumps({'epoch': epoch, 'loss': 1 / epoch, 'accuracy': epoch / 5})}")
with open(os.environ["TRAINFORGE_METRICS_FILE"], "a") as file:
    file.write('{"step": 3, "val_loss": 0.25}\\n')
print(json.load(open(os.environ["TRAINFORGE_PARAMS_FILE"])))
Path(os.environ["TRAINFORGE_OUTPUT_DIR"], "model.bin").write_bytes(b"weights")
Path("outputs").mkdir()
Path("outputs/report.txt").write_text("fine")
"""
FOUNDING = "project: {name: test}\ntraining: {script: train.py}\nresources: {memory: 16Mi}\n"


def test_a_node_trains_and_publishes(double: SenderDouble, tmp_path: Path) -> None:
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": PLAIN})
    chosen, executor = joined(double, tmp_path / "laptop")
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order(params={"batch_size": 8}))
        forgotten(chosen, node)
    end = node.last("ended")
    assert (end["exit_code"], end["code"], end["world_size"]) == (0, "", 1)
    assert node.phases() == [
        "checkout", "environment", "data", "ready", "training", "collecting", "publishing",
    ]  # fmt: skip
    assert "hello from " + node.key.job in node.text(0)
    assert "{'batch_size': 8}" in node.text(0)
    metrics = node.data("metric")
    assert [metric["epoch"] for metric in metrics if metric["epoch"]] == [1.0, 2.0, 3.0]
    assert next(metric for metric in metrics if metric["step"] == 3)["values"] == {"val_loss": 0.25}
    folder = node.last("published")["path"]
    results = project.results()
    assert json.loads(results[f"{folder}/result.json"])["outcome"] == "completed"
    assert results[f"{folder}/artifacts/model.bin"] == "weights"
    assert results[f"{folder}/artifacts/outputs/report.txt"] == "fine"
    assert {"README.md"} <= results.keys()


def one(double: SenderDouble, root: Path, files: dict[str, str], **changes: Any) -> NodeState:
    """Run one node of these files to its end."""
    project = Project(root, files)
    chosen, executor = joined(double, root / "laptop")
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order(**changes))
        ended(node)
        forgotten(chosen, node)
    return node


def test_a_failing_script_says_why(double: SenderDouble, tmp_path: Path) -> None:
    node = one(double, tmp_path, {"trainforge.yaml": FOUNDING, "train.py": FAILING + "\n"})
    end = node.last("ended")
    assert (end["exit_code"], end["code"]) == (1, "script_failed")
    assert end["reason"] == "the training exited with 1: ZeroDivisionError: division by zero"
    assert "line 2, in divide" in end["tail"]
    assert node.last("published")["outcome"] == "failed"


@pytest.mark.parametrize(
    ("manifest", "script", "code", "words"),
    [
        ("training: {script: other.py}", "", "script_missing", "there is no file other.py"),
        ("training: {script: train.py, working_dir: a}", "", "script_missing", "no folder a"),
        ("training: {script: train.py, requirements: r.txt}", "", "environment_failed", "no file r.txt"),
        ("training: {script: train.py, setup: exit 3}", "", "environment_failed", "exited with 3"),
        ("training: {script: train.py, python: <3.4}", "", "environment_failed", "asks for"),
        (
            "training: {script: train.py}\ntimeout: {run: 1s, grace: 1s}",
            "import time; time.sleep(99)", "timeout_run", "1 s",
        ),
        (
            "training: {script: train.py}",
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); bytearray(2**31)",
            "out_of_memory", "MemoryError",
        ),
        (
            "training: {script: train.py}", "import os; os.kill(os.getpid(), 9)  # as the kernel does it",
            "out_of_memory", "SIGKILL",
        ),
        (
            "training: {script: train.py}", "class OutOfMemoryError(RuntimeError): pass\n"
            "OutOfMemoryError.__module__ = 'torch'\n"
            "raise OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
            "out_of_memory", "Tried to allocate 2.00 GiB",
        ),
        ("training: {script: train.py}", "import os; os.kill(os.getpid(), 11)", "script_failed", "SIGSEGV"),
        ("training: {script: train.py}\ndata: {url: 'file:///nowhere'}", "", "data_failed", "nowhere"),
        ("training: {script: train.py}\ntimeout: {setup: 1s}", "", "", ""),
    ],
)  # fmt: skip
def test_what_goes_wrong_has_a_code(
    double: SenderDouble, tmp_path: Path, *, manifest: str, script: str, code: str, words: str
) -> None:
    text = f"project: {{name: test}}\n{manifest}\n"
    if "python:" in manifest:
        text += "environment: {mode: inherit}\n"
    node = one(double, tmp_path, {"trainforge.yaml": text, "train.py": script})
    end = node.last("ended")
    assert end["code"] == code, story(node)
    assert words in end["reason"]


def test_preparing_fills_no_disk(double: SenderDouble, tmp_path: Path) -> None:
    fill = "head -c 60000000 /dev/zero > big && sleep 500"
    text = f"project: {{name: test}}\ntraining: {{script: train.py, setup: ['{fill}']}}\n"
    project = Project(tmp_path, {"trainforge.yaml": text, "train.py": ""})
    chosen, executor = joined(double, tmp_path / "laptop", max_disk_gb=0.03)
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order())
        last = ended(node)
    assert last["code"] == "disk_limit", story(node)
    assert "0.03 GB that this machine gives" in last["reason"]


def test_a_manifest_other_than_planned_is_refused(double: SenderDouble, tmp_path: Path) -> None:
    node = one(double, tmp_path, {"trainforge.yaml": FOUNDING, "train.py": ""}, manifest_blob="0" * 40)
    assert node.last("ended")["code"] == "checkout_failed"


def test_a_commit_that_is_not_there(double: SenderDouble, tmp_path: Path) -> None:
    node = one(double, tmp_path, {"trainforge.yaml": FOUNDING, "train.py": ""}, commit="1" * 40)
    assert node.last("ended")["code"] == "no_such_commit"


def test_overrides_change_the_manifest(double: SenderDouble, tmp_path: Path) -> None:
    files = {"trainforge.yaml": FOUNDING, "train.py": "", "b.py": "print('b ran')"}
    node = one(double, tmp_path, files, overrides={"training.script": "b.py"})
    assert "b ran" in node.text(0)


def test_stopping_ends_the_whole_tree(double: SenderDouble, tmp_path: Path) -> None:
    script = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(500)'], start_new_session=True)\n"
        "print('pids', os.getpid(), child.pid, flush=True)\n"
        "time.sleep(500)\n"
    )
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": script})
    chosen, executor = joined(double, tmp_path / "laptop", isolation="process")
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order())
        wait_for("pids", lambda: "pids" in node.text(0), 60, lambda: story(node))
        pids = [int(word) for word in node.text(0).split() if word.isdigit()]
        double.give(node, StopOrder(code="stopped", reason="enough", grace_s=0.3))
        assert ended(node)["code"] == "stopped"
        assert not any(psutil.pid_exists(pid) for pid in pids)
        forgotten(chosen, node)


def test_a_node_that_the_sender_gave_away_is_stopped_and_removed(
    double: SenderDouble, tmp_path: Path
) -> None:
    project = Project(
        tmp_path,
        {"trainforge.yaml": FOUNDING, "train.py": "import time\nprint(1, flush=True)\ntime.sleep(500)"},
    )
    chosen, executor = joined(double, tmp_path / "laptop")
    with running(chosen) as agent:
        nodes = [double.run(project.job(str(n)), [executor], project.order())[0] for n in range(1)]
        wait_for("training", lambda: all(node.text(0) for node in nodes), 60, lambda: story(nodes[0]))
        double.unknown.add(nodes[0].key)
        wait_for("removal", lambda: not agent.nodes)
        assert not list((chosen.data_dir / "nodes").iterdir())
        assert not project.results()


def test_what_was_published_is_kept_whether_told_to_forget_or_not_known_any_more(
    double: SenderDouble, tmp_path: Path
) -> None:
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": "print(1)"})
    chosen, executor = joined(double, tmp_path / "laptop")
    with running(chosen) as agent:
        (node,) = double.run(project.job(), [executor], project.order())
        wait_for("publication", lambda: node.data("published"), 60, lambda: story(node))
        double.unknown.add(node.key)
        wait_for("removal", lambda: not agent.nodes)
        assert (chosen.data_dir / "spool" / str(node.key) / "record.json").exists()


def test_a_stale_token_ends_a_node(double: SenderDouble, tmp_path: Path) -> None:
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": "import time\ntime.sleep(500)"})
    chosen, executor = joined(double, tmp_path / "laptop")
    with running(chosen) as agent:
        (node,) = double.run(project.job(), [executor], project.order())
        wait_for("training", lambda: node.data("started"), 60, lambda: story(node))
        node.fenced = True
        double.give(node, StopOrder(code="stopped", reason="so that it has something to say"))
        wait_for("removal", lambda: not agent.nodes)


def test_the_result_waits_for_the_remote(double: SenderDouble, tmp_path: Path) -> None:
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": "print(1)"})
    away = tmp_path / "away.git"
    chosen, executor = joined(double, tmp_path / "laptop")
    double.auto = False
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order())
        ended(node)
        project.bare.rename(away)
        double.give(node, PublishOrder(outcome="completed"))
        wait_for("waiting", lambda: node.data("publish_waiting"), 60, lambda: story(node))
        away.rename(project.bare)
        wait_for("publication", lambda: node.data("published"), 60, lambda: story(node))
    assert project.results()


def test_results_that_wait_for_their_turn_go_together(double: SenderDouble, tmp_path: Path) -> None:
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": "print(1)"})
    pushes = tmp_path / "pushes"
    hook = project.bare / "hooks" / "post-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ncat >> {pushes}\n")
    hook.chmod(0o755)
    chosen, executor = joined(double, tmp_path / "laptop")
    double.turn_at = time.time() + 3600
    with running(chosen):
        nodes = [double.run(project.job(str(n)), [executor], project.order())[0] for n in range(3)]
        for node in nodes:
            wait_for("waiting", lambda: node.data("publish_waiting"), 60, lambda: story(node))  # noqa: B023
            assert "its turn" in node.last("publish_waiting")["reason"]
        double.turn_at = 0.0
        for node in nodes:
            wait_for("publication", lambda: node.data("published"), 60, lambda: story(node))  # noqa: B023
            assert len(node.data("publish_waiting")) == 1
    assert len(pushes.read_text().splitlines()) == 1
    records = [path for path in project.results() if path.endswith("/result.json") and "jobs/" in path]
    assert len(records) == 3


def test_a_remote_that_refuses_for_good_is_said_once(double: SenderDouble, tmp_path: Path) -> None:
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": "print(1)"})
    hook = project.bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'GH013: secrets found' >&2\nexit 1\n")
    hook.chmod(0o755)
    chosen, executor = joined(double, tmp_path / "laptop")
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order())
        wait_for("verdict", lambda: node.data("finished"), 60, lambda: story(node))
    assert node.last("finished")["code"] == "publish_blocked"
    assert "GH013" in node.last("finished")["reason"]
    assert not node.data("published")


def test_what_the_remote_refuses_is_kept_and_the_rest_published(double: SenderDouble, tmp_path: Path) -> None:
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": PLAIN})
    hook = project.bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(
        "#!/bin/sh\nread old new ref\n"
        "git ls-tree -r --name-only $new | grep -q model.bin || exit 0\n"
        "printf 'GH001: \\033[31mLarge files detected' >&2\nexit 1\n"
    )
    hook.chmod(0o755)
    chosen, executor = joined(double, tmp_path / "laptop")
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order())
        forgotten(chosen, node)
    said = node.last("published")
    assert said["outcome"] == "failed"
    result = json.loads(project.results()[f"{said['path']}/result.json"])
    assert (result["outcome"], result["code"]) == ("failed", "publish_blocked")
    assert "GH001: Large files detected" in result["reason"]
    assert any("kept for 14 days" in notice for notice in result["notices"])
    stored = {artifact["path"]: artifact["stored"] for artifact in result["artifacts"]}
    assert "refused" in stored["model.bin"]
    (kept,) = (chosen.data_dir / "spool").iterdir()
    assert (kept / "files" / "model.bin").read_bytes() == b"weights"


def test_several_jobs_side_by_side(double: SenderDouble, tmp_path: Path) -> None:
    """All begin before any ends; one more than there is room for waits."""
    meet = tmp_path / "meet"
    meet.mkdir()
    script = (
        "import os, pathlib, time\n"
        f"here = pathlib.Path({str(meet)!r})\n"
        "(here / os.environ['TRAINFORGE_JOB_ID']).touch()\n"
        "end = time.monotonic() + 60\n"
        "while len(list(here.iterdir())) < 3 and time.monotonic() < end: time.sleep(0.05)\n"
        "print('met', len(list(here.iterdir())))\n"
    )
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": script})
    chosen, executor = joined(double, tmp_path / "laptop", max_jobs=3, isolation="process")
    with running(chosen):
        nodes = [double.run(project.job(str(n)), [executor], project.order())[0] for n in range(4)]
        for node in nodes:
            assert ended(node)["code"] == "", story(node)
            forgotten(chosen, node)
    assert sum("met 3" in node.text(0) for node in nodes) >= 3
    assert len([path for path in project.results() if path.endswith("result.json") and "jobs/" in path]) == 4


def test_checkpoints_outlive_an_attempt(double: SenderDouble, tmp_path: Path) -> None:
    script = (
        "import os, pathlib\n"
        "before = os.environ['TRAINFORGE_RESUME_FROM']\n"
        "print('resume', before and pathlib.Path(before).read_text())\n"
        "pathlib.Path(os.environ['TRAINFORGE_CHECKPOINT_DIR'], 'step-1').write_text('weights')\n"
        "raise SystemExit(0 if before else 'first try fails')\n"
    )
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": script})
    chosen, executor = joined(double, tmp_path / "laptop")
    double.auto = False
    with running(chosen) as agent:
        (first,) = double.run(project.job(), [executor], project.order())
        assert ended(first)["code"] == "script_failed"
        double.give(first, ForgetOrder())
        wait_for("forgetting", lambda: not agent.nodes)
        (second,) = double.run(project.job(), [executor], project.order(), attempt=2)
        assert ended(second)["code"] == ""
    assert "resume weights" in second.text(0)


def test_the_job_sees_no_secret_of_the_executor(
    double: SenderDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINFORGE_EXECUTOR_GIT_TOKEN", "canary-one")
    monkeypatch.setenv("HF_TOKEN", "canary-two")
    monkeypatch.setenv("GIT_DIR", "canary-three")
    script = "import os\nprint(dict(os.environ))\nassert 'canary' not in str(os.environ)\n"
    node = one(double, tmp_path, {"trainforge.yaml": FOUNDING, "train.py": script})
    assert node.last("ended")["code"] == ""
    for name in ("NODE_RANK", "NODES", "DEADLINE", "DATA_DIR", "COMMIT", "ATTEMPT"):
        assert f"'TRAINFORGE_{name}'" in node.text(0)


def test_saving_and_leaving_when_asked_is_still_being_stopped(double: SenderDouble, tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0)))\n"
        "print('up', flush=True)\ntime.sleep(500)\n"
    )
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": script})
    chosen, executor = joined(double, tmp_path / "laptop")
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order())
        wait_for("training", lambda: "up" in node.text(0), 60, lambda: story(node))
        double.give(node, StopOrder(code="stopped", reason="enough"))
        end = ended(node)
    assert (end["exit_code"], end["code"], end["reason"]) == (0, "stopped", "enough")
    assert "saved" in node.text(0)


def test_an_executor_may_take_its_jobs_down_with_it(double: SenderDouble, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        {"trainforge.yaml": FOUNDING, "train.py": "import time\nprint(1, flush=True)\ntime.sleep(500)"},
    )
    chosen, executor = joined(double, tmp_path / "laptop")
    agent = Agent(chosen)
    agent.start()
    (node,) = double.run(project.job(), [executor], project.order())
    wait_for("training", lambda: bool(node.text(0)), 60, lambda: story(node))
    agent.close(stop_jobs=True)
    assert node.last("ended")["code"] == "stopped"
