"""What FAST costs, and what it makes of smooth motions. Prints one JSON line.

    python benchmarks/fast.py [--chunks 10000] [--horizon 50] [--joints 14]

Chunks are sums of slow cosines with a little noise, half of them with one arm at rest. Errors are in units of
half a joint's quantile range: the largest of all numbers, and the bound that `Fast.bound` derives.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from recap_policy.fast import Fast


def motions(count: int, horizon: int, joints: int) -> np.ndarray:
    """(count, horizon, joints)"""
    random = np.random.default_rng(0)
    order = np.arange(6)
    weights = random.normal(size=(count, joints, 6)) / (1 + order) ** 1.5
    chunks = np.moveaxis(weights @ np.cos(np.pi * np.outer(order, np.linspace(0, 1, horizon))), 1, 2)
    chunks += random.normal(size=chunks.shape) * 0.01
    chunks[::2, :, joints // 2 :] = 0.0
    return chunks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--horizon", type=int, default=50)
    parser.add_argument("--joints", type=int, default=14)
    given = parser.parse_args()
    chunks = motions(given.chunks, given.horizon, given.joints)

    start = time.perf_counter()
    fast = Fast.fit(chunks)
    fitted = time.perf_counter()
    ids = fast.encode(chunks)
    encoded = time.perf_counter()
    decoded = fast.decode(ids)
    done = time.perf_counter()
    lengths = [len(row) for row in ids]
    error = np.abs(decoded.actions - chunks) / fast.quantiles.half
    print(
        json.dumps(
            {
                "chunks": len(chunks),
                "fit_s": round(fitted - start, 2),
                "encode_ms_per_chunk": round((encoded - fitted) / len(chunks) * 1e3, 3),
                "decode_ms_per_chunk": round((done - encoded) / len(chunks) * 1e3, 3),
                "numbers_per_chunk": given.horizon * given.joints,
                "tokens_mean": round(float(np.mean(lengths)), 1),
                "tokens_longest": max(lengths),
                "error_largest": round(float(error.max()), 3),
                "error_bound": round(float((fast.bound / fast.quantiles.half).max()), 3),
                "repaired": int(decoded.repaired.sum()),
            }
        )
    )


if __name__ == "__main__":
    main()
