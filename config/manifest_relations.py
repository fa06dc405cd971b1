"""What the manifest's keys demand of each other, in words. Pure; each rule names the keys it is about."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from trainforge.config import templates
from trainforge.config.document import Location
from trainforge.config.manifest_data import Data, several
from trainforge.config.manifest_keys import Section
from trainforge.config.manifest_models import (
    Environment,
    Gate,
    Metrics,
    Resources,
    Results,
    Retry,
    Strategy,
    Timeout,
    Training,
)
from trainforge.config.matrix import expand

_ENTRIES = ("script", "command", "module")
_LOGIN = {"token", "password"}
_CREDENTIALS = {
    "http": _LOGIN, "https": _LOGIN, "gs": {"token"}, "s3": {"key_id", "secret_key", "session_token"},
}  # fmt: skip
_HIGHER_IS_BETTER = ("acc", "auc", "f1", "precision", "recall", "bleu", "rouge", "score", "iou", "map", "r2")


@dataclass(frozen=True)
class Fault:
    """Keys that do not go together; not said when one of `about` is wrong by itself."""

    place: Location
    message: str
    hint: str
    about: tuple[Location, ...]


SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class _Sections:
    """Reads single sections of a manifest whose keys at `bad` (section, key) are wrong by themselves."""

    raw: dict[str, Any]
    bad: set[Location]

    def read(self, name: str, model: type[SectionT]) -> Iterator[SectionT]:
        value = self.raw.get(name) or {}
        if (name,) in self.bad or not isinstance(value, dict):
            return
        kept = {key: item for key, item in value.items() if (name, key) not in self.bad}
        with contextlib.suppress(ValidationError):
            yield model.model_validate(kept)


def faults(raw: dict[str, Any], bad: set[Location]) -> list[Fault]:
    """All broken rules between the keys of `raw`, but for those at `bad`, which were reported already."""
    found = [fault for fault in _all_faults(_Sections(raw, bad)) if not bad.intersection(fault.about)]
    return [fault for fault in found if fault.place[:1] not in bad]


def _all_faults(sections: _Sections) -> Iterator[Fault]:
    for training in sections.read("training", Training) if "training" in sections.raw else ():
        yield from _entry(training)
        yield from _installation(training)
        yield from _secrets(training, sections.raw.get("secrets"))
        yield from _named_parameters(training, sections.raw.get("strategy"))
        for retry in sections.read("retry", Retry):
            yield from _in_place(training, retry)
        for environment in sections.read("environment", Environment):
            yield from _environment(training, environment)
    for environment in sections.read("environment", Environment):
        yield from _container(environment)
        for resources in sections.read("resources", Resources):
            yield from _offline(environment, resources)
    for metrics in sections.read("metrics", Metrics):
        yield from _direction(metrics)
    for strategy in sections.read("strategy", Strategy):
        yield from _matrix(strategy)
    for timeout in sections.read("timeout", Timeout):
        yield from _grace(timeout)
    for results in sections.read("results", Results):
        yield from _results_branch(results)
    yield from _all_data(sections)
    yield from _gates(sections.raw.get("gates"))


def _entry(training: Training) -> Iterator[Fault]:
    given = [name for name in _ENTRIES if getattr(training, name) is not None]
    about = tuple(("training", name) for name in _ENTRIES)
    if not given:
        yield Fault(
            ("training",),
            "training: one of script, command or module is missing",
            "add script: train.py",
            about,
        )
    for extra in given[1:]:
        message = f"training.{extra}: {given[0]} says already what to run"
        yield Fault(("training", extra), message, "keep one of script, command and module", about)
    if training.command is not None:
        if training.args:
            message = "training.args: a command takes no args"
            yield Fault(
                ("training", "args"), message, "write them into the command", (*about, ("training", "args"))
            )
        if "launcher" in training.model_fields_set and training.launcher != "none":
            message = f"training.launcher: a command starts its own processes, got {training.launcher!r}"
            yield Fault(
                ("training", "launcher"), message, "leave it away", (*about, ("training", "launcher"))
            )
    elif training.launcher == "none":
        message = "training.launcher: none goes with training.command only"
        yield Fault(("training", "launcher"), message, "try launcher: python", about)


def _named_parameters(training: Training, strategy: Any) -> Iterator[Fault]:
    """What `{{ params.x }}` names must be there; a matrix makes parameters as well."""
    made = strategy if isinstance(strategy, dict) else {}
    cells = [made.get("matrix"), *(made.get("include") or ())]
    known: dict[str, Any] = {}
    for mapping in (*cells, training.params):
        known |= mapping if isinstance(mapping, dict) else {}
    for index, argument in enumerate(training.args):
        for name in templates.names(argument):
            try:
                templates.find(known, name)
            except KeyError:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"try {near[0]}" if near else f"add {name} to training.params"
                place: Location = ("training", "args", index)
                about: tuple[Location, ...] = (("training", "args"), ("training", "params"), ("strategy",))
                yield Fault(place, f"training.args: there is no parameter {name}", hint, about)


def _installation(training: Training) -> Iterator[Fault]:
    if training.requirements is not None and training.lockfile is not None:
        about = (("training", "requirements"), ("training", "lockfile"))
        message = "training.lockfile: training.requirements says already what to install"
        yield Fault(("training", "lockfile"), message, "keep one of the two", about)
    lock = training.lockfile
    if training.extras and lock and lock.rpartition("/")[2] != "uv.lock":
        about = (("training", "extras"), ("training", "lockfile"))
        message = f"training.extras: {lock} says already what to install"
        yield Fault(about[0], message, "name a uv.lock, or leave extras out", about)


def _environment(training: Training, environment: Environment) -> Iterator[Fault]:
    """How what is installed goes together with where."""
    if environment.strict and environment.mode == "inherit":
        about = (("environment", "strict"), ("environment", "mode"))
        message = "environment.strict: the mode inherit takes whatever the executor has"
        yield Fault(about[0], message, "try mode: isolated", about)
    locked = training.lockfile and not training.lockfile.endswith((".txt", ".in"))
    if environment.torch_backend and locked:
        about = (("environment", "torch_backend"), ("training", "lockfile"))
        message = f"environment.torch_backend: {training.lockfile} says already which build of torch"
        yield Fault(about[0], message, "lock the build that you want", about)


def _in_place(training: Training, retry: Retry) -> Iterator[Fault]:
    if retry.in_place and training.launcher in {"python", "none"}:
        about = (("training", "launcher"), ("training", "command"), ("retry", "in_place"))
        message = f"retry.in_place: with launcher: {training.launcher} nothing starts processes again"
        yield Fault(("retry", "in_place"), message, "try launcher: torchrun", about)


def _secrets(training: Training, secrets: Any) -> Iterator[Fault]:
    for index, name in enumerate(secrets if isinstance(secrets, list) else []):
        if isinstance(name, str) and name in training.env:
            message = f"secrets[{index}]: {name} stands in training.env as well"
            yield Fault(("secrets", index), message, "keep it here only", (("training", "env"),))


def _offline(environment: Environment, resources: Resources) -> Iterator[Fault]:
    if environment.network == "none" and resources.nodes.max > 1:
        about = (("environment", "network"), ("resources", "nodes"))
        message = "environment.network: several nodes cannot meet without a network"
        yield Fault(about[0], message, "use one node, or network: full", about)


def _container(environment: Environment) -> Iterator[Fault]:
    about = (("environment", "mode"), ("environment", "image"), ("environment", "dockerfile"))
    if environment.image is not None and environment.dockerfile is not None:
        message = "environment.dockerfile: environment.image says already which image"
        yield Fault(("environment", "dockerfile"), message, "keep one of the two", about)
    if environment.mode in {"inherit", "isolated"}:
        for key in ("image", "dockerfile", "volumes"):
            if getattr(environment, key):
                message = f"environment.{key}: the mode {environment.mode} uses no container"
                yield Fault(
                    ("environment", key), message, "try mode: container", (*about, ("environment", key))
                )


def _direction(metrics: Metrics) -> Iterator[Fault]:
    if metrics.primary is not None and "mode" not in metrics.model_fields_set:
        better = "max" if any(part in metrics.primary.lower() for part in _HIGHER_IS_BETTER) else "min"
        message = f"metrics.mode: missing, and only you know whether more or less {metrics.primary} is better"
        about = (("metrics", "mode"), ("metrics", "primary"))
        yield Fault(("metrics",), message, f"try mode: {better}", about)


def _matrix(strategy: Strategy) -> Iterator[Fault]:
    about: tuple[Location, ...] = (("strategy", "matrix"), ("strategy", "include"), ("strategy", "exclude"))
    place = ("strategy", "matrix" if strategy.matrix else "include")
    for index, pattern in enumerate(strategy.exclude):
        unknown = sorted(set(pattern) - set(strategy.matrix))
        if (unknown and strategy.matrix) or not pattern:
            named = f"{unknown[0]} is no parameter of the matrix" if unknown else "names no parameter"
            message = f"strategy.exclude[{index}]: {named}"
            yield Fault(("strategy", "exclude", index), message, "name parameters of strategy.matrix", about)
    for index, cell in enumerate(strategy.include):
        if not cell:
            message = f"strategy.include[{index}]: names no parameter"
            yield Fault(("strategy", "include", index), message, "give parameters values", about)
    try:
        expand(strategy)
    except ValueError as error:
        yield Fault(place, f"strategy.{place[1]}: {error}", "leave values out", about)


def _grace(timeout: Timeout) -> Iterator[Fault]:
    if timeout.grace > 3600:
        place = ("timeout", "grace")
        yield Fault(
            place, f"timeout.grace: expected at most 1h, got {timeout.grace:g} s", "try grace: 5m", (place,)
        )


def _results_branch(results: Results) -> Iterator[Fault]:
    if results.branch in {"main", "master", "HEAD", "trainforge-executors"}:
        message = f"results.branch: {results.branch} is not a branch for results"
        place = ("results", "branch")
        yield Fault(place, message, "try branch: trainforge-results", (place,))


def _all_data(sections: _Sections) -> Iterator[Fault]:
    """One entry may stand without its list."""
    raw, names = sections.raw.get("data"), set[str]()
    listed, secrets = isinstance(raw, list), sections.raw.get("secrets")
    for index, value in enumerate(several(raw) if isinstance(raw, (dict, list)) else []):
        here: Location = ("data", index) if listed else ("data",)
        if here in sections.bad or not isinstance(value, dict):
            continue
        kept = {key: item for key, item in value.items() if (*here, key) not in sections.bad}
        with contextlib.suppress(ValidationError):
            data = Data.model_validate(kept)
            said = f"data[{index}]" if listed else "data"
            for key, message, hint in _data(data, secrets if isinstance(secrets, list) else []):
                yield Fault((*here, key), f"{said}.{key}: {message}", hint, ((*here, key),))
            taken = [name for name in names if f"{name}/".startswith(f"{data.name}/")]
            taken += [name for name in names if f"{data.name}/".startswith(f"{name}/")]
            if taken or (data.name == "." and len(several(raw)) > 1):
                message = f"{said}.path: other data are called {data.name} too"
                if taken and taken[0] != data.name:
                    message = f"{said}.path: {data.name} and {taken[0]} cannot both be there"
                yield Fault((*here, "path" if data.path else "url"), message, "add path: other.csv", ())
            names.add(data.name)


def _data(data: Data, secrets: list[Any]) -> Iterator[tuple[str, str, str]]:
    """Key, what is wrong with it, what to do."""
    several_files = data.git or data.folder
    if data.scheme == "http" and data.sha256 is None:
        yield "url", "sha256 is missing, and plain http can be changed on the way", "add sha256, or use https"
    if data.sha256 is not None and several_files:
        yield (
            "sha256",
            "it is the digest of one file",
            "name the commit in ref" if data.git else "leave it away",
        )
    if data.ref is not None and not data.git:
        yield "ref", f"{data.scheme} has no branches", "use a git+https:// URL"
    if data.unpack and several_files:
        yield "unpack", "these are several files already", "leave it away"
    if data.name == "." and not (several_files or data.unpack):
        yield "path", "a file needs a name", "try path: train.csv"
    given = data.credentials
    unknown = [name for name in given.secrets.values() if name not in secrets]
    if unknown:
        yield "credentials", f"{unknown[0]} is not among the secrets", f"add secrets: [{unknown[0]}]"
    if bool(given.key_id) != bool(given.secret_key):
        yield "credentials", "key_id and secret_key go together", "give both"
    if wrong := set(given.secrets) - _CREDENTIALS.get(data.scheme.partition("+")[2] or data.scheme, set()):
        yield "credentials", f"{min(wrong)} is nothing for {data.scheme}", "see docs/data.md"


def _gates(gates: Any) -> Iterator[Fault]:
    for index, raw in enumerate(gates if isinstance(gates, list) else []):
        try:
            gate = Gate.model_validate(raw)
        except ValidationError:
            continue
        here: Location = ("gates", index)
        if gate.min is None and gate.max is None:
            yield Fault(here, f"gates[{index}]: one of min or max is missing", "add min: 0.9", ())
        elif isinstance(gate.min, float) and isinstance(gate.max, float) and gate.min > gate.max:
            message = f"gates[{index}].min: {gate.min} is above max, {gate.max}"
            yield Fault((*here, "min"), message, "exchange the two", ())
        elif gate.tolerance and "base" not in (gate.min, gate.max):
            message = f"gates[{index}].tolerance: it is about base, which is neither min nor max"
            yield Fault((*here, "tolerance"), message, "try max: base", ())
