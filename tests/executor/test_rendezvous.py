"""The barrier's network half, on loopback."""

from __future__ import annotations

import socket
import threading

from trainforge.config.messages import ProbeOrder
from trainforge.executor import rendezvous


def ask(addresses: list[str], port: int, nonce: str) -> tuple[dict[str, str], dict[str, str]]:
    said = rendezvous.probe(ProbeOrder(addresses=addresses, port=port, nonce=nonce), timeout=0.5)
    return said.reached, said.failures


def test_who_knows_the_nonce_is_reached() -> None:
    listener = rendezvous.Listener()
    reached, failures = ask(["127.0.0.1", "127.0.0.2"], listener.port, listener.nonce)
    assert reached == {"127.0.0.1": "127.0.0.1", "127.0.0.2": reached["127.0.0.2"]}
    assert failures == {}
    listener.close()


def test_somebody_elses_port_is_not_reached() -> None:
    listener = rendezvous.Listener()
    reached, failures = ask(["127.0.0.1"], listener.port, "another nonce")
    assert reached == {}
    assert "somebody else" in failures["127.0.0.1"]
    listener.close()
    reached, failures = ask(["127.0.0.1"], listener.port, listener.nonce)
    assert "refused" in failures["127.0.0.1"].lower()


def test_a_silent_listener_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reached, failures = ask(["127.0.0.1"], silent.getsockname()[1], "n")
    assert not reached
    assert "timed out" in failures["127.0.0.1"]


def test_the_port_is_free_for_training_at_once() -> None:
    """No TIME_WAIT stays behind, however many have asked."""
    listener = rendezvous.Listener()
    threads = [
        threading.Thread(target=ask, args=(["127.0.0.1"], listener.port, listener.nonce)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listener.close()
    with socket.socket() as training:
        training.bind(("", listener.port))
        training.listen()


def test_the_same_port_and_nonce_after_a_restart() -> None:
    first = rendezvous.Listener()
    first.close()
    second = rendezvous.Listener(first.port, first.nonce)
    assert ask(["127.0.0.1"], first.port, first.nonce)[0]
    second.close()


def test_addresses_end_with_loopback() -> None:
    found = rendezvous.addresses()
    assert found[-1] == "127.0.0.1"
    assert rendezvous.interface_of("127.0.0.1") == "lo"
    assert rendezvous.interface_of("203.0.113.1") == ""
    assert rendezvous.source_for("127.0.0.1") == "127.0.0.1"
