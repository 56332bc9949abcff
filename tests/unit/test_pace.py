"""The pace of reading: arithmetic over sizes and times."""

from __future__ import annotations

from pyconmon.pace import LONGEST, LONGEST_ATTACHED, SHORTEST, SLOW, WINDOW, Pace


def feed(pace: Pace, size: int, every: float, reads: int, begin: float, attached: bool = False) -> tuple[float, list[float]]:  # fmt: skip
    """`reads` reads of `size` bytes, one in `every` seconds; (the time then, the pauses)."""
    pauses = []
    now = begin
    for _ in range(reads):
        now += every
        pauses.append(pace.after(size, now, attached))
    return now, pauses


def test_a_word_now_and_then_is_read_at_once() -> None:
    pace = Pace(65536)
    _, pauses = feed(pace, 100, 1.0, 200, 100.0)
    assert set(pauses) == {0.0}
    assert not pace.quick


def test_a_trickle_in_quick_succession_is_read_in_larger_pieces() -> None:
    pace = Pace(65536)
    _, pauses = feed(pace, 100, 0.0005, 10 * WINDOW, 100.0)
    assert set(pauses[: WINDOW // 2]) == {0.0}
    assert max(pauses) > SHORTEST
    assert max(pauses) <= LONGEST


def test_never_so_late_that_the_pipe_fills() -> None:
    for size in (10, 100, 1000, 4000):
        for every in (0.0001, 0.001, 0.01):
            pace = Pace(65536)
            _, pauses = feed(pace, size, every, 10 * WINDOW, 100.0)
            assert max(pauses) * size / every <= 65536 / 2, (size, every)


def test_a_stream_that_saturates_us_is_not_held_up() -> None:
    pace = Pace(65536)
    _, pauses = feed(pace, 65536, 0.0001, 10 * WINDOW, 100.0)
    assert set(pauses) == {0.0}
    assert pace.quick


def test_while_somebody_is_attached_it_is_nearly_at_once() -> None:
    pace = Pace(65536)
    _, pauses = feed(pace, 100, 0.001, 10 * WINDOW, 100.0, attached=True)
    assert max(pauses) <= LONGEST_ATTACHED


def test_somebody_attaches() -> None:
    pace = Pace(1 << 20)
    now, pauses = feed(pace, 50, 0.001, 3 * WINDOW, 100.0)
    assert max(pauses) > LONGEST_ATTACHED
    if pace.pause > LONGEST_ATTACHED:
        assert pace.after(50, now + 0.001, True) == LONGEST_ATTACHED


def test_a_pause_that_gains_nothing_is_given_up() -> None:
    """The reads do not grow: a writer that waits for its reader."""
    pace = Pace(65536)
    now, pauses = feed(pace, 100, 0.001, 2 * WINDOW, 100.0)
    assert pace.pause > 0.0 or max(pauses) > 0.0
    while pace.pause == 0.0:
        now, _ = feed(pace, 100, 0.001, 1, now)
    _, pauses = feed(pace, 100, 0.001, WINDOW, now)
    assert pauses[-1] == 0.0


def test_a_stream_that_becomes_slow_is_read_at_once_again() -> None:
    pace = Pace(65536)
    now, pauses = feed(pace, 100, 0.001, WINDOW + 1, 100.0)
    now, pauses = feed(pace, 100, SLOW * WINDOW * 2, 2, now)
    assert pauses[-1] == 0.0


def test_a_clock_that_stands_still_is_no_division_by_zero() -> None:
    pace = Pace(65536)
    _, pauses = feed(pace, 100, 0.0, 10 * WINDOW, 100.0)
    assert all(0.0 <= pause <= LONGEST for pause in pauses)
