"""What the owner of a machine lets jobs do on it: `policy.yaml`, announced to the sender and kept here.

Every rule only narrows what a job may ask for; a rule that is left out narrows nothing. The sender plans
by the announced rules, and the executor holds each job to its own file, whatever the sender plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trainforge.config.containers import allows, parse_volume
from trainforge.config.document import plain, read_document
from trainforge.config.errors import Place, SettingsError
from trainforge.config.isolation import Level
from trainforge.config.manifest_types import parse_duration, parse_size

if TYPE_CHECKING:
    from trainforge.config.manifest import Manifest


def _duration(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


Pattern = Annotated[str, Field(min_length=1, max_length=2048)]
Patterns = Annotated[list[Pattern], Field(max_length=200)] | None


class Policy(BaseModel):
    """The rules, and where each stands. Patterns may hold `*` and `?`; `[]` allows none at all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repositories: Patterns = None  # ids or URLs
    branches: Patterns = None  # without refs/heads/; a tag as refs/tags/…
    launchers: Patterns = None
    images: Patterns = None  # a job without an image is held to `native`
    native: bool = True  # whether jobs may train outside of a container
    volumes: Patterns = None  # folders that containers may be shown, `/data` or `/scratch:rw`; none else
    network: Literal["full", "none"] = "full"  # `none`: only jobs that ask for none
    private_data: bool | None = None  # whether data may be fetched from private networks; None: as `network`
    isolation: Level = "process"  # how far jobs are kept apart at least, whatever they ask for
    max_time: Annotated[float, BeforeValidator(_duration), Field(gt=0)] | None = None
    max_memory: Annotated[int, BeforeValidator(_size), Field(gt=0)] | None = None
    max_gpus: Annotated[int, Field(ge=0)] | None = None
    max_cpus: Annotated[float, Field(gt=0)] | None = None
    max_nodes: Annotated[int, Field(ge=1)] | None = None

    file: str = Field(default="", max_length=4096)
    lines: dict[str, int] = {}

    @property
    def reaches_private(self) -> bool:
        """Whether data are fetched from private networks: no further than jobs get by themselves."""
        return self.network == "full" if self.private_data is None else self.private_data

    def place(self, rule: str) -> str:
        """Such as `policy.yaml:3`; empty where the rule stands in no file."""
        return str(Place(self.file, self.lines.get(rule))) if self.file else ""


NO_RULES = Policy()
RULES = tuple(name for name in Policy.model_fields if name not in {"file", "lines"})


@dataclass(frozen=True)
class Asked:
    """What a job asks of one machine, as far as it is known; None is not asked, or not known yet."""

    repository: str | None = None
    url: str = ""
    ref: str | None = None
    launcher: str | None = None
    image: str | None = None
    volumes: tuple[str, ...] = ()
    network: str | None = None
    isolation: Level | None = None
    time: float | None = None
    memory: float | None = None
    gpus: int | None = None
    cpus: float | None = None
    nodes: int | None = None
    manifest: bool = False  # whether the manifest was read: what it leaves out is not asked for then


def refusal(policy: Policy | None, asked: Asked) -> str:
    """Which rule forbids this, where it stands and what it is; empty when none does."""
    policy = policy or NO_RULES
    for rule, said in _broken(policy, asked):
        where = policy.place(rule)
        return f"{said} ({where}: {rule})" if where else f"{said} (rule {rule})"
    return ""


def _broken(policy: Policy, asked: Asked) -> Iterator[tuple[str, str]]:
    if asked.repository is not None and not _named(policy.repositories, *_spellings(asked)):
        yield "repositories", f"the policy does not allow the repository {asked.repository}"
    if asked.ref is not None:
        branch = asked.ref.removeprefix("refs/heads/")
        if not _named(policy.branches, branch):
            yield "branches", f"the policy does not allow the branch {branch or '(none)'}"
    if asked.manifest:
        yield from _ways(policy, asked)
        yield from _sizes(policy, asked)


def _ways(policy: Policy, asked: Asked) -> Iterator[tuple[str, str]]:
    """How the job trains."""
    if asked.launcher is not None and not _named(policy.launchers, asked.launcher):
        yield "launchers", f"the policy does not allow the launcher {asked.launcher}"
    if asked.image is None and not policy.native:
        yield "native", "the policy allows training in containers only"
    if asked.image is not None and not _named(policy.images, asked.image):
        yield "images", f"the policy does not allow the image {asked.image}"
    for volume in map(parse_volume, asked.volumes):
        if not allows(policy.volumes, volume):
            how = "be written to" if volume.write else "be read"
            yield "volumes", f"the policy does not let {volume.source} {how} by containers"
    if policy.network == "none" and asked.network != "none":
        yield "network", "the policy allows no network: environment.network must be none"


def _sizes(policy: Policy, asked: Asked) -> Iterator[tuple[str, str]]:
    """How much it takes, and for how long."""
    if policy.max_time is not None and (asked.time is None or asked.time > policy.max_time):
        wanted = "not limited" if asked.time is None else f"{asked.time:g} s"
        yield "max_time", f"the policy allows runs of {policy.max_time:g} s, timeout.run is {wanted}"
    sizes = (
        ("max_memory", asked.memory, "bytes of memory"),
        ("max_gpus", asked.gpus, "GPUs"),
        ("max_cpus", asked.cpus, "CPU cores"),
        ("max_nodes", asked.nodes, "nodes"),
    )
    for rule, wants, unit in sizes:
        most = getattr(policy, rule)
        if most is not None and wants is not None and wants > most:
            yield rule, f"the policy allows {most:,} {unit}, the job asks for {wants:,}"


def asked_of(
    manifest: Manifest, *, repository: str | None, ref: str | None, gpus: int, nodes: int, url: str = ""
) -> Asked:
    """What a manifest asks of each machine that takes a node of it."""
    wants, around = manifest.resources, manifest.environment
    return Asked(
        repository=repository,
        url=url,
        ref=ref,
        launcher=manifest.training.launcher,
        image=around.image or around.dockerfile,
        volumes=tuple(around.volumes),
        network=around.network,
        isolation="container" if around.contained else around.isolation,
        time=manifest.timeout.run,
        memory=wants.memory,
        gpus=gpus,
        cpus=wants.cpu,
        nodes=nodes,
        manifest=True,
    )


def _spellings(asked: Asked) -> tuple[str, ...]:
    """A remote repository's id is its URL without the transport, which a rule may be written with."""
    repository = asked.repository or ""
    host = repository.removeprefix("git:")
    return (
        repository,
        asked.url,
        asked.url.removesuffix(".git"),
        f"https://{host}" if host != repository else "",
    )


def _named(patterns: Sequence[str] | None, *names: str) -> bool:
    """A URL or id is compared without case, as hosts are; `*` stands for anything, `/` too."""
    if patterns is None:
        return True
    lower = [name.lower() for name in names if name]
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns for name in lower)


# --- the file -------------------------------------------------------------------------------------------


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        SettingsError: it cannot be read, or says something that is no rule; it names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", hint="check policy_file") from error
    document = read_document(data, str(path))
    said: dict[str, Any] = plain(document.value) or {}
    if document.problems and said:
        first = document.problems[0]
        raise SettingsError(first.message, hint=first.hint, place=first.place)
    if document.problems or not said:
        raise SettingsError(
            "there are no rules in this file", hint="such as max_gpus: 1", place=Place(str(path), 1)
        )
    unknown = [name for name in said if name not in RULES]
    if unknown:
        raise SettingsError(
            f"{unknown[0]} is not a rule",
            hint=f"rules are {', '.join(RULES)}",
            place=document.place((unknown[0],), key=True),
        )
    lines = {name: document.place((name,), key=True).line or 0 for name in said}
    try:
        return Policy(**said, file=path.name, lines=lines)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        location = tuple(detail["loc"])
        words = f"{'.'.join(map(str, location))}: {detail['msg']}"
        raise SettingsError(words, place=document.place(location)) from error
