"""Bounded queues between threads, which give up when the run stops, so that no thread waits for one that has ended."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

PATIENCE = 0.1  # seconds between looks at whether the run stops


class Stopped(BaseException):
    """The run is stopping. No Exception, so that it passes through MONAI's transforms, which wrap those."""


class Passage:
    """A queue of bounded length from one thread to another.

    Args:
        depth: items that may wait in it.
        stop: set when the run stops; then both ends raise :class:`Stopped`.
    """

    def __init__(self, depth: int, stop: threading.Event) -> None:
        self.items: queue.Queue = queue.Queue(depth)
        self.stop = stop

    def put(self, item: Any) -> None:
        """Hand an item over, and wait for room."""
        while not self.stop.is_set():
            try:
                return self.items.put(item, timeout=PATIENCE)
            except queue.Full:
                continue
        raise Stopped

    def get(self) -> Any:
        """The next item, waited for."""
        while not self.stop.is_set():
            try:
                return self.items.get(timeout=PATIENCE)
            except queue.Empty:
                continue
        raise Stopped


class SlabStream:
    """Slabs on their way from the network to the thread that inverts them; an error takes the same way."""

    def __init__(self, stop: threading.Event, depth: int = 2) -> None:
        self.passage = Passage(depth, stop)
        self.cancelled = threading.Event()

    def put(self, item: Any) -> bool:
        """Hand over a slab, an error, or None at the end; False if the receiver has stopped."""
        while not self.cancelled.is_set():
            try:
                self.passage.items.put(item, timeout=PATIENCE)
                return True
            except queue.Full:
                if self.passage.stop.is_set():
                    raise Stopped from None
        return False

    def cancel(self) -> None:
        """The reading end gives up."""
        self.cancelled.set()

    def __iter__(self) -> Iterator[Any]:
        while (item := self.passage.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
