"""`simulate`: runs a simulated Callbutton server, without the gateway."""

from __future__ import annotations

import argparse

from gateway.simulator.faults import FAULTS, VALUES
from gateway.simulator.server import FAULTS_PATH, PATH, Options, create

HELP = "Run a simulated Callbutton server."
EXAMPLE = (
    "callbutton-gateway simulate --fault drip:0.1 --fault error@8005550101 --fault max-codes=10\n\n"
    "while it runs, GET shows the faults, PUT replaces them, PATCH changes some of them, and null ends one:\n"
    f"""  curl -X PATCH http://127.0.0.1:8081{FAULTS_PATH} -d '{{"drip": 0.5, "error@8005550101": null}}'"""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    default = Options()
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8081, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="each seed gives different calls (default: %(default)s)"
    )
    parser.add_argument(
        "--clients",
        type=int,
        default=default.clients,
        help="number of clients; their codes start at 8005550100 (default: %(default)s)",
    )
    parser.add_argument(
        "--calls-per-day", type=int, default=default.calls_per_day, help="calls of each client (default: %(default)s)"
    )
    parser.add_argument(
        "--history",
        type=float,
        default=default.history,
        metavar="DAYS",
        help="age of the oldest calls (default: %(default)s)",
    )
    parser.add_argument(
        "--latency", type=float, default=0.0, metavar="SECONDS", help="delay before each reply (default: %(default)s)"
    )
    parser.add_argument(
        "--allow",
        action="append",
        metavar="ADDRESS",
        help="source address or network that may send requests (repeatable; default: this host)",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="keep to the protocol document: no unknown elements, no padded values, no ZIP codes without leading zero",
    )
    names = {name: f"{name}={VALUES[name][0]}" if name in VALUES else name for name in FAULTS}
    faults = "; ".join(f"{names[name]}: {text}" for name, text in FAULTS.items())
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME[=VALUE][@CLIENT][:RATE]",
        help=f"misbehave, for one client or at a rate from 0 to 1 (repeatable): {faults}",
    )


def options(arguments: argparse.Namespace) -> Options:
    """Return the options of the arguments. Raises ValueError for an unknown fault."""
    return Options(
        seed=arguments.seed,
        clients=arguments.clients,
        calls_per_day=arguments.calls_per_day,
        history=arguments.history,
        latency=arguments.latency,
        plain=arguments.plain,
        allowed=tuple(arguments.allow or Options().allowed),
        faults=tuple(arguments.fault),
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal stops it. Raises ValueError for an unknown fault, OSError."""
    from gateway.server import address_of, listen, make_server

    app = create(options(arguments))
    with listen(arguments.host, arguments.port) as listener:
        print(f"Callbutton simulator: {address_of(listener)}{PATH}", flush=True)
        make_server(app, lifespan="off").run(sockets=[listener])
    return 0
