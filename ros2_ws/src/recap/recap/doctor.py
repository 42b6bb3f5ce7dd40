"""What this machine has for RECAP: looked at, and tried where looking is not enough."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

GIB = 2**30
NEEDED_GIB = 4.0  # a demo run with its bags and checkpoints

_ROS_PROBE = """
import json, rclpy, rclpy.utilities
from recap_interfaces.msg import Episode
rclpy.init()
node = rclpy.create_node("doctor")
node.create_publisher(Episode, "doctor", 1).publish(Episode())
print(json.dumps({"rmw": rclpy.utilities.get_rmw_implementation_identifier(), "file": rclpy.__file__}))
rclpy.shutdown()
"""

_RENDER_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 2'/><geom size='.1' rgba='1 0 0 1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().max() > 0, "the picture is black"
from OpenGL.GL import GL_RENDERER, glGetString
print(glGetString(GL_RENDERER).decode())
"""


@dataclass(frozen=True)
class Finding:
    """One row. `fail`: RECAP cannot work; `warn`: a part of it cannot. `hint` says what to do."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    hint: str = ""


def examine() -> list[Finding]:
    """All checks, in the order in which they are shown. Takes a few seconds; changes nothing."""
    checks: list[Callable[[], Finding]] = [
        _python, _ros, _domain, _launch, _bags, _render, _gpu, _torch, _machine, _input, _disk,
    ]  # fmt: skip
    return [check() for check in checks]


def show(findings: list[Finding], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("what")
    table.add_column("found", overflow="fold")
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]--[/]", "fail": "[red]NO[/]"}
    for finding in findings:
        text = finding.found + (f"\n→ {finding.hint}" if finding.hint else "")
        table.add_row(marks[finding.state], finding.name, text)
    console.print(table)


def as_json(findings: list[Finding]) -> str:
    return json.dumps({"ok": not failed(findings), "findings": [asdict(f) for f in findings]})


def failed(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state == "fail"]


def _probe(code: str) -> tuple[bool, str]:
    """Run Python code in a process of its own → it worked, its last line (of stderr if it did not)."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False, "no answer within 60 s"
    text = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()
    return done.returncode == 0, text.splitlines()[-1] if text else f"exit code {done.returncode}"


def _python() -> Finding:
    version = platform.python_version()
    fits = sys.version_info[:2] in ((3, 11), (3, 12))
    hint = "" if fits else "RECAP is made for Python 3.11 and 3.12; set RECAP_PYTHON and remove .venv"
    return Finding("Python", "ok" if fits else "fail", f"{version}, {sys.executable}", hint)


def _ros() -> Finding:
    works, text = _probe(_ROS_PROBE)
    if not works:
        return Finding("ROS 2", "fail", text, "remove .recap/stamp and run again to set up anew")
    found = json.loads(text)
    origin = os.environ.get("RECAP_ROS_ORIGIN", "wheels")
    where = "PyPI wheels in .venv" if origin == "wheels" else f"installation in {origin}"
    return Finding("ROS 2", "ok", f"{os.environ.get('ROS_DISTRO', '?')} from {where}, {found['rmw']}")


def _domain() -> Finding:
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET").lower()
    try:
        first = 7400 + 250 * int(domain)  # the RTPS standard's ports: 250 for each domain
    except ValueError:
        return Finding("ROS domain", "fail", repr(domain), "set ROS_DOMAIN_ID to a number from 1 to 101")
    if not 0 <= int(domain) <= 101:
        hint = "its ports overlap those of outgoing connections; use 1 to 101"
        return Finding("ROS domain", "warn", domain, hint)
    busy = {port for port in _udp_ports() if first + 10 <= port < first + 250 and (port - first) % 2 == 0}
    found = f"{domain}, {reach}, ports {first} to {first + 249}: {len(busy)} participants at work now"
    return Finding("ROS domain", "ok", found)


def _udp_ports() -> set[int]:
    """Local UDP ports that are bound on this machine; none where /proc does not tell."""
    ports: set[int] = set()
    for file in ("/proc/net/udp", "/proc/net/udp6"):
        try:
            lines = Path(file).read_text().splitlines()[1:]
        except OSError:
            continue
        ports.update(int(line.split()[1].rpartition(":")[2], 16) for line in lines)
    return ports


def has_launch() -> bool:
    """Is `ros2 launch` there?"""
    modules = ("launch", "launch_ros", "ros2launch")
    return shutil.which("ros2") is not None and all(importlib.util.find_spec(m) for m in modules)


def _launch() -> Finding:
    if has_launch():
        return Finding("ros2 launch", "ok", str(shutil.which("ros2")))
    return Finding("ros2 launch", "ok", "none: `./recap up` starts the same nodes under supervisor")


def _bags() -> Finding:
    if importlib.util.find_spec("rosbag2_py"):
        return Finding("bags", "ok", f"rosbags {_version('rosbags')}; rosbag2_py is there as well")
    return Finding("bags", "ok", f"rosbags {_version('rosbags')} (no rosbag2_py)")


def _render() -> Finding:
    works, text = _probe(_RENDER_PROBE)
    backend = os.environ.get("MUJOCO_GL", "default")
    if works:
        return Finding("rendering", "ok", f"MuJoCo {_version('mujoco')}, {backend}: {text}")
    hint = "sudo apt-get install libegl1 libgl1-mesa-dri   (or libosmesa6 and MUJOCO_GL=osmesa)"
    return Finding("rendering", "fail", f"{backend}: {text}", hint)


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("GPU", "ok", "none: everything runs on the CPU")
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        text = done.stdout.strip() or done.stderr.strip()
        return Finding("GPU", "warn", text, "the driver does not answer")
    return Finding("GPU", "ok", "; ".join(done.stdout.strip().splitlines()))


def _torch() -> Finding:
    version = _version("torch")
    if version == "none":
        return Finding("torch", "fail", "none", "remove .recap/stamp and run again to set up anew")
    return Finding("torch", "ok", version)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _machine() -> Finding:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    cores = len(os.sched_getaffinity(0))
    found = f"{cores} cores, {memory:.0f} GiB memory, {platform.platform(terse=True)}"
    if cores < 2:
        return Finding("machine", "warn", found, "50 Hz control beside inference wants two cores")
    return Finding("machine", "ok", found)


def _input() -> Finding:
    """Pedals are read, and tests make one up, through the kernel's input devices."""
    devices = sorted(Path("/dev/input").glob("event*"))
    readable = [device for device in devices if os.access(device, os.R_OK)]
    uinput = "writable" if os.access("/dev/uinput", os.W_OK) else "not writable"
    found = f"{len(readable)} of {len(devices)} input devices readable, /dev/uinput {uinput}"
    if devices and not readable:
        return Finding("pedal", "warn", found, "sudo usermod -aG input $USER, and log in again")
    if not readable:
        return Finding("pedal", "warn", found, "for takeovers by hand plug a pedal or keyboard in")
    return Finding("pedal", "ok", found)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    found = f"{free:.1f} GiB free in {Path.cwd()}"
    if free < NEEDED_GIB:
        return Finding("disk", "warn", found, f"a demo run wants {NEEDED_GIB:.0f} GiB")
    return Finding("disk", "ok", found)
