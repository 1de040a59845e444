#!/usr/bin/env python3
"""A reverse dictionary: a definition in, the words for it out.

    python examples/reverse_dictionary.py                  # ten definitions of the shipped data
    python examples/reverse_dictionary.py cavity tree      # those that hold all of these words
    python examples/reverse_dictionary.py --bits 2 -k 5 --limit 3

The dictionary entries and the definitions are sentence embeddings in examples/data; a model that
makes embeddings of new sentences is not part of this project.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy

import turboquant

DATA = pathlib.Path(__file__).resolve().parent / "data"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="words that a definition must hold")
    parser.add_argument("--bits", type=int, default=3, help="bits per coordinate, 1 to 4")
    parser.add_argument("-k", type=int, default=3, help="entries to show for a definition")
    parser.add_argument("--limit", type=int, default=10, help="definitions to look up")
    parser.add_argument("--data", type=pathlib.Path, default=DATA)
    options = parser.parse_args(arguments)

    entries = (options.data / "base.txt").read_text(encoding="utf-8").splitlines()
    definitions = (options.data / "queries.txt").read_text(encoding="utf-8").splitlines()
    vectors = numpy.load(options.data / "base.npy", mmap_mode="r")
    queries = numpy.load(options.data / "queries.npy")

    index = turboquant.IndexTurboQuant(vectors.shape[1], bits=options.bits, metric="cosine")
    index.add(vectors)
    print(
        f"{len(index)} entries, {index.code_size} bytes each instead of {4 * index.d} "
        f"({4 * index.d / index.code_size:.1f} times smaller)\n"
    )

    rows = [
        row
        for row, text in enumerate(definitions)
        if all(word.lower() in text.lower() for word in options.words)
    ][: options.limit]
    if not rows:
        print("No definition holds all of these words.")
        return
    scores, ids = index.search(queries[rows], options.k)
    for row, row_scores, row_ids in zip(rows, scores, ids):
        print(definitions[row])
        for score, i in zip(row_scores, row_ids):
            if i >= 0:
                print(f"  {score:.3f}  {entries[i]}")


if __name__ == "__main__":
    main()
