"""Names and types of the topics, in one place: publishers, recorder, converter and policy read it here.

Names are relative; the launch namespace goes in front.
"""

from __future__ import annotations

from recap_station.contract import Station

JOINT_STATES = "joint_states"
JOINT_COMMAND = "joint_command"  # published by the arbiter alone; header.frame_id names the source followed
POLICY_COMMAND = "policy/joint_command"
POLICY_CHUNK = "policy/action_chunk"
TELEOP_COMMAND = "teleop/joint_command"
CONTROL_MODE = "control_mode"
EPISODE = "episode"
VALUE = "value"
JOY = "joy"
CONSOLE_HOLDS = "console/holds"  # whether a person at the console has taken over: silence stops the robot
LEADER_STATES = "leader/joint_states"
SIM_TRUTH = "sim/truth"
LEARNER_STATE = "learner/state"
LEARNER_CURVES = "learner/curves"  # losses per step of the training under way

JOINT_STATE_TYPE = "sensor_msgs/msg/JointState"
IMAGE_TYPE = "sensor_msgs/msg/CompressedImage"
CHUNK_TYPE = "recap_interfaces/msg/ActionChunk"
MODE_TYPE = "recap_interfaces/msg/ControlMode"
EPISODE_TYPE = "recap_interfaces/msg/Episode"
VALUE_TYPE = "recap_interfaces/msg/ValueEstimate"
TRUTH_TYPE = "recap_interfaces/msg/SimTruth"

LATCHED = frozenset({CONTROL_MODE, EPISODE})  # transient-local, depth 1


def image_topic(camera: str) -> str:
    return f"{camera}/image_raw/compressed"


def recorded_topics(station: Station) -> dict[str, str]:
    """Every topic that belongs in an attempt's bag → its message type."""
    topics = {
        JOINT_STATES: JOINT_STATE_TYPE,
        JOINT_COMMAND: JOINT_STATE_TYPE,
        POLICY_COMMAND: JOINT_STATE_TYPE,
        POLICY_CHUNK: CHUNK_TYPE,
        TELEOP_COMMAND: JOINT_STATE_TYPE,
        CONTROL_MODE: MODE_TYPE,
        EPISODE: EPISODE_TYPE,
        VALUE: VALUE_TYPE,
        SIM_TRUTH: TRUTH_TYPE,
    }
    topics.update({image_topic(camera): IMAGE_TYPE for camera in station.camera_names})
    return topics


LEADER_COMMAND = (
    "leader/joint_command"  # for leaders with motors: where the follower is, in the leader's joints
)


def twist_topic(arm: str) -> str:
    """Velocity of one arm's tip, by a SpaceMouse or the like; `arm` is "left" of the joints "left_waist"."""
    return f"twist/{arm}"


def gripper_topic(arm: str) -> str:
    """Wanted opening of one arm's gripper, 0 closed .. 1 open."""
    return f"twist/{arm}/gripper"


def twist_joy_topic(arm: str) -> str:
    """Buttons of a twist device: 0 closes the gripper while held, 1 opens it."""
    return f"twist/{arm}/joy"
