"""`./recap operate` on a real terminal over a real graph: arbiter and episode control, without a model."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

from graph import POLICY, Graph
from recap_interfaces.msg import ControlMode
from recap_interfaces.srv import ResetCell

pytestmark = pytest.mark.alone

CONFIG = Path(__file__).resolve().parents[2] / "ros2_ws/src/recap/config"
OPERATE = [sys.executable, "-m", "recap", "operate"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    """A cell in the middle: arbiter, episode control and a policy; the world of the tests is the robot."""
    with Graph(tmp_path_factory.mktemp("operate")) as graph:

        def reset(request: ResetCell.Request, response: ResetCell.Response) -> ResetCell.Response:
            response.success, response.seed = True, 5
            return response

        graph.world.create_service(ResetCell, "reset", reset)
        graph.world.destroy_publisher(graph.world.episodes)
        # On a busy machine the world is late: no time-out of the cell's may come in between.
        names = ("policy", "teleop", "pedal", "state")
        patient = {f"{name}_timeout_s": 5.0 for name in names}
        task = (CONFIG / "tasks/handover_insert.yaml").read_text()
        endless = graph.folder / "endless.yaml"
        endless.write_text(re.sub(r"(time_limit|max_episode)_s: .*", r"\1_s: 900.0", task))
        graph.start("arbiter", "recap_teleop.nodes.arbiter_node", **patient)
        graph.start("episode", "recap_teleop.nodes.episode_node", task=endless, settle_timeout_s=60.0)
        graph.start("policy", code=POLICY)
        graph.wait(lambda: graph.world.heard.modes, 60.0, "control_mode")
        yield graph


class Screen:
    """The view on a terminal of its own, read as a person sees it."""

    def __init__(self, graph: Graph, *words: str, **environment: str) -> None:
        self.far, near = pty.openpty()
        ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._near = near
        self.before = termios.tcgetattr(near)
        self.everything = ""
        self._rows: dict[int, str] = {}

        def take_terminal() -> None:
            ioctl(near, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        self.process = subprocess.Popen(
            [*OPERATE, *words], stdin=near, stdout=near, stderr=near,
            env={**graph.environment, "TERM": "xterm", "LANG": "C.UTF-8", **environment},
            start_new_session=True, preexec_fn=take_terminal,
        )  # fmt: skip

    def read(self) -> str:
        while select.select([self.far], [], [], 0.05)[0]:
            said = os.read(self.far, 100_000).decode(errors="replace")
            self.everything += said
            for row, line in re.findall(r"\x1b\[(\d+);1H(.*?)\x1b\[K", said, re.DOTALL):
                self._rows[int(row)] = re.sub(r"\x1b\[[0-9;]*m", "", line)
        return "\n".join(self._rows.get(row, "") for row in range(1, 25))

    def wait(self, *wanted: str, limit_s: float = 100.0) -> str:
        """Until all of `wanted` is on the screen."""
        deadline = time.monotonic() + limit_s
        while not all(text in (shown := self.read()) for text in wanted):
            assert time.monotonic() < deadline, f"never saw {wanted} in\n{shown}\n{self.everything[-500:]}"
            assert self.process.poll() is None, self.everything
        return shown

    def type(self, keys: str) -> None:
        os.write(self.far, keys.encode())

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.left()

    def left(self) -> int:
        """Exit code, once the program has ended and its last words are read."""
        code = self.process.wait(30)
        self.read()
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.far)
        os.close(self._near)

    @property
    def settings(self) -> list:
        return termios.tcgetattr(self._near)


@pytest.fixture
def screen(graph: Graph) -> Iterator[Screen]:
    graph.world.pressed = None
    screen = Screen(graph)
    yield screen
    screen.close()


def test_a_person_runs_an_attempt_from_the_keyboard(graph: Graph, screen: Screen) -> None:
    world = graph.world
    shown = screen.wait("nobody commands", "space", "take over", "joint_command")
    assert f"ROS domain {graph.domain}" in shown
    screen.wait("would only HOLD")  # no teleop source is there: told before it is tried
    screen.type("n")
    shown = screen.wait("RUNNING", "the policy commands", "seed 5")
    screen.type(" ")
    screen.wait("teleop silent", "the robot HOLDS until one is", "hand back")
    world.pressed, world.person = True, world.position  # leader arms come alive; a pedal is theirs as well
    screen.wait("a person commands", "corrections 1,")
    assert world.mode() == ControlMode.TELEOP
    world.pressed = False
    graph.wait(lambda: world.mode() == ControlMode.POLICY, 30.0, "the pedal's release to hand back")
    world.pressed = None
    screen.wait("the policy commands")
    screen.type("s")
    screen.wait("SUCCESS", "change it")
    screen.type("f")
    screen.wait("FAILURE")
    assert screen.end(signal.SIGTERM) == 0
    assert screen.settings == screen.before
    assert screen.everything.endswith("\x1b[0m\x1b[?25h\x1b[?1049l")


def test_stop_and_emergency_stop_by_key(graph: Graph, screen: Screen) -> None:
    screen.wait("nobody commands", "joint_command")
    screen.type("x")
    screen.wait("because: stop", "stop: HOLD -> STOPPED")
    screen.type("e")
    screen.wait("emergency stop: r, then y")
    screen.type("r")
    screen.wait("y within 5 s")
    screen.type("y")
    screen.wait("because: emergency stop released")
    screen.type("r")
    screen.wait("because: resume")
    screen.type("q")
    assert screen.left() == 0
    assert screen.settings == screen.before


def test_ctrl_c_gives_the_terminal_back_and_leaves_the_cell(graph: Graph, screen: Screen) -> None:
    screen.wait("nobody commands")
    screen.type("\x03")
    assert screen.left() == 0
    assert screen.settings == screen.before
    assert graph.processes["arbiter"].poll() is None


def test_a_dumb_terminal_is_told_line_by_line(graph: Graph) -> None:
    screen = Screen(graph, TERM="dumb", LANG="C")
    try:
        deadline = time.monotonic() + 100.0
        answers = ("HOLD (hold:", "stop: HOLD -> STOPPED", "resume: STOPPED -> HOLD")
        for wanted, key in zip(answers, ("x", "r", ""), strict=True):
            while wanted not in screen.everything:
                assert time.monotonic() < deadline, screen.everything
                screen.read()
            screen.type(key)
        assert screen.end(signal.SIGTERM) == 0
        assert "\x1b" not in screen.everything
    finally:
        screen.close()


def once(graph: Graph, *words: str, domain: int | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(graph.environment)
    if domain is not None:
        environment["ROS_DOMAIN_ID"] = str(domain)
    return subprocess.run(
        [*OPERATE, *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip


def test_once_prints_the_state_for_scripts_and_for_people(graph: Graph) -> None:
    done = once(graph, "--once", "--json", "--wait", "60")
    said = json.loads(done.stdout)
    assert done.returncode == 0 and said["ok"]
    assert said["mode"]["name"] == "HOLD" and said["mode"]["live"] and said["domain"] == str(graph.domain)
    states = {stream["name"]: stream for stream in said["topics"]}
    assert states["joint_command"]["live"] and 5 < states["joint_command"]["rate_hz"] < 60
    assert states["base_camera"]["age_s"] is None and states["base_camera"]["wanted_hz"] == 30
    assert said["episode"]["state"] in ("IDLE", "ENDED")
    done = once(graph, "--once", "--wait", "60")
    assert done.returncode == 0 and "nobody commands" in done.stdout and "\x1b" not in done.stdout


def test_where_no_cell_runs_it_says_how_long_it_waited_and_where(graph: Graph) -> None:
    done = once(graph, "--json", "--wait", "1.5", domain=graph.domain + 60)
    assert done.returncode == 1
    line = f"recap: no arbiter in ROS domain {graph.domain + 60}, namespace /: waited 1.5 s"
    assert done.stderr.startswith(line) and len(done.stderr.splitlines()) == 1
    assert json.loads(done.stdout)["ok"] is False


def test_without_a_terminal_it_is_refused(graph: Graph) -> None:
    done = once(graph)
    assert done.returncode == 2 and done.stderr == (
        "recap: operate wants a terminal; --once prints the state without one\n"
    )
