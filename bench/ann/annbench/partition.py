"""Lists of rows that several systems share, so that they differ in what they do with them."""

from __future__ import annotations

from typing import Any

import numpy as np

BLOCK = 65536  # rows that are compared with all centroids at once


class Products:
    """Rows kept for products with centroids: on a GPU where PyTorch finds one."""

    def __init__(self, rows: np.ndarray) -> None:
        self.torch: Any = None
        try:
            import torch

            self.torch = torch if torch.cuda.is_available() else None
        except ImportError:
            pass
        self.rows: Any = rows
        if self.torch is not None:
            self.rows = self.torch.from_numpy(np.ascontiguousarray(rows)).cuda()

    def nearest(self, centroids: np.ndarray) -> np.ndarray:
        """The number of the centroid of largest inner product, for each row."""
        turned: Any = np.ascontiguousarray(centroids.T)
        if self.torch is not None:
            turned = self.torch.from_numpy(turned).cuda()
        parts = []
        for first in range(0, len(self.rows), BLOCK):
            found = (self.rows[first : first + BLOCK] @ turned).argmax(1)
            parts.append(found if self.torch is None else found.cpu().numpy())
        return np.concatenate(parts)

    def sums(self, numbers: np.ndarray, lists: int) -> np.ndarray:
        """Of the rows of each list; zeros of an empty one."""
        if self.torch is not None:
            sums = self.torch.zeros((lists, self.rows.shape[1]), device="cuda")
            sums.index_add_(0, self.torch.from_numpy(numbers).cuda(), self.rows)
            return sums.cpu().numpy()
        sums = np.zeros((lists, self.rows.shape[1]), dtype=np.float32)
        order = np.argsort(numbers, kind="stable")
        sizes = np.bincount(numbers, minlength=lists)
        (filled,) = np.nonzero(sizes)
        starts = np.cumsum(sizes) - sizes
        sums[filled] = np.add.reduceat(self.rows[order], starts[filled], axis=0)
        return sums


def spherical_means(
    base: np.ndarray, lists: int, seed: int = 1, rounds: int = 10, rows_per_list: int = 256
) -> np.ndarray:
    """Centroids of unit length, by k-means as FAISS trains an inverted file of inner products."""
    random = np.random.default_rng(seed)
    sample = np.asarray(base)
    if len(base) > lists * rows_per_list:
        chosen = random.choice(len(base), lists * rows_per_list, replace=False)
        sample = sample[np.sort(chosen)]
    centroids = sample[np.sort(random.choice(len(sample), lists, replace=False))].copy()
    products = Products(sample)
    for _ in range(rounds):
        numbers = products.nearest(centroids)
        centroids = products.sums(numbers, lists)
        empty = np.flatnonzero(np.bincount(numbers, minlength=lists) == 0)
        centroids[empty] = sample[random.choice(len(sample), len(empty), replace=False)]
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-30)
    return centroids
