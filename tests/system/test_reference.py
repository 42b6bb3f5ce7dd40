"""docs/ros2.md says what the nodes say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/ros2.md"


def reference(document: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recap.nodes.reference", str(document), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.mark.timeout(220)
def test_tables_are_those_of_the_nodes() -> None:
    done = reference(DOCUMENT, "--check")
    assert done.returncode == 0, f"{done.stderr}\nwrite it anew: python -m recap.nodes.reference docs/ros2.md"


@pytest.mark.timeout(220)
def test_a_table_that_is_out_of_date_is_seen_and_mended(tmp_path: Path) -> None:
    document = tmp_path / "ros2.md"
    old = DOCUMENT.read_text()
    document.write_text(old.replace("| service | `take_over` |", "| service | `seize` |"))
    done = reference(document, "--check")
    assert done.returncode == 1
    assert "-| service | `seize`" in done.stderr
    assert "+| service | `take_over`" in done.stderr
    assert reference(document).returncode == 0
    assert document.read_text() == old


def test_a_document_without_a_place_for_tables_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "other.md"
    document.write_text("nothing\n")
    done = reference(document)
    assert done.returncode == 1
    assert "wanted a line <!-- python -m recap.nodes.reference" in done.stderr
