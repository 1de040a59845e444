"""What answers are worth: recall against exact search, and the quality of estimates."""

from __future__ import annotations

import numpy as np

MARGIN = 64  # float32 products within this many ranks of the k-th are computed again in float64


def exact_products(base: np.ndarray, queries: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """<queries[i], base[ids[i, j]]> in float64; -inf where an id is outside of the base."""
    valid = (ids >= 0) & (ids < len(base))
    products = np.full(ids.shape, -np.inf)
    for i, query in enumerate(queries.astype(np.float64)):
        rows = base[ids[i, valid[i]]].astype(np.float64)
        # Not BLAS: the sum of a row must not depend on which rows stand beside it.
        products[i, valid[i]] = np.einsum("jd,d->j", rows, query)
    return products


def exact_search(
    base: np.ndarray, queries: np.ndarray, k: int, block: int = 16384
) -> tuple[np.ndarray, np.ndarray]:
    """(products, ids) of the k rows of largest inner product, best first."""
    keep = min(len(base), k + MARGIN)
    best = np.full((len(queries), keep), -np.inf, dtype=np.float32)
    best_ids = np.full((len(queries), keep), -1, dtype=np.int64)
    for start in range(0, len(base), block):
        found = queries @ base[start : start + block].T
        for i, row in enumerate(found):
            better = np.flatnonzero(row > best[i].min())
            products = np.concatenate([best[i], row[better]])
            ids = np.concatenate([best_ids[i], better + start])
            kept = np.argpartition(-products, keep - 1)[:keep]
            best[i], best_ids[i] = products[kept], ids[kept]
    products = exact_products(base, queries, best_ids)
    order = np.lexsort((best_ids, -products), axis=1)[:, :k]
    return np.take_along_axis(products, order, axis=1), np.take_along_axis(best_ids, order, axis=1)


def recall(
    base: np.ndarray, queries: np.ndarray, truth: np.ndarray, ids: np.ndarray, at: int
) -> float:
    """Share of the true `at` nearest found among the first `at` answers.

    `truth` holds the exact products of the nearest rows, best first. An answer counts if its exact
    product reaches the at-th, so equal rows count as equal; an id counts once.
    """
    at = min(at, truth.shape[1])
    ids = ids[:, :at].astype(np.int64)
    products = exact_products(base, queries, ids)
    reaches = products >= truth[:, at - 1 : at] - 1e-12
    hits = sum(len(np.unique(row[good])) for row, good in zip(ids, reaches))
    return float(hits / (len(queries) * at))


def estimate_quality(estimates: np.ndarray, truth: np.ndarray, d: int) -> dict[str, float]:
    """How estimates follow true products: slope of the fit through 0, bias, variance times d.

    The variance is that around the fitted slope, over all pairs: products of unit vectors.
    """
    slope = float(np.sum(estimates * truth) / np.sum(truth * truth))
    residual = estimates - slope * truth
    return {
        "slope": slope,
        "bias": float(np.mean(estimates - truth)),
        "var_d": float(d * np.mean(residual * residual)),
    }
