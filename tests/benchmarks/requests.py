"""What one request of an executor costs the sender, in milliseconds of processor time.

    python tests/benchmarks/requests.py --executors 50 --rounds 40

The sender is the real program, the requests come over loopback, signed beforehand, from as many
connections as there are executors. Processor time is the process's own, all threads and both modes, so it
tells the same on a busy machine; a bare request to /health stands beside it as what HTTP alone costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

import httpx2
import psutil
from programs import sender_in

from trainforge.config.messages import Capabilities, Claim, Heartbeat, JoinRequest, Load
from trainforge.config.trust import SigningKey, executor_id, sign_request

MACHINE = Capabilities(hostname="box", cpu_count=4, memory_bytes=8 * 2**30, disk_free_bytes=2**40)
Signed = tuple[str, str, bytes, str]  # method, path, body, proof


class Fleet:
    def __init__(self, url: str, token: str, sender: str, process: psutil.Process, count: int) -> None:
        self.url, self.token, self.sender, self.process = url, token, sender, process
        self.keys = [SigningKey.generate() for _ in range(count)]
        self.clients = [httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) for _ in self.keys]

    def sign(self, key: SigningKey, path: str, body: bytes) -> Signed:
        proof = sign_request(
            key, subject=executor_id(key.public), audience=self.sender, method="POST", path=path, body=body,
            now=time.time(),
        )  # fmt: skip
        return "POST", path, body, proof

    async def join(self) -> None:
        for number, (key, client) in enumerate(zip(self.keys, self.clients, strict=True)):
            allowed = {"Authorization": f"Bearer {self.token}"}
            token = (await client.post("/api/join-tokens", headers=allowed)).json()["token"]
            wish = JoinRequest(
                token=token, name=f"box-{number}", public_key=key.public, capabilities=MACHINE
            ).model_dump_json()
            await self.send(client, self.sign(key, "/v1/join", wish.encode()))

    async def send(self, client: httpx2.AsyncClient, request: Signed) -> None:
        method, path, body, proof = request
        answer = await client.request(method, path, content=body, headers={"Authorization": proof})
        answer.raise_for_status()

    async def cost(self, path: str, body: bytes, rounds: int) -> float:
        """Milliseconds of the sender's processor time for each of the requests."""
        plans = [[self.sign(key, path, body) for _ in range(rounds)] for key in self.keys]

        async def one(client: httpx2.AsyncClient, plan: list[Signed]) -> None:
            for request in plan:
                await self.send(client, request)

        before = _computed(self.process)
        await asyncio.gather(*map(one, self.clients, plans))
        return (_computed(self.process) - before) * 1000 / (rounds * len(self.keys))

    async def bare(self, rounds: int) -> float:
        async def one(client: httpx2.AsyncClient) -> None:
            for _ in range(rounds):
                (await client.get("/health")).raise_for_status()

        before = _computed(self.process)
        await asyncio.gather(*map(one, self.clients))
        return (_computed(self.process) - before) * 1000 / (rounds * len(self.keys))


def _computed(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


async def measure(folder: Path, process: psutil.Process, options: argparse.Namespace) -> None:
    url = json.loads((folder / "sender" / "sender.json").read_text())["url"]
    token = json.loads((folder / "home" / "trainforge" / "client.json").read_text())["token"]
    fleet = Fleet(url, token, httpx2.get(f"{url}/health").json()["sender"], process, options.executors)
    await fleet.join()
    beat = Heartbeat(capabilities=MACHINE, load=Load()).model_dump_json().encode()
    claim = Claim(challenge="c" * 24, wait_s=0).model_dump_json().encode()
    await fleet.cost("/v1/heartbeat", beat, 2)
    print(f"bare request: {await fleet.bare(options.rounds):.2f} ms")
    print(f"heartbeat:    {await fleet.cost('/v1/heartbeat', beat, options.rounds):.2f} ms")
    print(f"empty claim:  {await fleet.cost('/v1/claims', claim, options.rounds):.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--executors", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    with sender_in("requests") as (folder, sender):
        asyncio.run(measure(folder, psutil.Process(sender.pid), options))


if __name__ == "__main__":
    main()
