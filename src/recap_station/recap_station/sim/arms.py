"""Two ViperX-like 6-DoF arms with parallel grippers, as MJCF text and as closed-form kinematics.

Frames: world x from the left arm to the right arm, y away from the base camera, z up; metres, radians.
At zero the upper arm points up and the forearm straight ahead; positive shoulder, elbow and wrist angle
lean forward and down. The tip frame has x along the fingers, y from one finger to the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from recap_station.contract import ContractError, Joint, Station

SHOULDER_Z = 0.13
UPPER_ARM = 0.28
FOREARM = 0.28
HAND = 0.16  # wrist_angle axis to the point between the finger pads
OPENING_M = 0.09  # gap between the pads at gripper 1
PAD_Z = 0.013  # half height and width of a pad
ARM_DOF = 6

# From waist to wrist_rotate: axes, stiffness of the servos [N m/rad], rotor inertia [kg m2]. Damping follows
# from one lag for all joints, so that a straight line commanded is a straight line driven.
_AXES = ("0 0 1", "0 1 0", "0 1 0", "1 0 0", "0 1 0", "1 0 0")
_KP = (350.0, 450.0, 350.0, 120.0, 150.0, 80.0)
_LAG_S = 0.035
_ARMATURE = (0.10, 0.10, 0.08, 0.02, 0.03, 0.01)


@dataclass(frozen=True)
class Arm:
    """Where an arm stands and which of the station's joints it has."""

    prefix: str
    base_x: float
    base_yaw: float
    color: str  # rgba of the fingers
    joints: tuple[Joint, ...]
    gripper: Joint

    @property
    def tip_site(self) -> str:
        return self.prefix + "tip"

    @property
    def finger_joints(self) -> tuple[str, str]:
        return self.prefix + "finger_a", self.prefix + "finger_b"


def arms_of(station: Station) -> tuple[Arm, Arm]:
    """The left and right arm of a station with 2 x (6 joints + gripper), else ContractError."""
    pattern = [joint.is_gripper for joint in station.joints]
    if pattern != ([False] * ARM_DOF + [True]) * 2:
        raise ContractError(
            f"the simulator wants two arms of {ARM_DOF} joints and a gripper each, "
            f"station {station.name!r} has {', '.join(station.joint_names)}"
        )
    left, right = station.joints[: ARM_DOF + 1], station.joints[ARM_DOF + 1 :]
    return (
        Arm("left_arm/", -0.42, 0.0, "0.10 0.62 0.25 1", left[:-1], left[-1]),
        Arm("right_arm/", 0.42, math.pi, "0.95 0.55 0.05 1", right[:-1], right[-1]),
    )


def arm_mjcf(arm: Arm, camera: str | None) -> str:
    """The body tree of one arm; `camera` is the name of its wrist camera."""
    joints = [
        f'<joint name="{joint.name}" axis="{axis}" range="{joint.lower} {joint.upper}" armature="{rotor}"/>'
        for joint, axis, rotor in zip(arm.joints, _AXES, _ARMATURE, strict=True)
    ]
    p = arm.prefix
    view = ""
    if camera:
        # on the side of the arm's own base, looking past the fingers at what lies between and before them
        view = f'<camera name="{camera}" pos="0.03 0 -0.075" xyaxes="0 -1 0 -0.69 0 0.72" fovy="75"/>'
    dark, light = "0.16 0.17 0.20 1", "0.78 0.79 0.82 1"
    return f"""
<body name="{p}base" pos="{arm.base_x} 0 0" euler="0 0 {arm.base_yaw}">
 <geom class="visual" type="cylinder" size="0.055 0.035" pos="0 0 0.035" rgba="{dark}"/>
 <body name="{p}waist" pos="0 0 0.07" gravcomp="1">{joints[0]}
  <geom class="visual" type="box" size="0.035 0.04 0.03" pos="0 0 0.035" rgba="{light}" mass="0.4"/>
  <body name="{p}shoulder" pos="0 0 {SHOULDER_Z - 0.07}" gravcomp="1">{joints[1]}
   <geom class="visual" type="box" size="0.024 0.028 {UPPER_ARM / 2}" pos="0 0 {UPPER_ARM / 2}"
    rgba="{dark}" mass="0.5"/>
   <body name="{p}elbow" pos="0 0 {UPPER_ARM}" gravcomp="1">{joints[2]}
    <geom class="visual" type="box" size="0.08 0.024 0.024" pos="0.07 0 0" rgba="{light}" mass="0.25"/>
    <body name="{p}forearm_roll" pos="{FOREARM - 0.12} 0 0" gravcomp="1">{joints[3]}
     <geom class="visual" type="box" size="0.06 0.019 0.019" pos="0.055 0 0" rgba="{dark}" mass="0.15"/>
     <body name="{p}wrist_angle" pos="0.12 0 0" gravcomp="1">{joints[4]}
      <geom class="visual" type="box" size="0.03 0.017 0.017" pos="0.02 0 0" rgba="{light}" mass="0.1"/>
      <body name="{p}wrist_rotate" pos="0.05 0 0" gravcomp="1">{joints[5]}
       <geom class="solid" name="{p}hand" type="box" size="0.016 0.042 0.022" pos="0.012 0 0"
        rgba="{dark}" mass="0.15"/>
       <site name="{arm.tip_site}" pos="{HAND - 0.05} 0 0" size="0.002" rgba="0 0 0 0"/>
       {view}
       {_finger(arm, 0, 1)}{_finger(arm, 1, -1)}
      </body>
     </body>
    </body>
   </body>
  </body>
 </body>
</body>"""


def _finger(arm: Arm, index: int, side: int) -> str:
    name = arm.finger_joints[index]
    tip = HAND - 0.05
    return f"""
<body name="{name}" pos="0 0 0" gravcomp="1">
 <joint name="{name}" type="slide" axis="0 {side} 0" range="-0.004 {OPENING_M / 2}" armature="0.08"/>
 <geom class="pad" type="box" size="{(tip - 0.028) / 2 + PAD_Z} 0.005 {PAD_Z}"
  pos="{(tip + 0.028) / 2} {side * 0.005} 0" rgba="{arm.color}" mass="0.03"/>
</body>"""


def actuators_mjcf(arm: Arm) -> str:
    """Position servos in the station's order: six joints, then both fingers."""
    lines = []
    for joint, kp in zip(arm.joints, _KP, strict=True):
        lines.append(
            f'<position name="{joint.name}" joint="{joint.name}" kp="{kp}" kv="{kp * _LAG_S}" '
            f'ctrlrange="{joint.lower} {joint.upper}" forcerange="-60 60"/>'
        )
    for name in arm.finger_joints:
        lines.append(
            f'<position name="{name}" joint="{name}" kp="600" kv="18" ctrlrange="-0.004 {OPENING_M / 2}" '
            f'forcerange="-25 25"/>'
        )
    return "\n".join(lines)


def coupling_mjcf(arm: Arm) -> str:
    """Both fingers move alike, as a gear would make them."""
    a, b = arm.finger_joints
    return f'<joint joint1="{a}" joint2="{b}" polycoef="0 1 0 0 0" solref="0.008 1"/>'


def finger_target(opening: float) -> float:
    """Gripper command 0..1 → slide position of each finger [m]; closed asks a little more than touching."""
    return -0.003 + opening * (OPENING_M / 2 + 0.003)


def finger_opening(slide: float) -> float:
    """Slide position of a finger [m] → gripper 0..1."""
    return min(max(slide / (OPENING_M / 2), 0.0), 1.0)


class Unreachable(ValueError):
    """The point lies outside what the arm can reach with its fingers pointing down."""


def reach_down(arm: Arm, position: np.ndarray, yaw: float, rotate_near: float) -> np.ndarray:
    """Joints (6,) that put the tip at `position` [m, world], fingers down, gripping a bar of heading `yaw`.

    A gripper turned by half a turn grips the same bar: of the two, the wrist turn next to `rotate_near`
    within the joint's limits is taken. Raises Unreachable.
    """
    dx, dy = position[0] - arm.base_x, position[1]
    c, s = math.cos(arm.base_yaw), math.sin(arm.base_yaw)
    x, y = c * dx + s * dy, -s * dx + c * dy
    waist = math.atan2(y, x)
    r, z = math.hypot(x, y), position[2] + HAND - SHOULDER_Z
    d = math.hypot(r, z)
    if not 0.12 < d < UPPER_ARM + FOREARM - 0.005 or r < 0.08:
        raise Unreachable(f"{arm.prefix}tip at {np.round(position, 3).tolist()}: {d:.3f} m from the shoulder")
    inner = math.acos((UPPER_ARM**2 + FOREARM**2 - d * d) / (2 * UPPER_ARM * FOREARM))
    elbow = math.pi / 2 - inner
    lift = math.atan2(z, r) + math.acos((UPPER_ARM**2 + d * d - FOREARM**2) / (2 * UPPER_ARM * d))
    shoulder = math.pi / 2 - lift
    rotate = arm.base_yaw + waist - yaw
    rotate += math.pi * round((rotate_near - rotate) / math.pi)
    limit = arm.joints[5]
    if rotate > limit.upper:
        rotate -= math.pi
    elif rotate < limit.lower:
        rotate += math.pi
    return np.array([waist, shoulder, elbow, 0.0, math.pi / 2 - shoulder - elbow, rotate])
