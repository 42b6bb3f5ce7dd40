"""A shirt, spread on the table: folded twice, and laid on the mat at the table's top right corner."""

from __future__ import annotations

from recap_station.sim.cloth.task import ClothTask


class FoldShirt(ClothTask):
    """As `ClothTask` has it: a limp square of 22 cm."""
