"""The manifest's `data`: what is fetched before a training, from where, as whom; and what it is called."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from trainforge.config.manifest_keys import Section, now
from trainforge.config.manifest_types import DataUrl, Ref, RelativePath, SecretName, Sha256, Text

ARCHIVES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tbz2", ".txz", ".tar", ".zip")
MOST = 50


class Credentials(Section):
    """Names of the job's secrets, but for `username`."""

    token: Annotated[
        SecretName | None,
        now("Of a token: for http(s) sent as `Bearer`, for git as the password, for gs as it is.", "TOKEN"),
    ] = None
    username: Annotated[Text | None, now("The user that `password` belongs to.", "ada")] = None
    password: Annotated[SecretName | None, now("Of a password for http(s) or git.", "DATA_PASSWORD")] = None
    key_id: Annotated[SecretName | None, now("Of an access key's id, for s3.", "AWS_ACCESS_KEY_ID")] = None
    secret_key: Annotated[
        SecretName | None, now("Of the access key itself, for s3.", "AWS_SECRET_ACCESS_KEY")
    ] = None
    session_token: Annotated[
        SecretName | None, now("Of what goes with a temporary access key, for s3.", "AWS_SESSION_TOKEN")
    ] = None

    @property
    def secrets(self) -> dict[str, str]:
        """Key -> the secret's name, of those given."""
        names = {key: getattr(self, key) for key in type(self).model_fields if key != "username"}
        return {key: name for key, name in names.items() if name is not None}


class Data(Section):
    url: Annotated[
        DataUrl,
        now(
            "Where the data are: file, http(s), s3 or gs, or git+https, git+ssh, git+file for a repository; "
            "of s3, gs and file a URL that ends in `/` is a folder. hf is not yet in effect.",
            "https://example.org/train.csv",
        ),
    ]
    path: Annotated[
        RelativePath | None,
        now("The data's name below TRAINFORGE_DATA_DIR; by default the last part of the URL.", "train.csv"),
    ] = None
    sha256: Annotated[Sha256 | None, now("The file's digest: other data are refused.")] = None
    ref: Annotated[
        Ref | None,
        now("The branch, tag or commit of a repository; by default its default branch.", "v1.2"),
    ] = None
    unpack: Annotated[bool, now("Whether the file is an archive (zip, tar) to unpack.", True)] = False
    cache: Annotated[
        bool,
        now(
            "Whether the machine keeps the data for later jobs. A file of the machine is not even copied "
            "with `false`.",
            False,
        ),
    ] = True
    credentials: Annotated[Credentials, now("The secrets to fetch the data with.")] = Credentials()

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0]

    @property
    def git(self) -> bool:
        return self.scheme.startswith("git+")

    @property
    def folder(self) -> bool:
        """Whether the URL names a folder of files."""
        return self.scheme in {"s3", "gs", "file"} and self.url.endswith("/")

    @property
    def name(self) -> str:
        """Where it is found below TRAINFORGE_DATA_DIR."""
        if self.path is not None:
            return str(PurePosixPath(self.path))
        parts = urlsplit(self.url)
        name = unquote(parts.path).rstrip("/").rpartition("/")[2] or parts.netloc
        name = "".join(char if char.isprintable() and char not in "/\\" else "_" for char in name)[:200]
        endings = (".git",) if self.git else ARCHIVES if self.unpack else ()
        for ending in endings:
            name = name.removesuffix(ending)
        return "data" if name in {"", ".", ".."} else name

    @property
    def shown(self) -> str:
        """The URL as it may be told: without what may be a signature."""
        url, mark, _ = self.url.partition("?")
        return f"{url}?…" if mark else url


def several(value: Any) -> Any:
    """One entry may stand without its list."""
    if value is None:
        return []
    return [value] if isinstance(value, dict) else value
