"""Nodes that find each other soon: Fast DDS announces them more often than by default.

What is lost of the first announcements is said again at the next; the difference to Fast DDS's own period is
`restart_p50_s` against `restart_plain_p50_s` of `benchmarks/start.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

PROFILE = Path(__file__).with_name("discovery.xml")
VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # until Jazzy, and since


def announce_often() -> None:
    """Before `rclpy.init`: of this process and what it starts. A profile that the user has chosen stays."""
    if not any(os.environ.get(variable) for variable in VARIABLES):
        os.environ.update(dict.fromkeys(VARIABLES, str(PROFILE)))
