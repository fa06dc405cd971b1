"""Names of images, and folders that containers are shown."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from trainforge.config.containers import ImageName, Mount, parse_volume

NAMES = TypeAdapter(ImageName)


@pytest.mark.parametrize(
    "name",
    [
        "python", "python:3.12", "pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime", "localhost/mine:1",
        "ghcr.io/ours/train@sha256:" + "a" * 64, "10.0.0.1:5000/a/b_c:v1", "Registry.Example/x",
    ],
)  # fmt: skip
def test_names_of_images(name: str) -> None:
    assert NAMES.validate_python(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "-v", "--privileged", "a b", "a:b:c", "a@sha256:abc", "a\nb", "Upper/case", "/x", "a//b",
        "x" * 501, "docker://x", "a:-x", "${x}", 3,
    ],
)  # fmt: skip
def test_what_is_no_name_of_an_image(name: object) -> None:
    with pytest.raises(ValidationError):
        NAMES.validate_python(name)


def test_volumes() -> None:
    whole = parse_volume("/data:/inside:rw")
    assert (str(whole.source), str(whole.target), whole.write) == ("/data", "/inside", True)
    assert parse_volume("/data") == parse_volume("/data:/data:ro")
    assert isinstance(whole, Mount)


@pytest.mark.parametrize(
    "text",
    [
        "data:/data", "/data:inside", "/a/../b:/c", "/data:/proc/1", "/data:/", "/:/", "/data:/etc",
        "/data:/x:rx", "/data,readonly:/x", "/d\n:/x", "", ":", "/data:/tmp", "/data:/x:rw:z",
    ],
)  # fmt: skip
def test_what_is_no_volume(text: str) -> None:
    with pytest.raises(ValueError, match=r"ro or rw|absolute paths|container's own"):
        parse_volume(text)
