"""The change feed without a network: buckets, fingerprints, tokens, and copies that apply the changes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from msgspec.structs import replace

from gateway.cache.deduplication import deduplicated
from gateway.cache.extents import Extent, make_extent, make_extent_of_all, overlay
from gateway.cache.feed import Changes, Journal, Report, Snapshot, make_report, make_snapshot, outdated
from gateway.cache.feed_reader import superseded
from gateway.cache.feed_state import BucketReport, Cut, FeedState, advance, buckets, midnight, new_state, pack, unpack
from gateway.cache.fingerprints import HOUR, NOTHING, View, fingerprint, hour_sums
from gateway.model import Call, Window
from gateway.slices import finish
from tests.support.upstream import DAY, NOW, call

VIEW = View("all", list, lambda one: one)
START = midnight(NOW - 60 * DAY)
PROCESS = b"here"
moments = st.integers(START, NOW - 1)
calls_of_two_months = st.lists(st.tuples(st.integers(0, 300), moments), max_size=40, unique_by=lambda pair: pair[0])


def made(pairs: Sequence[tuple[int, int]], campaign: str | None = None) -> list[Call]:
    return [call(str(identity), start, campaign=campaign) for identity, start in pairs]


def whole(calls: Sequence[Call], sent: float = NOW) -> list[Extent]:
    return [make_extent(Window(START, NOW + HOUR), sent, calls)]


def snapshot(extents: Sequence[Extent], start: int = START, at: int = NOW) -> Snapshot:
    kept = deduplicated(extents)
    return finish(make_snapshot(kept, finish(superseded(extents, kept)), start, at, VIEW))


@given(start=st.integers(0, 400), at=st.integers(NOW - 3 * 365 * DAY, NOW))
def test_buckets_are_aligned_and_cover_the_window(start: int, at: int):
    begin = midnight(at - 1 - start * DAY)
    windows = buckets(begin, at)
    assert windows[0].start == begin
    assert at <= windows[-1].end < at + HOUR
    assert all(one.end == following.start for one, following in pairwise(windows))
    assert [one.end - one.start for one in windows][-48:] == [HOUR] * min(48, len(windows))
    assert len(windows) <= 150


@given(
    start=st.integers(0, 400),
    later=st.one_of(st.integers(0, 3 * HOUR), st.integers(0, 200 * DAY)),
    at=st.integers(NOW - 3 * 365 * DAY, NOW),
)
def test_older_buckets_are_unions_of_younger_ones(start: int, later: int, at: int):
    begin = midnight(at - 1 - start * DAY)
    windows = buckets(begin, at)
    state = replace(
        new_state(begin, at), reports=tuple(BucketReport(index + 1, index) for index in range(len(windows)))
    )
    advanced = advance(state, at + later)
    younger = {edge for window in windows for edge in (window.start, window.end)}
    assert {w.start for w in buckets(advanced.start, at + later) if w.start < windows[-1].end} <= younger
    for window, report in zip(buckets(advanced.start, at + later), advanced.reports, strict=True):
        merged = [one.newest for part, one in zip(windows, state.reports, strict=True) if part.start in window]
        assert report.newest == max(merged, default=0)
    if advanced.start == begin:
        assert sum(report.total for report in advanced.reports) == sum(report.total for report in state.reports)
    assert advanced.start == begin or midnight(at + later) - begin > 400 * DAY
    assert midnight(at + later) - advanced.start <= 400 * DAY


@given(calls=calls_of_two_months, cuts=st.lists(moments, max_size=6), order=st.randoms())
def test_sums_do_not_depend_on_order_or_seams(calls: list[tuple[int, int]], cuts: list[int], order: Random):
    one = whole(made(calls))
    expected = [bucket.found for bucket in snapshot(one).buckets]
    edges = sorted({START, NOW + HOUR, *cuts})
    parts = [one[0].within(Window(*pair)) for pair in pairwise(edges)]
    order.shuffle(parts)
    finish(hour_sums(parts[0], VIEW))  # some sums are memoised before the next cut
    parts = [piece for part in parts for piece in overlay([part], part)]
    assert [bucket.found for bucket in snapshot(parts).buckets] == expected
    finish(hour_sums(one[0], VIEW))  # the parts of an extent take its sums over
    views = [one[0].view(Window(*pair)) for pair in pairwise(edges)]
    assert [bucket.found for bucket in snapshot(views).buckets] == expected
    assert sum(bucket.found.calls for bucket in snapshot(one).buckets) == len(calls)


@given(calls=calls_of_two_months.filter(bool), other=moments)
def test_a_change_changes_its_buckets_and_no_others(calls: list[tuple[int, int]], other: int):
    before = snapshot(whole(made(calls))).buckets
    (identity, start), *rest = calls
    for changed, touched in (
        (made(rest), [start]),
        ([*made(rest), *made([(identity, start)], campaign="edited")], [start]),
        ([*made(rest), *made([(identity, other)])], [start, other]),
        (made([*calls, (999, other)]), [other]),
    ):
        after = snapshot(whole(changed)).buckets
        differ = {old.window for old, new in zip(before, after, strict=True) if old.found != new.found}
        moved = {old.window for old in before for moment in touched if moment in old.window}
        assert differ == (moved if len(touched) == 1 or start != other else set())


def test_the_sum_of_nothing_is_nothing():
    assert fingerprint([], VIEW) == NOTHING
    assert {bucket.found for bucket in snapshot(whole([])).buckets} == {NOTHING}


def test_every_client_counts():
    extent = make_extent_of_all(Window(START, NOW), NOW, {"a": [call("1", NOW - 9)], "b": [call("1", NOW - 9, "b")]})
    assert snapshot([extent]).calls == 2
    assert snapshot([extent]).buckets[-1].found != snapshot(whole([call("1", NOW - 9)])).buckets[-1].found


@given(
    ago=st.integers(0, 400),
    data=st.data(),
    resume=st.integers(0, NOW),
    cut=st.none() | st.builds(Cut, st.integers(1, NOW), st.integers(0, 2**40 - 1)),
)
def test_a_state_survives_packing(ago: int, data: st.DataObject, resume: int, cut: Cut | None):
    start = midnight(NOW - ago * DAY)
    windows = buckets(start, NOW)
    one = st.builds(BucketReport, st.integers(0, 2**40 - 1), st.floats(0, 1), st.booleans(), st.booleans())
    reports = data.draw(st.lists(one, min_size=len(windows), max_size=len(windows)))
    reports = [
        replace(each, newest=window.start + each.newest * (NOW - window.start) if window.start < NOW else 0.0)
        for each, window in zip(reports, windows, strict=True)
    ]
    state = FeedState(start, NOW, tuple(reports), NOW - 0.5, resume, cut, PROCESS, 7, 8)
    packed = pack(state)
    assert len(packed) <= 1100
    again = unpack(packed)
    assert replace(again, reports=state.reports) == state
    for before, after, window in zip(state.reports, again.reports, windows, strict=True):
        assert (before.total, before.pending) == (after.total, after.pending)
        step = 2400 if NOW - window.start > 60 * DAY else 360 if NOW - window.start > 80 * HOUR else 20
        assert before.newest <= after.newest < before.newest + step or before.newest <= window.start
    assert pack(again) == packed


@pytest.mark.parametrize(
    "packed", [b"", b"x" * 20, pack(new_state(START, NOW))[:-1], pack(new_state(START, NOW)) + b"x"]
)
def test_other_bytes_are_refused(packed: bytes):
    with pytest.raises(ValueError, match=r"short|wrong"):
        unpack(packed)


class Copy:
    """A consumer that only applies changes."""

    def __init__(self, calls: Sequence[Call] = ()) -> None:
        self.calls = {one.id: one for one in calls}

    def apply(self, report: Report) -> None:
        for remove in report.removes:
            self.calls.pop(remove.call.id, None)
        for part in report.replaces:
            listed = {one.id for one in part.calls}
            for identity, one in list(self.calls.items()):
                if one.start_time.timestamp() in part.window and identity not in listed:
                    del self.calls[identity]
            self.calls |= {one.id: one for one in part.calls}
        for upsert in report.upserts:
            self.calls[upsert.call.id] = upsert.call


class Feed(RuleBasedStateMachine):
    """Changes of the upstream between answers, with small limits: the copy becomes exact, and never goes back."""

    @initialize(stale=calls_of_two_months)
    def begin(self, stale: list[tuple[int, int]]) -> None:
        self.world: dict[str, Call] = {}
        self.at = NOW
        self.serial = 0
        self.copy = Copy(made(stale))
        self.packed: bytes | None = None
        self.journal = Journal(bound=20_000)
        self.before: Snapshot | None = None

    @rule(identity=st.integers(0, 20), start=moments)
    def publish(self, identity: int, start: int) -> None:
        self.serial += 1
        self.world[str(identity)] = call(str(identity), start, campaign=str(self.serial))

    @rule(identity=st.integers(0, 20), near=st.integers(0, 20))
    def move_near(self, identity: int, near: int) -> None:
        if str(near) in self.world:
            self.publish(identity, int(self.world[str(near)].start_time.timestamp()))

    @rule(identity=st.integers(0, 20))
    def delete(self, identity: int) -> None:
        self.world.pop(str(identity), None)

    @rule(seconds=st.sampled_from([0, 1, 600, 3600, 7200, 86400, 20 * DAY]))
    def wait(self, seconds: int) -> None:
        self.at += seconds

    @rule()
    def refresh(self) -> None:
        """A reading of this process without a request."""
        current = self.snapshot()
        if self.before is not None and self.before.buckets[0].window.start == current.buckets[0].window.start:
            finish(self.journal.record(self.before, current))
        self.before = current

    def snapshot(self) -> Snapshot:
        state = advance(unpack(self.packed), self.at) if self.packed else new_state(START, self.at)
        extents = [make_extent(Window(state.start, self.at + HOUR), self.at, list(self.world.values()))]
        return finish(make_snapshot(extents, (), state.start, self.at, VIEW))

    @rule(limit=st.integers(1, 12), journal=st.booleans())
    def poll(self, limit: int, journal: bool) -> None:
        self.answer(limit, journal=journal)

    def answer(self, limit: int, *, journal: bool) -> Report:
        state = advance(unpack(self.packed), self.at) if self.packed else new_state(START, self.at)
        current = self.snapshot()
        assert outdated(state, current, same_cache=False) == []
        report = finish(make_report(state, current, limit, lookup=self.journal if journal else None))
        size = sum(len(part.calls) for part in report.replaces) + len(report.upserts) + len(report.removes)
        seconds = {one.start_time for part in report.replaces for one in part.calls}
        assert size <= limit or len(seconds) == 1
        assert report.removes or report.replaces or report.upserts or report.up_to_date
        assert not any(remove.call.id in self.world for remove in report.removes)
        self.copy.apply(report)
        self.packed = pack(report.state)
        if report.up_to_date:
            start = report.state.start
            expected = {i: one for i, one in self.world.items() if one.start_time.timestamp() >= start}
            assert {i: one for i, one in self.copy.calls.items() if one.start_time.timestamp() >= start} == expected
            assert current.calls == len(expected)
        return report

    @rule()
    def quiet(self) -> None:
        for _ in range(200):
            if self.answer(5, journal=True).up_to_date:
                return
        raise AssertionError("the copy is never up to date")


def test_a_copy_becomes_exact_whatever_changes_between_answers():
    run_state_machine_as_test(
        Feed,
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_a_new_call_is_one_upsert():
    first = finish(make_report(new_state(START, NOW), snapshot(whole(made([(1, NOW - 500), (2, NOW - 400)]))), 100))
    assert first.up_to_date
    assert [len(part.calls) for part in first.replaces] == [2]
    assert (first.replaces[0].window.start, first.replaces[-1].window.end) == (START, NOW)
    after = snapshot(whole(made([(1, NOW - 500), (2, NOW - 400), (3, NOW - 450)])))
    then = finish(make_report(first.state, after, 100))
    assert ([one.call.id for one in then.upserts], then.replaces, then.removes) == (["3"], [], [])
    assert (
        finish(
            make_report(then.state, snapshot(whole(made([(1, NOW - 500), (2, NOW - 400), (3, NOW - 450)]))), 1)
        ).upserts
        == []
    )


def test_a_feed_that_starts_this_second_is_up_to_date():
    today = midnight(NOW)
    report = finish(make_report(new_state(today, today), snapshot([], today, today), 100))
    assert (report.up_to_date, report.size) == (True, 0)


def test_what_rests_on_older_posts_than_what_was_told_is_read_again():
    reported = finish(
        make_report(new_state(START, NOW), snapshot(whole(made([(1, NOW - 500)]), sent=NOW - 10)), 100)
    ).state
    older = snapshot(whole([], sent=NOW - 20))
    assert [window.start for window in outdated(reported, older, same_cache=False)] == [
        midnight(NOW) + (NOW - 500 - midnight(NOW)) // HOUR * HOUR
    ]
    newer = snapshot(whole([], sent=NOW - 5))
    assert outdated(reported, newer, same_cache=False) == []


def test_a_state_keeps_the_newest_post_when_nothing_differs():
    first = finish(
        make_report(new_state(START, NOW), snapshot(whole(made([(1, NOW - 500)]), sent=NOW - 60)), 100)
    ).state
    again = finish(make_report(first, snapshot(whole(made([(1, NOW - 500)]), sent=NOW - 10)), 100)).state
    assert outdated(again, snapshot(whole([], sent=NOW - 30)), same_cache=False) != []


def test_a_call_that_moved_away_and_was_deleted_does_not_come_back_from_an_older_post():
    seam = NOW - HOUR
    older = make_extent(Window(START, seam), NOW - 100, made([(1, NOW - 2 * HOUR)]))
    moved = make_extent(Window(seam, NOW + HOUR), NOW - 10, made([(1, NOW - 1800)]))
    deleted = make_extent(Window(seam, NOW + HOUR), NOW - 5, ())
    reported = finish(make_report(new_state(START, NOW), snapshot([older, moved]), 100)).state
    bucket = [window for window in buckets(START, NOW) if NOW - 2 * HOUR in window]
    assert outdated(reported, snapshot([older, deleted]), same_cache=True) == bucket
    later = finish(make_report(reported, snapshot([older, deleted]), 100, wait=bucket))
    assert ([part.calls for part in later.replaces if part.calls], later.upserts) == ([], [])
    assert outdated(later.state, snapshot([older, deleted]), same_cache=True) == bucket
    read_again = make_extent(Window(START, seam), NOW - 4, ())
    assert outdated(reported, snapshot([read_again, deleted]), same_cache=True) == []


def test_a_call_that_was_seen_to_go_is_one_removal():
    calls = [(number, NOW - 600 - number) for number in range(4)]
    before, after = snapshot(whole(made(calls))), snapshot(whole(made(calls[1:])))
    journal = Journal()
    finish(journal.record(before, after))
    then = finish(
        make_report(finish(make_report(new_state(START, NOW), before, 100)).state, after, 100, lookup=journal)
    )
    assert ([one.call.id for one in then.removes], then.replaces, then.upserts) == (["0"], [], [])


def test_the_search_for_a_removed_call_yields_after_each_day_that_may_have_it():
    days = [Window(begin, begin + DAY) for begin in range(START, START + 30 * DAY, DAY)]
    extents = [
        make_extent(day, NOW, [call(f"{n}-{day.start}", day.start + n) for n in range(1, 10)]).view(part)
        for day in days
        for part in (Window(day.start, day.start + HOUR), Window(day.start + HOUR, day.end))  # without calls
    ]
    state = finish(make_report(new_state(START, NOW), snapshot(extents), 1000)).state
    gone = extents[0].calls[4]
    later = make_extent(extents[0].window, NOW + 1, [one for one in extents[0].calls if one is not gone])
    steps = make_report(state, snapshot([later, *extents[1:]]), 100, lookup=lambda *_: Changes(removes=(gone,)))
    turns = 0
    try:
        while True:
            next(steps)
            turns += 1
    except StopIteration as end:
        report: Report = end.value
    assert [one.call for one in report.removes] == [gone]
    assert turns >= len(days)


def test_calls_that_were_seen_to_come_into_several_empty_buckets_are_upserts():
    calls = made([(hours * 2 + number, NOW - hours * HOUR) for hours in (2, 5) for number in range(2)])
    before, after = snapshot(whole([])), snapshot(whole(calls))
    journal = Journal()
    finish(journal.record(before, after))
    then = finish(
        make_report(finish(make_report(new_state(START, NOW), before, 100)).state, after, 100, lookup=journal)
    )
    assert ({one.call.id for one in then.upserts}, then.replaces) == ({one.id for one in calls}, [])


def hour_of(second: int) -> Window:
    return next(window for window in buckets(START, NOW) if second in window)


def test_a_call_that_moved_to_a_bucket_that_is_reported_later_stays_in_the_copy_until_then():
    left, reached = NOW - 5 * HOUR, NOW - 2 * HOUR
    before, after = snapshot(whole(made([(1, left), (2, left)]))), snapshot(whole(made([(1, reached), (2, left)])))
    journal = Journal()
    finish(journal.record(before, after))
    state = finish(make_report(new_state(START, NOW), before, 100)).state
    first = finish(make_report(state, after, 100, lookup=journal, wait=[hour_of(reached)]))
    assert (first.removes, first.replaces, first.upserts, first.up_to_date) == ([], [], [], False)
    pending = [
        window for window, report in zip(buckets(START, NOW), first.state.reports, strict=True) if report.pending
    ]
    assert pending == [hour_of(left), hour_of(reached)]
    copy = Copy(made([(1, left), (2, left)]))
    copy.apply(then := finish(make_report(first.state, after, 100, lookup=journal)))
    assert then.up_to_date
    assert copy.calls == {one.id: one for one in made([(1, reached), (2, left)])}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [(None, 2), (0, 0), (1, 0), (2, 2)],
    ids=["nothing", "the first second", "the last second before the cut", "the first second after the cut"],
)
def test_a_bucket_that_was_reported_in_part_goes_on_at_the_cut_unless_a_call_before_it_changed(
    changed: int | None, expected: int
):
    hour = hour_of(NOW - 5 * HOUR).start
    calls = [(number, hour + number) for number in range(4)]
    extents = [make_extent(Window(hour, NOW + HOUR), NOW, made(calls))]
    state = new_state(midnight(NOW), NOW)
    first = finish(make_report(state, snapshot(extents, midnight(NOW)), 2))
    assert [part.window.end for part in first.replaces][-1:] == [hour + 2]
    edited = [call(one.id, hour, campaign="edited") if int(one.id) == changed == 0 else one for one in made(calls)]
    edited = [replace(one, campaign="edited") if int(one.id) == changed else one for one in edited]
    then = finish(
        make_report(first.state, snapshot([make_extent(Window(hour, NOW + HOUR), NOW, edited)], midnight(NOW)), 9)
    )
    assert then.replaces[0].window.start == hour + expected
    assert then.up_to_date
