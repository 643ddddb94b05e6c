"""One word, one meaning: no identifier of the package has a word that the vocabulary replaces by another."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "gateway"
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]
# Each rejected word, and the word to use instead.
#
# Not listed, because they are standard terms in a sense that the vocabulary does not replace: chunk (of HTTP), edge
# (of a window), event (of a log, of asyncio), expired (a token, an entry of a cache), local (an address of a socket),
# origin (CORS, URL), past (seconds), period (of a rate limit), range (the header, the parameter), row (of CSV),
# store (the verb), user (of an URL, of User-Agent).
WORDS = {
    "account": "client",
    "tenant": "client",
    "backend": "upstream",
    "ledger": "cache",
    "delta": "gap",
    "job": "flight",
    "ticket": "subscription",
    "manager": "a noun for its purpose",
    "helper": "a noun for its purpose",
    "util": "a noun for its purpose",
    "utils": "a noun for its purpose",
    "desk": "services",
    "asking": "context",
    "door": "load shedder",
    "tally": "sync, metrics",
    "knowledge": "profile",
    "errand": "fetch state",
    "landed": "result",
    "patience": "timeout",
}
# Complete class names; as parts of other names these words are standard terms.
CLASSES = {
    "Circuit": "CircuitBreaker",
    "Claims": "Leases",
    "Codes": "ClientProfiles",
    "Demand": "Waiters",
    "Edge": "RequestContextMiddleware",
    "Edges": "WallRange",
    "Figures": "Aggregator",
    "Flights": "SingleFlight",
    "Gate": "Admission",
    "Limit": "AdaptiveLimit",
    "Line": "WaitQueue",
    "Other": "RemoteLease",
    "Ports": "a second listener",
    "Posts": "Fetcher",
    "Question": "Query",
    "Reading": "ReadResult",
    "Repeats": "ResponseCache",
    "Shape": "AggregateSpec",
    "Shared": "RedisClient",
}
PREFIXES = {"MOST": "MAX", "LEAST": "MIN", "LONGEST": "MAX", "PATIENCE": "TIMEOUT"}  # of constants
# Names defined by libraries, and our names that follow them.
FOREIGN = {"AbstractContextManager", "AnyIOBackend", "AsyncNetworkBackend", "TimedBackend", "_backend", "nodes_manager"}
READS_A_FILE = {"_read_lua"}  # a function with this name that does not parse


def identifiers(tree: ast.AST) -> Iterator[str]:
    """The names in a module: of modules, classes, functions, arguments, variables and attributes."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.Name(id=name)
                | ast.Attribute(attr=name)
                | ast.arg(arg=name)
                | ast.keyword(arg=str(name))
                | ast.ClassDef(name=name)
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ExceptHandler(name=str(name))
                | ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
            ):
                yield name
            case ast.alias(name=name, asname=other):
                yield from (other or name).split(".")


def words_of(identifier: str) -> list[str]:
    """Split an identifier at underscores and capitals."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


def better(identifier: str) -> str | None:
    """Return the replacement for an identifier, or None if it is allowed."""
    first = identifier.strip("_").split("_")[0]
    if identifier in FOREIGN:
        return None
    if identifier.isupper() and first in PREFIXES:
        return PREFIXES[first]
    found = [WORDS[word] for word in words_of(identifier) for word in (word, word.removesuffix("s")) if word in WORDS]
    return found[0] if found else None


def violations(tree: ast.AST) -> set[str]:
    """Return each rejected identifier with its replacement."""
    found = {f"{name}: {word}" for name in identifiers(tree) if (word := better(name))}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in CLASSES:
            found.add(f"{node.name}: {CLASSES[node.name]}")
        if isinstance(node, ast.FunctionDef) and re.match("_*read_", node.name) and node.name not in READS_A_FILE:
            found.add(f"{node.name}: parse, for what touches no network")
    return found


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_identifier_has_a_word_that_the_vocabulary_replaces(path: Path):
    modules = {f"{name}: {word}" for name in path.relative_to(PACKAGE).with_suffix("").parts if (word := better(name))}
    assert set() == modules | violations(ast.parse(path.read_text("utf-8")))


@pytest.mark.parametrize(
    "text",
    [
        "import gateway.ledger",
        "import cache as ledger",
        "class Desk: pass",
        "class Shape: pass",
        "MOST_BYTES = 1",
        "_PATIENCE = 1",
        "def f(asking): pass",
        "f(tenant=1)",
        "self.clientAccount = 1",
        "tickets = []",
        "def read_wall(text): pass",
        "try: pass\nexcept E as job: pass",
        "match a:\n    case [*jobs]: pass",
    ],
)
def test_the_check_finds_a_word(text: str):
    assert violations(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "most = 1",
        "def f(range): return range.start",
        "self.shape = self.limit = 1",
        "class CircuitBreaker: pass",
        "async def read_page(cache): pass",
        "accounting = indoors = 1",
        "def store(row, event): pass",
    ],
)
def test_the_check_allows_the_words_of_the_field(text: str):
    assert not violations(ast.parse(text))
