"""Refusals as HTTP: problem documents (RFC 9457), and the caps on what a request may carry."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from trainforge.config.disk import is_full
from trainforge.config.errors import (
    ClockSkew,
    ManifestError,
    MessageInvalid,
    NotFound,
    StorageFull,
    TooLarge,
    TooMany,
    TrainForgeError,
)
from trainforge.config.strict_json import read_json

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
BODY_LIMIT = 1024 * 1024
FINISH_BYTES, FINISH_S = 8 * BODY_LIMIT, 0.5

Model = TypeVar("Model", bound=BaseModel)


def problem(error: TrainForgeError) -> dict[str, Any]:
    """The document that tells a client what was wrong, where, and what to do next."""
    document: dict[str, Any] = {
        "type": f"urn:trainforge:problem:{error.code}",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "hint": error.hint,
    }
    if error.place is not None:
        document["place"] = str(error.place)
    if isinstance(error, ManifestError):
        document["problems"] = [
            {"detail": one.message, "hint": one.hint, "place": str(one.place) if one.place else ""}
            for one in error.problems
        ]
    return document


def as_error(error: Exception) -> TrainForgeError:
    """What a client may know of any exception; what is not expected is a bug, and only logged."""
    if isinstance(error, TrainForgeError):
        return error
    if isinstance(error, HTTPException):
        return _from_http(error)
    if isinstance(error, OSError) and is_full(error):
        return StorageFull("the disk of the sender is full", hint="free space on it")
    log.error("a request failed unexpectedly", exc_info=error)
    internal = TrainForgeError("TrainForge itself failed", hint="the sender's log has more", code="internal")
    internal.status = 500
    return internal


def _from_http(error: HTTPException) -> TrainForgeError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound("there is nothing at this address", hint="`/api/openapi.json` describes all of them")
    phrase = HTTPStatus(error.status_code).phrase
    refusal = TrainForgeError(error.detail or phrase, code=phrase.lower().replace(" ", "_"))
    refusal.status = error.status_code
    return refusal


def retry_header(error: TrainForgeError) -> dict[str, str]:
    """When to come back, in whole seconds, if the error knows."""
    return {"Retry-After": str(math.ceil(error.retry_after))} if isinstance(error, TooMany) else {}


def problem_response(error: Exception) -> Response:
    known = as_error(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    headers |= retry_header(known)
    if isinstance(known, ClockSkew) and known.nonce:
        headers["TF-Nonce"] = known.nonce
    if known.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="trainforge"'
    if known.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        headers["Connection"] = "close"  # the rest of the body is not going to be read
    return JSONResponse(problem(known), known.status, headers, MEDIA_TYPE)


async def read_body(request: Request, limit: int = BODY_LIMIT) -> bytes:
    """The raw body, never holding more than `limit` bytes of it.

    Raises:
        TooLarge: announced, or turned out, longer.
    """
    await refuse_announced(request, limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            await let_finish(request)
            raise TooLarge(f"the request has more than the {limit} bytes allowed", hint="send less at once")
    return bytes(body)


async def refuse_announced(request: Request, limit: int) -> None:
    """Raises TooLarge for a body that is announced with more than `limit` bytes, before any of it is read."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
        if "expect" not in request.headers:  # who asks first has sent nothing yet
            await let_finish(request)
        raise TooLarge(
            f"the request has {announced[:20]} bytes, more than the {limit} allowed", hint="send less at once"
        )


async def let_finish(request: Request) -> None:
    """Throw away what a client still sends, for a moment: one that is cut off would not read the refusal."""
    left = FINISH_BYTES
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):  # the last of these: it has ended
        async with asyncio.timeout(FINISH_S):
            async for chunk in request.stream():
                left -= len(chunk)
                if left < 0:
                    return


async def read_model(request: Request, model: type[Model], limit: int = BODY_LIMIT) -> Model:
    """The JSON body as `model`; an empty body counts as `{}`.

    Raises:
        MessageInvalid: not JSON, or not of this form: text is not taken for a number, nor a number for text.
    """
    body = await read_body(request, limit) or b"{}"
    read_json(body)
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise _invalid(error) from error


def parse(model: type[Model], body: bytes) -> Model:
    """What a program of ours says.

    Raises:
        MessageInvalid: not JSON, or not of this form.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MessageInvalid(f"{where}: {first['msg']}" if where else first["msg"]) from error


def read_query(request: Request, model: type[Model]) -> Model:
    """The address's query as `model`; parameters of other names are ignored.

    Raises:
        MessageInvalid: not of this form.
    """
    said: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in model.model_fields:
            continue
        if name in said:
            raise MessageInvalid(f"{name} is said more than once")
        if "\0" in value:
            raise MessageInvalid(f"{name} contains NUL")
        said[name] = value
    try:
        return model.model_validate_strings(said)
    except ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: ValidationError) -> MessageInvalid:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    return MessageInvalid(
        f"{where}: {first['msg']}" if where else first["msg"], hint="`/api/openapi.json` describes what fits"
    )


def dump(value: BaseModel | dict[str, Any]) -> Response:
    """A JSON answer; what is not a finite number becomes null, as JSON knows no other."""
    return Response(to_json(value, inf_nan_mode="null"), media_type="application/json")


def text_of(data: bytes) -> str:
    """Text of a form, that a database can hold. Raises MessageInvalid."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise MessageInvalid("the form contains text that is not UTF-8") from error
    if "\0" in text:
        raise MessageInvalid("the form contains NUL")
    return text


async def read_form(request: Request, limit: int = 64 * 1024) -> dict[str, str]:
    """A plain form (`application/x-www-form-urlencoded`); the last of repeated fields counts.

    Raises:
        MessageInvalid: not such a form.
    """
    body = await read_body(request, limit)
    try:
        fields = parse_qsl(
            body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=500
        )
    except ValueError as error:
        raise MessageInvalid("this is not a form") from error
    return dict(fields)
