"""Tells a TrainForge sender which refs were pushed. Standard library only: it is copied beside the hook.

Whatever goes wrong here, the push has been accepted: one line says so, and the sender sees the new refs
at its next poll.
"""

import hashlib
import hmac
import http.client
import json
import sys
import urllib.parse
import uuid
from pathlib import Path

TIMEOUT_S = 4.0


def main() -> None:
    settings = json.loads(Path(__file__).with_name("trainforge.json").read_text())
    refs = [dict(zip(("old", "new", "ref"), line.split(), strict=True)) for line in sys.stdin if line.strip()]
    body = json.dumps({"repository": settings["repository"], "refs": refs}).encode()
    secret = Path(settings["secret_file"]).read_text().strip().encode()
    headers = {
        "Content-Type": "application/json",
        "X-Hub-Signature-256": "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest(),
        "X-TrainForge-Delivery": str(uuid.uuid4()),
    }
    url = urllib.parse.urlsplit(settings["sender"])
    secure = url.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=TIMEOUT_S)
    connection.request("POST", f"{url.path.rstrip('/')}/hooks/git", body, headers)
    answer = connection.getresponse()
    data = answer.read(65_536)
    if answer.status >= 300:
        said = {401: "the webhook secret is not the sender's", 404: "it does not watch this repository"}
        why = said.get(answer.status, f"it answered {answer.status}")
        say(f"the sender was not told: {why}; if it watches this repository, it looks at it later by itself")
        return
    for line in json.loads(data).get("lines", [])[:20]:
        print("".join(char for char in str(line)[:200] if char.isprintable()))  # noqa: T201


def say(text: str) -> None:
    print(f"TrainForge: {text}")  # noqa: T201 - git shows it to the pusher


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # noqa: BLE001 - process boundary: no push fails for its announcement
        say(f"the sender was not told ({type(error).__name__}); it looks at this repository by itself later")
