"""Faults: how the simulator misbehaves on request.

A fault is the text `NAME[=VALUE][@CLIENT][:RATE]`, such as `drip:0.1`, `max-codes=10` or `unauthorized@8005550101`: for
requests that name this client, at a rate from 0 to 1. As JSON, faults are an object with the rate of each
`NAME[=VALUE][@CLIENT]`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

FAULTS = {
    "always-status": "the status of calls is sent without its flag",
    "ampersand": "a bare & and references of HTML in values",
    "charset": "windows-1252 bytes, not announced in a header or declaration",
    "client-per-call": "a Client element for each call",
    "cut-codes": "only the first NUMBER client codes are answered",
    "date-error": "ERROR about the date range",
    "descending": "newest calls first",
    "disorder": "calls in random order",
    "doctype": "a DOCTYPE before the root",
    "drip": "one byte at a time",
    "duplicates": "every Client element twice",
    "echo": "client codes echoed with an X in front",
    "empty": "200 without a body",
    "error": "ERROR: Connection time out",
    "exclusive-end": "calls that begin at EndDate are left out",
    "exclusive-start": "calls that begin at StartDate are left out",
    "flag-element": "another name of the element for the status flag",
    "hang": "no reply",
    "html": "200 with an HTML page",
    "http-500": "HTTP status 500",
    "http-503": "HTTP status 503",
    "late": "calls appear an hour later than otherwise",
    "latency": "a further delay of SECONDS before the reply",
    "lenient": "unknown elements of a request, and a StartDate after EndDate, are not refused",
    "lower-case": "element names in lower case",
    "max-codes": "ERROR for more than NUMBER client codes",
    "max-hours": "ERROR for more than NUMBER hours",
    "no-status": "the status flag is ignored",
    "null-dates": "null dates are refused, or return no calls",
    "other-form": "StartTimes with AM or PM and without seconds",
    "omit-empty": "clients without calls are left out",
    "other-spelling": "failures in GetCallDetailsResponse instead of GetCallDetailResponse",
    "reset": "the connection is closed in the middle of the body",
    "truncate": "the body ends in the middle",
    "unauthorized": "UNAUTHORIZED",
    "unknown": "more unknown elements, one of them nested",
    "unknown-client": "a failure, no Client, or all calls for a client code that does not exist",
    "unreadable": "two more records a day, one without id and one without StartTime",
    "wall-order": "calls by wall time, so that the two hours of an autumn clock change are mixed",
}
NUMBER = "NUMBER", re.compile(r"[1-9]\d{0,5}", re.ASCII)
# The faults with a value: how the help names it, and its form.
VALUES = {
    "cut-codes": NUMBER,
    "flag-element": ("NAME", re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")),
    "latency": ("SECONDS", re.compile(r"\d{1,5}(\.\d*)?", re.ASCII)),
    "max-codes": NUMBER,
    "max-hours": NUMBER,
    "null-dates": ("refused|empty", re.compile("refused|empty")),
    "unknown-client": ("error|unauthorized|omitted|all", re.compile("error|unauthorized|omitted|all")),
}
FAULT = re.compile(r"([^=@:]*)(?:=([^@:]*))?(?:@([^:]*))?(?::(.*))?", re.DOTALL)
RATE = re.compile(r"(\d+(\.\d*)?|\.\d+)(e-\d+)?", re.ASCII)  # as JSON and Python write small numbers


class Fault(NamedTuple):
    """One fault. An empty client means all; without a rate it always happens."""

    name: str
    value: str
    client: str
    rate: float | None


@lru_cache(maxsize=256)
def parse_fault(text: str) -> Fault:
    """Parse a fault. Raises ValueError."""
    name, value, client, rate = FAULT.fullmatch(text).groups()  # type: ignore[union-attr]  # it matches every text
    if name not in FAULTS:
        raise ValueError(f"{name!r} is not a fault; choose from {', '.join(FAULTS)}")
    if name in VALUES:
        metavar, form = VALUES[name]
        if not form.fullmatch(value or ""):
            raise ValueError(f"{text!r} does not have the form {name}={metavar}")
    elif value is not None:
        raise ValueError(f"{text!r}: {name} takes no value")
    if client == "":
        raise ValueError(f"{text!r} has no client code after the @")
    if rate is not None and not (RATE.fullmatch(rate) and float(rate) <= 1):
        raise ValueError(f"the rate of {text!r} is not a number from 0 to 1")
    return Fault(name, value or "", client or "", None if rate is None else float(rate))


def active(faults: Iterable[str], codes: Sequence[str], chance: random.Random) -> dict[str, str]:
    """Draw the faults of a request for client codes, with their values."""
    return {
        fault.name: fault.value
        for fault in map(parse_fault, faults)
        if (not fault.client or fault.client in codes) and (fault.rate is None or chance.random() < fault.rate)
    }


def rates_of(faults: Iterable[str]) -> dict[str, float]:
    """The JSON object of faults."""
    rates = {}
    for text in faults:
        rate = parse_fault(text).rate
        rates[text.partition(":")[0]] = 1.0 if rate is None else rate
    return rates


def changed_faults(faults: Iterable[str], document: bytes) -> tuple[str, ...]:
    """Merge a JSON object into faults (RFC 7396): null removes a fault. Raises ValueError."""
    try:
        changes = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(changes, dict):
        raise ValueError('the body is not a JSON object of faults and their rates, such as {"drip": 0.1}')
    for fault, rate in changes.items():
        if rate is not None and type(rate) not in (int, float):
            raise ValueError(f"the rate of {fault!r} is not a number from 0 to 1, or null")
        parse_fault(fault)
    rates = rates_of(faults) | changes
    merged = tuple(f"{fault}:{rate}" for fault, rate in rates.items() if rate is not None)
    for text in merged:
        parse_fault(text)
    return merged
