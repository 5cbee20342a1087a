"""Values kept by key while they fit a budget."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from lasertri.factors.budget import Budget

Key = TypeVar("Key")
Value = TypeVar("Value")


class Memo(Generic[Key, Value]):
    """Values by key; one that no longer fits is handed on and not kept.

    Args:
        budget: which others may fill as well.
        size: bytes of a value.
    """

    def __init__(self, budget: Budget, size: Callable[[Value], int]) -> None:
        self._budget, self._size = budget, size
        self._kept: dict[Key, Value] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value kept under this key, or else a new one."""
        return self._kept[key] if key in self._kept else self.keep(key, make())

    def keep(self, key: Key, value: Value) -> Value:
        """Keep a new value if it fits, and hand it on."""
        if self._budget.take(self._size(value)):
            self._kept[key] = value
        return value

    def retain(self, keys: Collection[Key]) -> None:
        """Drop the values of all other keys."""
        for key in self._kept.keys() - keys:
            self._budget.give_back(self._size(self._kept.pop(key)))

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept."""
        return sum(map(self._size, self._kept.values()))
