"""The findings that need POSTs of their own.

Rules:
- No POST asks for more than a day of calls. Two null dates, which may mean all calls, are asked for a client code that
  does not exist.
- A probe compares replies that differ in one thing. Most look for one call, the target.
- A limit is found by bisection. It holds only if another place has the same limit: else it is not the size that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from gateway.callbutton.central_time import HOUR, WallRange, fold_near, infer_folds, render_wall, wall_range
from gateway.callbutton.conformance.evidence import ids_show_fold
from gateway.callbutton.conformance.findings import Finding, finding, unknown
from gateway.callbutton.conformance.inquiry import MARGIN, MAX_POSTS, Inquiry, NoPostsLeft, Post, walls
from gateway.callbutton.conformance.observations import observe
from gateway.model import CLIENT_CODE, EVERY_CLIENT, StartTimeCertainty, Window

MAX_DAYS = 7  # days in which calls are looked for; a week has days of work
TARGETS = 2  # clients whose last call is looked for by their own code; the server may refuse one
WATCH_POSTS = 8  # of MAX_POSTS, to look for late calls
RECENT = 23 * HOUR  # before now; a window from there to now is below a day on every clock
WALL_FORMAT = "%m/%d/%Y %H:%M:%S"
# For the status flag. The document calls its values status_flag_1 to status_flag_n, and does not name the element.
FLAG_ELEMENTS = ("StatusFlag", "Status", "status_flag", "IncludeStatus", "Flag")
NO_CLIENT = "NO-SUCH-CLIENT-"
REFUSALS = frozenset("refused spoils shorter fewer some-refused not-found error unauthorized".split())  # may be chance
NO_TARGET = f"no calls were found in the last hour and the last {MAX_DAYS} days"
NO_SINGLE = "no client code that was tried, asked alone, returned the call that was looked for"
Found = dict[str, Finding]  # by name, as far as found


async def find_out(inquiry: Inquiry) -> list[Finding]:
    """Run all probes, and return the findings. Raises UpstreamError if the first POST fails."""
    inquiry.topic = "reachable"
    first = await inquiry.post(inquiry.last_hour())
    if first.error is not None:
        raise first.error
    found: Found = {}
    for name, probe in PROBES.items():
        inquiry.topic = name
        try:
            found[name] = await probe(name, inquiry, found)
        except NoPostsLeft:
            found[name] = unknown(name, f"the {MAX_POSTS} POSTs of a report were used up")
    if any(post.transient for post in inquiry.posts):
        found |= {
            name: unknown(name, "POSTs fail at random, and it would rest on one that failed", *one.evidence)
            for name, one in found.items()
            if one.value in REFUSALS
        }
    return [*found.values(), *observe(inquiry.posts, inquiry.questions.timeout)]


async def _every_client(name: str, inquiry: Inquiry, _: Found) -> Finding:
    asked = inquiry.questions.codes == (EVERY_CLIENT,)
    return finding(name, "answered", inquiry.posts[-1].said()) if asked else unknown(name, "--client names the codes")


async def _span_per_post(name: str, inquiry: Inquiry, _: Found) -> Finding:
    """Find a day with calls, which has the target, and the longest window up to a day that is answered."""
    day = datetime.strptime(render_wall(int(inquiry.clock())), WALL_FORMAT)  # noqa: DTZ007 - wall time
    day = day.replace(hour=0, minute=0, second=0)
    for _day in range(MAX_DAYS):
        day -= timedelta(days=1)
        whole = await inquiry.post(_hours(day, 24))
        if whole.error is not None or whole.records:
            break
    found = _whole_day(name, inquiry, whole) if whole.error is None else await _shorter(name, inquiry, day, whole)
    inquiry.target = next(iter(inquiry.targets()), None)
    return found


def _whole_day(name: str, inquiry: Inquiry, day: Post) -> Finding:
    shown = day.said(f"{day.size:,} bytes in {day.seconds:.1f} s; {day.outcome}")
    days = inquiry.questions.max_bytes // max(1, day.size)
    if inquiry.questions.max_span > days * 24 * HOUR:
        return finding(name, "large-days", shown, setting=f"GATEWAY_UPSTREAM_MAX_SPAN={max(1, days)}d")
    return finding(name, "a-day", shown)


async def _shorter(name: str, inquiry: Inquiry, day: datetime, whole: Post) -> Finding:
    shown = [whole.said()]

    async def works(hours: int, skipped: int) -> bool:
        post = await inquiry.post(_hours(day + timedelta(hours=skipped), hours))
        shown.append(post.said())
        return post.error is None

    hours, is_limit = await _largest(24, works)
    if not is_limit:
        return unknown(name, "it depends on the hours of a day whether a POST is answered", *shown)
    setting = f"GATEWAY_UPSTREAM_MAX_SPAN={hours}h"
    return finding(name, "shorter", *shown, hours=hours, more=hours + 1, setting=setting)


async def _largest(fails: int, works: Callable[[int, int], Awaitable[bool]]) -> tuple[int, bool]:
    """The largest size that works, below one that fails; and whether it is a limit: the same one place further on."""
    size = 1
    while fails - size > 1:
        middle = (size + fails) // 2
        if await works(middle, 0):
            size = middle
        else:
            fails = middle
    tried = size > 1 or await works(size, 0)
    return size, tried and await works(size, 1) and not await works(size + 1, 1)


async def _codes_echoed(name: str, inquiry: Inquiry, _: Found) -> Finding:
    """Ask for a call by the code that lists it, the code that was asked, and its tracking number; then for another."""
    targets = inquiry.targets()[:TARGETS]
    if inquiry.target is None:
        return unknown(name, NO_TARGET)
    asked = inquiry.questions.codes if len(inquiry.questions.codes) == 1 else ()
    codes = ((target, code) for target in targets for code in dict.fromkeys((target.code, *asked, target.did)))
    candidates = [(target, code) for target, code in codes if CLIENT_CODE.fullmatch(code)]
    shown = []
    for target, code in candidates:
        inquiry.target = target
        post = await inquiry.post(inquiry.around(1, 1), (code,))
        shown.append(inquiry.told(post))
        if inquiry.holds(post):
            listed = post.listed
            shown.append(f"POST {post.number} lists {', '.join(listed)}")
            value = "as-asked" if listed == [code] else "with-others" if code in listed else "otherwise"
            return finding(name, value, *shown)
    return unknown(name, NO_SINGLE, *shown)


async def _status_flag(name: str, inquiry: Inquiry, _: Found) -> Finding:
    if inquiry.target is None:
        return unknown(name, NO_TARGET)
    for post in inquiry.posts:
        if _status_of(post):
            return finding(name, "unasked", post.said(f"has {_status_of(post)}; {post.outcome}"))
    tried, own = dict[str, Post](), inquiry.questions.flag_element
    for element in dict.fromkeys((own, *FLAG_ELEMENTS)):
        post = await inquiry.post(inquiry.around(HOUR // 2, 1), None, element)
        if _status_of(post):
            shown = [inquiry.told(one) for one in tried.values()]
            shown.append(post.said(f"has {_status_of(post)}; {post.outcome}"))
            if element == own:
                return finding(name, "as-set", *shown, element=element)
            setting = f"GATEWAY_STATUS_FLAG_ELEMENT={element}"
            return finding(name, "other-element", *shown, setting=setting, element=element)
        tried[element] = post
    return finding(name, "not-found", *map(inquiry.told, tried.values()), tried=", ".join(tried))


async def _unknown_request_elements(name: str, inquiry: Inquiry, _: Found) -> Finding:
    post = await inquiry.post(inquiry.around(1, 1), None, "NoSuchElement")
    return finding(name, "ignored" if post.error is None else "refused", post.said())


async def _end_date(name: str, inquiry: Inquiry, _: Found) -> Finding:
    return await _edge(name, inquiry, inquiry.around(1, 0))


async def _start_date(name: str, inquiry: Inquiry, _: Found) -> Finding:
    return await _edge(name, inquiry, inquiry.around(0, 1))


async def _edge(name: str, inquiry: Inquiry, at_edge: WallRange) -> Finding:
    """Ask for a window with the target at one edge, and for one with a second more on each side."""
    if inquiry.target is None:
        return unknown(name, NO_TARGET)
    asked = inquiry.questions.codes, *inquiry.around(1, 1), None
    same = (post for post in inquiry.posts if (post.codes, post.start, post.end, post.flag_element) == asked)
    wider = next(same, None) or await inquiry.post(inquiry.around(1, 1))
    post = await inquiry.post(at_edge)
    shown = inquiry.told(post), inquiry.told(wider)
    if not post.ok or not wider.ok:
        return unknown(name, "a window of two seconds was not answered", *shown)
    if not inquiry.holds(wider):
        return unknown(name, "a window of two seconds around a call does not return it", *shown)
    return finding(name, "inclusive" if inquiry.holds(post) else "exclusive", *shown)


async def _null_end_date(name: str, inquiry: Inquiry, _: Found) -> Finding:
    target = inquiry.target
    recent = target is not None and target.start.timestamp() > inquiry.clock() - RECENT
    start = (inquiry.around(1, 1) if recent else inquiry.last_hour()).start
    post = await inquiry.post(WallRange(start, None))
    if post.error is not None:
        control = await inquiry.post(WallRange(start, inquiry.last_hour().end))
        if control.error is not None:
            return unknown(name, "the same window with an EndDate is refused too", post.said(), control.said())
        return finding(name, "refused", post.said(), control.said(), setting="GATEWAY_UPSTREAM_NULL_END=off")
    if not recent:
        return unknown(name, "it is accepted, and there is no call of the last day that it should return", post.said())
    if inquiry.holds(post):
        return finding(name, "now", inquiry.told(post))
    return finding(name, "other", inquiry.told(post), setting="GATEWAY_UPSTREAM_NULL_END=off")


async def _unknown_client(name: str, inquiry: Inquiry, _: Found) -> Finding:
    post = await inquiry.post(inquiry.around(1, 1), (f"{NO_CLIENT}0",))
    if post.evidence is None or post.evidence.verdict not in ("OK", "ERROR", "UNAUTHORIZED"):
        return unknown(name, "the POST was not answered", post.said())
    if not post.ok:
        return finding(name, post.evidence.verdict.lower(), post.said())
    return finding(
        name, "calls" if post.evidence.calls else "listed" if post.evidence.clients else "left-out", post.said()
    )


async def _unknown_client_in_batch(name: str, inquiry: Inquiry, _: Found) -> Finding:
    code, others = _code(inquiry), _others(inquiry)
    if code is None:
        return unknown(name, NO_SINGLE)
    post = await inquiry.post(inquiry.around(1, 1), (f"{NO_CLIENT}0", code))
    if inquiry.holds(post):
        return finding(name, "harmless", inquiry.told(post))
    if not others:
        return unknown(name, "there is no other client code to compare with", inquiry.told(post))
    control = await inquiry.post(inquiry.around(1, 1), (others[0], code))
    shown = inquiry.told(post), inquiry.told(control)
    if inquiry.holds(control):
        return finding(name, "spoils", *shown)
    return unknown(name, "a POST with two client codes that exist does not return the calls either", *shown)


async def _null_dates(name: str, inquiry: Inquiry, found: Found) -> Finding:
    if found["unknown-client"].value not in ("listed", "left-out"):
        return unknown(name, "to ask for it, a client code is needed that is answered and has no calls")
    post = await inquiry.post(None, (f"{NO_CLIENT}0",))
    return finding(name, "accepted" if post.error is None else "refused", post.said())


async def _codes_per_post(name: str, inquiry: Inquiry, found: Found) -> Finding:
    """Ask for the target with other codes before its own: codes that do not exist, if they are harmless."""
    code, batch = _code(inquiry), inquiry.questions.batch
    if code is None:
        return unknown(name, NO_SINGLE)
    others = _others(inquiry)
    if found["unknown-client-in-batch"].value == "harmless":
        others = [f"{NO_CLIENT}{number}" for number in range(batch + 1)]
    most, shown = min(batch, len(others) + 1), list[str]()
    if most < 2:
        return unknown(name, "there are no two client codes to ask for in one POST")

    async def works(size: int, skipped: int) -> bool:
        post = await inquiry.post(inquiry.around(1, 1), (*others[skipped : skipped + size - 1], code))
        shown.append(inquiry.told(post))
        return inquiry.holds(post)

    if await works(most, 0):
        return finding(name, "all", *shown, size=most)
    size, is_limit = await _largest(most, works)
    if not is_limit:
        return unknown(name, "it depends on the client codes whether a POST with several is answered", *shown)
    return finding(name, "fewer", *shown, size=size, more=size + 1, setting=f"GATEWAY_UPSTREAM_BATCH={size}")


async def _clients_together(name: str, inquiry: Inquiry, found: Found) -> Finding:
    """Ask for all known codes in one POST. If that fails, find one code that is the reason by halving."""
    code, others, limit = _code(inquiry), _others(inquiry), found["codes-per-post"]
    batch = int((limit.setting or f"={inquiry.questions.batch}").partition("=")[2])
    codes = [*([code] if code else []), *others][:batch]
    if len(codes) < 2 or found["codes-echoed"].value == "otherwise":
        return unknown(name, "there are no two client codes to ask for in one POST")
    whole = post = await inquiry.post(inquiry.around(1, 1), codes)
    if whole.error is None:
        return finding(name, "answered", whole.said(), size=len(codes))
    while len(codes) > 1:
        half = codes[: len(codes) // 2]
        post = await inquiry.post(inquiry.around(1, 1), half)
        codes = half if post.error is not None else codes[len(half) :]
    if post.codes != tuple(codes):
        post = await inquiry.post(inquiry.around(1, 1), codes)
    shown = whole.said(), post.said()
    if post.error is None:
        return unknown(name, "a POST with several client codes fails, and each of them is answered alone", *shown)
    return finding(name, "some-refused", *shown, code=codes[0])


async def _fold_order(name: str, inquiry: Inquiry, _: Found) -> Finding:
    shown = []
    for ago in (0, 365 * 24 * HOUR):
        now = inquiry.clock()
        fold = fold_near(int(now) - ago)
        if fold is None or fold.end + 3 * HOUR > now:
            continue
        post = await inquiry.post(wall_range(Window(fold.start, fold.end), now))
        shown.append(post.said())
        by_code = list(post.evidence.by_code().values()) if post.evidence is not None and post.ok else []
        if any(infer_folds([record.start for record in records]) for records in by_code):
            return finding(name, "by-time", *shown)
        if any(map(ids_show_fold, by_code)):
            return finding(name, "not-by-time", *shown)
    return unknown(name, "no night of a clock change was answered with enough calls to tell the passes apart", *shown)


async def _reversed_dates(name: str, inquiry: Inquiry, _: Found) -> Finding:
    start, end = inquiry.around(1, 1)
    post = await inquiry.post(WallRange(str(end), start))
    return finding(name, "answered" if post.error is None else "refused", post.said())


async def _late_calls(name: str, inquiry: Inquiry, _: Found) -> Finding:
    """Read the last hour again and again. A call that an earlier POST asked for and did not list appeared since.

    The last probe: a cancellation ends the watch, and leaves the findings.
    """
    first, watch = next(post for post in inquiry.posts if post.ok), inquiry.questions.watch
    start, asked_to, before = first.sent - HOUR, first.sent - MARGIN, first
    listed = {(record.code, record.id) for record in first.records}
    delays: list[tuple[float, float]] = []  # after the end of a call: at least, at most
    shown = [first.said()]
    count = min(WATCH_POSTS, MAX_POSTS - len(inquiry.posts)) if watch else 1
    for _round in range(count):
        if watch:
            inquiry.show("watching for late calls; Ctrl-C ends the watch")
        try:
            await inquiry.sleep(watch / count)
            post = await inquiry.post(walls(start, inquiry.clock() - MARGIN))
        except asyncio.CancelledError:
            break
        if not post.ok:
            continue
        new = [record for record in post.records if (record.code, record.id) not in listed]
        appeared = [
            (max(0.0, before.sent - record.end), max(0.0, post.sent - record.end))
            for record in new
            if record.end is not None
            and record.certainty is StartTimeCertainty.EXACT
            and start <= record.start.timestamp() <= asked_to
        ]
        if appeared:
            shown.append(post.said(f"{len(appeared)} calls that POST {before.number} lacks; {post.outcome}"))
        delays += appeared
        listed |= {(record.code, record.id) for record in new}
        before, asked_to = post, post.sent - MARGIN
    seconds = round(before.sent - first.sent)
    if before is first:
        return unknown(name, f"no later POST for the time of POST {first.number} was answered", first.said())
    if not delays:
        reason = f"no call appeared in the {seconds} s between POST {first.number} and POST {before.number}"
        return unknown(name, f"{reason}; `--watch 1h` looks for longer", first.said(), before.said())
    late = [delay for delay in delays if delay[0] > MARGIN]
    least, most = max(late) if late else (0, max(most for _, most in delays))
    return finding(
        name,
        "late" if late else "prompt",
        *shown,
        calls=len(delays),
        seconds=seconds,
        late=len(late),
        least=round(least),
        most=round(most),
    )


def _hours(start: datetime, hours: int) -> WallRange:
    """Hours on the wall clock from a wall time on, without the last second."""
    end = start + timedelta(hours=hours, seconds=-1)
    return WallRange(start.strftime(WALL_FORMAT), end.strftime(WALL_FORMAT))


def _code(inquiry: Inquiry) -> str | None:
    """A code that returned the target when it was asked alone."""
    alone = [post.codes[0] for post in inquiry.posts if len(post.codes) == 1 and inquiry.holds(post)]
    return next((code for code in alone if code != EVERY_CLIENT and not code.startswith(NO_CLIENT)), None)


def _others(inquiry: Inquiry) -> list[str]:
    """The other client codes that were asked or listed, and can be asked."""
    listed = [code for post in inquiry.posts if post.ok for code in post.listed]
    codes = filter(CLIENT_CODE.fullmatch, dict.fromkeys((*inquiry.questions.codes, *listed)))
    return [code for code in codes if code != _code(inquiry) and not code.startswith(NO_CLIENT)]


def _status_of(post: Post) -> str:
    """The elements with status in a reply."""
    return ", ".join(sorted(post.evidence.counts["status"])) if post.evidence is not None else ""


PROBES: dict[str, Callable[[str, Inquiry, Found], Awaitable[Finding]]] = {
    "every-client": _every_client,
    "span-per-post": _span_per_post,
    "codes-echoed": _codes_echoed,
    "status-flag": _status_flag,
    "unknown-request-elements": _unknown_request_elements,
    "end-date": _end_date,
    "start-date": _start_date,
    "null-end-date": _null_end_date,
    "unknown-client": _unknown_client,
    "unknown-client-in-batch": _unknown_client_in_batch,
    "null-dates": _null_dates,
    "codes-per-post": _codes_per_post,
    "clients-together": _clients_together,
    "fold-order": _fold_order,
    "reversed-dates": _reversed_dates,
    "late-calls": _late_calls,
}
