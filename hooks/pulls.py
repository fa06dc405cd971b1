"""Whose pull request it is, asked of the repository itself: no event says that in a way to be believed."""

from __future__ import annotations

from trainforge.config.messages import GitCredential
from trainforge.hooks.addresses import validate_ref, validate_url
from trainforge.hooks.gitrun import run

TIMEOUT_S = 30.0


def is_own_branch(
    url: str,
    number: int,
    branch: str,
    *,
    credential: GitCredential | None = None,
    allow_file: bool = False,
) -> bool:
    """Whether the head of a pull request is what this branch of the same repository stands at now.

    Of a fork it is not, unless the commit is in the repository under the branch's name anyway.

    Raises:
        GitError: the remote cannot be read. AddressRefused: not a name of a branch.
    """
    remote = validate_url(url, allow_file=allow_file)
    names = [f"refs/pull/{number}/head", validate_ref(f"refs/heads/{branch}")]
    args = ["ls-remote", "--quiet", "--", remote.text, *names]
    out = run(args, remote=remote, credential=credential, timeout=TIMEOUT_S)
    lines = (line.partition("\t") for line in out.decode("utf-8", "replace").splitlines())
    found = {name: commit for commit, _, name in lines}
    return names[0] in found and found.get(names[1]) == found[names[0]]
