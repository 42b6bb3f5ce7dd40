"""Which labels of a store go into what is exported of it."""

from __future__ import annotations

from recap_learner.data.store import Store
from recap_learner.exchange.video import ExchangeError


def labels_tag(store: Store, tag: str) -> str:
    """`tag`, or the newest where it is ""; "" where there are no labels. Raises ExchangeError where no
    episode has labels of it: they would be written as if nobody had made any."""
    tags = store.tags()
    if tag and tag not in tags:
        wanted = ", ".join(tags) or "none, for the store has no labels"
        raise ExchangeError(f"{store.folder}: labels {tag!r}, wanted {wanted}")
    return tag or next(reversed(tags), "")
