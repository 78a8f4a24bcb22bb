"""How requests to a store are joined, cut and bounded."""

import threading
import time
from collections.abc import Callable

import pytest

from oxe_curate.storage import transfers
from oxe_curate.storage.attempts import attempt
from oxe_curate.storage.link import Link
from oxe_curate.storage.ranges import join_ranges
from oxe_curate.storage.transfers import LONGEST, SHORTEST, submit, transfer, transfer_all


@pytest.fixture(autouse=True)
def _two_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OXE_CURATE_STORE_REQUESTS", "2")
    monkeypatch.setattr(transfers, "_workers", transfers._Workers())


def test_a_link_tells_delay_from_bandwidth() -> None:
    link = Link()
    before = link.gap
    for size in (100, 1000, 8 << 20, 32 << 20, 1 << 19):
        link.note(size, 0.02 + size / 40e6)
    assert link.delay == pytest.approx(0.02, rel=0.01)
    assert link.bandwidth == pytest.approx(40e6, rel=0.01)
    assert link.gap == pytest.approx(0.02 * 40e6, rel=0.02) != before
    slow, fast = Link(), Link()
    slow.note(4 << 20, 100.0)
    fast.note(100, 2.0)
    assert (slow.gap, fast.gap) == (64 << 10, 8 << 20)


def test_ranges_closer_than_the_gap_are_one_request() -> None:
    ranges = [(500, 10), (0, 100), (150, 100), (50, 20), (249, 1), (700, 0)]
    assert join_ranges(ranges, 50) == [(0, 100), (150, 100), (500, 10)]
    assert join_ranges(ranges, 51) == [(0, 250), (500, 10)]
    assert join_ranges(ranges, 1000) == [(0, 510)]
    assert join_ranges(ranges, 1000, longest=250) == [(0, 250), (500, 10)]
    assert join_ranges([(0, 300), (300, 5)], 10, longest=100) == [(0, 300), (300, 5)]
    assert join_ranges([], 10) == []


def collect(parts: list[tuple[int, int]], hold: threading.Event | None = None) -> Callable[[int, int], None]:
    def fetch(start: int, stop: int) -> None:
        parts.append((start, stop))
        if hold:
            hold.wait(60)

    return fetch


def test_a_long_range_is_cut_into_requests_that_end_together() -> None:
    parts: list[tuple[int, int]] = []
    transfer(collect(parts), 200 << 20).result(60)
    parts.sort()
    assert [start for start, _ in parts[1:]] == [stop for _, stop in parts[:-1]]
    assert (parts[0][0], parts[-1][1]) == (0, 200 << 20)
    sizes = [stop - start for start, stop in parts]
    assert sizes[0] == LONGEST
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 2 * SHORTEST


def test_requests_at_once_are_bounded_and_somebody_who_waits_comes_first() -> None:
    hold, parts = threading.Event(), list[tuple[int, int]]()
    begun = [transfer(collect(parts, hold), 10) for _ in range(5)]
    deadline = time.monotonic() + 60
    while len(parts) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    order: list[str] = []
    last, first = submit(lambda: order.append("last")), submit(lambda: order.append("first"), first=True)
    assert parts == [(0, 10)] * 2
    hold.set()
    for done in (*begun, last, first):
        done.result(60)
    assert order == ["first", "last"]
    assert len(parts) == 5


def test_requests_of_every_kind_are_bounded_together() -> None:
    """Those that open objects are not transfers."""
    changed, at_once, most = threading.Condition(), 0, 0

    def request() -> None:
        nonlocal at_once, most
        with changed:
            at_once += 1
            most = max(most, at_once)
            changed.notify_all()
            changed.wait_for(lambda: most >= 2, 60)
        time.sleep(0.005)
        with changed:
            at_once -= 1

    opening = [threading.Thread(target=attempt, args=("object", request)) for _ in range(6)]
    for thread in opening:
        thread.start()
    begun = [submit(lambda: attempt("object", request)) for _ in range(6)]
    for done in begun:
        done.result(60)
    for thread in opening:
        thread.join(60)
    assert most == 2


def test_the_first_error_is_raised_and_what_waits_is_not_fetched() -> None:
    parts: list[tuple[int, int]] = []

    def fail(start: int, stop: int) -> None:
        parts.append((start, stop))
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        transfer_all([(fail, 400 << 20)])
    submit(lambda: None).result(60)
    assert len(parts) <= 2
    with pytest.raises(OSError, match="broken"):
        transfer_all([(fail, 10)])
    with pytest.raises(ZeroDivisionError):
        submit(lambda: 1 // 0).result(60)
    transfer_all([])
