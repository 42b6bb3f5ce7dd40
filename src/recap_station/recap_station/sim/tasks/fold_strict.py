"""A printed cloth that lies the wrong way round: folded twice with the print on top, and laid on the mat.

Folding the near edge over to the far one, as with the shirt, hides the print. The far edge has to come to the
near one instead; which of the two was done is seen for certain only when the strip lies there.
"""

from __future__ import annotations

from typing import ClassVar

from recap_station.sim.cloth.task import ClothTask


class FoldStrict(ClothTask):
    """The start is always the same but for a few millimetres: the print on the far half."""

    PRINT_ROW: ClassVar[int | None] = 5
