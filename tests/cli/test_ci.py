"""What the action tells a runner: groups, outputs, a summary, and an exit code that says how it went."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.oidc import BEARER, Issuer, issuer, workflow
from support.web import COMMIT, Web, web
from trainforge import ci
from trainforge.ci import annotate
from trainforge.ci_summary import chart, text
from trainforge.cli import run
from trainforge.client import Client
from trainforge.config.errors import (
    Forbidden,
    ManifestError,
    Place,
    SettingsError,
    TrainForgeError,
    Unreachable,
)
from trainforge.config.gates import Verdict
from trainforge.runner import Runner


@pytest.fixture(scope="module")
def github() -> Iterator[Issuer]:
    with issuer() as made:
        yield made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, github: Issuer) -> Iterator[Web]:
    access = {"demo": {"repository_id": 74}}
    with web(tmp_path_factory.mktemp("ci"), workflows=access, oidc_issuer=github.issuer) as made:
        yield made


class Step(Runner):
    """A step of a run, with what it has written."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.printed: list[str] = []
        self.folder = folder
        files = {"GITHUB_OUTPUT": str(folder / "output"), "GITHUB_STEP_SUMMARY": str(folder / "summary")}
        super().__init__({"GITHUB_ACTIONS": "true"} | files | environment, self.printed.append)

    @property
    def outputs(self) -> dict[str, str]:
        written = (self.folder / "output").read_text()
        return {
            m[1]: m[3]
            for m in re.finditer(r"^([\w-]+)<<(end-\w+)\n(.*?)\n\2$", written, re.MULTILINE | re.DOTALL)
        }

    @property
    def told(self) -> str:
        return (self.folder / "summary").read_text()


def _follow(site: Web, step: Step, job: str, **asked: object) -> int:
    with Client(site.url, site.token) as client:
        return ci.follow_to_end(client, step, client.job(job), ci.Asked(**asked))  # type: ignore[arg-type]


def test_a_failed_job_fails_the_step_with_its_reason(site: Web, tmp_path: Path) -> None:
    job = site.add_job()
    site.log(job, "installing", stream="setup", rank=-1)
    site.log(job, "one\n::set-output name=state::completed", "two")
    site.metric(job, loss=0.5)
    site.end(job, "failed", code="exit_code", reason="train.py ended with 1\n::error::not a command")
    step = Step(tmp_path)
    assert _follow(site, step, job) == 1
    assert step.outputs["state"] == "failed"
    assert json.loads(step.outputs["metrics"]) == {"loss": 0.5}
    groups = [line for line in step.printed if line.startswith(("::group::", "::endgroup::"))]
    assert groups == [
        "::group::preparing, attempt 1", "::endgroup::", "::group::training, attempt 1", "::endgroup::",
    ]  # fmt: skip
    errors = [line for line in step.printed if line.startswith("::error ")]
    assert len(errors) == 1
    assert "\n" not in errors[0]
    at = step.printed.index("::set-output name=state::completed")
    word = next(line for line in reversed(step.printed[:at]) if line.startswith("::stop-commands::"))
    assert f"::{word.removeprefix('::stop-commands::')}::" in step.printed[at:]
    assert "### TrainForge: digits failed: exit&#95;code" in step.told


def test_a_step_whose_time_is_up_stops_its_job_or_leaves_it(site: Web, tmp_path: Path) -> None:
    for stop in (False, True):
        job = site.add_job()
        site.set(job, waiting={"alpha": "offline"})
        step = Step(tmp_path)
        with pytest.raises(ci.TimedOut):
            _follow(site, step, job, timeout=0.3, stop=stop, linger=0.1)
        assert site.get(f"/api/jobs/{job}")["stopping"] is stop
        assert any("pending: offline" in line for line in step.printed)


def test_a_step_need_not_wait(site: Web, tmp_path: Path) -> None:
    step, job = Step(tmp_path), site.add_job()
    assert _follow(site, step, job, wait=False) == 0
    assert (step.outputs["job-id"], step.outputs["state"]) == (job, "pending")


def test_lines_come_as_the_job_writes_them(site: Web, tmp_path: Path) -> None:
    step, job = Step(tmp_path), site.add_job()
    site.log(job, "the first")
    code: list[int] = []
    thread = threading.Thread(target=lambda: code.append(_follow(site, step, job)))
    thread.start()
    site.log(job, "the last")
    site.end(job)
    thread.join(30)
    assert code == [0]
    assert [line for line in step.printed if line.startswith("the ")] == ["the first", "the last"]


def test_a_run_proves_itself_and_is_told_what_it_lacks(site: Web, github: Issuer, tmp_path: Path) -> None:
    step = Step(tmp_path, **github.environment)
    github.say(**workflow())
    with ci.RunClient(site.url, step) as client:
        job = site.add_job()
        assert client.job(job).id == job
        assert client.admitted["commit"] == COMMIT
        client._until = 0.0  # its token is about to end
        assert client.job(job).id == job
    hidden = [line for line in step.printed if line.startswith("::add-mask::eyJ")]
    assert len(hidden) == 4
    github.say(**workflow(repository_id="75"))
    with ci.RunClient(site.url, step) as client, pytest.raises(Forbidden, match="repository_id 75"):
        ci.run(client, step, ci.Asked())
    with pytest.raises(SettingsError) as lacking:
        Step(tmp_path).id_token(site.url)
    assert "id-token: write" in lacking.value.hint
    other = github.environment | {"ACTIONS_ID_TOKEN_REQUEST_TOKEN": BEARER[::-1]}
    with pytest.raises(Unreachable, match="gives no token"):
        Step(tmp_path, **other).id_token(site.url)


def test_a_refusal_is_one_annotation_and_nothing_besides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert run(["ci", "--mode", "plan", "--sender-url", ""]) == 2
    assert run(["ci", "--timeout", "never\n::set-env name=A::b"]) == 2
    said = capsys.readouterr()
    assert said.err == ""
    plan, time = said.out.splitlines()
    assert plan.startswith("::error title=TrainForge::mode: plan needs sender-url")
    faults: list[TrainForgeError] = [
        TrainForgeError("unknown key", hint="did you mean gpu?", place=Place("trainforge.yaml:3:5")),
        TrainForgeError("not here", place=Place("--set")),
    ]
    written: list[str] = []
    annotate(Runner({"GITHUB_ACTIONS": "true"}, written.append), ManifestError(faults), "models/a,b.yaml")
    assert written == [
        "::error title=TrainForge,file=models/a%2Cb.yaml,line=3::unknown key; did you mean gpu?",
        "::error title=TrainForge::--set: not here",
    ]
    assert time.startswith("::error title=TrainForge::timeout: ")


def test_a_gate_that_is_missed_is_not_well(site: Web) -> None:
    job = site.add_job()
    site.end(job)
    with Client(site.url, site.token) as client:
        detail = client.job(job)
    missed = Verdict(metric="loss", passed=False, words="loss is 2, wanted at most 1")
    assert ci.well(detail)
    assert not ci.well(detail.model_copy(update={"gates": [missed]}))


@given(st.text())
def test_no_text_of_others_is_markdown(words: str) -> None:
    shown = text(words)
    assert not set(shown) & set("\\`*_{}[]<>()|~@:\n\r")
    assert len(shown) < 2000


def test_a_chart_is_thinned_out_and_leaves_out_what_is_no_number() -> None:
    points = [(n, float(n)) for n in range(1000)]
    drawn = chart('a"] --> <b>\n', [*points, (1, None), (2, float("nan")), (3, "x")])
    values = re.search(r"line \[(.*)\]", drawn)
    assert values is not None
    numbers = [float(value) for value in values[1].split(", ")]
    assert len(numbers) <= 41
    assert (numbers[0], numbers[-1]) == (0.0, 999.0)
    assert '"' not in drawn.split("title ")[1].split("\n")[0].strip('"')
    assert chart("loss", [(1, 2.0)]) == ""
