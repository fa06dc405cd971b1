"""The watched repository, and the manifests that are pushed to it."""

from __future__ import annotations

import hashlib
from functools import cache

from trainforge.config.manifest import parse_manifest
from trainforge.hooks.triggers import MANIFEST
from trainforge.sender.drafts import ManifestFile
from trainforge.sender.store_events import Repo

REPO = Repo(
    "git:https://example.org/team/model", "model", "https://example.org/team/model", "remote", primed=True
)
RETRY = "retry: {max: 2, on: [lost, connection_lost, script_failed, rendezvous_unreachable, timeout_setup]}\n"
_HEAD = "project: {name: p}\ntraining: {script: t.py}\ntimeout: {setup: 10m}\n"
TEXTS = (
    _HEAD + RETRY,
    _HEAD + RETRY + "resources: {nodes: 2}\n",
    _HEAD,
    _HEAD + RETRY + "priority: 5\n",
)
BROKEN = len(TEXTS)  # the manifest that cannot be used


@cache
def manifest_file(which: int) -> ManifestFile:
    if which == BROKEN:
        return ManifestFile(MANIFEST, "b" * 40, "nonsense", problems=({"detail": "line 1: nonsense"},))
    blob = hashlib.sha1(TEXTS[which].encode(), usedforsecurity=False).hexdigest()
    return ManifestFile(MANIFEST, blob, TEXTS[which], parse_manifest(TEXTS[which]))
