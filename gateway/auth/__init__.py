"""Authentication: from a credential to a consumer.

Begin with `authenticator`: it passes a credential to `key_file`, which reloads the keys file when it changes, or to
`issuer`, which fetches and caches the keys of an OpenID Connect issuer. `access_keys` and `tokens`, both pure, verify
one access key or bearer token. The rights of a consumer are applied in `gateway.access`, not here. No module logs or
returns a credential.
"""

# One text for all reasons: an attacker does not learn whether a credential was ever valid.
INVALID_CREDENTIAL = "the credential is not valid: unknown, expired or revoked"
