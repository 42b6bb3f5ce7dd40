from __future__ import annotations


def scatter(cell, rng):
    raise NotImplementedError
