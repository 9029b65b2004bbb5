from __future__ import annotations

import threading
import time

import pytest

from ggufnorm.core.behind import Behind


def test_work_is_done_in_order_while_the_caller_goes_on() -> None:
    behind, gate, done = Behind(), threading.Event(), list[int]()

    def first() -> None:
        gate.wait(5)
        done.append(0)

    behind.do(first, 1)
    for i in range(1, 4):
        behind.do(lambda i=i: done.append(i), 1)  # type: ignore[misc]
    assert done == []
    gate.set()
    behind.wait()
    assert done == [0, 1, 2, 3]


def test_no_more_waits_than_memory_allows() -> None:
    behind, held, most = Behind(most_bytes=10), [0], [0]

    def work() -> None:
        time.sleep(0.002)
        held[0] -= 4

    for _ in range(20):
        behind.do(work, 4)
        held[0] += 4
        most[0] = max(most[0], held[0])
    behind.wait()
    assert held == [0]
    assert most[0] <= 8


def test_one_piece_may_be_larger_than_the_memory() -> None:
    behind, done = Behind(most_bytes=10), list[int]()
    for i in range(3):
        behind.do(lambda i=i: done.append(i), 100)  # type: ignore[misc]
    behind.wait()
    assert done == [0, 1, 2]


def test_an_error_reaches_the_caller() -> None:
    behind = Behind()

    def fail() -> None:
        raise ValueError("shapes differ")

    behind.do(fail, 1)
    with pytest.raises(ValueError, match="shapes differ"):
        behind.wait()
    behind.wait()
