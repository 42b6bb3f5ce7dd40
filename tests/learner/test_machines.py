"""Bags converted here, in worker processes and on a Ray cluster: the same store; a worker killed in mid-bag
costs time and nothing else."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from recap_learner.data.episodes import amend_bags, convert_bags
from recap_learner.data.machines import RETRIES, Lost, MachinesError, spread
from recap_station.bag_reader import BagReader

sys.path.append(str(Path(__file__).parent))
from attempt_bag import make_bag

pytestmark = pytest.mark.alone


def make_bags(folder: Path, count: int = 5) -> Path:
    for number in range(count):
        make_bag(folder / f"attempt{number}", number)
    (folder / "broken").mkdir()
    (folder / "broken" / "broken_0.mcap").write_bytes(b"nothing of the kind")
    make_bag(folder / "again" / "attempt1", 100)  # of the name of another
    return folder


def make_one_long(folder: Path) -> list[Path]:
    """The second of four bags takes long enough to be caught at."""
    return [make_bag(folder / f"attempt{k}", k, 20_000 if k == 1 else 60) for k in range(4)]


def content(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.glob("*.parquet")}


def open_in(file: Path, but: int) -> list[int]:
    """Processes that have a file open."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != but:
            with suppress(OSError):
                if any(os.readlink(one) == str(file) for one in (process / "fd").iterdir()):
                    found.append(int(process.name))
    return found


@contextmanager
def killer(file: Path, unless: Path, times: int) -> Iterator[list[int]]:
    """Kills, so many times, a process that is reading `file`, in the middle: `unless` is not there yet."""
    killed: list[int] = []
    over = threading.Event()

    def hunt() -> None:
        while len(killed) < times and not over.is_set():
            for process in open_in(file, os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)
                    in_the_middle = process in open_in(file, os.getpid()) and not unless.exists()
                    os.kill(process, signal.SIGKILL if in_the_middle else signal.SIGCONT)
                    if in_the_middle:
                        killed.append(process)
                        time.sleep(0.05)
            time.sleep(0.001)

    thread = threading.Thread(target=hunt)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Ray cluster of this machine, of two workers."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (requirements-machines.txt)")
    folder = Path("/tmp") / f"recap-ray-{os.getpid()}"  # short: Ray's sockets lie below it
    code = (
        "import ray, sys; c = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20,"
        "_temp_dir=sys.argv[1]); print(c.address_info['gcs_address'], flush=True); sys.stdin.read()"
    )
    with pytest.MonkeyPatch.context() as patched:  # before Ray is imported, which looks at it then
        patched.setenv("RAY_AUTH_MODE", "token")
        patched.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        head = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ""},
        )  # fmt: skip
        assert head.stdin and head.stdout
        try:
            address = next((line.strip() for line in head.stdout if line[0].isdecimal()), "")
            assert address, "Ray did not start"
            yield address
        finally:
            head.stdin.close()
            head.wait(60)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["processes", "ray"])
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "processes":
        return {"workers": 2}
    return {"ray": request.getfixturevalue("cluster")}


def test_the_store_is_the_same_byte_for_byte_wherever_it_is_made(tmp_path: Path, how: dict[str, Any]) -> None:
    bags = make_bags(tmp_path / "bags")
    given = [bags, bags / "again"]
    alone, wrong = convert_bags(given, tmp_path / "alone")
    seen: list[float] = []
    there, wrong_there = convert_bags(given, tmp_path / "there", lambda f, note: seen.append(f), **how)
    assert [file.name for file in there] == [file.name for file in alone] and len(alone) == 5
    assert [line.replace("/there/", "/alone/") for line in wrong_there] == wrong and len(wrong) == 2
    assert content(tmp_path / "there") == content(tmp_path / "alone")
    assert seen == sorted(seen) and seen[-1] == 1.0
    times = {file: file.stat().st_mtime_ns for file in there}
    convert_bags(given, tmp_path / "there", **how)  # nothing is done twice
    assert times == {file: file.stat().st_mtime_ns for file in there}


def test_a_worker_killed_in_mid_bag_is_replaced_and_the_bag_done(tmp_path: Path, how: dict[str, Any]) -> None:
    bags = make_one_long(tmp_path / "bags")
    convert_bags(bags, tmp_path / "alone")
    store = tmp_path / "there"
    with killer(bags[1] / "attempt1_0.mcap", store / "attempt1.episode.parquet", times=RETRIES) as killed:
        files, problems = convert_bags(bags, store, **how)
    assert len(killed) == RETRIES
    assert problems == [] and len(files) == 4
    assert content(store) == content(tmp_path / "alone")


def test_a_bag_that_kills_every_worker_is_named_and_the_others_are_done(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    bags = make_one_long(tmp_path / "bags")
    store = tmp_path / "there"
    with killer(bags[1] / "attempt1_0.mcap", store / "attempt1.episode.parquet", times=RETRIES + 1) as killed:
        files, problems = convert_bags(bags, store, **how)
    assert len(killed) == RETRIES + 1 and len(files) == 3
    assert len(problems) == 1 and str(bags[1]) in problems[0] and "every worker" in problems[0]


def test_bags_are_labelled_wherever_it_is_done(tmp_path: Path, how: dict[str, Any]) -> None:
    bags = make_bags(tmp_path / "bags", 3)
    done, problems = amend_bags([bags], {"recap.outcome": "failure", "recap.reason": "dropped"}, **how)
    assert [bag.name for bag in done] == ["attempt0", "attempt1", "attempt2"]
    assert len(problems) == 1 and "broken" in problems[0]
    assert all(BagReader(bag).metadata["recap.outcome"] == "failure" for bag in done)


def dies(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def fails(item: int) -> int:
    raise OSError(28, "No space left on device", "/store")


def test_what_a_worker_died_of_is_said() -> None:
    found = dict(spread(dies, range(6), workers=2))
    assert found == {0: 0, 1: 1, 2: 4, 3: Lost("by SIGKILL"), 4: 16, 5: 25}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_is_raised(workers: int) -> None:
    with pytest.raises(OSError, match="No space left"):
        list(spread(fails, range(4), workers=workers))


def test_no_cluster_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MachinesError, match=r"not installed; .*pip install .*requirements-machines\.txt"):
        list(spread(dies, [1], ray="auto"))
    monkeypatch.undo()
    pytest.importorskip("ray", reason="Ray is not installed (requirements-machines.txt)")
    for address, said in (
        ("127.0.0.1:9", "nobody answers there"),
        ("nowhere.invalid:6379", "nobody answers there"),
        ("here", "wanted HOST:PORT"),
    ):
        with pytest.raises(MachinesError, match=said):
            list(spread(dies, [1], ray=address))
