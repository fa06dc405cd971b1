"""Secrets in transit and at rest: encrypted to one executor's key for one node, or with the sender's own.

In transit a message is a compact JWE (`ECDH-ES`, `A256GCM`) to an X25519 key that the executor makes for
that one request and never writes down; its signed request vouches for the key. `about` says what the
message is for and goes into the key derivation, so that it opens for nothing else. Inside is a JWS of the
sender. At rest (`StoredKey`) it is a compact JWE (`dir`, `A256GCM`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey, OKPKey

from trainforge.config.errors import NotTrusted
from trainforge.config.messages import FencingToken, NodeKey

ENCRYPTION = "A256GCM"
AGREEMENT = "ECDH-ES"


class SealingKey:
    """A private X25519 key that lives in memory alone; `public` is its public JWK."""

    def __init__(self) -> None:
        self._key = OKPKey.generate_key("X25519", private=True)
        self.public: dict[str, str] = sealing_jwk(self._key.as_dict(private=False))

    def open(self, sealed: str, about: str) -> str:
        """Raises NotTrusted: not sealed to this key, or for something else."""
        try:
            found = jwe.decrypt_compact(sealed, self._key, algorithms=[AGREEMENT, ENCRYPTION])
        except (JoseError, ValueError) as error:
            raise NotTrusted("the sealed message does not open") from error
        if found.protected.get("apv") != _party(about):
            raise NotTrusted("the sealed message is for something else")
        return _text(found.plaintext)


def sealing_jwk(data: Mapping[str, object]) -> dict[str, str]:
    """The three members of a public X25519 JWK; what a private or foreign key has beside them is refused.

    Raises:
        NotTrusted: not a public X25519 key.
    """
    given = {name: str(value) for name, value in data.items() if name in {"kty", "crv", "x"}}
    if "d" in data or len(given) != 3 or (given["kty"], given["crv"]) != ("OKP", "X25519"):
        raise NotTrusted("this is not a public X25519 key")
    return given


def purpose(node: NodeKey, token: FencingToken) -> str:
    """What the secrets of one node are sealed for: nobody who comes after it can open them."""
    return f"{node}/{token.incarnation}.{token.number}"


def seal(message: str, recipient: Mapping[str, str], about: str) -> str:
    """Raises NotTrusted: the recipient's key is not one."""
    header = {"alg": AGREEMENT, "enc": ENCRYPTION, "apv": _party(about)}
    try:
        key = OKPKey.import_key(dict(sealing_jwk(recipient)))
        return jwe.encrypt_compact(header, message.encode(), key, algorithms=[AGREEMENT, ENCRYPTION])
    except (JoseError, ValueError) as error:
        raise NotTrusted("this is not a public X25519 key") from error


def _party(about: str) -> str:
    return base64.urlsafe_b64encode(about.encode()).rstrip(b"=").decode()


def _text(plaintext: bytes | None) -> str:
    return (plaintext or b"").decode()


@dataclass(frozen=True)
class StoredKey:
    """A symmetric key of the sender's key file, with its name there."""

    kid: str
    k: str  # base64url of 32 bytes

    @classmethod
    def generate(cls) -> StoredKey:
        made = OctKey.generate_key(256)
        return cls(made.thumbprint(), str(made.as_dict(private=True)["k"]))

    def encrypt(self, text: str) -> str:
        header = {"alg": "dir", "enc": ENCRYPTION, "kid": self.kid}
        return jwe.encrypt_compact(header, text.encode(), self._key(), algorithms=["dir", ENCRYPTION])

    def decrypt(self, stored: str) -> str:
        """Raises NotTrusted: changed, or encrypted with another key."""
        try:
            found = jwe.decrypt_compact(stored, self._key(), algorithms=["dir", ENCRYPTION])
        except (JoseError, ValueError) as error:
            raise NotTrusted("what is stored does not open with the sender's key") from error
        return _text(found.plaintext)

    def _key(self) -> OctKey:
        return OctKey.import_key({"kty": "oct", "k": self.k})
