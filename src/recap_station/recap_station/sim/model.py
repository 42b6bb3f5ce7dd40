"""MJCF text of a whole cell: table, light, base camera, two arms and the task's props."""

from __future__ import annotations

import mujoco

from recap_station.contract import ContractError, Station, Task
from recap_station.sim.arms import actuators_mjcf, arm_mjcf, arms_of, coupling_mjcf
from recap_station.sim.task import SimTask
from recap_station.sim.tasks import sim_task


def cell_mjcf(station: Station, props: SimTask) -> str:
    """The model as text. Raises ContractError where the station or the task cannot be simulated."""
    arms = arms_of(station)
    if not 1 <= len(station.cameras) <= 3:
        raise ContractError(f"the simulator has 1 to 3 cameras (base, wrists), found {len(station.cameras)}")
    for camera in station.cameras:
        if not (16 <= camera.width <= 1920 and 16 <= camera.height <= 1080):
            raise ContractError(
                f"camera {camera.name!r} is {camera.width}x{camera.height}, wanted 16x16 to 1920x1080"
            )
    names = list(station.camera_names) + [""] * 2
    width = max(camera.width for camera in station.cameras)
    height = max(camera.height for camera in station.cameras)
    # No shadows, no multi-sampling, few facets: on a CPU each of them costs more than all the rest.
    return f"""
<mujoco model="{station.name}">
 <compiler angle="radian" autolimits="true"/>
 <option timestep="{props.TIMESTEP_S}" integrator="implicitfast" cone="elliptic" impratio="10"/>
 <size memory="4M"/>
 <visual>
  <global offwidth="{width}" offheight="{height}"/>
  <quality offsamples="0" shadowsize="0" numslices="12" numstacks="6"/>
  <headlight ambient="0.42 0.42 0.42" diffuse="0.35 0.35 0.35" specular="0 0 0"/>
  <map znear="0.01" zfar="10"/>
 </visual>
 <default>
  <default class="visual"><geom contype="0" conaffinity="0"/></default>
  <default class="solid"><geom condim="4" friction="0.6 0.005 0.0001"/></default>
  <default class="pad"><geom condim="4" friction="1.0 0.02 0.0001"/></default>
 </default>
 <worldbody>
  <light pos="0.3 -0.6 1.6" dir="-0.15 0.35 -1" diffuse="0.45 0.45 0.45" specular="0 0 0" castshadow="false"/>
  <geom class="solid" name="table" type="box" size="0.55 0.36 0.02" pos="0 0.04 -0.02"
   rgba="0.86 0.83 0.76 1"/>
  <geom class="visual" name="floor" type="plane" size="9 9 0.1" pos="0 0 -0.6" rgba="0.36 0.40 0.45 1"/>
  <camera name="{names[0]}" pos="0.08 -0.46 0.5"
   xyaxes="0.9739 0.2269 0 -0.1358 0.5828 0.8012" fovy="48"/>
  {arm_mjcf(arms[0], names[1])}
  {arm_mjcf(arms[1], names[2])}
  {props.mjcf()}
 </worldbody>
 <equality>{coupling_mjcf(arms[0])}{coupling_mjcf(arms[1])}</equality>
 <actuator>
 {actuators_mjcf(arms[0])}
 {actuators_mjcf(arms[1])}
 </actuator>
 {props.assets_mjcf()}
</mujoco>"""


def build_model(station: Station, task: Task, props: SimTask | None = None) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(cell_mjcf(station, props or sim_task(task)))
