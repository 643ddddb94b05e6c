"""Records in the very layout of the protocol document, matched by one regular expression. Pure.

Rules:
- The expression is a recogniser of well-formed XML: of a `Call` element among others, with the document's elements in
  the document's order, each absent, empty, or text with the five named references; a Journal also as CDATA.
- It is tried after a whole tag alone, `<CallDetails>` or `</Call>`, whose `<` expat has seen: so no tag and no
  attribute's value is open there. Nor is a comment, an instruction or a section: `tree` knows.
- It never backtracks (its repeats are possessive), so its time is linear.
- Whatever it does not match is left to expat. It may be slow to say no, it must never say yes wrongly.
"""

from __future__ import annotations

import re

SPACE = "[ \t\n]*+"
BEFORE = (
    "StartTime Campaign DID ANI OtherData InfoDigits Target Result Duration TalkTime IndexNumber VoiceDirectory".split()
)
ADDRESS = "FirstName MiddleInitial LastName StreetAddress SecondaryAddress City State ZIP ZIP4".split()
AFTER = "ReviewedStatus DTMF SalesStatus Journal".split()
STATUS = frozenset(("ReviewedStatus", "SalesStatus", "Journal"))
CDATA = r"<!\[CDATA\[(?:[^\]]|\](?!\]>))*+\]\]>"
SECTION = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
UNNAMED = re.compile("&(?!(?:amp|lt|gt|quot|apos);)")
DETAILS, BEGINNING, END = "<CallDetails>", "<Call ", "</Call>"


def _leaf(name: str) -> str:
    text = rf"[^<]*+(?:{CDATA}[^<]*+)*+" if name == "Journal" else "[^<]*+"
    # That a status element is there says something even if it is empty, so its group must not be None.
    empty = "" if name in STATUS else f"|<{name}/>{SPACE}"
    return f"(?:<{name}>({text})</{name}>{SPACE}{empty})?+"


def _expression() -> re.Pattern[str]:
    address = f"(?:<Address>{SPACE}{''.join(map(_leaf, ADDRESS))}</Address>{SPACE}|<Address/>{SPACE})?+"
    elements = f"{''.join(map(_leaf, BEFORE))}{address}{''.join(map(_leaf, AFTER))}"
    return re.compile(rf'{SPACE}<Call ID="([^"<&\s]++)">{SPACE}{elements}</Call>')


_match = _expression().match


def next_place(text: str, at: int) -> int:
    """The next place where a record may begin: where the first one of a CallDetails does, or after one; -1 without."""
    begin, end = text.find(BEGINNING, at), text.find(END, at)
    if begin >= 0 and (end < 0 or begin < end) and text[at:begin].rstrip(" \t\n").endswith(DETAILS):
        return begin
    return end + len(END) if end >= 0 else -1


def match(text: str, at: int) -> tuple[list[str | None], int] | None:
    """Match one record at a place between two elements: its trimmed values, the id first, in order, and its end."""
    found = _match(text, at)
    if found is None:
        return None
    end = found.end()
    values = [value and value.strip() for value in found.groups()]
    if text.find("&", at, end) >= 0 or text.find("]", at, end) >= 0:
        outside = SECTION.sub("", found[0])
        if "]]>" in outside or UNNAMED.search(outside):
            return None
        values = [value if value is None else _plain(value) for value in values]
    return values, end


def _plain(text: str) -> str:
    if "<" not in text:
        return _resolved(text)
    # The odd pieces are what stood in CDATA.
    return "".join(piece if place % 2 else _resolved(piece) for place, piece in enumerate(SECTION.split(text))).strip()


def _resolved(text: str) -> str:
    if "&" in text:
        for name, character in (("lt", "<"), ("gt", ">"), ("quot", '"'), ("apos", "'"), ("amp", "&")):
            text = text.replace(f"&{name};", character)
    return text
