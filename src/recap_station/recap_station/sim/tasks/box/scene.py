"""What stands where in box, as MJCF and as a Scene.

The sheet is a base with a rib along x, its grip, and four flaps on hinges. Its origin is the base's middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from recap_station.sim.arms import PAD_Z
from recap_station.sim.task import Placed, Scene

THIN = 0.002  # half thickness of base and flaps
HALF_X, HALF_Y = 0.056, 0.068  # of the base: an open gripper fits between the walls
TALL = 0.050  # of a flap, from its hinge
RIB_HALF, RIB_Z, RIB_LONG = 0.010, 0.018, 0.050  # half width, height of its middle, half length
GRASP = 0.028  # from the rib's middle to where each hand takes it
SLIP = 0.016  # along the rib: more is a hand that slides, m
CREASE, CATCH, LATCH, CRUSH = 0.61, 1.08, 1.40, 1.95  # angles of a flap: at rest, and where it ...
LIMP, STIFF = 0.02, 0.12  # of an open flap's hinge, of a caught or latched one's, N m/rad
LABEL = (0.015, 0.001, 0.012)  # half sizes
LABEL_AT = np.array([0.028, 0.026])  # its middle on the front flap: above the hinge, right of the middle
STRAIGHT = 0.008  # how far off its place a label may be

MAT = np.array([-0.04, 0.06, THIN])  # where the box is built
LABEL_Z = 0.06  # of the label that the dispenser shows
CRATE_HALF = (HALF_X + 0.018, HALF_Y + 0.018)  # inside
CRATE_WALL = 0.009  # half height

MEMORY = ("back", "right", "front", "left", "label", "pressed", "crushed")
OFFERED, IN_HAND, ON_BOX = 0.0, 0.5, 1.0  # of `label`
OPEN, CAUGHT, LATCHED = 0.0, 0.5, 1.0  # of a flap
ENOUGH_PRESSED = 0.8  # a label pressed on for less falls off when the box is lifted


@dataclass(frozen=True)
class Flap:
    """outward: from the base's middle; hinge: how far that way; along: where it is pushed; arm: by whom."""

    name: str
    outward: tuple[float, float]
    hinge: float
    width: float
    along: float
    arm: int

    @property
    def heading(self) -> float:
        return math.atan2(self.outward[1], self.outward[0])

    def pusher(self, beyond: float) -> np.ndarray:
        """Middle (2,) of a closed gripper along the rib whose outside is `beyond` metres out of the hinge."""
        thick = PAD_Z if self.outward[0] else 0.010
        out = (self.hinge + beyond + thick) * np.array(self.outward)
        return out + self.along * np.array([abs(self.outward[1]), 0.0])


# In the order in which they are folded: the right hand goes round, then the left one has its turn.
FLAPS = (
    Flap("back", (0.0, 1.0), HALF_Y, HALF_X, GRASP, 1),
    Flap("right", (1.0, 0.0), HALF_X, HALF_Y, 0.0, 1),
    Flap("front", (0.0, -1.0), HALF_Y, HALF_X, GRASP, 1),
    Flap("left", (-1.0, 0.0), HALF_X, HALF_Y, 0.0, 0),
)
FRONT = 2


@dataclass(frozen=True)
class Thing(Placed):
    def at(self, x: float, y: float, z: float) -> np.ndarray:
        """A point of its own frame in the world."""
        return self.pos + self.rotation @ np.array([x, y, z])


@dataclass(frozen=True)
class BoxScene(Scene):
    """state: by the names of `MEMORY`, see the constants beside it. angles, edges: by `FLAPS`; rad, the
    middle of the free edge. label_off: metres that the label is off its place on the box."""

    box: Thing
    angles: tuple[float, ...]
    edges: tuple[np.ndarray, ...]
    label: Thing
    label_off: float
    dispenser: np.ndarray  # where it shows a label
    crate: np.ndarray
    state: dict[str, float]
    held: tuple[bool, bool]

    def points(self) -> tuple[np.ndarray, ...]:
        return (self.box.pos, self.rib_end, *self.edges, self.label.pos, self.dispenser, self.crate)

    def facts(self) -> tuple[float, ...]:
        angles = (angle / math.pi for angle in self.angles)
        return (*self.state.values(), *angles, float(self.held[0]), float(self.held[1]))

    @property
    def rib_end(self) -> np.ndarray:
        return self.box.at(RIB_LONG, 0.0, RIB_Z)

    def grasp(self, arm: int) -> np.ndarray:
        return self.box.at(GRASP if arm else -GRASP, 0.0, RIB_Z)

    def slipped(self, arm: int) -> bool:
        """Whether this hand holds the rib elsewhere than it should: the other has no place beside it."""
        off = float((self.tips[arm] - self.grasp(arm)) @ self.box.rotation[:, 0])
        return bool(self.held[arm] and abs(off) > SLIP)

    @property
    def flaps(self) -> tuple[float, ...]:
        return tuple(self.state[flap.name] for flap in FLAPS)

    @property
    def on_mat(self) -> bool:
        off = self.box.pos - MAT
        return bool(math.hypot(off[0], off[1]) < 0.05 and off[2] < 0.008 and self.box.upright > 0.98)

    @property
    def in_crate(self) -> bool:
        off = self.box.pos - self.crate
        inside = abs(off[0]) < 0.025 and abs(off[1]) < 0.025
        return bool(inside and off[2] < 0.012 and self.box.upright > 0.97)

    @property
    def label_place(self) -> np.ndarray:
        """Where the label belongs, on an upright front wall."""
        height, along = LABEL_AT
        return self.box.at(along, -HALF_Y - THIN - LABEL[1], height)

    @property
    def straight(self) -> bool:
        """Whether the label sits on the box, in its place."""
        return self.state["label"] == ON_BOX and self.label_off < STRAIGHT


def flap_mjcf(flap: Flap) -> str:
    x, y = flap.hinge * flap.outward[0], flap.hinge * flap.outward[1]
    width = flap.width - 0.006
    return f"""
 <body name="{flap.name}_flap" pos="{x} {y} 0" euler="0 0 {flap.heading}">
  <joint name="{flap.name}_flap" axis="0 -1 0" range="0 2.3" stiffness="{LIMP}" springref="{CREASE}"
   damping="0.002" armature="0.0001"/>
  <geom class="solid" type="box" pos="{TALL / 2 + 0.001} 0 0" size="{TALL / 2 - 0.001} {width} {THIN}"
   contype="2" priority="1" friction="0.15 0.005 0.0001" rgba="0.80 0.60 0.36 1" mass="0.004"/>
  <geom class="visual" type="box" pos="{TALL - 0.0035} 0 0" size="0.004 {width + 0.0005} {THIN + 0.0005}"
   rgba="0.55 0.34 0.14 1" mass="0"/>
 </body>"""


def props_mjcf() -> str:
    wall, x, y = 0.003, *CRATE_HALF
    grey, dark = "0.30 0.36 0.45 1", "0.15 0.16 0.19 1"
    walls = [(f"{s * (x + wall)} 0", f"{wall} {y + 2 * wall}") for s in (-1, 1)]
    walls += [(f"0 {s * (y + wall)}", f"{x} {wall}") for s in (-1, 1)]
    crate = "".join(
        f'<geom class="solid" type="box" pos="{pos} {CRATE_WALL}" size="{size} {CRATE_WALL}" rgba="{grey}"/>'
        for pos, size in walls
    )
    return f"""
<geom class="visual" type="box" pos="{MAT[0]} {MAT[1]} 0.0003" size="{HALF_X + 0.01} {HALF_Y + 0.01} 0.0004"
 rgba="0.25 0.45 0.30 1"/>
<body name="crate" mocap="true" pos="0.2 -0.13 0">
 <geom class="visual" type="box" pos="0 0 0.0004" size="{x} {y} 0.0004" rgba="0.20 0.35 0.75 1"/>
 {crate}
</body>
<body name="dispenser" mocap="true" pos="0.2 0.17 {LABEL_Z}">
 <geom class="solid" type="box" pos="0 0.034 {-0.5 * LABEL_Z + 0.01}" size="0.03 0.032 {0.5 * LABEL_Z + 0.01}"
  rgba="{dark}"/>
 <geom class="visual" type="cylinder" pos="0 0.034 0.032" size="0.026 0.012" rgba="0.95 0.95 0.92 1"/>
</body>
<body name="sheet" pos="-0.2 0 {THIN}"><freejoint name="sheet"/>
 <geom class="solid" type="box" size="{HALF_X} {HALF_Y} {THIN}" rgba="0.72 0.52 0.30 1" mass="0.02"/>
 <geom class="solid" type="box" pos="0 0 {RIB_Z}" size="{RIB_LONG} {RIB_HALF} {RIB_Z - THIN}"
  rgba="0.86 0.12 0.12 1" mass="0.012"/>
 {"".join(flap_mjcf(flap) for flap in FLAPS)}
</body>
<body name="label" pos="0.2 0.169 {LABEL_Z}" gravcomp="1"><freejoint name="label"/>
 <geom class="visual" type="box" size="{LABEL[0]} {LABEL[1]} {LABEL[2]}" rgba="0.98 0.98 0.98 1"
  mass="0.002"/>
 <geom class="visual" type="box" size="{LABEL[0] - 0.004} {LABEL[1] + 0.0003} 0.004" rgba="0.1 0.2 0.9 1"
  mass="0"/>
</body>"""
