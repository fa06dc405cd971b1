"""The endpoint file: where this executor is to be found, rewritten as soon as that changes."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from trainforge.config.messages import Capabilities, Endpoint
from trainforge.config.settings import ExecutorSettings
from trainforge.config.settings_load import write_private
from trainforge.config.trust import SigningKey
from trainforge.executor.identity import ExecutorIdentity
from trainforge.executor.rendezvous import addresses

SEQUENCE = "endpoint.json"


class EndpointFile:
    """`config.json` and the number that tells a newer endpoint from an older one, across restarts."""

    def __init__(self, settings: ExecutorSettings, identity: ExecutorIdentity, key: SigningKey) -> None:
        self.settings = settings
        self.identity = identity
        self.key = key
        self.path = settings.endpoint_file or settings.data_dir / "config.json"
        self.url = ""
        try:
            self.seq = int(json.loads((settings.data_dir / SEQUENCE).read_text())["seq"])
        except (OSError, ValueError, KeyError):
            self.seq = 0

    def publish(self, url: str, port: int, has: Capabilities) -> Endpoint:
        """Write the file for a new URL; the number goes up first, and never comes back."""
        self.seq += 1
        write_private(self.settings.data_dir / SEQUENCE, {"seq": self.seq})
        endpoint = Endpoint(
            name=self.settings.name,
            public_url=url,
            ip=(self.settings.advertise or addresses() or ["127.0.0.1"])[0],
            port=port,
            timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
            capabilities=has,
            public_key=self.key.public,
            executor=self.identity.executor,
        )
        write_private(self.path, endpoint.model_dump(mode="json"))
        self.url = url
        return endpoint
