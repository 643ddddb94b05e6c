"""Windows, ranges and buckets in the time zone of the request: days of 23 and 25 hours, repeated hours."""

from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.calendars import bucket_starts, compared_window
from gateway.api.time_ranges import RANGES, parse_window, parse_zone
from gateway.errors import InvalidParameters, ParameterFault
from gateway.model import Window

HOUR = 3600
CHICAGO, UTC_ZONE = ZoneInfo("America/Chicago"), ZoneInfo("UTC")
ZONES = ["America/Chicago", "Asia/Kolkata", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Beirut", "UTC"]


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def lengths(window: Window, interval: str, zone: ZoneInfo) -> list[float]:
    starts = bucket_starts(window, interval, zone)
    return [(after - before) / HOUR for before, after in pairwise([*starts, window.end])]


DAYS = {
    "spring": ("2026-03-07T00:00-06:00", "2026-03-10T00:00-05:00", [24, 23, 24]),
    "autumn": ("2026-10-31T00:00-05:00", "2026-11-03T00:00-06:00", [24, 25, 24]),
}


@pytest.mark.parametrize(("start", "end", "hours"), DAYS.values(), ids=DAYS)
def test_days_have_the_hours_of_their_zone(start: str, end: str, hours: list[float]):
    assert lengths(Window(seconds(start), seconds(end)), "day", CHICAGO) == hours


def test_an_hour_that_comes_twice_is_two_buckets_and_one_that_is_skipped_is_none():
    autumn = bucket_starts(Window(seconds("2026-11-01T05:00Z"), seconds("2026-11-01T09:00Z")), "hour", CHICAGO)
    assert [datetime.fromtimestamp(start, CHICAGO).hour for start in autumn] == [0, 1, 1, 2]
    spring = bucket_starts(Window(seconds("2026-03-08T06:00Z"), seconds("2026-03-08T09:00Z")), "hour", CHICAGO)
    assert [datetime.fromtimestamp(start, CHICAGO).hour for start in spring] == [0, 1, 3]


SKIPPED = {
    "an hour": ("America/Chicago", "2026-03-08T02:{:02}", "2026-03-08T08:00Z"),
    "half an hour": ("Australia/Lord_Howe", "2026-10-04T02:{:02}", "2026-10-03T15:30Z"),
}


@pytest.mark.parametrize(("zone", "text", "change"), SKIPPED.values(), ids=SKIPPED)
@pytest.mark.parametrize("minute", [0, 1, 15, 29])
def test_a_time_that_clocks_skip_is_the_time_of_their_change(zone: str, text: str, change: str, minute: int):
    faults: list[ParameterFault] = []
    values = {"start": text.format(minute), "end": "2026-10-05"}
    assert parse_window(values, ZoneInfo(zone), seconds("2027-01-01T00:00Z"), 0, faults).start == seconds(change)
    assert not faults


@pytest.mark.parametrize("name", ["right/UTC", "posix/UTC", "posixrules", "localtime", "Factory", "foo", "../UTC", ""])
def test_a_name_that_iana_does_not_have_is_refused(name: str):
    with pytest.raises(ValueError, match="IANA"):
        parse_zone(name)


BEGINNING, TODAY = seconds("2000-01-01T00:00Z"), seconds("2026-11-27T00:00Z")
EMPTY = {
    "since the end of the last answer": ({"start": "2026-11-27T00:00:01Z"}, TODAY + 1),
    "future": ({"start": "2030-01-01T00:00Z"}, seconds("2030-01-01T00:00Z")),
    "no length": ({"start": "2026-11-01T00:00Z", "end": "2026-11-01T00:00Z"}, seconds("2026-11-01T00:00Z")),
    "before history": ({"start": "1990-01-01", "end": "1991-01-01"}, seconds("1991-01-01T00:00-06:00")),
    "before history, without start": ({"end": "1991-01-01"}, seconds("1991-01-01T00:00-06:00")),
}


@pytest.mark.parametrize(("values", "edge"), EMPTY.values(), ids=EMPTY)
def test_a_window_without_calls_is_empty_and_no_fault(values: dict[str, str], edge: int):
    faults: list[ParameterFault] = []
    assert parse_window(values, CHICAGO, TODAY + 0.5, BEGINNING, faults) == Window(edge, edge)
    assert not faults


@pytest.mark.parametrize("interval", ["none", "hour", "day", "week", "month"])
def test_an_empty_window_is_in_one_bucket(interval: str):
    midnight = seconds("2026-11-01T00:00-05:00")
    assert len(bucket_starts(Window(midnight, midnight), interval, CHICAGO)) == 1


def test_a_window_begins_at_the_earliest_with_the_history():
    faults: list[ParameterFault] = []
    assert parse_window({"start": "1900-01-01"}, CHICAGO, TODAY, BEGINNING, faults) == Window(BEGINNING, TODAY)
    assert parse_window({"range": "this_year"}, CHICAGO, BEGINNING + 60, BEGINNING, faults).start == BEGINNING
    assert parse_window({"range": "last_month"}, UTC_ZONE, BEGINNING + 60, BEGINNING, faults) == Window(
        BEGINNING, BEGINNING
    )
    assert not faults


def test_a_start_after_the_end_is_refused_with_its_reason():
    faults: list[ParameterFault] = []
    parse_window({"start": "2026-11-02", "end": "2026-11-01"}, CHICAGO, TODAY, BEGINNING, faults)
    assert [(one.parameter, one.detail) for one in faults] == [("start", "is after `end`")]


@pytest.mark.parametrize(
    "text", ["2026-11-01T10:05.5Z", "2026-11-01T10.5Z", "2026-11-01T10", "2026-11-01T10:05:30.Z", "2026-11-01T24:00Z"]
)
def test_only_seconds_have_fractions(text: str):
    faults: list[ParameterFault] = []
    parse_window({"start": text}, CHICAGO, TODAY, BEGINNING, faults)
    assert [fault.parameter for fault in faults] == ["start"]


def test_a_zone_that_moves_by_half_an_hour_has_a_short_hour():
    window = Window(seconds("2026-10-03T14:00Z"), seconds("2026-10-03T18:00Z"))
    assert lengths(window, "hour", ZoneInfo("Australia/Lord_Howe")) == [1, 1, 0.5, 1, 1]


def test_a_date_that_a_zone_left_out_has_no_bucket():
    window = Window(seconds("2011-12-29T10:00Z"), seconds("2012-01-01T10:00Z"))
    apia = ZoneInfo("Pacific/Apia")
    starts = bucket_starts(window, "day", apia)
    assert [datetime.fromtimestamp(start, apia).day for start in starts] == [29, 31, 1]


def test_weeks_begin_on_monday_and_months_on_the_first():
    window = Window(seconds("2026-10-28T12:00-05:00"), seconds("2027-01-15T00:00-06:00"))
    weeks = [datetime.fromtimestamp(start, CHICAGO) for start in bucket_starts(window, "week", CHICAGO)]
    assert {(week.weekday(), week.hour) for week in weeks} == {(0, 0)}
    assert (weeks[0].date().isoformat(), len(weeks)) == ("2026-10-26", 12)
    months = [datetime.fromtimestamp(start, CHICAGO) for start in bucket_starts(window, "month", CHICAGO)]
    assert [month.isoformat()[:13] for month in months] == [
        "2026-10-01T00", "2026-11-01T00", "2026-12-01T00", "2027-01-01T00",
    ]  # fmt: skip


@given(
    st.integers(seconds("2001-01-01T00:00Z"), seconds("2035-01-01T00:00Z")),
    st.integers(1, 100 * 86400),
    st.sampled_from(["hour", "day", "week", "month"]),
    st.sampled_from(ZONES),
)
def test_buckets_change_exactly_where_the_calendar_does(start: int, length: int, interval: str, name: str):
    zone = ZoneInfo(name)

    def label(instant: int) -> tuple[object, ...]:
        local = datetime.fromtimestamp(instant, zone)
        if interval == "hour":
            return local.date(), local.hour, local.utcoffset()
        if interval == "week":
            return (local.date() - timedelta(days=local.weekday()),)
        return (local.date(),) if interval == "day" else (local.year, local.month)

    window = Window(start, start + length)
    starts = bucket_starts(window, interval, zone)
    assert starts[0] <= window.start
    assert starts[-1] < window.end
    for before, after in pairwise([*starts, window.end]):
        assert label(before) == label(max(before, window.start)) == label(after - 1)
    for start in starts[1:]:
        assert label(start) != label(start - 1)
    assert label(starts[0] - 1) != label(starts[0])


def test_an_hour_in_which_a_zone_changes_its_clock_begins_at_the_change():
    """Until 2011 Newfoundland's clocks changed at a minute past midnight."""
    zone = ZoneInfo("America/St_Johns")
    for change in ("2010-03-14T00:01-03:30", "2010-11-07T00:01-02:30"):
        middle = seconds(change)
        starts = bucket_starts(Window(middle - 7200, middle + 7200), "hour", zone)
        assert [start - middle for start in starts if abs(start - middle) < 3600] == [-60, 0, 3540]


def test_too_many_buckets_are_refused():
    with pytest.raises(InvalidParameters):
        bucket_starts(Window(0, 10_001 * HOUR), "hour", CHICAGO)


@given(st.integers(seconds("2001-01-01T00:00Z"), seconds("2035-01-01T00:00Z")), st.sampled_from(ZONES))
def test_a_range_begins_at_a_midnight_and_ends_by_now(now: int, name: str):
    zone = ZoneInfo(name)
    for words in RANGES:
        faults: list[ParameterFault] = []
        window = parse_window({"range": words}, zone, now, 0, faults)
        assert not faults
        assert window.start <= window.end <= now
        before, first = (datetime.fromtimestamp(window.start - less, zone).date() for less in (1, 0))
        assert before < first


def test_dates_and_times_are_read_in_their_zone_and_offsets_are_heeded():
    cases = {
        ("2026-11-01", "2026-11-02"): ("2026-11-01T05:00Z", "2026-11-02T06:00Z"),
        ("2026-11-01T00:30", "2026-11-01 03:00:01"): ("2026-11-01T05:30Z", "2026-11-01T09:00:01Z"),
        ("2026-11-01T00:00:00 02:00", "2026-11-01T00:00:00Z"): ("2026-10-31T22:00Z", "2026-11-01T00:00Z"),
        ("2026-11-01T00:00:00.9Z", "2026-11-01T00:00:00.9Z"): ("2026-11-01T00:00Z", "2026-11-01T00:00:01Z"),
    }
    for (start, end), expected in cases.items():
        faults: list[ParameterFault] = []
        window = parse_window(
            {"start": start, "end": end}, CHICAGO, datetime(2027, 1, 1, tzinfo=UTC).timestamp(), 0, faults
        )
        assert (faults, (window.start, window.end)) == ([], (seconds(expected[0]), seconds(expected[1])))


@pytest.mark.parametrize("start", ["1000-01-01", "9999-01-01T00:00:00Z"])
def test_a_date_too_far_off_is_told_apart_from_what_is_none(start: str):
    faults: list[ParameterFault] = []
    parse_window({"start": start}, CHICAGO, datetime(2027, 1, 1, tzinfo=UTC).timestamp(), 0, faults)
    assert [fault.detail for fault in faults] == ["is not between the years 1900 and 9000"]


# The value of `compare`, the window, and the compared window, at 10:30 on 18 November in Chicago.
COMPARED = {
    "a whole day": ("previous", "2026-11-02", "2026-11-03", "2026-11-01", "2026-11-02"),
    "a day of 25 hours": ("previous", "2026-11-01", "2026-11-02", "2026-10-31", "2026-11-01"),
    "two days": ("previous", "2026-11-02", "2026-11-04", "2026-10-31", "2026-11-02"),
    "six hours": ("previous", "2026-11-01", "2026-11-01T06:00", "2026-10-31T17:00", "2026-11-01"),
    "today until now": ("previous", "2026-11-18", "2026-11-18T10:30", "2026-11-17", "2026-11-17T10:30"),
    "a week that is not over": ("previous", "2026-11-16", "2026-11-23", "2026-11-09", "2026-11-11T10:30"),
    "hours that are not over": (
        "previous",
        "2026-11-18T09:00",
        "2026-11-18T13:00",
        "2026-11-18T05:00",
        "2026-11-18T06:30",
    ),
    "the future": ("previous", "2026-11-19", "2026-11-20", "2026-11-18", "2026-11-18"),
    "a year before, other offsets": ("year", "2026-03-09", "2026-03-10", "2025-03-09", "2025-03-10"),
    "a leap day": ("year", "2024-02-29", "2024-03-01", "2023-02-28", "2023-03-01"),
    "a year that is not over": ("year", "2026-11-01", "2026-12-01", "2025-11-01", "2025-11-18T10:30"),
    "an evening and a leap day's morning": (
        "year",
        "2024-02-28T18:00",
        "2024-02-29T06:00",
        "2023-02-28T18:00",
        "2023-02-28T18:00",
    ),
}


@pytest.mark.parametrize(("how", "start", "end", "before", "until"), COMPARED.values(), ids=COMPARED)
def test_a_window_is_compared_with_the_days_before_or_the_same_dates(
    how: str, start: str, end: str, before: str, until: str
):
    def local(text: str) -> int:
        return int(datetime.fromisoformat(text).replace(tzinfo=CHICAGO).timestamp())

    window, now = Window(local(start), local(end)), local("2026-11-18T10:30")
    assert compared_window(window, how, CHICAGO, now) == Window(local(before), local(until))


@given(
    st.integers(seconds("2001-01-01T00:00Z"), seconds("2035-01-01T00:00Z")), st.integers(1, 40), st.sampled_from(ZONES)
)
def test_whole_days_are_compared_with_as_many_days_that_end_where_they_begin(now: int, days: int, name: str):
    zone = ZoneInfo(name)
    last = datetime.fromtimestamp(now, zone).date()
    first, start = last - timedelta(days=days), last - timedelta(days=2 * days)
    window = Window(*(int(datetime.combine(day, time.min, zone).timestamp()) for day in (first, last)))
    compared = compared_window(window, "previous", zone, now)
    assert compared == Window(int(datetime.combine(start, time.min, zone).timestamp()), window.start)
