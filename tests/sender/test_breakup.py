"""How a failure among several nodes is told: the first one's traceback first, then the others."""

from __future__ import annotations

import re

import sqlalchemy as sa

from support.web import Web
from trainforge.config.views import AttemptView, LogLine, NodeView
from trainforge.sender import schema
from trainforge.sender.breakup import LONGEST, breakup, traceback_of

PAGE = {"Accept": "text/html"}
RAISED = ["Traceback (most recent call last):", '  File "a.py", line 3, in <module>', "ValueError: no data"]


def _node(rank: int, state: str, code: str = "", ended: float | None = None) -> NodeView:
    return NodeView(rank=rank, executor=f"e{rank}", executor_name=f"m{rank}", code=code, ended=ended,
                    state=state)  # type: ignore[arg-type]  # fmt: skip


def _lines(*texts: str, rank: int = 0) -> list[LogLine]:
    return [
        LogLine(cursor=number, time=1.0, attempt=1, node=0, rank=rank, stream="stderr", text=text)
        for number, text in enumerate(texts, 1)
    ]


def test_a_consequence_is_never_the_cause() -> None:
    nodes = [
        _node(0, "failed", "connection_lost", 10.0),
        _node(1, "failed", "script_failed", 11.0),
        _node(2, "failed", "disk_full", 12.0),
        _node(3, "completed"),
    ]
    found = breakup(AttemptView(number=1, state="failed", nodes=nodes))
    assert found is not None
    assert (found.first.rank, [node.rank for node in found.also]) == (1, [2])
    assert ([node.rank for node in found.pulled], [node.rank for node in found.fine]) == ([0], [3])
    assert breakup(AttemptView(number=1, state="succeeded", nodes=nodes[3:])) is None
    assert breakup(None) is None


def test_a_traceback_is_found_among_other_lines_with_its_links() -> None:
    link = ["", "During handling of the above exception, another exception occurred:", ""]
    marked = [f"[rank1]: {text}" for text in RAISED]
    for said, expected in (
        (["step 1", *RAISED, "cleaning up"], RAISED),
        ([*RAISED, *link, *RAISED, "", "bye"], [*RAISED, *link, *RAISED]),
        (["x", *marked, "y"], marked),
        (["no", "error"], []),
    ):
        assert [line.text for line in traceback_of(_lines(*said))] == expected
    deep = [RAISED[0], *["  frame"] * 500, RAISED[2]]
    assert [line.text for line in traceback_of(_lines(*deep))][-1] == RAISED[2]
    assert len(traceback_of(_lines(*deep))) == LONGEST


def test_the_page_of_a_failed_job_says_who_failed_first_and_who_did_not(site: Web) -> None:
    job = site.add_job()
    site.add_node(job, site.add_executor("alpha"), state="completed")
    node = {"executor_id": site.add_executor("beta"), "state": "failed", "code": "script_failed", "rank": 1}
    node |= {"job_id": job, "attempt": 1, "gpus": [], "lease_until": 1.0, "created": 1.0, "ended": 5.0}
    with site.sender.store.write() as c:
        c.execute(sa.insert(schema.nodes).values(node))
    site.log(job, "fine", *RAISED, rank=1)
    with site.sender.store.write() as c:
        c.execute(sa.update(schema.log_lines).values(node=1))
    site.end(job, "failed", code="script_failed", reason="the training exited with 1")
    page = site.ask("GET", f"/jobs/{job}", headers=PAGE).text
    apart = re.search(r'id="apart".*?</div>', page, re.DOTALL)
    assert apart is not None
    assert "Rank 1 on beta failed first" in apart[0]
    assert apart[0].index("ValueError: no data") < apart[0].index("Had done all of theirs")
    assert "rank 0 on alpha" in apart[0]
    assert "fine" not in apart[0]
