"""How settings are read: file and environment, with errors that name the file's line or the variable."""

from __future__ import annotations

import contextvars
import difflib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from trainforge.config.document import Document, Location, dotted, plain, read_document
from trainforge.config.errors import Place, SettingsError
from trainforge.config.manifest_types import parse_duration, parse_size

# The values of the file that is being loaded, for pydantic-settings' own order of sources.
_FILE: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("file", default=None)
_HIDDEN = "********"
# The command line's own prefix begins the others', and this variable of its begins like a sender's.
CLIENT_PREFIX = "TRAINFORGE_"
SENDER_URL = "TRAINFORGE_SENDER_URL"


class FileSettings(BaseSettings):
    """Settings that `load` reads from a file and the environment."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=False,
        coerce_numbers_to_str=True,
        env_nested_delimiter="__",
        hide_input_in_errors=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, _FILE.get() or {})

    @classmethod
    def load(cls, file: Path | None = None, **explicit: Any) -> Self:
        """Read the settings; `explicit` values win over the environment, that over the file.

        Raises:
            SettingsError: the file cannot be read, or a value, from wherever, cannot be used.
        """
        if unknown := _unknown_variables(cls):
            raise _joined(unknown)
        document = _read(file) if file is not None else Document("")
        token = _FILE.set(plain(document.value))
        try:
            return cls(**explicit)
        except ValidationError as error:
            raise _settings_error(cls, error, document, explicit) from None
        finally:
            _FILE.reset(token)

    def shown(self) -> dict[str, Any]:
        """All settings in a form that may be printed: secrets and passwords hidden."""
        values = self.model_dump(mode="json")
        for name in values:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                values[name] = _HIDDEN if value.get_secret_value() else ""
            elif isinstance(value, str):
                values[name] = _without_password(value)
        return values


def _read(file: Path) -> Document:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}", hint="check the path") from error
    document = read_document(data, str(file))
    if document.problems and data.strip():
        raise _joined([(problem.message, problem.hint, problem.place) for problem in document.problems])
    return document


def _settings_error(
    settings: type[FileSettings], error: ValidationError, document: Document, explicit: Mapping[str, Any]
) -> SettingsError:
    faults = []
    for detail in error.errors(include_url=False, include_input=False):
        location: Location = tuple(detail["loc"])
        said, hint = _words(detail), ""
        if detail["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), settings.model_fields, n=1)
            said, hint = "unknown setting", f"did you mean {near[0]}?" if near else ""
        source, place = _source(settings, location, document, explicit)
        if place is not None and detail["type"] == "extra_forbidden":
            place = document.place(location, key=True)
        faults.append((f"{source}: {said}" if source else str(said), hint, place))
    return _joined(faults)


def _words(detail: Any) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "expected":
        return f"expected {context['what']}"
    return (
        str(context.get("error") or detail["msg"])
        .replace("Input should", "must")
        .replace("String should", "must")
    )


def _unknown_variables(settings: type[FileSettings]) -> list[tuple[str, str, Place | None]]:
    """Variables with the program's own prefix that name no setting: a slip of the pen is not ignored."""
    prefix = str(settings.model_config.get("env_prefix"))
    faults: list[tuple[str, str, Place | None]] = []
    for variable in sorted(os.environ) if prefix != CLIENT_PREFIX else ():
        name = variable.upper().removeprefix(prefix).partition("__")[0].lower()
        if (
            not variable.upper().startswith(prefix)
            or variable.upper() == SENDER_URL
            or name in settings.model_fields
        ):
            continue
        near = difflib.get_close_matches(name, settings.model_fields, n=1)
        hint = f"did you mean {prefix}{near[0].upper()}?" if near else "unset it"
        faults.append((f"{variable}: unknown setting", hint, None))
    return faults


def _source(
    settings: type[FileSettings], location: Location, document: Document, explicit: Mapping[str, Any]
) -> tuple[str, Place | None]:
    """What to call the value at `location`, and where it stands if that is in the file."""
    if not location:
        return "", None
    name = str(location[0])
    variable = f"{settings.model_config.get('env_prefix', '')}{name}".upper()
    set_here = {key.upper() for key in os.environ}
    if name not in explicit and any(key == variable or key.startswith(f"{variable}__") for key in set_here):
        return variable, None
    in_file = name not in explicit and name in document.value
    return dotted(location), document.place(location) if in_file else None


def _joined(faults: list[tuple[str, str, Place | None]]) -> SettingsError:
    """One error; from the second fault on, each on a line of its own."""
    lines = [str(SettingsError(message, hint=hint, place=place)) for message, hint, place in faults[1:]]
    message, hint, place = faults[0]
    if not lines:
        return SettingsError(message, hint=hint, place=place)
    first = f"{message}; {hint}" if hint else message
    return SettingsError("\n".join([first, *lines]), place=place)


def _without_password(value: str) -> str:
    """A URL without the password in it; any other text as it is."""
    try:
        parts = urlsplit(value)
        if parts.password is None:
            return value
    except ValueError:
        return value
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}:{_HIDDEN}@{host}").geturl()


# --- forms of values ----------------------------------------------------------------------------------


def size(value: Any) -> Any:
    """Bytes of a size such as `500Mi`; 0 is none."""
    return 0 if str(value).strip() == "0" else parse_size(value)


def seconds(value: Any) -> Any:
    """A duration as in the manifest; in the environment a bare number may stand as well."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return parse_duration(value)


def comma_list(value: Any) -> Any:
    """From the environment: `a,b`, or a JSON list."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _json(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def comma_mapping(value: Any) -> Any:
    """From the environment: `key=value,other=value`, or a JSON object."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return _json(value)
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError("expected key=value, or several with commas between them")
    return {key.strip(): item.strip() for key, _, item in pairs}


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"expected JSON: {error}") from error


def http_url(value: str) -> str:
    """Empty, or an http(s) URL without credentials, query or trailing slash."""
    if not value:
        return value
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("expected a URL such as https://trainforge.example.org")
    return value.rstrip("/")


# --- places and files ---------------------------------------------------------------------------------


def config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "trainforge"


def data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "trainforge"


def write_private(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file at once; it is never readable by others, not even while it is written."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
