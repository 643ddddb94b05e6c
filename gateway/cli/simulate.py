"""`simulate`: the simulator alone. Its options are in `gateway.simulator`, which shares no code with the gateway."""

from __future__ import annotations

from gateway.simulator.command import add_arguments, run

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "Run a simulated Callbutton server."
EXAMPLE = "callbutton-gateway simulate --fault drip:0.1 --fault error@8005550101"
