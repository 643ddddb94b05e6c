"""Bearer tokens: whether a JSON Web Token is sound, and whose it is. Pure; the issuer's keys and `now` are arguments.

Rules (RFC 8725 says why):
- The key decides which algorithms are possible, never the token. Public keys alone are taken from a key set, so there
  is no `none` and no HMAC with a public key. RSA keys under 2048 bits are left out.
- Of a token's header `kid` and `alg` are read. Keys, certificates and addresses of keys in it are not looked at; a
  header that says that something in it is critical is refused.
- Issuer, audience and expiry are required; `nbf` and `iat` count if they are there. Clocks may differ by a minute.
- A claim that names clients which are no patterns refuses the token; scopes that are not ours are left out.

PyJWT checks signatures; its fetching of keys (urllib, blocking) and its own clock are not used. joserfc was weighed: it
does the same on the same library, `cryptography`, and is the younger of the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from msgspec import Struct

from gateway.access import CLIENT_PATTERN, OIDC_LABEL, SCOPES, Consumer, Rate

LEEWAY = 60  # seconds by which clocks may differ
NAME = re.compile(r"[A-Za-z0-9_.@:/|+-]{1,128}", re.ASCII)
MAX_KEYS = 100
MAX_CLIENTS = 1000
MIN_RSA_BITS = 2048
RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS = {
    ("RSA", None): RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
READERS: dict[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
PUBLIC = ("kty", "crv", "n", "e", "x", "y")


class TokenError(ValueError):
    """The token does not count; the text is a word for logs and metrics."""


class UnknownKeyError(TokenError):
    """The token names a key that the issuer did not have when it was asked."""


class TokenRules(Struct, frozen=True, kw_only=True):
    """What tokens must say, and in which claims they say who asks. `rate` is that of every consumer with a token."""

    issuer: str
    audience: str
    clients_claim: str = "clients"
    scopes_claim: str = "scope"
    name_claim: str = "azp"
    rate: Rate | None = None


class TokenKey(Struct, frozen=True):
    """A public key of the issuer, and the algorithms that it is for."""

    key: Any
    algorithms: tuple[str, ...]


class VerifiedToken(Struct, frozen=True):
    """Whose a token is, and until when, in seconds since 1970."""

    consumer: Consumer
    until: float


def parse_key_set(content: bytes) -> dict[str, TokenKey]:
    """Read the keys of a JWKS that sign, by `kid`; what cannot be used is left out. Raises ValueError."""
    document = msgspec.json.decode(content)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("there are no keys in it")
    found = {}
    for entry in entries[:MAX_KEYS]:
        if isinstance(entry, dict) and isinstance(entry.get("kid"), str) and entry.get("use", "sig") == "sig":
            key = _key(entry)
            if key is not None:
                found[entry["kid"]] = key
    return found


def _key(entry: Mapping[str, Any]) -> TokenKey | None:
    kind = entry.get("kty")
    possible = ALGORITHMS.get((kind, entry.get("crv") if kind != "RSA" else None)) if isinstance(kind, str) else None
    said = entry.get("alg")
    if possible is None or (said is not None and said not in possible):
        return None
    try:
        key = READERS[str(kind)].from_jwk({name: entry[name] for name in PUBLIC if name in entry})
    except (jwt.InvalidKeyError, ValueError, TypeError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        return None
    return TokenKey(key, possible if said is None else (said,))


def verify_token(token: str, keys: Mapping[str, TokenKey], rules: TokenRules, now: float) -> VerifiedToken:
    """Find out whose a token is. Raises TokenError."""
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
        raise TokenError("no token") from error
    if "crit" in header or "b64" in header:
        raise TokenError("token with critical header")
    if str(header.get("typ", "JWT")).lower() not in ("jwt", "at+jwt", "application/at+jwt"):
        raise TokenError("token of another type")
    key = keys.get(str(header.get("kid", "")))
    if key is None:
        raise UnknownKeyError("token of an unknown key")
    try:
        payload = jwt.PyJWS().decode(token, key.key, algorithms=list(key.algorithms))
        claims = msgspec.json.decode(payload, type=dict[str, Any])
    except (jwt.InvalidTokenError, jwt.InvalidKeyError, TypeError, ValueError, RecursionError) as error:
        raise TokenError("token with a wrong signature") from error
    return _bearer(claims, rules, now)


def _bearer(claims: Mapping[str, Any], rules: TokenRules, now: float) -> VerifiedToken:
    audience = claims.get("aud")
    if claims.get("iss") != rules.issuer:
        raise TokenError("token of another issuer")
    if rules.audience not in (audience if isinstance(audience, list) else [audience]):
        raise TokenError("token for another audience")
    expires = _instant(claims, "exp")
    if expires is None or now >= expires + LEEWAY:
        raise TokenError("expired token")
    if any((_instant(claims, name) or 0) > now + LEEWAY for name in ("nbf", "iat")):
        raise TokenError("token of the future")
    name = next((claims[claim] for claim in (rules.name_claim, "client_id", "sub") if claim in claims), None)
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise TokenError("token without a name")
    clients = _words(claims.get(rules.clients_claim))
    if len(clients) > MAX_CLIENTS or not all(CLIENT_PATTERN.fullmatch(client) for client in clients):
        raise TokenError("token with clients that are none")
    scopes = frozenset(_words(claims.get(rules.scopes_claim))) & set(SCOPES)
    consumer = Consumer(name=name, clients=clients, scopes=scopes, rate=rules.rate, label=OIDC_LABEL)
    return VerifiedToken(consumer, expires + LEEWAY)


def _instant(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenError("token with a time that is none")
    return float(value)


def _words(claim: object) -> tuple[str, ...]:
    """Read a claim that is a list of strings, or a string of words."""
    words = claim.replace(",", " ").split() if isinstance(claim, str) else [] if claim is None else claim
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TokenError("token with a claim of another form")
    return tuple(dict.fromkeys(words))
