"""What stands where in espresso, as MJCF and as a Scene.

Portafilter and cup are alike: a square basket, open at the top, with a bar for a handle. Their x axis points
from the handle to the basket, whose middle is the origin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from recap_station.sim.task import Placed, Scene

HALF = 0.016  # half height of basket and cup, half width of the handles
BASKET = 0.030  # half width outside
WALL = 0.004
HANDLE = (-0.15, -BASKET)  # along x
GRASP = 0.105  # from the basket's middle back to where a gripper takes the handle
FLOOR = -HALF + 0.006  # upper side of the basket's floor
FOOT = 0.018  # half width of the tamper's foot: 8 mm of play in the basket
KNOB = 0.050  # height of the middle of its knob above its foot
KNOB_HALF = 0.014

SPOUT = np.array([-0.17, 0.17, 0.15])  # lower end of the grinder's
GROUP = np.array([0.0, 0.20, 0.16])  # lower face of the machine's brewing head
MAT = np.array([0.0, -0.03, HALF])  # where the basket stands to be tamped
BUTTON = np.array([0.17, 0.19, 0.10])  # its top
TURN = 0.55  # rad that lock the portafilter

MEMORY = ("dose", "tamp", "engaged", "locked", "brewing", "brewed", "filled", "spilled")
ENOUGH_DOSE, ENOUGH_TAMP = 0.85, 0.8  # with less, the coffee is watery and the attempt fails at the end of it
TOO_MUCH_SPILLED = 0.3


@dataclass(frozen=True)
class Thing(Placed):
    """A basket with a handle."""

    @property
    def axis(self) -> np.ndarray:
        return self.rotation[:, 0]

    @property
    def grasp(self) -> np.ndarray:
        return self.pos - GRASP * self.axis

    @property
    def handle(self) -> np.ndarray:
        """Middle of the handle."""
        return self.pos + 0.5 * sum(HANDLE) * self.axis


@dataclass(frozen=True)
class EspressoScene(Scene):
    """coffee: by the names of `MEMORY`; dose, tamp, brewed, filled and spilled 0..1, the others 0 or 1."""

    filter: Thing
    cup: Thing
    tamper: Thing  # origin under its foot
    saucer: np.ndarray
    turned: float  # rad that the portafilter is turned in the head
    coffee: dict[str, float]
    has_filter: bool  # the left hand
    has_tamper: bool  # the right hand
    has_cup: bool

    def points(self) -> tuple[np.ndarray, ...]:
        return (
            self.filter.pos, self.filter.grasp, self.cup.pos, self.cup.grasp, self.tamper.pos, self.saucer,
        )  # fmt: skip

    def facts(self) -> tuple[float, ...]:
        held = float(self.has_filter), float(self.has_tamper), float(self.has_cup)
        return (*self.coffee.values(), self.turned, *held)

    @property
    def cup_under(self) -> bool:
        off = self.cup.pos - GROUP
        return bool(math.hypot(off[0], off[1]) < 0.018 and self.cup.pos[2] < 0.06 and self.cup.upright > 0.9)

    @property
    def filter_under_spout(self) -> float:
        """Horizontal distance of the basket from the grinder's spout [m]; infinite where it is not below."""
        off = self.filter.pos - SPOUT
        below = -0.10 < off[2] < -0.01 and self.filter.upright > 0.8
        return math.hypot(off[0], off[1]) if below else math.inf

    @property
    def tamper_near(self) -> bool:
        """In the basket or just above it: the basket must not rise."""
        off = self.tamper.pos - self.filter.pos
        return bool(math.hypot(off[0], off[1]) < 0.06 and off[2] < 0.08)

    @property
    def served(self) -> bool:
        off = self.cup.pos - self.saucer
        return bool(
            math.hypot(off[0], off[1]) < 0.03 and self.cup.pos[2] < HALF + 0.008 and self.cup.upright > 0.95
        )


def watery(c: dict[str, float]) -> bool:
    """Whether what runs through `coffee` is no espresso."""
    return c["dose"] < ENOUGH_DOSE or c["tamp"] < ENOUGH_TAMP


def basket_mjcf(name: str, rgba: str, handle_rgba: str, inside: str) -> str:
    inner = BASKET - WALL
    side, mid = BASKET - WALL / 2, FLOOR + (HALF - FLOOR) / 2
    tall = (HALF - FLOOR) / 2
    walls = [(f"{s * side} 0 {mid}", f"{WALL / 2} {BASKET} {tall}") for s in (-1, 1)]
    walls += [(f"0 {s * side} {mid}", f"{inner} {WALL / 2} {tall}") for s in (-1, 1)]
    boxes = "".join(
        f'<geom class="solid" type="box" pos="{pos}" size="{size}" rgba="{rgba}" mass="0.0015"/>'
        for pos, size in walls
    )
    middle, half = 0.5 * sum(HANDLE), 0.5 * (HANDLE[1] - HANDLE[0])
    return f"""
<body name="{name}" pos="0 0 {HALF}"><freejoint name="{name}"/>
 {boxes}
 <geom class="solid" type="box" pos="0 0 {-HALF + 0.003}" size="{BASKET} {BASKET} 0.003"
  rgba="{rgba}" mass="0.004"/>
 <geom class="solid" type="box" pos="{middle} 0 0" size="{half} {HALF} {HALF}"
  rgba="{handle_rgba}" mass="0.035"/>
 <geom class="visual" name="{name}_inside" type="box" pos="0 0 0" size="{inner} {inner} 0.001"
  rgba="{inside}" mass="0"/>
</body>"""


def props_mjcf() -> str:
    steel, dark, red = "0.62 0.64 0.68 1", "0.14 0.14 0.16 1", "0.72 0.12 0.10 1"
    s, g, b = SPOUT, GROUP, BUTTON
    return f"""
<geom class="solid" type="box" pos="{s[0] - 0.02} {s[1] + 0.10} 0.11" size="0.05 0.045 0.11" rgba="{dark}"/>
<geom class="solid" type="box" pos="{s[0]} {s[1] + 0.025} {s[2] + 0.018}" size="0.016 0.04 0.018"
  rgba="0.95 0.75 0.10 1"/>
<geom class="visual" name="grind" type="cylinder" pos="{s[0]} {s[1]} {s[2] - 0.03}" size="0.006 0.03"
  rgba="0.33 0.18 0.08 0"/>
<geom class="solid" type="box" pos="0.06 0.335 0.13" size="0.16 0.055 0.13" rgba="{red}"/>
<geom class="solid" type="cylinder" pos="{g[0]} {g[1]} {g[2] + 0.02}" size="0.034 0.02" rgba="{steel}"/>
<geom class="visual" type="box" pos="{g[0]} {g[1] + 0.06} {g[2] + 0.045}" size="0.034 0.06 0.012"
  rgba="{steel}"/>
<geom class="visual" type="box" pos="{g[0]} {g[1]} 0.001" size="0.045 0.045 0.001" rgba="{dark}"/>
<geom class="visual" name="brew" type="cylinder" pos="{g[0]} {g[1]} 0.08" size="0.004 0.05"
  rgba="0.25 0.12 0.05 0"/>
<geom class="solid" type="box" pos="{b[0]} {b[1]} {b[2] / 2 - 0.01}" size="0.02 0.02 {b[2] / 2 - 0.01}"
  rgba="{dark}"/>
<geom class="solid" name="button" type="cylinder" pos="{b[0]} {b[1]} {b[2] - 0.01}" size="0.017 0.01"
  rgba="0.9 0.9 0.9 1"/>
<geom class="visual" type="box" pos="{MAT[0]} {MAT[1]} 0.0005" size="0.045 0.045 0.0006"
  rgba="0.25 0.45 0.30 1"/>
<body name="saucer" mocap="true" pos="0.24 -0.10 0.001">
 <geom class="visual" type="cylinder" size="0.05 0.001" rgba="0.15 0.35 0.85 1"/>
</body>
<body name="bayonet" pos="{g[0]} {g[1]} {g[2] - HALF}">
 <joint name="bayonet" axis="0 0 1" range="0 0.75" frictionloss="0.08" damping="0.04" armature="0.002"/>
 <geom class="visual" type="cylinder" size="0.02 0.003" pos="0 0 {HALF}" rgba="{steel}" mass="0.05"/>
</body>
{basket_mjcf("filter", "0.45 0.46 0.50 1", "0.10 0.30 0.85 1", "0.33 0.18 0.08 0")}
{basket_mjcf("cup", "0.95 0.95 0.92 1", "0.86 0.10 0.12 1", "0.20 0.09 0.03 0")}
<body name="tamper" pos="0.2 0 0"><freejoint name="tamper"/>
 <geom class="solid" type="box" pos="0 0 0.008" size="{FOOT} {FOOT} 0.008" rgba="{steel}" mass="0.05"/>
 <geom class="solid" type="box" pos="0 0 0.024" size="0.008 0.008 0.010" rgba="{steel}" mass="0.005"/>
 <geom class="solid" type="box" pos="0 0 {KNOB}" size="{KNOB_HALF} {KNOB_HALF} 0.019"
  rgba="0.95 0.55 0.75 1" mass="0.015"/>
</body>"""


EQUALITY = """<equality>
 <weld name="bayonet" body1="bayonet" body2="filter" active="false" solref="0.008 1"/>
</equality>"""
