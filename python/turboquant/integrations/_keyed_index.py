"""An index whose vectors have text keys; what both vector stores are built on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy

from .._core import IDSelector, Index, index_factory


class KeyedIndex:
    """Keys are unique; adding a key again replaces its vector. Safe to use from several threads."""

    def __init__(self, bits: int = 4, metric: str = "cosine"):
        if metric not in ("ip", "l2", "cosine"):
            raise ValueError(f'metric must be "ip", "l2" or "cosine", not {metric!r}')
        self.bits = bits
        self.metric = metric
        self.index: Index | None = None  # made when the dimension is known
        self._number_of: dict[str, int] = {}
        self._key_of: dict[int, str] = {}
        self._next = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._number_of)

    def __contains__(self, key: str) -> bool:
        return key in self._number_of

    def add(self, keys: Sequence[str], vectors: Sequence[Sequence[float]]) -> None:
        if len(keys) != len(vectors):
            raise ValueError(f"there are {len(keys)} keys but {len(vectors)} vectors")
        last = {key: row for row, key in enumerate(keys)}  # of equal keys the last counts
        if not last:
            return
        array = numpy.asarray(vectors, numpy.float32)[list(last.values())]
        with self._lock:
            if self.index is None:
                self.index = index_factory(array.shape[1], f"IDMap2,TQ{self.bits}", self.metric)
            numbers = range(self._next, self._next + len(last))
            self.index.add_with_ids(array, list(numbers))  # fails before anything has changed
            self._next += len(last)
            self.remove(last)
            for key, number in zip(last, numbers):
                self._number_of[key] = number
                self._key_of[number] = key

    def remove(self, keys: Iterable[str]) -> int:
        """Returns how many of the keys were there."""
        with self._lock:
            numbers = [self._number_of.pop(k) for k in set(keys) if k in self._number_of]
            for number in numbers:
                del self._key_of[number]
            if numbers and self.index is not None:
                self.index.remove_ids(numbers)
            return len(numbers)

    def clear(self) -> None:
        with self._lock:
            self.remove(list(self._number_of))

    def search(
        self, vector: Sequence[float], k: int, accept: Callable[[str], bool] | None = None
    ) -> list[tuple[str, float]]:
        """The k best keys with their scores, best first, among those that accept takes."""
        with self._lock:
            if self.index is None or k < 1:
                return []
            selector = None
            if accept is not None:
                selector = IDSelector([n for key, n in self._number_of.items() if accept(key)])
            query = numpy.asarray(vector, numpy.float32)
            scores, numbers = self.index.search(query, min(k, len(self.index)) or 1, selector=selector)
            found = zip(numbers.tolist(), scores.tolist())
            return [(self._key_of[n], score) for n, score in found if n >= 0]

    def vectors(self, keys: Sequence[str]) -> numpy.ndarray:
        """The decoded vectors, float32 (n, d)."""
        with self._lock:
            if self.index is None:
                raise KeyError(keys[0] if keys else "the index is empty")
            return self.index.reconstruct([self._number_of[key] for key in keys])

    def state(self) -> dict[str, Any]:
        """What JSON keeps beside the index's own file."""
        return {
            "bits": self.bits,
            "metric": self.metric,
            "next": self._next,
            "numbers": self._number_of,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], index: Index | None) -> KeyedIndex:
        made = cls(state["bits"], state["metric"])
        made.index = index
        made._next = state["next"]
        made._number_of = dict(state["numbers"])
        made._key_of = {number: key for key, number in made._number_of.items()}
        if len(made._key_of) != (0 if index is None else len(index)):
            raise ValueError("the saved keys do not belong to the saved index")
        return made
