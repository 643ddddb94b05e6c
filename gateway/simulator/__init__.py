"""A stand-in Callbutton server, to develop, demonstrate and test against.

Rules: it imports nothing from the rest of the gateway, so that a misreading on one side cannot cancel out on the
other. Its calls are a pure function of (seed, client, hour); nothing is stored. It is strict about requests.
"""
