#!/usr/bin/env python3
"""make_kvcache_seeds.py FOLDER: seeds for fuzz_kvcache, which tests/kvcache/random_calls.cpp reads.

A configuration, then calls; each number is a byte, taken modulo the number of choices.
"""

from __future__ import annotations

import pathlib
import sys

# Layers - 1, kv heads - 1, group - 1, sizes 64 and 16, sequences - 1, sinks, tail, bits, centring.
CODED = [1, 1, 1, 3, 2, 3, 4, 10, 3, 1, 2]
RAW = [0, 0, 0, 1, 0, 3, 0, 0, 4, 0, 4]
CREATE = [0]
COPY = [1, 1, 0]


def append(tokens: int, layer: int = 0, sequence: int = 0, layers: int = 2) -> list[int]:
    return [7, 1, sequence, 1, layer % layers, 0, tokens]


def attend(queries: int, layer: int = 0, sequence: int = 0, window: int = 0) -> list[int]:
    return [5, 1, sequence, layer, queries, 1, *([1, window] if window else [0, 0])]


def truncate(tokens: int, sequence: int = 0) -> list[int]:
    return [2, 1, sequence, tokens]


def save(damage: list[int] | None = None, sequence: int = 0) -> list[int]:
    return [4, 1, sequence] + ([0] if damage is None else [1, len(damage) // 3, *damage, 0])


SEEDS = {
    "grow": CODED
    + CREATE
    + append(150)
    + append(150, 1)
    + attend(20)
    + attend(1, 1, window=70)
    + append(90)
    + attend(39),
    "share": CODED
    + CREATE
    + append(180)
    + append(180, 1)
    + COPY
    + truncate(100)
    + append(60)
    + append(60, 0, 1)
    + attend(3, 0, 0)
    + attend(3, 0, 1)
    + save(),
    "damage": CODED
    + CREATE
    + append(80)
    + append(80, 1)
    + save([0, 3, 1, 0, 40, 7])
    + save([9, 9, 255]),
    "raw": RAW + CREATE + append(130, layers=1) + attend(30) + truncate(70) + save() + attend(2),
}


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in SEEDS.items():
        (folder / name).write_bytes(bytes(numbers))


if __name__ == "__main__":
    main()
