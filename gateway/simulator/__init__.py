"""A Callbutton server to develop, demonstrate and test against.

Rules:
- It imports nothing from the rest of the gateway: a misreading of the protocol on one side stays visible on the other.
- Its calls are a pure function of seed, client and time. Nothing is stored.
- Requests are read strictly. Replies are written as real servers are known to write them; `--plain` keeps to the
  protocol document.
- It is not a model of a real server's load, and its recordings hold only a tone.
"""
