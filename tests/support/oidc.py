"""GitHub's token issuer, as a process of the test's own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import httpx2

NPM = Path(__file__).parents[1] / "npm"
BEARER = "the-runners-own-word"
COMMIT = "a" * 40


class Issuer:
    """`issuer` is the `iss` of its tokens, `request` what a runner is given to ask for them."""

    def __init__(self, process: subprocess.Popen[str], about: dict[str, str]) -> None:
        self._process = process
        self.issuer, self.request = about["issuer"], about["request"]

    @property
    def environment(self) -> dict[str, str]:
        return {"ACTIONS_ID_TOKEN_REQUEST_URL": self.request, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": BEARER}

    def say(self, **claims: Any) -> None:
        """What every token from now on claims, beside what is the same for all."""
        asked, answers = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        asked.write(json.dumps(claims) + "\n")
        asked.flush()
        assert json.loads(answers.readline()) == {"claims": True}

    def token(self, audience: str, **claims: Any) -> str:
        self.say(**workflow(**claims))
        headers = {"Authorization": f"Bearer {BEARER}"}
        answer = httpx2.get(self.request, params={"audience": audience}, headers=headers)
        return str(answer.raise_for_status().json()["value"])


def workflow(**claims: Any) -> dict[str, Any]:
    """The claims of a run that a push began; from GitHub's own example of them."""
    return {
        "sub": "repo:octo-org/octo-repo:ref:refs/heads/main",
        "repository": "octo-org/octo-repo",
        "repository_id": "74",
        "repository_owner": "octo-org",
        "repository_owner_id": "65",
        "ref": "refs/heads/main",
        "ref_type": "branch",
        "sha": COMMIT,
        "event_name": "push",
        "run_id": "9876",
        "run_number": "10",
        "run_attempt": "2",
        "actor": "octocat",
        "actor_id": "12",
        "head_ref": "",
        "base_ref": "",
        "workflow": "train",
        "runner_environment": "github-hosted",
    } | claims


@contextmanager
def issuer() -> Iterator[Issuer]:
    program = Path(__file__).with_suffix("").parent / "oidc_issuer.mjs"
    process = subprocess.Popen(
        ["node", str(program), str(NPM), BEARER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, f"the issuer did not start: is {NPM} installed? `make test` does"
        yield Issuer(process, json.loads(said))
    finally:
        process.communicate(timeout=20)  # it ends with its input
