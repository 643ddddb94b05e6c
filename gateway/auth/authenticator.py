"""Whose request it is: the credential that came is handed to whoever can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.access import ANONYMOUS, OIDC_LABEL, Consumer
from gateway.auth.access_keys import PREFIX
from gateway.auth.key_file import KeyFile
from gateway.errors import Unauthenticated

if TYPE_CHECKING:
    from gateway.auth.issuer import Issuer

UNKNOWN = "the credential is not known, or no longer"
MAX_CREDENTIAL_SIZE = 8192  # characters of a credential


class Authenticator:
    """Finds the consumer of a credential."""

    def __init__(self, clock: Callable[[], float], keys: KeyFile | None, issuer: Issuer | None) -> None:
        self._clock = clock
        self._keys = keys
        self._issuer = issuer

    async def start(self) -> None:
        """Keep what decisions rest on up to date, from now on."""
        if self._keys is not None:
            await self._keys.start()

    async def close(self) -> None:
        """Stop that."""
        if self._keys is not None:
            await self._keys.close()
        if self._issuer is not None:
            await self._issuer.close()

    def authenticate_key(self, credential: str, *, bearer: bool) -> Consumer | None:
        """The consumer of an access key; None for what `authenticate_token` is to be asked about. Raises Unauthenticated."""
        reason = "no such kind"
        if len(credential) > MAX_CREDENTIAL_SIZE:
            reason = "too long"
        elif self._issuer is not None and bearer and not credential.startswith(PREFIX):
            return None
        elif self._keys is not None:
            consumer, reason = self._keys.keys.find(credential, self._clock())
            if consumer is not None:
                return consumer
        raise Unauthenticated(UNKNOWN, reason)

    async def authenticate_token(self, token: str) -> Consumer:
        """The consumer of a bearer token. Raises Unauthenticated, IssuerUnreachable."""
        if self._issuer is None:
            raise Unauthenticated(UNKNOWN, "no such kind")
        return await self._issuer.consumer(token)

    def current_rights(self, name: str, label: str) -> Consumer | None:
        """The rights of a consumer as they are now; of a token's, whom nobody knows without it, whatever it had."""
        if label == OIDC_LABEL:
            return None if self._issuer is None else replace(ANONYMOUS, name=name, label=label)
        return None if self._keys is None else self._keys.keys.consumer(name)
