"""Queues between threads: nobody waits for a thread that is no more."""

import threading

import pytest
from digar.inference.streams import Passage, SlabStream, Stopped


def test_both_ends_of_a_passage_give_up_when_the_run_stops():
    stop = threading.Event()
    passage = Passage(1, stop)
    passage.put(1)
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(Stopped):
        passage.put(2)
    with pytest.raises(Stopped):
        Passage(1, stop).get()


def test_a_stream_gives_its_items_in_order_and_ends():
    stream = SlabStream(threading.Event(), depth=9)
    assert all(stream.put(item) for item in ("a", "b", None))
    assert list(stream) == ["a", "b"]


def test_an_error_reaches_the_other_end_after_what_was_sent_before():
    stream = SlabStream(threading.Event(), depth=9)
    for item in ("a", MemoryError("no room")):
        stream.put(item)
    items = iter(stream)
    assert next(items) == "a"
    with pytest.raises(MemoryError, match="no room"):
        next(items)


def test_a_cancelled_stream_takes_nothing_more_and_holds_nobody_up():
    stream = SlabStream(threading.Event(), depth=1)
    assert stream.put("a")
    stream.cancel()
    assert not stream.put("b")


def test_a_full_stream_gives_up_when_the_run_stops():
    stop = threading.Event()
    stream = SlabStream(stop, depth=1)
    stream.put("a")
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(Stopped):
        stream.put("b")
