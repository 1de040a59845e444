"""Keys as Algorithm 2 of the paper stores them: b - 1 bits of level, 1 bit of projected residual.

The cache does not offer it: the estimate is unbiased, but its variance is what a softmax amplifies.
Here for the table alone.
"""

from __future__ import annotations

import math

import numpy as np

# Lloyd-Max levels of N(0, 1), positive half.
LEVELS = {1: [0.7979], 2: [0.4528, 1.5104], 3: [0.2451, 0.7560, 1.3439, 2.1520]}


def qjl_keys(k: np.ndarray, bits: int, seed: int = 1) -> np.ndarray:
    """What k [n][heads][d] reads as; the estimate is linear in the query, so it is a vector."""
    d = k.shape[-1]
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.standard_normal((d, d)))[0].astype(np.float32)
    projection = random.standard_normal((d, d)).astype(np.float32)
    norm = np.linalg.norm(k, axis=-1, keepdims=True)
    y = k @ rotation.T / np.maximum(norm, 1e-30) * math.sqrt(d)
    half = np.array(LEVELS[bits - 1], np.float32)
    levels = np.concatenate([-half[::-1], half])
    coarse = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, y)] / math.sqrt(d)
    residual = y / math.sqrt(d) - coarse
    size = np.linalg.norm(residual, axis=-1, keepdims=True)
    signs = np.sign(residual @ projection.T)
    correction = math.sqrt(math.pi / 2) / d * size * (signs @ projection)
    return ((coarse + correction) * norm) @ rotation
