"""Which variables of a job's environment a manifest may set, and what a secret may be called."""

from __future__ import annotations

import re

_FORM = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_FORBIDDEN = re.compile(r"^(LD_|DYLD_|GIT_|TRAINFORGE_)")
# torch's own description of the gang; the launcher sets these.
_LAUNCHER = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
)
_SECRET_FORM = re.compile(r"[A-Z][A-Z0-9_]{0,127}")
# What programs take orders from rather than credentials.
_STEERING = re.compile(r"PATH|HOME|SHELL|ENV|IFS|TMPDIR|BASH_\w+|PYTHON\w*|NODE_\w+|PERL\w*|RUBY\w*|CUDA_\w+")


def env_fault(name: str) -> str | None:
    """Why a job cannot have a variable of this name; None if it can."""
    if not _FORM.fullmatch(name):
        return "letters, digits and _ make a variable's name"
    if _FORBIDDEN.match(name):
        return "LD_*, DYLD_*, GIT_* and TRAINFORGE_* are not the job's to set"
    if name in _LAUNCHER:
        return "the launcher sets this one itself"
    return None


def secret_fault(name: str) -> str | None:
    """Why a secret cannot be called this; None if it can."""
    if not _SECRET_FORM.fullmatch(name):
        return "capital letters, digits and _ make a secret's name, such as HF_TOKEN"
    if _STEERING.fullmatch(name):
        return "programs take orders from this variable; choose another name"
    return env_fault(name)
