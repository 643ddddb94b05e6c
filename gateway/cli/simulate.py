"""`simulate`: the simulator alone. It shares no code with the rest, its options neither."""

from __future__ import annotations

from gateway.simulator.command import add_arguments, run

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "Run a stand-in Callbutton server."
EXAMPLE = "callbutton-gateway simulate --fault drip:0.1 --fault error@8005550101"
