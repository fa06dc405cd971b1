"""The supervisor and the processes below it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from support.waiting import wait_for
from trainforge.executor.launch import RANK_PROGRAM, Launch
from trainforge.executor.limits import Limits
from trainforge.executor.supervise import NO_LIMITS, Around, Exit, Supervised


def supervised(
    root: Path,
    script: str,
    *,
    timeout_s: float | None = None,
    grace_s: float = 0.3,
    limits: Limits = NO_LIMITS,
) -> Supervised:
    (root / "train.py").write_text(script)
    run = root / "run"
    run.mkdir()
    result = Supervised(run)
    argv = [sys.executable, "-I", "-S", RANK_PROGRAM, str(run), "0"]
    planned = Launch(argv, [sys.executable, "-u", "train.py"], root, 1, 1, dict(os.environ))
    around = Around(folders=(root,))
    result.prepare(planned, timeout_s=timeout_s, grace_s=grace_s, limits=limits, around=around)
    return result


def output(run: Supervised) -> str:
    path = run.run / "logs" / "0.stdout"
    return path.read_text() if path.exists() else ""


def end(run: Supervised) -> Exit:
    return wait_for("exit", run.exit, 30)


STUBBORN_FAMILY = """\
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.fork(); os.setsid(); time.sleep(500)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
time.sleep(0.3)
print("ready")
time.sleep(500)
"""


def family(run: Supervised) -> list[psutil.Process]:
    pid = run.pid()
    assert pid is not None
    return psutil.Process(pid).children(recursive=True)


def test_exit_code_and_usage(tmp_path: Path) -> None:
    run = supervised(tmp_path, "print('x'); raise SystemExit(3)")
    run.start()
    done = end(run)
    assert (done.exit_code, done.stopped, done.killed, done.lost) == (3, "", False, False)
    assert done.peak_memory_bytes > 1_000_000
    assert output(run) == "x\n"


def test_stop_kills_the_whole_tree_after_its_grace(tmp_path: Path) -> None:
    run = supervised(tmp_path, STUBBORN_FAMILY)
    run.start()
    wait_for("family", lambda: "ready" in output(run), 30)
    below = family(run)
    assert len(below) >= 3
    run.stop(0.2)
    done = end(run)
    assert (done.stopped, done.killed) == ("stop", True)
    assert not [process for process in below if process.is_running() and process.status() != "zombie"]


def test_a_training_may_end_by_itself_when_asked(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (print('saved'), sys.exit(0)))\nprint('up')\ntime.sleep(500)\n"
    )
    run = supervised(tmp_path, script, grace_s=30)
    run.start()
    wait_for("start", lambda: "up" in output(run), 30)
    run.stop(30)
    assert end(run).exit_code == 0
    assert "saved" in output(run)


def test_orphans_do_not_outlive_the_training(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys\n"
        "child = [sys.executable, '-c', 'import time; time.sleep(500)']\n"
        "print(subprocess.Popen(child, start_new_session=True).pid)\n"
    )
    run = supervised(tmp_path, script)
    run.start()
    assert end(run).exit_code == 0
    assert not psutil.pid_exists(int(output(run)))


def test_time_limit(tmp_path: Path) -> None:
    run = supervised(tmp_path, "import time; time.sleep(500)", timeout_s=0.5)
    run.start()
    assert end(run).stopped == "timeout_run"


def test_more_memory_than_the_owner_allows_ends_it(tmp_path: Path) -> None:
    run = supervised(tmp_path, "import time; kept = b'x' * 10**8; time.sleep(500)", limits=Limits(10**8))
    run.start()
    done = end(run)
    assert (done.stopped, done.memory_limit) == ("memory_limit", 10**8)
    assert done.peak_memory_bytes > 10**8


def test_more_disk_than_the_owner_allows_ends_it(tmp_path: Path) -> None:
    """Also of small files in folders, and not of holes or of further names of one file."""
    fair = "open('hole', 'wb').truncate(10**9); open('a', 'wb').write(b'x' * 10**6); os.link('a', 'b')"
    filler = "[(os.makedirs(f'd/{n}'), open(f'd/{n}/f', 'wb').write(b'x' * 10**5)) for n in range(100)]"
    for name, script in (("fair", fair), ("filler", f"{filler}; time.sleep(500)")):
        (tmp_path / name).mkdir()
        run = supervised(tmp_path / name, f"import os, time; {script}", limits=Limits(disk=4 * 10**6))
        run.start()
        done = end(run)
        assert done.stopped == ("" if name == "fair" else "disk_limit")
        assert 10**6 < done.peak_disk_bytes < (2 * 10**6 if name == "fair" else 12 * 10**6)


def test_more_output_than_the_owner_allows_ends_it(tmp_path: Path) -> None:
    flood = "import time\nfor n in range(2000): print('x' * 1000)\ntime.sleep(500)"
    run = supervised(tmp_path, flood, limits=Limits(log=10**6))
    run.start()
    done = end(run)
    assert (done.stopped, done.log_limit) == ("log_limit", 10**6)
    assert done.log_bytes > 10**6


def test_it_runs_on_the_cores_that_are_left_to_jobs(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    show = "import os; print(os.sched_getaffinity(0))"
    run = supervised(tmp_path, show, limits=Limits(cpus=(core,)))
    run.start()
    end(run)
    assert output(run) == f"{{{core}}}\n"


def test_training_outlives_its_parent_and_is_found_again(tmp_path: Path) -> None:
    """The program that starts it is killed at once; another object over the same folder takes over."""
    go_on = tmp_path / "go"
    waiting = f"while not os.path.exists({str(go_on)!r}): time.sleep(0.02)"
    script = f"import os, time\nprint('up')\n{waiting}\nprint('over')\n"
    run = supervised(tmp_path, script)
    starter = (
        "import sys, time, pathlib\nfrom trainforge.executor.supervise import Supervised\n"
        "Supervised(pathlib.Path(sys.argv[1])).start(); print('started', flush=True); time.sleep(500)\n"
    )
    with subprocess.Popen([sys.executable, "-c", starter, str(run.run)], stdout=subprocess.PIPE) as parent:
        wait_for("start", lambda: "up" in output(run), 60)
        parent.send_signal(signal.SIGKILL)
    adopted = Supervised(run.run)
    assert adopted.alive()
    assert adopted.exit() is None
    adopted.start()  # harmless
    go_on.touch()
    assert end(adopted).exit_code == 0
    assert output(run) == "up\nover\n"


def test_many_starts_at_once_start_once(tmp_path: Path) -> None:
    run = supervised(tmp_path, "import os; print(os.getpid())")
    objects = [Supervised(run.run) for _ in range(6)]
    threads = [threading.Thread(target=each.start) for each in objects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in objects:
        wait_for("end", lambda each=each: not each.alive(), 30)
    assert len(output(run).splitlines()) == 1


def test_a_killed_supervisor_leaves_nothing_behind(tmp_path: Path) -> None:
    run = supervised(tmp_path, STUBBORN_FAMILY)
    run.start()
    wait_for("family", lambda: "ready" in output(run), 30)
    below = family(run)
    pid = run.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert end(run).lost
    gone, alive = psutil.wait_procs(below, 10)
    assert not [process for process in alive if process.status() != "zombie"]
    assert gone or alive == []
    run.start()  # never a second time
    assert not run.alive()


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    run = supervised(tmp_path, "")
    (run.run / "command").write_bytes(b"no-such-program\0")
    run.start()
    assert end(run).exit_code == 127
    assert "No such file" in (run.run / "logs" / "0.stderr").read_text()


def test_usage_is_measured(tmp_path: Path) -> None:
    run = supervised(tmp_path, "print('up')\nwhile True: pass\n")
    run.start()
    wait_for("start", lambda: "up" in output(run), 30)
    run.usage()
    wait_for("work", lambda: run.usage().cpu_percent > 10, 30)
    assert run.usage().memory_bytes > 1_000_000
    run.stop(0)
    end(run)
