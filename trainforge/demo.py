"""The whole main job on one machine: real programs in a temporary folder, from `git push` to the result.

A sender and two executors run as processes of their own, as a user would start them; nothing of the user's
configuration is read or written, and nothing of the demo is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from trainforge.client import Client
from trainforge.commands.common import ENDED
from trainforge.config.errors import CommandFailed, TrainForgeError
from trainforge.config.views import JobDetail
from trainforge.demo_view import View, make_view, tree_lines

PROJECT = "digits"
EXECUTORS = ("alpha", "beta")
GOAL = 0.95
METRIC = "val_accuracy"
START_S = 60.0
POLL_S = 0.25
STOP_S = 10.0
RESULTS = "refs/remotes/trainforge/trainforge-results"

Answer = TypeVar("Answer")


class DemoFailed(TrainForgeError):  # noqa: N818 - reads as the outcome it is
    """The demo did not come to its good end."""

    code = "demo_failed"


def run_demo(*, keep: bool, timeout: int) -> int:
    """Run the demo; 0 only if a push trained on two nodes, learned, and its result is on the branch."""
    root = Path(tempfile.mkdtemp(prefix="trainforge-demo-")).resolve()
    demo = Demo(root, make_view(), deadline=time.monotonic() + timeout)
    with _ended_by_signals() as ignore_signals:
        try:
            demo.run()
            code = 0
        except KeyboardInterrupt:
            demo.view.say("interrupted, cleaning up")
            code = 130
        except TrainForgeError as error:
            demo.view.say(f"failed: {error}")
            demo.show_tails()
            code = 1
        finally:
            ignore_signals()  # impatience must not leave processes behind
            demo.view.close()
            demo.stop_everything()
            if keep:
                demo.view.say(f"everything is kept in {root}")
            else:
                shutil.rmtree(root, ignore_errors=True)
    return code


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[Callable[[], None]]:
    """SIGTERM, or a closed terminal, ends the demo the way Ctrl-C does; gives what ignores all three."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def set_all(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in before:
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    set_all(interrupt)
    try:
        yield lambda: set_all(signal.SIG_IGN)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Demo:
    """One run: its folder, its processes and what is shown of it."""

    def __init__(self, root: Path, view: View, deadline: float) -> None:
        self.root, self.view, self.deadline = root, view, deadline
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = isolated_environment(root)
        self.url = self.token = ""

    def run(self) -> None:
        self._start_sender()
        with Client(self.url, self.token) as client:
            self._add_executors(client)
            project = self._push_project()
            job = self._follow(client)
            self._report(project, job)

    # --- the programs ---------------------------------------------------------------------------------

    def _start_sender(self) -> None:
        self.view.say("starting a sender, with its built-in git server")
        data = self.root / "sender"
        self._start("sender", "sender", "start", "--port", "0", "--data-dir", str(data))
        about = self._until("the sender", lambda: _read_json(data / "sender.json"), "sender")
        client_file = self.root / "config" / "trainforge" / "client.json"
        stored = self._until("the sender's token", lambda: _read_json(client_file), "sender")
        self.url, self.token = about["url"].rstrip("/"), stored["token"]
        self.view.say(f"  it listens at {self.url}")

    def _add_executors(self, client: Client) -> None:
        self.view.say(f"pairing two executors, {' and '.join(EXECUTORS)}, each by a one-time token")
        joining = []
        for name in EXECUTORS:
            token = client.join_token()["token"]
            own = ("--name", name, "--data-dir", str(self.root / name))
            joining.append((name, own, self._spawn("executor", "join", self.url, token, *own)))
        for name, own, process in joining:
            output, _ = process.communicate(timeout=START_S)
            if process.returncode:
                words = output.decode(errors="replace")
                raise CommandFailed(["trainforge", "executor", "join"], process.returncode, "", words)
            self._start(name, "executor", "start", *own)

        def online() -> bool:
            return sum(executor.status == "online" for executor in client.executors()) == len(EXECUTORS)

        self._until("both executors", online, *EXECUTORS)

    def _push_project(self) -> Path:
        project = self.root / PROJECT
        self.view.command(f"trainforge init {PROJECT} --template digits")
        self._finish(self._spawn("init", str(project), "--template", "digits"), "trainforge init")
        self.view.command("git push trainforge main")
        for line in self._git(project, "push", "trainforge", "main").splitlines():
            if line.startswith("remote:") and line.removeprefix("remote:").strip():
                self.view.say(f"  {line.removeprefix('remote:').strip()}")
        return project

    # --- the job --------------------------------------------------------------------------------------

    def _follow(self, client: Client) -> JobDetail:
        """Show the job until it has ended."""
        job = self._until("a job", lambda: client.jobs(limit=1), "sender")[0].id
        logs = metrics = 0
        while True:
            detail = client.job(job)
            lines, logs, _ = client.logs(job, after=logs)
            points = client.metrics(job, after=metrics)
            metrics = max((point.cursor for point in points), default=metrics)
            self.view.show(detail, lines, points)
            if detail.state in ENDED:
                return detail
            self._check("sender", *EXECUTORS)
            if time.monotonic() > self.deadline:
                waiting = "; ".join(f"{k}: {v}" for k, v in detail.waiting.items())
                raise DemoFailed(f"the job is still {detail.state} ({waiting or 'no reason known'})")
            time.sleep(POLL_S)

    def _report(self, project: Path, job: JobDetail) -> None:
        """What came back, from the results branch itself; refuses any other end than the good one."""
        self.view.close()
        if job.state != "completed":
            raise DemoFailed(f"the job {job.state}: {job.reason} ({job.code})")
        self._git(project, "fetch", "--quiet", "trainforge", f"+refs/heads/{job.result_branch}:{RESULTS}")
        paths = self._git(project, "ls-tree", "-r", "--name-only", RESULTS).splitlines()
        if f"{job.result_path}/result.json" not in paths:
            raise DemoFailed(f"the results branch has no {job.result_path}/result.json")
        self.view.say(f"\nthe branch {job.result_branch} of the repository:")
        for line in tree_lines(paths):
            self.view.say(f"  {line}")
        metrics = json.loads(self._git(project, "show", f"{RESULTS}:{job.result_path}/metrics.json"))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != "progress")
        self.view.say(f"\nfinal metrics: {shown}")
        accuracy = metrics.get(METRIC)
        if not isinstance(accuracy, float) or accuracy <= GOAL:
            raise DemoFailed(f"{METRIC} is {accuracy}, and should be above {GOAL}")
        if len(job.attempts[-1].nodes) != len(EXECUTORS):
            raise DemoFailed(f"it trained on {len(job.attempts[-1].nodes)} node, not on {len(EXECUTORS)}")
        nodes = ", ".join(node.executor_name for node in job.attempts[-1].nodes)
        self.view.say(
            f"validation accuracy {accuracy:.3f}, trained on {nodes}; result commit {job.result_commit[:12]}"
        )
        self.view.next_steps()

    # --- processes ------------------------------------------------------------------------------------

    def _spawn(self, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as stack:
            output: Any = stack.enter_context(log.open("ab")) if log else subprocess.PIPE
            return subprocess.Popen(
                [sys.executable, "-m", "trainforge", *arguments],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _start(self, name: str, *arguments: str) -> None:
        self.processes[name] = self._spawn(*arguments, log=self.root / f"{name}.log")

    def _finish(self, process: subprocess.Popen[bytes], what: str) -> None:
        output, _ = process.communicate(timeout=START_S)
        if process.returncode:
            raise CommandFailed(what.split(), process.returncode, "", output.decode(errors="replace"))

    def _git(self, cwd: Path, *arguments: str) -> str:
        """git as the user's shell would run it, with both outputs."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise CommandFailed(["git", *arguments], done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def _check(self, *names: str) -> None:
        for name in names:
            code = self.processes[name].poll()
            if code is not None:
                raise DemoFailed(f"the {name} ended by itself, with exit code {code}")

    def _until(self, what: str, probe: Callable[[], Answer | None], *names: str) -> Answer:
        """What the probe finds, as long as the programs named live."""
        limit = min(self.deadline, time.monotonic() + START_S)
        while not (found := probe()):
            self._check(*names)
            if time.monotonic() > limit:
                raise DemoFailed(f"{what} did not appear in {START_S:.0f} s")
            time.sleep(POLL_S / 5)
        return found

    def stop_everything(self) -> None:
        """End what was started: politely, then surely; trainings too, which outlive their executor."""
        for process in self.processes.values():
            _signal_group(process, signal.SIGTERM)
        limit = time.monotonic() + STOP_S
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, limit - time.monotonic()))
            _signal_group(process, signal.SIGKILL)
            process.wait()
        _kill_strays(self.root)

    def show_tails(self, lines: int = 25) -> None:
        """The last words of every program: usually all the evidence that there is."""
        for log in sorted(self.root.glob("*.log")):
            self.view.say(f"--- {log.stem}")
            for line in log.read_text(errors="replace").splitlines()[-lines:]:
                self.view.say(f"  {line}")


def isolated_environment(root: Path) -> dict[str, str]:
    """The user's environment without TrainForge's and git's settings, every home inside the folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRAINFORGE_", "GIT_"))}
    homes = {
        "HOME": root / "home",
        "XDG_CONFIG_HOME": root / "config",
        "XDG_DATA_HOME": root / "data",
        "XDG_CACHE_HOME": root / "cache",
        "TMPDIR": root / "tmp",  # torch leaves folders there
    }
    for folder in homes.values():
        folder.mkdir(parents=True, exist_ok=True)
    author = {"NAME": "TrainForge demo", "EMAIL": "demo@trainforge.invalid"}
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in author.items()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {
        **kept,
        **{name: str(folder) for name, folder in homes.items()},
        **who,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "PATH": path,
    }


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # not there yet, or half-written
        return None
    return data if isinstance(data, dict) else None


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _kill_strays(root: Path) -> None:
    """Kill whatever still works in the folder: supervisors and trainings have sessions of their own."""
    import psutil

    strays = []
    for process in psutil.process_iter():
        try:
            about = [process.cwd(), *process.cmdline()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(root) in text for text in about):
            strays.append(process)
            with contextlib.suppress(psutil.Error):
                process.kill()
    psutil.wait_procs(strays, timeout=STOP_S)
