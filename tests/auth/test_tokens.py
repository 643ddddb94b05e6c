"""Bearer tokens with a real issuer: key rotation, clock skew, claims, and the classic attacks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.access import Rate, parse_rate
from gateway.auth.tokens import TokenError, TokenRules, parse_key_set, verify_token
from tests.support.consumers import Member, keys_file, written
from tests.support.issuer import EC_KEY, ED_KEY, RSA_KEYS, Issuer, issuing, jwk
from tests.support.processes import wait_for
from tests.support.stand import NOW, Make, Stand

CALLS = "/clients/8005550100/calls"
FOLD = {"start": "2026-11-01T05:00:00Z", "end": "2026-11-01T09:00:00Z"}
RULES = TokenRules(issuer="https://issuer.example", audience="callbutton", rate=Rate(9, 60))
PUBLIC_PEM = (
    RSA_KEYS[0].public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as running:
        yield running


@pytest.fixture
def gateway(stand: Make, issuer: Issuer) -> Stand:
    return stand(auth="oidc", oidc_issuer=issuer.address, oidc_audience="callbutton")


def status(gateway: Stand, token: str, path: str = CALLS) -> int:
    return gateway.client.get(path, params=FOLD, headers={"Authorization": f"Bearer {token}"}).status_code


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def signed(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    """Return a token signed with an HMAC, regardless of the algorithm in its header."""
    text = f"{part(header)}.{part(claims)}"
    mac = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def test_a_token_lets_in_to_what_its_claims_say(gateway: Stand, issuer: Issuer):
    token = issuer.token(NOW)
    answer = gateway.client.get(CALLS, params=FOLD, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    assert answer.json()["data"][0]["ani"].startswith("312555")
    assert status(gateway, token, "/clients/8005550101/calls") == 403
    assert status(gateway, issuer.token(NOW, scope="openid")) == 403
    assert status(gateway, issuer.token(NOW, clients=None)) == 403
    assert status(gateway, issuer.token(NOW, clients="8005550101,800555*")) == 200
    assert gateway.client.get(CALLS, headers={"X-API-Key": token}).status_code == 401
    assert issuer.asked == 1
    assert gateway.metric('consumer_requests_total{consumer="oidc",status="200"}') == 2
    assert "crm" not in gateway.client.get("/metrics").text


def attacks(issuer: Issuer) -> dict[str, str]:
    good = issuer.token(NOW)
    claims = jwt.decode(good, options={"verify_signature": False})
    head, body, signature = good.split(".")
    stranger = rsa.generate_private_key(65537, 2048)

    def embedded(**header: Any) -> str:
        return jwt.encode(claims, stranger, algorithm="RS256", headers={"kid": "one", **header})

    return {
        "alg none": f"{part({'alg': 'none', 'kid': 'one'})}.{part(claims)}.",
        "alg None": f"{part({'alg': 'None', 'kid': 'one'})}.{part(claims)}.",
        "alg none with the old signature": f"{part({'alg': 'none', 'kid': 'one'})}.{body}.{signature}",
        "HS256 with the public key": signed({"alg": "HS256", "typ": "JWT", "kid": "one"}, claims, PUBLIC_PEM),
        "HS256 with nothing": signed({"alg": "HS256", "kid": "one"}, claims, b""),
        "another algorithm's name": f"{part({'alg': 'ES256', 'kid': 'one'})}.{body}.{signature}",
        "no signature": f"{head}.{body}.",
        "a signature cut short": good[:-8],
        "claims changed": f"{head}.{part(claims | {'clients': ['*']})}.{signature}",
        "a stranger's key": jwt.encode(claims, stranger, algorithm="RS256", headers={"kid": "one"}),
        "an embedded key in jwk": embedded(jwk=jwk(stranger, "one")),
        "the URL of a key in jku": embedded(jku="http://127.0.0.1:9/keys"),
        "a certificate at x5u": embedded(x5u="http://127.0.0.1:9/cert"),
        "a certificate in x5c": embedded(x5c=["AAAA"]),
        "a path as kid": issuer.token(NOW, kid="../../dev/null"),
        "SQL as kid": issuer.token(NOW, kid="one' OR '1'='1"),
        "no kid": jwt.encode(claims, RSA_KEYS[0], algorithm="RS256"),
        "a list as kid": f"{part({'alg': 'RS256', 'kid': ['one']})}.{body}.{signature}",
        "something critical": jwt.encode(claims, RSA_KEYS[0], "RS256", {"kid": "one", "crit": ["exp"], "exp": 1}),
        "a payload not encoded": _well_signed({"b64": True}, claims),
        "another type": jwt.encode(claims, RSA_KEYS[0], "RS256", {"kid": "one", "typ": "logout+jwt"}),
        "another issuer": issuer.token(NOW, iss="https://evil.example"),
        "the issuer with a slash": issuer.token(NOW, iss=issuer.address + "/"),
        "the issuer in capitals": issuer.token(NOW, iss=issuer.address.upper()),
        "no issuer": issuer.token(NOW, iss=None),
        "another audience": issuer.token(NOW, aud="other"),
        "a longer audience": issuer.token(NOW, aud="callbutton2"),
        "other audiences": issuer.token(NOW, aud=["a", "b"]),
        "no audience": issuer.token(NOW, aud=None),
        "expired": issuer.token(NOW, exp=int(NOW) - 60),
        "no expiry": issuer.token(NOW, exp=None),
        "an expiry in letters": _odd(claims, "9999999999"),
        "an expiry that is true": _odd(claims, True),
        "an expiry that is no number": _odd(claims, float("nan")),
        "an infinite expiry": _odd(claims, float("inf")),
        "not before later": issuer.token(NOW, nbf=int(NOW) + 61),
        "issued later": issuer.token(NOW, iat=int(NOW) + 61),
        "no name": issuer.token(NOW, azp=None),
        "a name with a line break": issuer.token(NOW, azp="crm\nX-Admin: 1"),
        "a client that is a pattern of another kind": issuer.token(NOW, clients=["8.*5"]),
        "a client that is a number": issuer.token(NOW, clients=[8005550100]),
        "clients as an object": issuer.token(NOW, clients={"8005550100": True}),
        "a huge token": issuer.token(NOW, padding="x" * 9000),
        "nested without end": f"{base64.urlsafe_b64encode(b'[' * 5000).decode().rstrip('=')}.e30.e30",
        "words": "a.b.c",
        "dots": "..",
        "five parts": f"{good}.e30.e30",
    }


def _odd(claims: dict[str, Any], expires: object) -> str:
    return _well_signed({}, claims | {"exp": expires})


def _well_signed(header: dict[str, Any], claims: dict[str, Any]) -> str:
    """Return a token with a valid signature that PyJWT refuses to encode."""
    text = f"{part({'alg': 'RS256', 'kid': 'one'} | header)}.{part(claims)}"
    signature = jwt.get_algorithm_by_name("RS256").sign(text.encode(), RSA_KEYS[0])
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def test_no_attack_gets_in_and_all_are_told_the_same(gateway: Stand, issuer: Issuer):
    assert status(gateway, _well_signed({}, jwt.decode(issuer.token(NOW), options={"verify_signature": False}))) == 200
    told = set()
    for name, token in attacks(issuer).items():
        answer = gateway.client.get(CALLS, params=FOLD, headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthenticated"), name
        told.add((answer.json()["detail"], answer.headers["www-authenticate"]))
    assert len(told) == 1
    assert issuer.asked == 1  # unknown keys cause no second fetch within a minute
    assert gateway.metric("requests_in_flight") == 1


@pytest.mark.parametrize(("seconds", "counts"), [(0, True), (359, True), (361, False), (-59, True), (-61, False)])
def test_clocks_may_differ_by_a_minute(seconds: int, counts: bool):
    keys = parse_key_set(json.dumps({"keys": [jwk(RSA_KEYS[0], "one")]}).encode())
    token = Issuer(RULES.issuer).token(NOW)
    if counts:
        bearer = verify_token(token, keys, RULES, NOW + seconds)
        assert (bearer.consumer.name, bearer.consumer.rate, bearer.expiry) == ("crm", RULES.rate, int(NOW) + 360)
        assert bearer.consumer.scopes == {"calls", "personal"}
    else:
        with pytest.raises(TokenError):
            verify_token(token, keys, RULES, NOW + seconds)


@pytest.mark.parametrize(
    ("key", "alg"),
    [(RSA_KEYS[0], "RS256"), (RSA_KEYS[0], "PS512"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")],
    ids=["RS256", "PS512", "ES256", "EdDSA"],
)
def test_a_key_is_for_its_own_algorithms(key: Any, alg: str):
    mine = parse_key_set(json.dumps({"keys": [jwk(key, "one", alg=alg)]}).encode())
    assert verify_token(Issuer(RULES.issuer).token(NOW, key, alg), mine, RULES, NOW).consumer.name == "crm"
    if alg == "RS256":
        with pytest.raises(TokenError):
            verify_token(Issuer(RULES.issuer).token(NOW, key, "RS512"), mine, RULES, NOW)


def test_keys_that_cannot_be_trusted_are_left_out():
    weak = rsa.generate_private_key(65537, 1024)
    entries = [
        jwk(weak, "weak"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "oct", "alg": "HS256"},
        jwk(RSA_KEYS[0], "encrypts", use="enc"),
        jwk(RSA_KEYS[0], "confused", alg="HS256"),
        jwk(EC_KEY, "curve", crv="P-384"),
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kty": ["RSA"], "kid": "list"},
        {key: value for key, value in jwk(RSA_KEYS[0], "x").items() if key != "kid"},
        "nothing",
        jwk(RSA_KEYS[0], "good"),
    ]
    assert set(parse_key_set(json.dumps({"keys": entries}).encode())) == {"good"}
    for content in (b"{}", b"[]", b'{"keys": {}}', b"<html>", b'{"keys":' + b"[" * 100_000):
        with pytest.raises((ValueError, RecursionError)):
            parse_key_set(content)


def until(gateway: Stand, token: str, expected: int) -> int:
    """Wait until a token has a status."""
    wait_for(lambda: status(gateway, token) == expected, f"status {expected}")
    return expected


def test_keys_change_and_strangers_make_nobody_ask(gateway: Stand, issuer: Issuer):
    old = issuer.token(NOW, exp=int(NOW) + 9000)
    new = issuer.token(NOW, RSA_KEYS[1], kid="two", exp=int(NOW) + 9000)
    assert [status(gateway, old), status(gateway, new)] == [200, 401]
    issuer.keys = [jwk(RSA_KEYS[0], "one"), jwk(RSA_KEYS[1], "two")]
    assert status(gateway, new) == 401  # fetched less than a minute ago
    assert issuer.asked == 1
    gateway.clock.now += 61
    assert [status(gateway, new), status(gateway, old)] == [200, 200]
    assert issuer.asked == 2
    for number in range(5):
        assert status(gateway, issuer.token(NOW, kid=f"stranger-{number}")) == 401
    assert issuer.asked == 2
    issuer.keys = [jwk(RSA_KEYS[1], "two")]  # the old key is withdrawn: noticed at the next fetch of the keys
    gateway.clock.now += 601
    assert until(gateway, old, 401) == 401
    assert status(gateway, new) == 200
    assert issuer.asked == 3


@contextmanager
def elsewhere(gateway: Stand, address: str) -> Iterator[Stand]:
    """The same gateway, for a client with another address."""
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(base_url=gateway.client.base_url, transport=transport, timeout=30) as client:
        yield Stand(gateway.simulator, client, gateway.clock)


def test_strangers_before_a_rotation_do_not_deny_its_new_key_to_others(gateway: Stand, issuer: Issuer):
    new = issuer.token(NOW, RSA_KEYS[1], kid="two")
    assert status(gateway, issuer.token(NOW)) == 200
    with ExitStack() as stack:
        for number in range(3):
            stranger = stack.enter_context(elsewhere(gateway, f"127.0.1.{number + 1}"))
            for kid in ("two", "three", "four"):
                assert status(stranger, issuer.token(NOW, RSA_KEYS[1], kid=kid)) == 401
            assert issuer.asked == 2 + number  # one fetch for each address, a second apart
        issuer.keys = [jwk(RSA_KEYS[1], "two")]
        honest = stack.enter_context(elsewhere(gateway, "127.0.2.1"))
        assert status(honest, new) == 200
        assert status(stranger, new) == 200  # the key is known now


def test_one_failed_fetch_costs_a_second(gateway: Stand, issuer: Issuer):
    issuer.status = 500
    assert status(gateway, issuer.token(NOW)) == 503
    issuer.status = 200
    assert status(gateway, issuer.token(NOW)) == 503
    gateway.clock.now += 1
    assert status(gateway, issuer.token(NOW)) == 200


def test_a_clock_that_is_set_back_neither_keeps_keys_nor_pauses_longer(gateway: Stand, issuer: Issuer):
    earlier = issuer.token(NOW - 3600)
    assert status(gateway, issuer.token(NOW)) == 200
    gateway.clock.now -= 3600
    assert status(gateway, earlier) == 200
    assert issuer.asked == 2  # keys of the future count as old
    issuer.keys = [jwk(RSA_KEYS[1], "two")]
    gateway.clock.now += 5
    assert status(gateway, issuer.token(NOW - 3600, RSA_KEYS[1], kid="two")) == 200


def test_the_keys_are_fetched_through_the_proxy_and_authorities_of_the_environment(
    stand: Make, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
):
    gateway = stand(auth="oidc", oidc_issuer="http://issuer.invalid", oidc_audience="callbutton")
    token = Issuer("http://issuer.invalid").token(NOW)
    assert status(gateway, token) == 503
    monkeypatch.setenv("HTTP_PROXY", issuer.address)  # it answers as the issuer
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    issuer.named, issuer.keys_at = "http://issuer.invalid", "http://issuer.invalid/keys"
    gateway.clock.now += 1
    assert status(gateway, token) == 200
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    gateway.clock.now += 86401
    assert status(gateway, token) == 503


def test_consumers_of_the_keys_file_and_of_tokens_are_never_the_same(stand: Make, issuer: Issuer, tmp_path: Path):
    scopes = ("calls", "recordings")
    named = [Member(name, ("8005550100",), scopes, rate="4/minute") for name in ("oidc", "crm", "token")]
    settings = {"auth": "keys+oidc", "oidc_issuer": issuer.address, "oidc_audience": "callbutton"}
    gateway = stand(keys_file=keys_file(tmp_path, *named), oidc_rate=parse_rate("4/minute"), **settings)
    tokens = {name: issuer.token(NOW, azp=name, scope=" ".join(scopes)) for name in ("oidc", "crm", "token")}
    links = {}
    for member in named:
        for headers in (member.headers, {"Authorization": f"Bearer {tokens[member.name]}"}):
            statuses = [gateway.client.get(CALLS, params=FOLD, headers=headers).status_code for _ in range(3)]
            assert statuses == [200, 200, 200], "neither has used the tokens of the other"
            page = gateway.client.get(CALLS, params=FOLD | {"recorded": "true"}, headers=headers).json()
            links[member.name, "Authorization" in headers] = page["data"][0]["recordingUrl"]
    assert len(set(links.values())) == 6
    series = 'consumer_requests_total{{consumer="{}",status="200"}}'
    counted = [gateway.metric(series.format(name)) for name in ("oidc", "key/oidc", "crm")]
    assert counted == [12, 4, 4]
    gateway.clock.now += 60
    (tmp_path / "keys.toml").write_text(written(Member("other")), "utf-8")
    wait_for(lambda: gateway.client.get(CALLS, headers=named[0].headers).status_code == 401, "the keys are gone")
    gateway.clock.now += 60
    for (name, by_token), link in links.items():
        assert gateway.client.get(link).status_code == (200 if by_token else 403), name


WRONG: dict[str, dict[str, Any]] = {
    "an error": {"status": 500},
    "a redirect": {"status": 302},
    "another issuer": {"named": "https://evil.example"},
    "too much": {"padding": 2 * 1024**2},
    "no keys": {"keys": []},
    "keys of another kind": {"keys_at": "ftp://127.0.0.1/keys"},
}


def test_an_issuer_that_fails_is_503_at_first_and_later_its_old_keys_serve_for_a_day(gateway: Stand, issuer: Issuer):
    token = issuer.token(NOW, exp=int(NOW) + 10**6)
    good = {name: getattr(issuer, name) for name in ("status", "named", "padding", "keys", "keys_at")}
    pauses: list[int] = []
    for name, changes in WRONG.items():
        vars(issuer).update(good | changes)
        answer = gateway.client.get(CALLS, params=FOLD, headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/issuer-unreachable"), name
        pauses.append(int(answer.headers["retry-after"]))
        assert status(gateway, token) == 503
        gateway.clock.now += pauses[-1]
    vars(issuer).update(good)
    assert status(gateway, token) == 200
    assert pauses == [1, 2, 4, 8, 16, 32]  # one failure costs a second
    assert gateway.metric('issuer_fetches_total{outcome="failed"}') == len(WRONG)
    issuer.status = 500
    gateway.clock.now += 86400 - 100
    assert status(gateway, token) == 200
    gateway.clock.now += 200
    assert status(gateway, token) == 503
    assert gateway.client.get("/readyz").status_code == 200


def test_keys_and_tokens_together(stand: Make, issuer: Issuer, tmp_path: Path):
    member = Member("batch")
    gateway = stand(
        auth="keys+oidc",
        keys_file=keys_file(tmp_path, member),
        oidc_issuer=issuer.address,
        oidc_audience="callbutton",
        oidc_rate=parse_rate("2/minute"),
    )
    assert status(gateway, member.key) == 200
    assert gateway.client.get(CALLS, params=FOLD, headers=member.headers).status_code == 200
    assert issuer.asked == 0
    assert status(gateway, "cbg_stranger") == 401
    # All tokens of a consumer share one rate limit.
    assert [status(gateway, issuer.token(NOW, jti=str(number))) for number in range(3)] == [200, 200, 429]
    assert status(gateway, issuer.token(NOW, azp="other")) == 200
