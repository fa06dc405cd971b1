"""Names that are derived, never drawn: making a job twice makes it once."""

from __future__ import annotations

import base64
import hashlib

from trainforge.config.messages import JOB_ID_LENGTH


def job_id(
    repository_id: str,
    commit: str,
    manifest_path: str,
    manifest_blob: str,
    *,
    cell: str = "",
    rerun: str = "",
) -> str:
    """The id of the job that this manifest at this commit asks for.

    `cell` names one combination of a matrix, `rerun` tells repeated runs apart. 26 characters of base32
    (130 bits of a SHA-256): short enough to type a prefix of, long enough never to collide.
    """
    fields = ("tf1", repository_id, commit, manifest_path, manifest_blob, cell, rerun)
    if any("\0" in field for field in fields):
        raise ValueError("a field of a job's identity contains NUL")
    digest = hashlib.sha256("\0".join(fields).encode()).digest()
    return base64.b32encode(digest).decode().lower()[:JOB_ID_LENGTH]
