"""Vectors to search in and to search for: float32, one row a vector, C order."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


class DatasetError(RuntimeError):
    """Says what is missing or wrong, and in which file."""


def read_vectors(path: Path, key: str | None = None) -> np.ndarray:
    """Rows of a .npy or .fbin file, or of one data set of an HDF5 file."""
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    if path.suffix == ".fbin":
        rows, dimension = (int(n) for n in np.fromfile(path, dtype="<i4", count=2))
        if path.stat().st_size != 8 + 4 * rows * dimension:
            raise DatasetError(f"{path}: its size is not that of {rows} x {dimension} float32")
        return np.memmap(path, dtype="<f4", mode="r", offset=8, shape=(rows, dimension))
    if path.suffix in (".hdf5", ".h5"):
        import h5py

        with h5py.File(path, "r") as file:
            if key not in file:
                raise DatasetError(f"{path}: has no data set '{key}', only {sorted(file)}")
            return file[key][:]
    raise DatasetError(f"{path}: not a .npy, .fbin, .hdf5 or .h5 file")


def first_existing(root: Path, paths: str | list[str]) -> Path:
    candidates = [root / p for p in ([paths] if isinstance(paths, str) else paths)]
    for path in candidates:
        if path.exists():
            return path
    raise DatasetError(f"none of these files exists: {', '.join(map(str, candidates))}")


def package_file(name: str) -> Path:
    """The path of 'package/file' inside an installed Python package."""
    package, _, file = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError(f"the Python package '{package}' is not installed")
    return Path(spec.submodule_search_locations[0]) / file


def normalized(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


def synthetic(entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clusters; `spread` is the size of a cluster beside that of the whole."""
    random = np.random.default_rng(entry.get("seed", 1))
    rows, queries, d = entry["rows"], entry["queries"], entry["dimension"]
    centres = random.standard_normal((entry.get("clusters", 1), d), dtype=np.float32)

    def draw(n: int) -> np.ndarray:
        noise = random.standard_normal((n, d), dtype=np.float32)
        return centres[random.integers(len(centres), size=n)] + entry.get("spread", 1.0) * noise

    return draw(rows), draw(queries)


def mixed(base: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """The base, then mixtures a u + (1 - a) v of two random rows, a between a half and 1."""
    random = np.random.default_rng(seed)
    base = base.astype(np.float32)
    out = np.empty((rows, base.shape[1]), dtype=np.float32)
    out[: len(base)] = base[:rows]
    for first in range(len(base), rows, 65536):
        n = min(65536, rows - first)
        share = random.uniform(0.5, 1.0, size=(n, 1)).astype(np.float32)
        u, v = (base[random.integers(len(base), size=n)] for _ in range(2))
        out[first : first + n] = share * u + (1 - share) * v
    return out


def passages(
    base: np.ndarray, parts: int, rows: int, seed: int, first: int = 0, block: int = 8192
) -> np.ndarray:
    """Rows of `parts` pieces of one topic side by side, of unit length each.

    A row's topic is a random row u of the base, each piece a u + (1 - a) v with another random v
    and a between a half and 1. `first` is that of the rows to make, a multiple of `block`.
    """
    d = base.shape[1]
    out = np.empty((rows, parts * d), dtype=np.float32)

    def fill(at: int) -> None:
        random = np.random.default_rng([seed, first + at])
        part = out[at : at + block]
        topics = base[random.integers(len(base), size=len(part))].astype(np.float32)
        for i in range(parts):
            share = random.uniform(0.5, 1.0, size=(len(part), 1)).astype(np.float32)
            others = base[random.integers(len(base), size=len(part))].astype(np.float32)
            part[:, i * d : (i + 1) * d] = share * topics + (1 - share) * others
        part /= np.linalg.norm(part, axis=1, keepdims=True)

    with ThreadPoolExecutor() as pool:  # each block has a generator of its own
        list(pool.map(fill, range(0, rows, block)))
    return out


def load(
    entry: dict[str, Any], root: Path, rows: int | None = None, queries: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(base, queries) of one entry of [datasets]; relative paths start at `root`.

    A data set without queries of its own gives up `queries` random rows of its base.
    """
    if entry.get("synthetic"):
        base, asked = synthetic(entry)
    else:
        if "package" in entry:
            path = package_file(entry["package"])
        else:
            path = first_existing(root, entry["base"])
        base = read_vectors(path, entry.get("base_key", "train"))
        if "queries" in entry and not isinstance(entry["queries"], int):
            asked = read_vectors(first_existing(root, entry["queries"]))
        elif path.suffix in (".hdf5", ".h5"):
            asked = read_vectors(path, entry.get("queries_key", "test"))
        else:
            order = np.random.default_rng(entry.get("seed", 1)).permutation(len(base))
            held_out = entry.get("queries", 1000)
            asked = base[np.sort(order[:held_out])]
            base = base[np.sort(order[held_out:])]
    seed = entry.get("seed", 1)
    if "mixed_to" in entry:
        base = mixed(base, rows or entry["mixed_to"], seed)
        asked = mixed(asked, queries or len(asked), seed)
    if "passages" in entry:
        base = passages(base, entry["passages"], rows or entry["rows"], seed)
        asked = passages(asked, entry["passages"], queries or len(asked), seed)
    base, asked = base[:rows], asked[:queries]
    if base.ndim != 2 or asked.ndim != 2 or base.shape[1] != asked.shape[1] or not len(base):
        raise DatasetError(f"base {base.shape} and queries {asked.shape} do not fit each other")
    base, asked = (x.astype(np.float32, copy=False) for x in (base, asked))
    if not (np.isfinite(base).all() and np.isfinite(asked).all()):
        raise DatasetError("a vector has a coordinate that is not finite")
    if entry.get("normalize", True):
        base, asked = normalized(base), normalized(asked)
    if "rotate" in entry:  # leaves products as they are: tells a quantizer from its rotation's luck
        d = base.shape[1]
        gaussian = np.random.default_rng(entry["rotate"]).standard_normal((d, d))
        rotation = np.linalg.qr(gaussian)[0].astype(np.float32)
        base, asked = base @ rotation, asked @ rotation
    return np.ascontiguousarray(base), np.ascontiguousarray(asked)
