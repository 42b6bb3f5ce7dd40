"""Live attempts: what goes wrong with the graph is told at once, in its own words."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

from recap.live import LiveError, run_live

pytestmark = pytest.mark.alone


def test_a_graph_that_does_not_come_up_says_why_and_is_not_waited_for(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(LiveError, match=r"exit code 1: recap: .*no checkpoint there.*bringup\.log"):
        run_live(
            "aloha", "handover_insert", tmp_path, None, tmp_path / "bags", 1, 0, 0, tmp_path / "log",
            report=lambda fraction, note: None,
        )  # fmt: skip
    assert time.monotonic() - begin < 60.0  # the client alone would wait for 90 s
