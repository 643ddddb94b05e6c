"""From a credential to a consumer: access keys of a file, bearer tokens of an OpenID Connect issuer.

`keys` and `tokens` decide and do no I/O; `keyfile` and `issuer` read what they decide by, the file and the issuer's
keys; `identity` asks the right one. Nothing in here logs or repeats a credential.
"""
