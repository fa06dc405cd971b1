"""Webhooks as GitHub sends them: signed, numbered, remembered with what was answered."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import httpx2

from support.github.state import Hook, Json, stamp

PATIENCE_S = 10  # GitHub gives up on a receiver after as long


def deliver(
    hook: Hook, event: str, payload: Json, repository_id: int | None, *, again: Json | None = None
) -> Json:
    """Post one delivery and remember it; `again` is the delivery that is repeated."""
    guid = again["guid"] if again else str(uuid.uuid4())
    body = json.dumps(payload).encode()
    headers = {
        "Accept": "*/*",
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/044aadd",
        "X-GitHub-Delivery": guid,
        "X-GitHub-Event": event,
        "X-GitHub-Hook-ID": str(hook.id),
        "X-GitHub-Hook-Installation-Target-ID": str(hook.app or repository_id),
        "X-GitHub-Hook-Installation-Target-Type": "integration" if hook.app else "repository",
    }
    if hook.secret:
        made = hmac.new(hook.secret.encode(), body, hashlib.sha256).hexdigest()
        headers["X-Hub-Signature-256"] = f"sha256={made}"
    begun = time.monotonic()
    code, word, answer, answered = _post(hook.url, body, headers)
    delivery = {
        "id": random.getrandbits(40),
        "guid": guid,
        "delivered_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "redelivery": again is not None,
        "duration": round(time.monotonic() - begun, 3),
        "status": word,
        "status_code": code,
        "event": event,
        "action": payload.get("action"),
        "installation_id": (payload.get("installation") or {}).get("id"),
        "repository_id": repository_id,
        "throttled_at": None,
        "url": hook.url,
        "request": {"headers": headers, "payload": payload},
        "response": {"headers": answered, "payload": answer},
    }
    hook.deliveries.insert(0, delivery)
    hook.last_response = {
        "code": code or None,
        "status": "active" if 200 <= code < 300 else "failed",
        "message": word,
    }
    return delivery


def _post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str, str, dict[str, Any]]:
    try:
        answer = httpx2.post(url, content=body, headers=headers, timeout=PATIENCE_S, trust_env=False)
    except httpx2.TimeoutException:
        return 0, "timed out", "", {}
    except httpx2.HTTPError:
        return 0, "failed to connect to host", "", {}
    word = "OK" if answer.is_success else f"Invalid HTTP Response: {answer.status_code}"
    return answer.status_code, word, answer.text, dict(answer.headers)


def listed(delivery: Json) -> Json:
    """A delivery as a list of them has it."""
    return {key: value for key, value in delivery.items() if key not in ("request", "response", "url")}


def ping_payload(hook: Hook, described: Json, about: Json) -> Json:
    return {"zen": "Keep it logically awesome.", "hook_id": hook.id, "hook": described, **about}


__all__ = ["deliver", "listed", "ping_payload", "stamp"]
