"""Threads, the GIL and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import numpy
import pytest

import turboquant
from turboquant import IndexTurboQuant, index_factory


@pytest.mark.parametrize("description", ["TQ3", "IDMap2,TQ3"])
def test_ten_threads_search_while_one_adds(description):
    x = numpy.random.default_rng(2).standard_normal((4000, 32), dtype=numpy.float32)
    step = 50
    index = index_factory(32, description, "ip")
    # What a search must answer once 0, 50, 100, ... rows are there.
    expected = []
    reference = IndexTurboQuant(32, bits=3, metric="ip")
    for first in range(0, 4000, step):
        reference.add(x[first : first + step])
        expected.append([a.tobytes() for a in reference.search(x[:4], 5)])
    known = set(map(tuple, expected))
    done = threading.Event()
    failures: list[str] = []
    searches = [0] * 10

    def search(number: int) -> None:
        while not done.is_set():
            if len(index) == 0:
                continue
            scores, ids = index.search(x[:4], 5)
            searches[number] += 1
            if (scores.tobytes(), ids.tobytes()) not in known:
                failures.append(f"thread {number}: an answer of no state of the index")
                return

    threads = [threading.Thread(target=search, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for first in range(0, 4000, step):
        if description == "TQ3":
            index.add(x[first : first + step])
        else:
            index.add_with_ids(x[first : first + step], numpy.arange(first, first + step))
    done.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "deadlock"
    assert not failures
    assert sum(searches) > 0
    scores, ids = index.search(x[:4], 5)
    assert [scores.tobytes(), ids.tobytes()] == expected[-1]


def test_the_gil_is_released():
    x = numpy.random.default_rng(3).standard_normal((60000, 128), dtype=numpy.float32)
    index = IndexTurboQuant(128, bits=4, metric="ip")
    index.add(x)
    finished = threading.Event()
    thread = threading.Thread(target=lambda: (index.search(x[:6000], 10), finished.set()))
    ticks = 0
    thread.start()
    while not finished.is_set():
        ticks += 1
        time.sleep(0.001)
    thread.join()
    assert ticks > 5  # this thread went on meanwhile


def test_number_of_threads_does_not_change_answers(base, queries):
    index = IndexTurboQuant(384, metric="l2")
    index.add(base)
    before = turboquant.get_num_threads()
    try:
        turboquant.set_num_threads(1)
        assert turboquant.get_num_threads() == 1
        one = index.search(queries, 10)
        turboquant.set_num_threads(4)
        four = index.search(queries, 10)
    finally:
        turboquant.set_num_threads(before)
    assert (one[0] == four[0]).all() and (one[1] == four[1]).all()


CALLS = {
    "search": "index.search(x, 10)",
    "add": "index.add(numpy.broadcast_to(x[0], (20_000_000, 64)))",
}
PROGRAM = """
import numpy, turboquant
turboquant.set_num_threads(1)
x = numpy.random.default_rng(0).standard_normal((200_000, 64), dtype=numpy.float32)
index = turboquant.IndexTurboQuant(64, metric="ip")
index.add(x)
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", len(index), flush=True)
"""


@pytest.mark.parametrize("call", ["search", "add"])
def test_keyboard_interrupt(call):
    program = PROGRAM.format(call=CALLS[call])
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert out == "interrupted 200000\n"  # and an interrupted add changed nothing
        assert time.monotonic() - sent < 20
    finally:
        process.kill()
