"""The findings that all replies of a report show, whatever was asked. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from gateway.callbutton.conformance.evidence import MIN_STEPS, Evidence
from gateway.callbutton.conformance.findings import Finding, finding, unknown
from gateway.callbutton.conformance.inquiry import Post
from gateway.callbutton.record import FIELDS, canonical
from gateway.errors import UpstreamUnauthorized
from gateway.extra_fields import ELEMENT

SHOWN_NAMES = 8  # in a line of evidence
NO_CALLS = "no reply had calls"
Answered = Sequence[tuple[Post, Evidence]]


def observe(posts: Sequence[Post], timeout: float) -> list[Finding]:
    """The findings of all replies, with the seconds that the gateway waits for the first byte of one."""
    answered = [(post, post.evidence) for post in posts if post.ok and post.evidence is not None]
    failed = [(post, post.evidence) for post in posts if not post.ok and post.evidence is not None]
    return [
        _response_element("response-element", answered),
        _response_element("failure-element", failed),
        *[observation(name, answered) for name, observation in OBSERVATIONS.items()],
        _unauthorized(posts),
        _failures(posts),
        _reply_time(posts, timeout),
    ]


def _response_element(name: str, replies: Answered) -> Finding:
    first = {canonical(evidence.response): post for post, evidence in reversed(replies) if evidence.response}
    if not first:
        return unknown(name, f"no reply reported {'success' if name == 'response-element' else 'a failure'}")
    value = next(iter(first)) if len(first) == 1 else "both"
    return finding(name, value, *(post.said(f"<{element}>; {post.outcome}") for element, post in first.items()))


def _presence(topic: str, absent: str, present: str) -> Callable[[str, Answered], Finding]:
    """An observation of whether calls have the elements that `topic` counts."""

    def observation(name: str, replies: Answered) -> Finding:
        counts, evidence = _counted(topic, replies)
        if not any(reply.calls for _, reply in replies):
            return unknown(name, NO_CALLS)
        return finding(name, present if counts else absent, evidence)

    return observation


def _counted(topic: str, replies: Answered) -> tuple[Counter[str], str]:
    """The counts of all replies on a topic, and the evidence: the reply with the largest count."""
    counts = [(+evidence.counts[topic], post) for post, evidence in replies]
    total = sum((count for count, _ in counts), Counter[str]())
    if not total:
        return total, f"{len(replies)} replies with {sum(evidence.calls for _, evidence in replies):,} calls"
    most, post = max(counts, key=lambda pair: pair[0].total())
    shown = ", ".join(f"{name} {number:,}" for name, number in most.most_common(SHOWN_NAMES))
    return total, post.said(f"{shown}; {post.outcome}")


def _client_elements(name: str, replies: Answered) -> Finding:
    together = None
    for post, evidence in replies:
        for code, count in Counter(code for code, _ in evidence.clients).items():
            calls = [records for listed, records in evidence.clients if listed == code]
            distinct = len(evidence.by_code()[code])
            if count > 1:
                value = "one-per-call" if distinct == count and all(len(one) == 1 for one in calls) else "several"
                shown = post.said(f"{count} Client elements of one client code, with {distinct} distinct calls")
                return finding(name, value, shown)
            if distinct > 1:
                together = together or post.said(f"a Client element with {distinct} distinct calls")
    return finding(name, "one-per-code", together) if together else unknown(name, "no client had two calls in a reply")


def _empty_clients(name: str, replies: Answered) -> Finding:
    for post, evidence in replies:
        same = [other for one, other in replies if one.codes == post.codes]  # a code may be answered under another one
        known = {record.code for other in same for record in other.records}
        by_code = evidence.by_code()
        if empty := sum(not by_code[code] for code in known & by_code.keys()):
            return finding(name, "listed", post.said(f"{empty} client codes of other replies are listed without calls"))
        if missing := known - by_code.keys():
            return finding(name, "left-out", post.said(f"{len(missing)} client codes of other replies are not listed"))
    return unknown(name, "every client had calls in every reply")


def _duplicates(name: str, replies: Answered) -> Finding:
    calls = 0
    for post, evidence in replies:
        calls += len(evidence.records)
        if repeated := len(evidence.records) - sum(map(len, evidence.by_code().values())):
            shown = f"{repeated:,} of {len(evidence.records):,} calls have the id of another call of their client"
            return finding(name, "present", post.said(shown))
    return finding(name, "none", f"{calls:,} calls in {len(replies)} replies") if calls else unknown(name, NO_CALLS)


def _order(name: str, replies: Answered) -> Finding:
    steps = [(*evidence.steps(), post) for post, evidence in replies]
    later, earlier = sum(up for up, _, _ in steps), sum(down for _, down, _ in steps)
    if not (later and earlier) and later + earlier < MIN_STEPS:
        return unknown(name, f"the replies have {later + earlier} steps from one call to the next, too few to tell")
    up, down, post = max(steps, key=lambda step: step[0] + step[1])
    shown = post.said(f"{up:,} calls begin after the call listed before them, {down:,} begin before it")
    return finding(name, "none" if later and earlier else "ascending" if later else "descending", shown)


def _zip_codes(name: str, replies: Answered) -> Finding:
    kinds, evidence = _counted("zip", replies)
    if not kinds:
        return unknown(name, "no call had a ZIP code that begins with zero")
    return finding(name, "short" if kinds["without zero"] else "complete", evidence)


def _charset(name: str, replies: Answered) -> Finding:
    found, evidence = _counted("charset", replies)
    headers = (
        f"charset of the header Content-Type: {', '.join(sorted({post.charset or 'none' for post, _ in replies}))}"
    )
    if not found:
        return unknown(name, "every reply is ASCII", headers)
    names = ", ".join(sorted(found))
    value = "windows-1252" if "windows-1252" in found else "utf-8" if names == "utf-8" else "other"
    return finding(name, value, evidence, headers, charset=names)


def _well_formed(name: str, replies: Answered) -> Finding:
    repairs, evidence = _counted("repair", replies)
    return finding(name, "repaired" if repairs else "yes", evidence)


def _unknown_elements(name: str, replies: Answered) -> Finding:
    names, evidence = _counted("unknown", replies)
    if not any(reply.calls for _, reply in replies):
        return unknown(name, NO_CALLS)
    if not names:
        return finding(name, "none", evidence)
    setting = ",".join(f"{element}:{field}!personal" for field, element in _promoted(sorted(names)).items())
    setting = setting and f"GATEWAY_EXTRA_FIELDS={setting}"
    return finding(name, "present", evidence, setting=setting or None, names=", ".join(sorted(names)))


def _promoted(elements: Iterable[str]) -> dict[str, str]:
    """The elements that can be fields of calls, by a camelCase name that no field of the API has."""
    return {
        "extra" + "".join(word[0].upper() + word[1:] for word in re.findall("[A-Za-z0-9]+", element)): element
        for element in elements
        if ELEMENT.fullmatch(element) and (element.partition(".")[0] not in FIELDS or element.startswith("Address."))
    }


def _unauthorized(posts: Sequence[Post]) -> Finding:
    shown = [
        post.said(f"{post.outcome}; username {post.error.username}, address {post.error.address}")
        for post in posts
        if isinstance(post.error, UpstreamUnauthorized)
    ]
    return finding("unauthorized", "some" if shown else "none", *shown[:SHOWN_NAMES])


def _failures(posts: Sequence[Post]) -> Finding:
    failed = [post for post in posts if post.transient]
    shown = [post.said() for post in failed]
    return finding("failures", "some" if failed else "none", *shown, failed=len(failed), posts=len(posts))


def _reply_time(posts: Sequence[Post], timeout: float) -> Finding:
    slowest = max(posts, key=lambda post: post.waited)
    shown = slowest.said(f"{slowest.waited:.1f} s to the first byte, {slowest.seconds:.1f} s in all; {slowest.outcome}")
    if slowest.waited <= timeout / 2:
        return finding("reply-time", "in-time", shown)
    setting = f"GATEWAY_UPSTREAM_TIMEOUT={math.ceil(2 * max(slowest.waited, timeout))}s"
    return finding("reply-time", "slow", shown, setting=setting)


OBSERVATIONS: dict[str, Callable[[str, Answered], Finding]] = {
    "element-names": _presence("misspelled", "as-documented", "otherwise"),
    "client-elements": _client_elements,
    "empty-clients": _empty_clients,
    "duplicates": _duplicates,
    "order": _order,
    "padded-values": _presence("padded", "none", "present"),
    "zip-codes": _zip_codes,
    "charset": _charset,
    "well-formed": _well_formed,
    "unknown-elements": _unknown_elements,
    "unreadable-calls": _presence("unreadable", "none", "present"),
}
