"""Finds the consumer of a credential: an access key or a bearer token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.access import ANONYMOUS, Consumer, Key, Kind
from gateway.auth import INVALID_CREDENTIAL
from gateway.auth.access_keys import PREFIX
from gateway.auth.key_file import KeyFile
from gateway.errors import Unauthenticated

if TYPE_CHECKING:
    from gateway.auth.issuer import Issuer
    from gateway.auth.tokens import VerifiedToken

MAX_CREDENTIAL_SIZE = 8192  # characters; tokens have a few thousand at most


class Authenticator:
    """Authenticates consumers by the keys file, the issuer of tokens, or both. None: that kind is not accepted."""

    def __init__(self, clock: Callable[[], float], keys: KeyFile | None, issuer: Issuer | None) -> None:
        self._clock = clock
        self._keys = keys
        self._issuer = issuer

    async def start(self) -> None:
        """Start to watch the keys file."""
        if self._keys is not None:
            await self._keys.start()

    async def close(self) -> None:
        """Stop watching, and wait for a fetch of the issuer's keys."""
        if self._keys is not None:
            await self._keys.close()
        if self._issuer is not None:
            await self._issuer.close()

    def authenticate_key(self, credential: str, *, bearer: bool) -> Consumer | None:
        """The consumer of an access key. Raises Unauthenticated.

        Returns None for a bearer token, which `authenticate_token` verifies.
        """
        reason = "no such kind"
        if len(credential) > MAX_CREDENTIAL_SIZE:
            reason = "too long"
        elif self._issuer is not None and bearer and not credential.startswith(PREFIX):
            return None
        elif self._keys is not None:
            consumer, reason = self._keys.keyring.find(credential, self._clock())
            if consumer is not None:
                return consumer
        raise Unauthenticated(INVALID_CREDENTIAL, reason)

    async def authenticate_token(self, token: str, source: str) -> VerifiedToken:
        """Verify a bearer token, sent from a network. Raises Unauthenticated, IssuerUnreachable."""
        if self._issuer is None:
            raise Unauthenticated(INVALID_CREDENTIAL, "no such kind")
        return await self._issuer.authenticate(token, source)

    def current_rights(self, key: Key) -> Consumer | None:
        """The present rights of a consumer; None if the keys file no longer has a key of it that works.

        The rights of a consumer with a token are in the token alone. All rights are returned: the caller has a signed
        link, which was issued to a consumer that had the right.
        """
        kind, name = key
        if kind is Kind.TOKEN and self._issuer is not None:
            return replace(ANONYMOUS, name=name, kind=kind, rate=self._issuer.rate)
        return self._keys.keyring.current(name, self._clock()) if kind is Kind.KEY and self._keys is not None else None
