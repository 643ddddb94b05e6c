"""Verification of bearer tokens, which are JSON Web Tokens. Pure; the issuer's keys and `now` are arguments.

Rules, for the reasons in RFC 8725:
- The key determines the allowed algorithms, not the token. Only public keys are taken from a key set, so `none` and
  HMAC with a public key are impossible. RSA keys of less than 2048 bits are ignored.
- Only `kid`, `alg` and `typ` are read from a token's header. Keys, certificates and URLs in it are ignored. A token
  with critical header parameters (`crit`, `b64`) is rejected.
- `iss`, `aud` and `exp` are required; `nbf` and `iat` are checked if present. Clocks may differ by LEEWAY.
- A token with an invalid client pattern is rejected. Unknown scopes are ignored.

PyJWT verifies signatures. Its fetching of keys, which blocks, and its clock are not used. (An alternative, joserfc, is
younger and uses the same library, `cryptography`.)
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

from gateway.access import CLIENT_PATTERN, SCOPES, Consumer, Kind, Rate

LEEWAY = 60  # seconds that the clocks of issuer and gateway may differ
NAME = re.compile(r"[A-Za-z0-9_.@:/|+-]{1,128}", re.ASCII)
MAX_KEYS = 100  # of a key set; issuers have a few
MAX_CLIENTS = 1000  # patterns of a token, each checked for each request
MIN_RSA_BITS = 2048  # NIST SP 800-131A
RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS = {
    ("RSA", None): RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
KEY_PARSERS: dict[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
PUBLIC_MEMBERS = ("kty", "crv", "n", "e", "x", "y")


class TokenError(ValueError):
    """The token is not valid. The text is a label of metrics."""


class UnknownKeyError(TokenError):
    """The token names a key that is not among the fetched keys."""


class TokenRules(Struct, frozen=True, kw_only=True):
    """The required issuer and audience, the names of claims, and the rate of each consumer with a token."""

    issuer: str
    audience: str
    clients_claim: str = "clients"
    scopes_claim: str = "scope"
    name_claim: str = "azp"
    rate: Rate | None = None


class TokenKey(Struct, frozen=True):
    """A public key of the issuer, and its allowed algorithms."""

    key: Any
    algorithms: tuple[str, ...]


class VerifiedToken(Struct, frozen=True):
    """The consumer of a valid token, and the time until which it is accepted, in seconds since 1970."""

    consumer: Consumer
    expiry: float


def parse_key_set(content: bytes) -> dict[str, TokenKey]:
    """Parse the signing keys of a JSON Web Key Set, by `kid`. Unusable keys are ignored. Raises ValueError."""
    document = msgspec.json.decode(content)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("the key set has no list of keys")
    keys = {}
    for entry in entries[:MAX_KEYS]:
        if isinstance(entry, dict) and isinstance(entry.get("kid"), str) and entry.get("use", "sig") == "sig":
            key = _key(entry)
            if key is not None:
                keys[entry["kid"]] = key
    return keys


def _key(entry: Mapping[str, Any]) -> TokenKey | None:
    """Parse an entry of a key set; None if it is unusable."""
    kind = entry.get("kty")
    allowed = ALGORITHMS.get((kind, entry.get("crv") if kind != "RSA" else None)) if isinstance(kind, str) else None
    algorithm = entry.get("alg")
    if allowed is None or (algorithm is not None and algorithm not in allowed):
        return None
    try:
        key = KEY_PARSERS[str(kind)].from_jwk({name: entry[name] for name in PUBLIC_MEMBERS if name in entry})
    except (jwt.InvalidKeyError, ValueError, TypeError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        return None
    return TokenKey(key, allowed if algorithm is None else (algorithm,))


def verify_token(token: str, keys: Mapping[str, TokenKey], rules: TokenRules, now: float) -> VerifiedToken:
    """Verify a token, and return its consumer. Raises TokenError."""
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
    return _check_claims(claims, rules, now)


def _check_claims(claims: Mapping[str, Any], rules: TokenRules, now: float) -> VerifiedToken:
    """Check the claims of a token whose signature is valid. Raises TokenError."""
    audience = claims.get("aud")
    if claims.get("iss") != rules.issuer:
        raise TokenError("token of another issuer")
    if rules.audience not in (audience if isinstance(audience, list) else [audience]):
        raise TokenError("token for another audience")
    expiry = _instant(claims, "exp")
    if expiry is None or now >= expiry + LEEWAY:
        raise TokenError("expired token")
    if any((_instant(claims, name) or 0) > now + LEEWAY for name in ("nbf", "iat")):
        raise TokenError("token of the future")
    name = next((claims[claim] for claim in (rules.name_claim, "client_id", "sub") if claim in claims), None)
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise TokenError("token without a name")
    clients = _words(claims.get(rules.clients_claim))
    if len(clients) > MAX_CLIENTS or not all(CLIENT_PATTERN.fullmatch(client) for client in clients):
        raise TokenError("token with invalid clients")
    scopes = frozenset(_words(claims.get(rules.scopes_claim))) & set(SCOPES)
    consumer = Consumer(name=name, clients=clients, scopes=scopes, rate=rules.rate, kind=Kind.TOKEN)
    return VerifiedToken(consumer, expiry + LEEWAY)


def _instant(claims: Mapping[str, Any], name: str) -> float | None:
    """The time in a claim, in seconds since 1970. Raises TokenError."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenError("token with an invalid time")
    return float(value)


def _words(claim: object) -> tuple[str, ...]:
    """Parse a claim that is a list of strings, or a string of words. Raises TokenError."""
    words = claim.replace(",", " ").split() if isinstance(claim, str) else [] if claim is None else claim
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TokenError("token with a claim of another form")
    return tuple(dict.fromkeys(words))
