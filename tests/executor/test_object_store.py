"""Checkpoints in an object store: a real S3 server on this machine, spoken to by s3fs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from support.buckets import serving_s3
from trainforge.config.errors import NodeFailed
from trainforge.executor.checkpoint_store import Store
from trainforge.executor.checkpoints import Checkpoints, Keeper

KEYS = {"AWS_ACCESS_KEY_ID": "canary", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket's URL; address and keys are in the environment, as an executor would have them."""
    with serving_s3() as url:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        name = f"bucket-{os.getpid()}-{url.rpartition(':')[2]}"
        boto3.client("s3").create_bucket(Bucket=name)
        yield f"s3://{name}/checkpoints"


def fail(words: str) -> None:
    raise AssertionError(words)


def test_parts_of_two_nodes_reach_a_third_machine_through_s3(bucket: str, tmp_path: Path) -> None:
    for rank in (0, 1):
        here = Checkpoints(tmp_path / f"node-{rank}", 1, rank, 2)
        for step in (1, 2):
            part = here.files / f"step-{step}" / "deep" / f"shard-{rank}"
            part.parent.mkdir(parents=True)
            part.write_bytes(bytes([step, rank]) * 1000)
        for keeper in (Keeper(here, Store(bucket, "job", keep=1), 0, fail) for _ in range(2)):
            keeper.look(time.time() + 1)
    store = Store(bucket, "job", keep=1)
    made = next(made for made in store.complete() if made.name == "step-2")
    assert [part.rank for part in made.parts] == [0, 1]
    other = Checkpoints(tmp_path / "other", 2, 0, 1)
    other.files.mkdir(parents=True)
    store.fetch(made, other.files / "step-2")
    found = {path.name: path.read_bytes() for path in (other.files / "step-2" / "deep").iterdir()}
    assert found == {"shard-0": bytes([2, 0]) * 1000, "shard-1": bytes([2, 1]) * 1000}
    store.clear()
    assert store.markers() == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(NodeFailed, match=r"pip install gcsfs"):
        Store("gs://bucket/checkpoints", "job", keep=1)
