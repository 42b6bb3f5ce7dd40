"""Quality-of-service profiles, in one place, so that publishers and subscribers always match."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from recap_station.topics import LATCHED as LATCHED_TOPICS


def _reliable(depth: int, durability: DurabilityPolicy = DurabilityPolicy.VOLATILE) -> QoSProfile:
    reliable = ReliabilityPolicy.RELIABLE
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliable, durability=durability
    )


LATCHED = _reliable(1, DurabilityPolicy.TRANSIENT_LOCAL)  # control_mode, episode: late joiners get the last
COMMAND = _reliable(10)  # joint states and commands at 50 Hz
EVENT = _reliable(20)  # joy, chunks, values, truth, diagnostics
SENSOR = _reliable(5)  # JPEG cameras: small enough for reliable delivery
# Looking on: the newest picture alone, and a slow onlooker asks for nothing again.
WATCH = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RECORD = _reliable(200)  # the recorder's side: room for a stall of the disk


def for_topic(name: str, recording: bool = False) -> QoSProfile:
    """The profile of a recorded topic, as its publisher uses it or as the recorder subscribes."""
    if recording:  # of a latched topic every message too, not the last one alone
        return _reliable(200, DurabilityPolicy.TRANSIENT_LOCAL) if name in LATCHED_TOPICS else RECORD
    if name in LATCHED_TOPICS:
        return LATCHED
    return SENSOR if name.endswith("/compressed") else COMMAND
