"""Texts that try to be more than text on a page, and a site that has one of them in every field it shows."""

from __future__ import annotations

import itertools

import sqlalchemy as sa

from support.web import Web
from trainforge.config.messages import Gpu
from trainforge.sender import schema
from trainforge.sender.schema_trust import audit, secrets

PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "<math><mtext><table><mglyph><style><img src onerror=alert(1)>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<style>*{background:url(https://evil.example/)}</style>",
    "<form action=https://evil.example/><button>Log in</button></form>",
    "<a href=javascript:alert(1)>click</a>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    '" onmouseover="alert(1)" x="',
    "' onmouseover='alert(1)' x='",
    '"><script>alert(1)</script>',
    "'><script>alert(1)</script>",
    "` onmouseover=`alert(1)`",
    "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</textarea></select></pre></option><script>alert(1)</script>",
    "{{7*7}}{% raw %}<script>alert(1)</script>{# x #}",
    "${alert(1)}<%= alert(1) %>",
    "&lt;script&gt;alert(1)&lt;/script&gt;&#60;script&#62;",
    "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "\u00bcscript\u00bealert(1)\uff1cscript\uff1ealert(1)",
    "\x00<scr\x00ipt>alert(1)</scr\x00ipt>",
    "\x1b]8;;https://evil.example\x07click\x1b]8;;\x07<b>",
    "\u202e<b>txet\u2066\u2069",
    "<<SCRIPT>alert(1);//<</SCRIPT>",
    "<scr\u0000ipt/src=//evil.example>",
    "<object data=https://evil.example/>",
    "<embed src=https://evil.example/>",
    "<video><source onerror=alert(1)>",
    "<audio src=x onerror=alert(1)>",
    "<template><script>alert(1)</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<table background=javascript:alert(1)>",
    "<button formaction=https://evil.example/>Stop</button>",
    "<marquee onstart=alert(1)>",
    "<plaintext>",
    "<xmp><script>alert(1)</script></xmp>",
    "<!--<script>alert(1)//",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<?xml version='1.0'?><script>alert(1)</script>",
    "\\u003cscript\\u003ealert(1)",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "//evil.example/x",
    "\x1b[2J\x1b[31mred\x1b[0m\x1b]0;title\x07<b>",
    "\u200b\u200d\ufeff\u00ad<b>zero width",
    "Z\u0351\u0352\u0353" * 40 + "<b>",
    "\u2028\u2029<b>line ends",
    "a\r\nSet-Cookie: evil=1\r\n\r\n<script>alert(1)</script>",
    "<b>" * 2000,
    "\U0001f4a5<b>\ue000\ufffe",
)
PAGES = (
    "/jobs",
    "/jobs/{job}",
    "/jobs/{job}/log",
    "/jobs/{job}/again",
    "/compare?jobs={job}",
    "/executors?view=grid",
    "/events",
    "/account",
    "/queue",
    "/executors?view=table",
    "/executors/{executor}",
    "/settings",
    "/settings/secrets",
    "/settings/audit",
)


class HostileSite:
    """One job, executor, event and so on; `say` puts texts into every field that reaches a page."""

    def __init__(self, site: Web) -> None:
        self.site = site
        now = site.sender.now()
        site.sender.clock = lambda: now  # so that nothing on a page changes by the passing of time
        self.executor = site.add_executor("alpha")
        self.job = site.add_job()
        site.add_node(self.job, self.executor)
        site.log(self.job, "out", "err")
        site.metric(self.job, loss=0.5)
        with site.sender.store.write() as c:
            first = site.sender.store.take_cursors(c, self.job, 1)
            entry = {"job_id": self.job, "cursor": first, "time": 1.0, "kind": "x", "text": "x"}
            c.execute(sa.insert(schema.timeline).values(entry))
            kept = {
                "repository_id": "builtin:demo",
                "name": "S",
                "sealed": "",
                "branches": [],
                "changed": 1.0,
            }
            c.execute(sa.insert(secrets).values(kept | {"by": "ada"}))
        self.waiting = site.add_job()

    def pages(self) -> list[str]:
        return [page.format(job=self.job, executor=self.executor) for page in PAGES]

    def say(self, *payloads: str) -> None:
        """One after the other, a field each, from the start again where there are more fields."""
        texts = itertools.cycle(f"x{payload}" for payload in payloads)  # never empty: a part might go with it
        t = texts.__next__
        words = ("ref", "subject", "author", "project", "source", "code", "reason", "manifest_path")
        words += (
            "manifest_text",
            "result_branch",
            "result_path",
            "result_commit",
            "publish_blocked",
            "rerun_of",
        )
        job = {word: t() for word in words}
        loss = t()
        job |= {"waiting": {t(): t()}, "cell": {t(): t()}, "plan": {"notices": [t()], t(): t()}}
        job |= {
            "artifacts": [{"path": t(), "size": 1, "sha256": t()}],
            "metrics": {loss: t(), f"{loss}2": 0.5},
        }
        self.site.set(self.job, **job)
        self.site.set(self.waiting, project=t(), ref=t(), waiting={t(): t()})
        gpu = Gpu(uuid=t(), model=t(), memory_bytes=1).model_dump()
        machine = {"hostname": t(), "python": t(), "torch": t(), "labels": {t(): t()}, "gpus": [gpu]}
        watched = t()  # the same name at both, or the page of events has a button less
        event = {word: t() for word in ("source", "ref", "old", "new", "reason")} | {"repository": watched}
        s = schema
        with self.site.sender.store.write() as c:
            has = c.execute(sa.select(s.executors.c.capabilities)).scalar_one() | machine
            c.execute(sa.update(s.executors).values(name=t(), endpoint=t(), capabilities=has))
            c.execute(sa.update(s.events).values(event))
            c.execute(sa.update(s.repositories).values(name=watched, url=t(), error=t()))
            c.execute(sa.update(s.nodes).values(detail=t(), code=t(), reason=t()))
            c.execute(sa.update(s.attempts).values(code=t(), reason=t()))
            c.execute(sa.update(s.log_lines).values(text=t()))
            c.execute(sa.update(s.metric_points).values(values={loss: 0.5, f"{loss}2": 0.25}))
            c.execute(sa.update(s.timeline).values(kind=t(), text=t()))
            c.execute(sa.update(s.access_tokens).values(name=t()))
            c.execute(sa.update(secrets).values(name=t(), branches=[t(), t()], by=t()))
            said = {"actor": t(), "action": t(), "subject": t(), "detail": {t(): t()}}
            c.execute(sa.update(audit).where(audit.c.n == 1).values(said))
