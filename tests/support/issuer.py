"""A small OpenID Connect issuer: an HTTP server whose keys can be changed and whose answers can be wrong."""

from __future__ import annotations

import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

RSA_KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(2)]
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    """The public half of a key as a JWK."""
    kinds: list[tuple[type, Any]] = [(rsa.RSAPrivateKey, RSAAlgorithm), (ec.EllipticCurvePrivateKey, ECAlgorithm)]
    algorithm = next((found for kind, found in kinds if isinstance(key, kind)), OKPAlgorithm)
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", **more}


class Issuer:
    """The configurable answers of the server, and the number of requests for keys."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.named = address
        self.keys_at = f"{address}/keys"
        self.keys = [jwk(RSA_KEYS[0], "one")]
        self.status = 200
        self.padding = 0
        self.asked = 0
        self._challenge = ""

    def answer(self, path: str) -> bytes:
        if path.endswith("/keys"):  # of a proxied request it is a URL
            self.asked += 1
            return json.dumps({"keys": self.keys, "padding": "x" * self.padding}).encode()
        document = {
            "issuer": self.named,
            "jwks_uri": self.keys_at,
            "authorization_endpoint": f"{self.address}/authorize",
            "token_endpoint": f"{self.address}/token",
        }
        return json.dumps(document).encode()

    def authorize(self, query: dict[str, str]) -> str:
        """Sign in without a question. Returns the address to which the browser returns."""
        assert (query["response_type"], query["code_challenge_method"]) == ("code", "S256")
        self._challenge = query["code_challenge"]
        return f"{query['redirect_uri']}?{urlencode({'code': 'one-time', 'state': query['state']})}"

    def exchange(self, form: dict[str, str]) -> dict[str, str]:
        """Return a token for the code of the authorization whose verifier this is (RFC 7636)."""
        digest = sha256(form["code_verifier"].encode()).digest()
        if form["code"] != "one-time" or urlsafe_b64encode(digest).rstrip(b"=").decode() != self._challenge:
            return {"error": "invalid_grant"}
        return {"access_token": self.token(time.time()), "token_type": "Bearer"}

    def token(self, now: float, key: Any = RSA_KEYS[0], alg: str = "RS256", kid: str = "one", **claims: Any) -> str:
        """Return a token that is valid unless `claims` override it. A claim that is None is omitted."""
        said = {
            "iss": self.address,
            "aud": "callbutton",
            "exp": int(now) + 300,
            "iat": int(now),
            "azp": "crm",
            "clients": ["8005550100"],
            "scope": "openid calls personal",
        } | claims
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key, algorithm=alg, headers={"kid": kid})


@contextmanager
def issuing() -> Iterator[Issuer]:
    """Run an issuer on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/authorize":
                self._send(302, b"", issuer.authorize(dict(parse_qsl(parts.query))))
            else:
                self._send(issuer.status, issuer.answer(self.path), self.path + "?again")

        def do_POST(self) -> None:
            found = issuer.exchange(dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode())))
            self._send(400 if "error" in found else 200, json.dumps(found).encode())

        def _send(self, status: int, body: bytes, location: str = "") -> None:
            self.send_response(status)
            if status == 302:
                self.send_header("Location", location)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Suppress the log of http.server."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = Issuer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
