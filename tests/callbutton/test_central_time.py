"""Wall time to UTC and back (T4)."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.callbutton import central_time
from gateway.model import StartTimeCertainty, Window

CHICAGO = ZoneInfo("America/Chicago")
HOUR = 3600


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


FOLDS = {2000: "2000-10-29T06:00", 2006: "2006-10-29T06:00", 2007: "2007-11-04T06:00", 2026: "2026-11-01T06:00"}
GAPS = {2000: "2000-04-02T08:00", 2006: "2006-04-02T08:00", 2007: "2007-03-11T08:00", 2026: "2026-03-08T08:00"}


@pytest.mark.parametrize("year", FOLDS)
def test_every_hour_of_a_year_comes_back_from_the_wall_or_is_marked(year: int):
    fold = central_time.fold_near(at(FOLDS[year]))
    assert fold == (at(FOLDS[year]), at(FOLDS[year]) + 2 * HOUR)
    for second in range(at(f"{year}-01-01T06:00") + 61, at(f"{year + 1}-01-01T06:00"), HOUR):
        read, certainty = central_time.parse_wall(central_time.render_wall(second))
        inside = fold.start <= second < fold.end
        assert certainty is (StartTimeCertainty.ASSUMED if inside else StartTimeCertainty.EXACT)
        later = inside and second >= fold.start + HOUR
        assert read == datetime.fromtimestamp(second - HOUR * later, UTC)


@pytest.mark.parametrize("year", GAPS)
def test_a_wall_time_in_the_gap_is_read_with_the_offset_before_it(year: int):
    gap = central_time.gap_near(at(GAPS[year]))
    assert gap == at(GAPS[year])
    day = datetime.fromtimestamp(gap, UTC).strftime("%m/%d/%Y")
    expected = datetime.fromtimestamp(gap + 30 * 60, UTC)
    assert central_time.parse_wall(f"{day} 02:30:00") == (expected, StartTimeCertainty.ASSUMED)


@pytest.mark.parametrize(
    "text",
    ["", "02/30/2026 00:00:00", "01/01/2026 24:00:00", "01/01/2026 00:60:00", "2026-01-01", "01/01/1899 00:00:00"],
)
def test_an_impossible_wall_time_is_refused(text: str):
    with pytest.raises(ValueError, match=r"."):
        central_time.parse_wall(text)


@pytest.mark.parametrize("text", ["1/5/2026 3:04:05", " 01/05/2026  03:04:05 ", "01/05/2026 03:04:05"])
def test_a_wall_time_is_read_liberally(text: str):
    assert central_time.parse_wall(text) == (instant("2026-01-05T09:04:05"), StartTimeCertainty.EXACT)


# Wall times of 2026-11-01, and which reading each fold call gets: 1 earlier, 2 later; None: not decided.
ORDERS = {
    "sorted up": (["00:30", "01:50", "01:10", "02:30"], [1, 2]),
    "sorted down": (["02:30", "01:10", "01:50", "00:30"], [2, 1]),
    "equal times do not turn": (["00:30", "01:50", "01:50", "01:10", "02:30"], [1, 1, 2]),
    "no turn": (["00:30", "01:10", "01:50", "02:30"], None),
    "two turns": (["00:30", "01:50", "01:10", "01:05", "02:30"], None),
    "not sorted": (["02:30", "01:50", "00:30", "01:10", "03:10"], None),
    "one anchor": (["00:30", "01:50", "01:10"], None),
    "anchors of one time": (["00:30", "00:30", "01:50", "01:10"], None),
    "anchors of another hour": (["05:30", "01:50", "01:10", "06:30"], None),
    "anchors up to four": (["01:50", "01:10", "03:30", "04:00"], [1, 2]),
}


@pytest.mark.parametrize(("walls", "readings"), ORDERS.values(), ids=ORDERS)
def test_the_order_of_the_reply_decides_the_fold(walls: list[str], readings: list[int] | None):
    times = [central_time.parse_wall(f"11/01/2026 {wall}:00")[0] for wall in walls]
    inside = [index for index, wall in enumerate(walls) if wall.startswith("01")]
    expected = {}
    if readings:
        expected = {index: times[index] + timedelta(hours=n - 1) for index, n in zip(inside, readings, strict=True)}
    assert central_time.infer_folds(times) == expected


NEAR = st.sampled_from([at(text) for text in (*FOLDS.values(), *GAPS.values())]).flatmap(
    lambda change: st.tuples(st.integers(change - 30 * HOUR, change + 30 * HOUR), st.integers(1, 40 * HOUR))
)


@given(NEAR, st.integers(-10 * HOUR, 50 * HOUR))
def test_no_edge_is_ambiguous_or_missing_and_edges_cover_the_window(near: tuple[int, int], later: int):
    start, length = near
    window = central_time.align_to_fold(Window(start, start + length))
    sent = central_time.wall_range(window, now=start + later)
    for edge in sent:
        if edge is not None:
            wall = datetime.strptime(edge, "%m/%d/%Y %H:%M:%S")  # noqa: DTZ007
            readings = {wall.replace(tzinfo=CHICAGO, fold=fold).astimezone(UTC) for fold in (0, 1)}
            assert len(readings) == 1
    first, _ = central_time.parse_wall(sent.start)
    assert first.timestamp() <= window.start - 1
    if sent.end is not None:
        assert central_time.parse_wall(sent.end)[0].timestamp() >= window.end + 1
    else:
        assert window.end >= start + later


@given(NEAR)
def test_no_window_is_split_inside_a_fold(near: tuple[int, int]):
    start, length = near
    window = central_time.align_to_fold(Window(start, start + length))
    for edge in (window.start, window.end):
        fold = central_time.fold_near(edge)
        assert fold is not None
        assert not fold.start < edge < fold.end
    assert window.start <= start
    assert window.end >= start + length


EDGES = {
    "an ordinary window": ("2026-06-01T12:00", "2026-06-01T13:00", ("06/01/2026 06:59:59", "06/01/2026 08:00:01")),
    "one that ends now": ("2026-06-01T12:00", "2026-12-24T00:00", ("06/01/2026 06:59:59", None)),
    "the fold": ("2026-11-01T06:00", "2026-11-01T08:00", ("10/31/2026 23:59:59", "11/01/2026 04:00:01")),
    "up to the fold": ("2026-11-01T04:00", "2026-11-01T06:00", ("10/31/2026 22:59:59", "11/01/2026 04:00:01")),
    "after the gap": ("2026-03-08T08:10", "2026-03-08T08:40", ("03/08/2026 01:59:59", "03/08/2026 03:40:01")),
}


@pytest.mark.parametrize(("start", "end", "expected"), EDGES.values(), ids=EDGES)
def test_edges_to_send(start: str, end: str, expected: tuple[str, str | None]):
    assert tuple(central_time.wall_range(Window(at(start), at(end)), at("2026-12-24T00:00"))) == expected


def test_in_the_fold_an_end_ahead_is_sent_rather_than_null():
    now = at("2026-11-01T07:10")
    window = central_time.align_to_fold(Window(at("2026-11-01T03:00"), now + 1))
    assert central_time.wall_range(window, now).end == "11/01/2026 04:00:01"
    assert central_time.wall_range_to_now(window, now).end is None


@pytest.mark.parametrize(
    ("now", "end"),
    [
        ("2026-06-01T13:00", "06/01/2026 08:00:00"),
        ("2026-11-01T05:59:50", "11/01/2026 00:59:50"),  # just before the fold
        ("2026-11-01T07:10", "11/01/2026 04:00:01"),  # ambiguous itself
        ("2026-11-01T10:10", "11/01/2026 04:10:00"),
    ],
)
def test_without_null_an_end_is_now_and_not_ambiguous(now: str, end: str):
    window = central_time.align_to_fold(Window(at("2026-05-01T03:00"), at(now) + 1))
    assert central_time.wall_range(window, at(now) + 0.9, null_end=False).end == end


@pytest.mark.parametrize("year", [1999, 2006, 2021, 2026])
def test_a_window_from_one_fold_to_the_next_has_the_anchors_of_both(year: int):
    before, after = (central_time.fold_near(int(datetime(y, 7, 1, tzinfo=UTC).timestamp())) for y in (year, year + 1))
    assert before
    assert after
    found = central_time.wall_range(Window(before.start, after.start), 4e9)
    assert found.start.endswith("23:59:59")
    assert found.end is not None
    assert found.end.endswith("04:00:01")
