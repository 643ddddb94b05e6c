"""The simulator on the command line."""

from __future__ import annotations

import argparse

from gateway.simulator.server import FAULTS, PATH, Options, create


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    default = Options()
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8081, help="port to listen on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="other seeds, other calls")
    parser.add_argument("--clients", type=int, default=default.clients, help="number of clients, from 8005550100 on")
    parser.add_argument("--calls-per-day", type=int, default=default.calls_per_day, help="of each client")
    parser.add_argument("--history", type=float, default=default.history, metavar="DAYS", help="days of calls")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="before each answer")
    parser.add_argument("--allow", action="append", metavar="ADDRESS", help="source address or network allowed")
    faults = "; ".join(f"{name}: {text}" for name, text in FAULTS.items())
    parser.add_argument(
        "--fault", action="append", default=[], metavar="NAME[@CLIENT][:RATE]", help=f"misbehave (repeatable): {faults}"
    )


def options(arguments: argparse.Namespace) -> Options:
    """Read the options. Raises ValueError for an unknown fault."""
    return Options(
        seed=arguments.seed,
        clients=arguments.clients,
        calls_per_day=arguments.calls_per_day,
        history=arguments.history,
        latency=arguments.latency,
        allowed=tuple(arguments.allow or Options().allowed),
        faults=tuple(arguments.fault),
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop. Raises ValueError for an unknown fault."""
    import uvicorn

    app = create(options(arguments))
    print(f"Callbutton simulator: http://{arguments.host}:{arguments.port}{PATH}", flush=True)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="critical", access_log=False)
    return 0
