"""A square of cloth as a MuJoCo flex, and what physics does not do for it: grips and layers.

Its vertices are bodies with three slide joints; it resists stretching and, as much as cotton does,
bending; air drags on it. Vertices touch the table alone: a hand passes through the cloth until it closes
on it, and the cloth does not touch itself. Instead, a vertex above another part of the cloth stands
higher on the table by a layer's thickness, so that what is folded over lies on top.

A grip is a point constraint: closing fingers bind every vertex within `GRASP` of the tip to the hand
(within `STACK_GRASP`, where they take several layers), opening ones free them. Fingers that close above
the table pick up one vertex, the uppermost of the nearest. A grip at the very hem is weak: the cloth
slips out after `SLIP_M` of way.
"""

from __future__ import annotations

import mujoco
import numpy as np

from recap_station.sim.cloth.layers import Layers
from recap_station.sim.cloth.mesh import LAYER, RADIUS, TRIANGLES, N, flat

MASS = 0.06  # kg
YOUNG, THICK = 1e4, 0.003  # Pa, m: bends like cotton
GRASP = 0.020  # m
STACK, STACK_GRASP = 3, 0.034  # of so many vertices; layers on each other are stiff, and held so wide, m
REACH_Z = 0.030  # a vertex is taken this far below the tip at most, m
PICK_Z = 0.020  # a tip higher than this picks up one vertex, the uppermost of the nearest, m
FIRM = 0.012  # the nearest vertex is no farther from the tip in a firm grip, m
SLIP_M = 0.16
CLOSED_M, OPENED_M = 0.016, 0.03  # gaps between the fingers that take hold and that let go
RISE_M = 0.0015  # by which a layer's height may change in a tick
VISCOSITY = 0.01  # of the air, much more than air has: it stands for all that calms a cloth

HELD, WEAK, CLOSED, WAY = range(4)  # an arm's part of the memory


def sheet_mjcf() -> str:
    """Bodies of the vertices, for the world body."""
    # the inertia says nothing to slide joints; MuJoCo works the air's drag out from it
    inertia = f'<inertial pos="0 0 0" mass="{MASS / N**2}" diaginertia="1e-6 1e-6 1e-6"/>'
    slides = "".join(f'<joint type="slide" axis="{axis}"/>' for axis in ("1 0 0", "0 1 0", "0 0 1"))
    return "\n".join(
        f'<body name="cloth_{k}" pos="{x} {y} {z}">{inertia}{slides}<geom name="cloth_{k}" type="sphere" '
        f'size="{RADIUS}" contype="0" conaffinity="0" rgba="0 0 0 0"/></body>'
        for k, (x, y, z) in enumerate(flat().reshape(-1, 3))
    )


def sheet_assets(hands: tuple[str, str], materials: list[str]) -> str:
    """Flex, constraints and contacts. `hands`: bodies that hold; `materials`: one for each triangle."""
    body = " ".join(f"cloth_{k}" for k in range(N * N))
    element = " ".join(map(str, TRIANGLES.ravel()))
    pairs = "".join(
        f'<pair geom1="table" geom2="cloth_{k}" condim="3" friction="0.6 0.6" solref="0.02 1"/>'
        for k in range(N * N)
    )
    holds = "".join(
        f'<connect name="hold_{arm}_{k}" body1="{hand}" body2="cloth_{k}" anchor="0 0 0" active="false"/>'
        for arm, hand in enumerate(hands)
        for k in range(N * N)
    )
    return f"""
<option viscosity="{VISCOSITY}" integrator="discrete" solver="CG" iterations="30" tolerance="1e-6"/>
<size memory="24M"/>
<deformable><flex name="cloth" dim="2" body="{body}" element="{element}" radius="{RADIUS}"
 material="{" ".join(materials)}"><contact contype="0" conaffinity="0" selfcollide="none"/>
 <elasticity young="{YOUNG}" poisson="0.1" thickness="{THICK}" damping="0.01" elastic2d="both"/>
</flex></deformable>
<equality>{holds}</equality>
<contact>{pairs}</contact>"""


class Sheet:
    """The cloth in a model: where its vertices are, what holds them, how high they stand."""

    def __init__(self, model: mujoco.MjModel, hands: tuple[str, str]) -> None:
        self._bodies = np.array([model.body(f"cloth_{k}").id for k in range(N * N)])
        self._geoms = np.array([model.geom(f"cloth_{k}").id for k in range(N * N)])
        first = int(model.body_jntadr[self._bodies[0]])
        start = int(model.jnt_qposadr[first])
        self._qpos = slice(start, start + 3 * N * N)
        self._rest = model.body_pos[self._bodies].copy()
        self._hands = [model.body(hand).id for hand in hands]
        self._holds = np.array(
            [[model.equality(f"hold_{arm}_{k}").id for k in range(N * N)] for arm in range(2)]
        )
        # MuJoCo skips the offset of a geom that was compiled in the middle of its body
        model.geom_sameframe[self._geoms] = mujoco.mjtSameFrame.mjSAMEFRAME_NONE
        self._layers = Layers()
        self._edges, self._bending = model.flex_edge.copy(), model.flex_bending.copy()

    def vertices(self, data: mujoco.MjData) -> np.ndarray:
        """(N, N, 3) [m], after kinematics."""
        return data.xpos[self._bodies].reshape(N, N, 3).copy()

    def put(self, model: mujoco.MjModel, data: mujoco.MjData, vertices: np.ndarray) -> None:
        """The cloth at rest with its vertices (N, N, 3) there, in nobody's hand."""
        data.qpos[self._qpos] = (vertices.reshape(-1, 3) - self._rest).ravel()
        data.eq_active[self._holds] = 0
        model.geom_pos[self._geoms] = 0.0
        self._layers = Layers()

    def cut(self, model: mujoco.MjModel, shape: np.ndarray, stiffness: float) -> None:
        """Give it the size and shape of these flat vertices (N, N, 3), and so many times the stiffness."""
        points = shape.reshape(-1, 3)
        first, second = (points[self._edges[:, k]] for k in range(2))
        model.flexedge_length0[:] = np.linalg.norm(first - second, axis=1)
        model.flex_bending[:] = stiffness * self._bending

    # ---- once a control tick -----------------------------------------------------------------------

    def stack(self, model: mujoco.MjModel, vertices: np.ndarray) -> None:
        """Let every vertex stand on the parts of the cloth below it."""
        layers = self._layers.below(vertices)
        height = model.geom_pos[self._geoms, 2]
        model.geom_pos[self._geoms, 2] = height + np.clip(-LAYER * layers - height, -RISE_M, RISE_M)

    def hold(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        arm: int,
        tip: np.ndarray,
        gap: float,
        moved: float,
        memory: np.ndarray,
    ) -> None:
        """Take hold, slip or let go, and write it down in `memory` (4,), this arm's."""
        if gap > OPENED_M:
            memory[CLOSED] = 0.0
            self._free(data, arm, memory)
        elif gap < CLOSED_M and not memory[CLOSED]:
            memory[CLOSED] = 1.0
            self._bind(model, data, arm, tip, memory)
        elif memory[HELD]:
            memory[WAY] += moved
            if memory[WEAK] and memory[WAY] > SLIP_M:
                self._free(data, arm, memory)

    def _bind(
        self, model: mujoco.MjModel, data: mujoco.MjData, arm: int, tip: np.ndarray, memory: np.ndarray
    ) -> None:
        points = data.xpos[self._bodies]
        off = points - tip
        away = np.hypot(off[:, 0], off[:, 1])
        taken = np.flatnonzero((away < GRASP) & (off[:, 2] > -REACH_Z) & (off[:, 2] < GRASP))
        if not len(taken):
            return
        if tip[2] > PICK_Z:
            near = taken[away[taken] < away[taken].min() + 0.5 * FIRM]
            taken = near[[np.argmax(points[near, 2])]]
        elif len(taken) >= STACK:
            taken = np.flatnonzero((away < STACK_GRASP) & (off[:, 2] > -REACH_Z) & (off[:, 2] < GRASP))
        hand = self._hands[arm]
        frame = data.xmat[hand].reshape(3, 3)
        for k in taken:
            hold = self._holds[arm, k]
            model.eq_data[hold, 0:3] = frame.T @ (points[k] - data.xpos[hand])
            model.eq_data[hold, 3:6] = 0.0
            data.eq_active[hold] = 1
        memory[HELD], memory[WEAK], memory[WAY] = len(taken), away[taken].min() > FIRM, 0.0

    def _free(self, data: mujoco.MjData, arm: int, memory: np.ndarray) -> None:
        if memory[HELD]:
            data.eq_active[self._holds[arm]] = 0
            memory[HELD] = memory[WEAK] = memory[WAY] = 0.0
