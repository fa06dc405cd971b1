"""What a runner of GitHub Actions offers to a step: groups of its log, outputs, a summary, a token.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands. All that is printed of
a job is printed where the runner obeys no commands, so that no line of a training can be one.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import httpx2

from trainforge.config.errors import NotTrusted, SettingsError, Unreachable

SUMMARY_LIMIT = 1024 * 1024
TIMEOUT_S = 30.0


def escape(text: str) -> str:
    """As the value of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return escape(text).replace(":", "%3A").replace(",", "%2C")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Runner:
    """One step of one workflow run; outside of one everything is plain text and no file is written."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, write: Callable[[str], None] = _print
    ) -> None:
        self._environment, self._write = environment, write
        self.inside = environment.get("GITHUB_ACTIONS") == "true"
        self._group = ""

    def get(self, name: str) -> str:
        return self._environment.get(name, "")

    # --- the log --------------------------------------------------------------------------------------

    def group(self, title: str) -> None:
        """What is printed from here on is folded away under this title."""
        if title == self._group:
            return
        self.end_group()
        self._group = title
        self._write(f"::group::{escape(title)}" if self.inside else f"--- {title}")

    def end_group(self) -> None:
        if self._group and self.inside:
            self._write("::endgroup::")
        self._group = ""

    def lines(self, texts: Iterable[str]) -> None:
        """Lines that somebody else wrote: none of them is a command to the runner."""
        lines = [line for text in texts for line in text.splitlines() or [""]]
        if not lines:
            return
        word = secrets.token_hex(16)
        if self.inside:
            self._write(f"::stop-commands::{word}")
        for line in lines:
            self._write(line)
        if self.inside:
            self._write(f"::{word}::")

    def say(self, text: str) -> None:
        """A line of our own, which may name what others chose."""
        self.lines([text])

    def error(self, text: str, file: str = "", line: int | None = None) -> None:
        """An annotation of the run, at a line of a file where one is to blame."""
        where = f",file={_property(file)}" if file else ""
        where += f",line={line}" if file and line else ""
        self._write(f"::error title=TrainForge{where}::{escape(text)}" if self.inside else f"error: {text}")

    def hide(self, secret: str) -> None:
        """Have the runner mask it in the log, should it ever appear there."""
        if self.inside and secret:
            self._write(f"::add-mask::{escape(secret)}")

    # --- files ----------------------------------------------------------------------------------------

    def output(self, name: str, value: str) -> None:
        end = f"end-{secrets.token_hex(16)}"
        self._append("GITHUB_OUTPUT", f"{name}<<{end}\n{value}\n{end}\n")

    def summary(self, markdown: str) -> None:
        """Cut off where GitHub would refuse all of it."""
        data = markdown.encode()
        if len(data) > SUMMARY_LIMIT:
            markdown = data[: SUMMARY_LIMIT - 100].decode("utf-8", "ignore") + "\n\n… cut off here\n"
        self._append("GITHUB_STEP_SUMMARY", markdown)

    def _append(self, variable: str, text: str) -> None:
        if path := self.get(variable):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(text)

    # --- the run's identity ---------------------------------------------------------------------------

    def id_token(self, audience: str) -> str:
        """A token of GitHub's that says which run this is, for this audience alone.

        Raises:
            SettingsError: the workflow lacks the permission. Unreachable, NotTrusted: GitHub gives none.
        """
        url, bearer = self.get("ACTIONS_ID_TOKEN_REQUEST_URL"), self.get("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
        if not url or not bearer:
            raise SettingsError(
                "this workflow run gets no token of GitHub's",
                hint="give the job `permissions: {id-token: write, contents: read}`; "
                "pull requests from forks never get one",
            )
        try:
            asked = httpx2.URL(url).copy_merge_params({"audience": audience})
            answer = httpx2.get(asked, headers={"Authorization": f"Bearer {bearer}"}, timeout=TIMEOUT_S)
            answer.raise_for_status()
            token = answer.json()["value"]
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Unreachable(f"GitHub gives no token for this run: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise NotTrusted("GitHub's answer has no token in it") from error
        self.hide(str(token))
        return str(token)
