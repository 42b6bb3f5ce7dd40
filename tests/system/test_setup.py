"""The script ./recap: what it does when, with an interpreter that notes what it is asked for.

The installation itself is not repeated here: pip, venv and colcon are only noted.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Stands for python: notes its arguments, makes a .venv that holds itself, passes small programs on.
INTERPRETER = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >>"$NOTES"
case "$1 ${2:-}" in
    "-m venv")
        to=${!#}
        mkdir -p "$to/bin" "$to/lib/python3/site-packages" "$to/share"
        cp "$0" "$to/bin/python"
        printf '#!/bin/sh\necho colcon >>"$NOTES"\n' >"$to/bin/colcon"
        chmod +x "$to/bin/colcon" ;;
    "-m pip") [ ! -e "$NOTES.pip" ] || . "$NOTES.pip" ;;
    "-m compileall") ;;
    "-m recap") shift 2; echo "handed over: $*" ;;
    "- https://"*) exit 1 ;; # no index to reach
    *) exec @PYTHON@ "$@" ;;
esac
"""


class Checkout:
    """A copy of what set-up reads, with that interpreter."""

    def __init__(self, root: Path) -> None:
        self.root, self.notes = root, root.parent / "notes"
        files = ["recap", "requirements.txt", "requirements-ros.txt"]
        for name in ("package.xml", "setup.py", "setup.cfg"):
            files += [str(path.relative_to(ROOT)) for path in ROOT.glob(f"src/*/{name}")]
        for name in files:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        for name in ("ros2_ws/src/recap", "ros2_ws/src/recap_interfaces", "launch"):
            shutil.copytree(ROOT / name, root / name, symlinks=True)
        self.python = root.parent / "python"
        self.python.write_text(INTERPRETER.replace("@PYTHON@", sys.executable))
        self.python.chmod(0o755)
        drop = ("ROS_DISTRO", "AMENT_PREFIX_PATH", "RECAP_ROOT", "ROS_DOMAIN_ID")
        self.environment = {key: value for key, value in os.environ.items() if key not in drop}
        self.environment |= {"RECAP_PYTHON": str(self.python), "NOTES": str(self.notes)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "recap"), *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self.environment, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever started the tests
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        out, error = process.communicate(timeout=60)
        return process.returncode, out, error

    def asked(self) -> list[str]:
        """What the interpreter was asked for since the last time."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        self.notes.unlink(missing_ok=True)
        return lines

    def pip_does(self, script: str) -> None:
        self.notes.with_suffix(".pip").write_text(script)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a folder" / "checkout")


def test_first_use_sets_up_and_hands_over(checkout: Checkout) -> None:
    code, out, error = checkout.run("doctor", "--json")
    assert (code, out) == (0, "handed over: doctor --json\n"), error
    asked = "\n".join(checkout.asked())
    for part in ("-m venv", "torch==", "requirements-ros.txt", "requirements.txt", "colcon"):
        assert part in asked
    assert "[6/6] building ros2_ws" in error


def test_second_use_checks_nothing(checkout: Checkout) -> None:
    checkout.run()
    checkout.asked()
    code, out, error = checkout.run("up", "task:=x y")
    assert (code, out, error) == (0, "handed over: up task:=x y\n", "")
    assert checkout.asked() == ["-m recap up task:=x y"]


def test_changed_message_builds_but_installs_nothing(checkout: Checkout) -> None:
    checkout.run()
    checkout.asked()
    with (checkout.root / "ros2_ws/src/recap_interfaces/msg/Episode.msg").open("a") as file:
        file.write("# more\n")
    assert checkout.run()[0] == 0
    asked = checkout.asked()
    assert "colcon" in asked
    assert not any(line.startswith(("-m pip", "-m venv")) for line in asked)


def test_changed_requirements_are_installed_into_the_same_environment(checkout: Checkout) -> None:
    checkout.run()
    checkout.asked()
    with (checkout.root / "requirements.txt").open("a") as file:
        file.write("more==1\n")
    assert checkout.run()[0] == 0
    asked = checkout.asked()
    assert any(line.startswith("-m pip") for line in asked)
    assert not any(line.startswith("-m venv") for line in asked)


def test_removed_environment_is_made_again(checkout: Checkout) -> None:
    checkout.run()
    shutil.rmtree(checkout.root / ".venv")
    checkout.asked()
    code, out, _ = checkout.run("doctor")
    assert (code, out) == (0, "handed over: doctor\n")
    assert any(line.startswith("-m venv") for line in checkout.asked())


def test_failed_installation_shows_why_and_the_next_try_starts_anew(checkout: Checkout) -> None:
    checkout.pip_does("echo 'ERROR: no matching distribution' >&2; exit 1")
    code, out, error = checkout.run("doctor")
    assert (code, out) == (1, "")
    assert "no matching distribution" in error
    checkout.pip_does("")
    checkout.asked()
    assert checkout.run("doctor")[0] == 0
    assert any(line.startswith("-m venv") for line in checkout.asked())


def test_interrupted_set_up_leaves_no_process_and_starts_anew(checkout: Checkout) -> None:
    checkout.pip_does('echo $$ >"$NOTES.pid"; sleep 600')
    process = checkout.start("doctor")
    pid_file = Path(f"{checkout.notes}.pid")
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text().strip()):
        assert time.monotonic() < deadline, "pip was never started"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in error
    assert not _alive(int(pid_file.read_text()))
    checkout.pip_does("")
    checkout.asked()
    assert checkout.run("doctor")[1] == "handed over: doctor\n"
    assert any(line.startswith("-m venv") for line in checkout.asked())


def _alive(pid: int) -> bool:
    for _ in range(40):  # its end may be a moment away
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def test_second_set_up_waits_for_the_first(checkout: Checkout) -> None:
    checkout.pip_does("sleep 0.5")
    processes = [checkout.start("doctor") for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [out for out, _ in outputs] == ["handed over: doctor\n"] * 2
    assert sum(line.startswith("-m venv") for line in checkout.asked()) == 1
    assert sum("waiting for it" in error for _, error in outputs) == 1


def test_wrong_interpreter_is_named(checkout: Checkout, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    checkout.environment["RECAP_PYTHON"] = str(old)
    code, _, error = checkout.run("doctor")
    assert code == 1
    assert "3.11 or 3.12" in error


def test_sourced_installation_is_used_instead_of_wheels(checkout: Checkout, tmp_path: Path) -> None:
    share = tmp_path / "opt/share/rclpy"
    share.mkdir(parents=True)
    (share / "package.xml").touch()
    checkout.environment |= {"ROS_DISTRO": "jazzy", "AMENT_PREFIX_PATH": str(tmp_path / "opt")}
    assert checkout.run("doctor")[0] == 0
    asked = "\n".join(checkout.asked())
    assert "--system-site-packages" in asked
    assert "requirements-ros.txt" not in asked


def test_environment_file_gives_each_checkout_a_domain_and_localhost(checkout: Checkout) -> None:
    checkout.run()
    script = '. "$1/.recap/env.sh"; echo "$ROS_DOMAIN_ID $ROS_AUTOMATIC_DISCOVERY_RANGE"'
    shell = ["sh", "-eu", "-c", script, "sh", str(checkout.root)]
    done = subprocess.run(shell, capture_output=True, text=True, env=checkout.environment)
    number, reach = done.stdout.split()
    assert 1 <= int(number) <= 101
    assert reach == "LOCALHOST"
    own = {**checkout.environment, "ROS_DOMAIN_ID": "7"}
    done = subprocess.run(shell, capture_output=True, text=True, env=own)
    assert done.stdout.split()[0] == "7"
