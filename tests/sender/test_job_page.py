"""One job's page and what hangs on it: its log by pages, its files, its drawings, and jobs side by side."""

from __future__ import annotations

import html
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from support.lively import Lively
from support.web import Web, web
from trainforge.config.errors import ManifestError
from trainforge.config.views import MetricPoint
from trainforge.sender import compare, job_shapes, text
from trainforge.sender.files_page import image_type, preview
from trainforge.sender.job_page import parameters, read_changes

HTML = {"Accept": "text/html"}
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lively]:
    with web(tmp_path_factory.mktemp("lively")) as site:
        yield Lively(site)


def test_the_page_is_whole_without_a_script(lively: Lively) -> None:
    page = lively.site.ask("GET", f"/jobs/{lively.running}", headers=HTML).text
    for said in (
        "about 6 min left",
        "rank 2 gamma",
        "environment",
        "divided by 3 processes",
        "91%",
        "5.0 GiB",
    ):
        assert said in page, said
    assert page.count('class="p-training"') == 3
    assert "<polyline" in page
    assert "step 2999 loss" in page


def test_the_log_is_read_by_pages_in_both_directions(lively: Lively) -> None:
    path = f"/api/jobs/{lively.running}/logs"
    newest = lively.site.get(f"{path}?limit=100&before={2**53 - 1}")["lines"]
    assert newest[-1]["text"].startswith("step 2999 ")
    before = lively.site.get(f"{path}?limit=100&before={newest[0]['cursor']}")["lines"]
    assert before[-1]["text"].startswith("step 2899 ")
    after = lively.site.get(f"{path}?limit=100&after={before[-1]['cursor']}")["lines"]
    assert after == newest
    page, shown = f"/jobs/{lively.running}/log", []
    while page:
        text_page = lively.site.ask("GET", page, headers=HTML).text
        shown.append(text_page.count('class="text"'))
        older = re.search(r'href="([^"]+)" rel="prev"', text_page)
        page = html.unescape(older[1]) if older else ""
    assert (len(shown), sum(shown)) == (15, 3000)


def test_the_log_is_filtered_where_it_lies(lively: Lively) -> None:
    data, page, ask = f"/api/jobs/{lively.running}/logs", f"/jobs/{lively.running}/log", lively.site.ask
    assert len(lively.site.get(data + "?level=warning,error")["lines"]) == 10
    assert len(lively.site.get(data + "?q=GRADIENT&rank=0")["lines"]) == 3
    assert lively.site.get(data + "?q=%25")["lines"] == []
    assert ask("GET", data + "?level=loud").status_code == 422
    shown = ask("GET", page + "?level=error", headers=HTML).text
    assert shown.count("could not write sample") == 3
    text_file = ask("GET", page + ".txt?rank=1")
    assert text_file.headers["content-disposition"].startswith("attachment")
    assert len(text_file.text.splitlines()) == 1000
    for wrong in ("level=loud", "before=x", "rank=first"):
        assert ask("GET", f"{page}?{wrong}", headers=HTML).status_code == 422, wrong


def test_metrics_are_a_table_for_other_programs(lively: Lively) -> None:
    answer = lively.site.ask("GET", f"/jobs/{lively.old}/metrics.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert len(answer.text.splitlines()) == 601


def test_jobs_are_compared_side_by_side(lively: Lively) -> None:
    chosen = f"jobs={lively.old}&jobs={lively.other}&jobs={lively.running}"
    page = lively.site.ask("GET", f"/compare?{chosen}", headers=HTML).text
    assert "Compare 3 jobs" in page
    assert page.count('<span class="mark">best</span>') == 2
    assert "learning_rate" in page.split("that all have alike", maxsplit=1)[0]
    assert lively.site.ask("GET", "/compare", headers=HTML).status_code == 200
    assert lively.site.ask("GET", "/compare?jobs=zzzz", headers=HTML).status_code == 404


def test_what_differs_and_what_is_best() -> None:
    different, alike = compare.differing([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1}])
    assert ([line.name for line in different], [line.name for line in alike]) == (["b"], ["a"])
    metrics = [{"loss": 0.5, "acc": 0.9, "x": 1}, {"loss": None, "acc": 0.8}, {"loss": 0.4, "acc": 0.9}]
    lines = {line.name: line for line in compare.measured(metrics, {"x": "min"})}
    assert lines["loss"].best == {2}
    assert lines["acc"].best == {0, 2}
    assert not lines["x"].best
    assert compare.measured([{"loss": 1.0}, {"loss": 2.0}], {"loss": "max"})[0].best == {1}


def test_the_end_is_estimated_from_the_pace() -> None:
    def point(time: float, progress: float) -> MetricPoint:
        return MetricPoint(cursor=1, time=time, attempt=1, rank=0, values={"progress": progress})

    assert job_shapes.seconds_left(0.5, 200.0, None, 100.0) == pytest.approx(100)
    resumed = job_shapes.seconds_left(0.75, 200.0, point(100, 0.5), 90.0)
    assert resumed == pytest.approx(100)
    for progress in (None, 0.0, 1.0, 0.001):
        assert job_shapes.seconds_left(progress, 200.0, None, 100.0) is None
    assert [text.about(seconds) for seconds in (5, 60, 350, 4200, 200_000)] == [
        "less than a minute", "about a minute", "about 6 min", "about 70 min", "about 2.3 days",
    ]  # fmt: skip


def test_parameters_before_and_after() -> None:
    adjusted = [{"key": "batch", "before": 96, "after": 32, "rule": "divided"}]
    told = parameters({"params": {"lr": 0.1, "batch": 32}, "adjusted": adjusted})
    assert [(one["name"], one["before"], one["value"]) for one in told] == [
        ("batch", 96, 32),
        ("lr", None, 0.1),
    ]
    assert parameters({"params": "x", "adjusted": ["x"]}) == []


def test_changes_are_lines_of_yaml() -> None:
    assert read_changes("training.params.epochs=3\n\n resources.labels={zone: a}\n") == {
        "training.params.epochs": 3,
        "resources.labels": {"zone": "a"},
    }
    for wrong in ("epochs", "=3", "a=[1"):
        with pytest.raises(ManifestError):
            read_changes(wrong)


def test_only_images_are_shown_as_what_they_are() -> None:
    assert image_type(PNG) == "image/png"
    assert preview("x.txt", PNG).kind == "image"
    for name, content in (("a.svg", b"<svg onload=alert(1)>"), ("a.html", b"<script>"), ("a.png", b"<html>")):
        assert preview(name, content).kind == "text"
        assert image_type(content) == ""
    assert preview("a.csv", b"a,b\n1,2\n").rows == [["a", "b"], ["1", "2"]]
    assert preview("a.json", b'{"a":1}').text == '{\n  "a": 1\n}'
    assert preview("a.bin", b"\0\1").kind == "none"
    assert preview("a.txt", b"x" * 300_000).cut
    assert len(preview("a.csv", b"1\n" * 1000).rows) == 200


def test_files_of_a_result_and_a_retry_with_changes(site: Web) -> None:
    repo, job = site.sender.git_root / "demo.git", site.add_job()
    commit = _commit(repo, {
        "trainforge.yaml": b"project: {name: digits}\ntraining: {script: train.py}\n", "train.py": b"",
        "jobs/x/artifacts/plots/curve.png": PNG, "jobs/x/artifacts/page.html": b"<script>alert(1)</script>",
    })  # fmt: skip
    site.end(
        job,
        commit=commit,
        result_commit=commit,
        result_path="jobs/x",
        result_branch="main",
        ref="refs/heads/main",
    )
    page = site.ask("GET", f"/jobs/{job}/files/page.html", headers=HTML).text
    assert "&lt;script&gt;alert(1)" in page
    assert (
        f'src="/jobs/{job}/raw/plots/curve.png?show=1"'
        in site.ask("GET", f"/jobs/{job}/files/plots/curve.png", headers=HTML).text
    )
    shown = site.ask("GET", f"/jobs/{job}/raw/plots/curve.png?show=1")
    assert (shown.headers["content-type"], shown.content) == ("image/png", PNG)
    assert "sandbox" in shown.headers["content-security-policy"]
    raw = site.ask("GET", f"/jobs/{job}/raw/page.html")
    assert raw.headers["content-type"] == "application/octet-stream"
    assert raw.headers["content-disposition"].startswith("attachment")
    for path in (f"/jobs/{job}/raw/page.html?show=1", f"/jobs/{job}/raw/nope", f"/jobs/{job}/files/../../x"):
        assert site.ask("GET", path, headers=HTML).status_code == 404, path
    with site.log_in() as browser:
        assert "textarea" in browser.get(f"/jobs/{job}/again").text
        wrong = browser.post(f"/jobs/{job}/again", data={"changes": "resources.nodes=many"})
        assert wrong.status_code >= 400
        assert "resources.nodes=many" in wrong.text
        answer = browser.post(f"/jobs/{job}/again", data={"changes": "resources.nodes=2"})
        assert answer.status_code == 303, answer.text
    again = answer.headers["location"].rsplit("/", 1)[-1]
    assert site.sender.store.job(again)["overrides"] == {"resources.nodes": 2}
    assert site.get(f"/api/jobs/{again}")["rerun_of"] == job


def _commit(bare: Path, files: dict[str, bytes]) -> str:
    work = bare.parent / "work"
    subprocess.run(["git", "init", "-q", "--bare", str(bare)], check=True)
    subprocess.run(["git", "clone", "-q", str(bare), str(work)], check=True, capture_output=True)
    for path, content in files.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_bytes(content)
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for command in (["add", "."], [*who, "commit", "-qm", "all"], ["push", "-q", "origin", "HEAD:main"]):
        subprocess.run(["git", "-C", str(work), *command], check=True)
    said = subprocess.run(["git", "-C", str(work), "rev-parse", "HEAD"], check=True, capture_output=True)
    return said.stdout.decode().strip()


def test_static_files_are_kept_by_browsers_and_sent_packed(site: Web) -> None:
    page = httpx2.get(f"{site.url}/login").text
    address = page.split('href="/static/style.css', 1)[1].split('"', 1)[0]
    style = httpx2.get(f"{site.url}/static/style.css{address}")
    assert "immutable" in style.headers["cache-control"]
    assert httpx2.get(f"{site.url}/static/style.css").headers["cache-control"] == "no-cache"
    known = {"If-None-Match": style.headers["etag"]}
    assert httpx2.get(f"{site.url}/static/style.css", headers=known).status_code == 304
    library = httpx2.get(f"{site.url}/static/chart.js")
    assert library.headers["content-encoding"] == "gzip"
    assert "Chart.js v4" in library.text
    plain = httpx2.get(f"{site.url}/static/chart.js", headers={"Accept-Encoding": "identity"})
    assert plain.content == library.content
    assert httpx2.post(f"{site.url}/static/chart.js").status_code == 404
