"""A store keeps what it had or what was put in, whoever writes and whenever they are killed."""

import multiprocessing
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recap_learner.data.episodes import ConversionError
from recap_learner.data.judgements import say
from recap_learner.data.store import INDEX, Store

sys.path.append(str(Path(__file__).parent))
from store_writer import episode, write_forever


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [p for p in folder.rglob("*.parquet") if p.name != INDEX]
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_one_episode_more_or_less_rewrites_no_other(tmp_path):
    store = Store(tmp_path)
    for number in range(3):
        store.add(episode(f"e{number}"))
        store.save_labels("run", f"e{number}", {"indicator": np.ones(20, bool)}, {})
    before = state_of(tmp_path)
    store.add(episode("e3", 30))
    store.save_labels("run", "e1", {"indicator": np.zeros(20, bool)}, {})
    store.remove("e0")
    after = state_of(tmp_path)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {"e0.episode.parquet", "e0.parquet", "e3.episode.parquet", "e1.parquet"}
    assert [(e.id, e.ticks) for e in store.index()[0]] == [("e1", 20), ("e2", 20), ("e3", 30)]


def test_the_index_reads_only_what_changed(tmp_path, monkeypatch):
    from recap_learner.data import store as module

    store = Store(tmp_path)
    for number in range(3):
        store.add(episode(f"e{number}"))
    store.index()
    read = []
    real = module._summary
    monkeypatch.setattr(module, "_summary", lambda file: read.append(file.name) or real(file))
    assert len(store.index()[0]) == 3 and not read
    store.add(episode("e1", 25))  # as large, and within the clock's step perhaps
    assert [e.ticks for e in store.index()[0]] == [20, 25, 20] and read == ["e1.episode.parquet"]


@pytest.mark.parametrize("damage", [b"", b"no parquet", None])
def test_a_lost_or_damaged_index_costs_nothing_but_time(tmp_path, damage):
    store = Store(tmp_path)
    store.add(episode("e0"))
    wanted = store.index()
    (tmp_path / INDEX).unlink()
    if damage is not None:
        (tmp_path / INDEX).write_bytes(damage)
    assert store.index() == wanted


def test_a_file_that_is_no_episode_is_named_and_the_others_are_there(tmp_path):
    store = Store(tmp_path)
    store.add(episode("good"))
    (tmp_path / "bad.episode.parquet").write_bytes(b"\0" * 100)
    entries, problems = store.index()
    assert [e.id for e in entries] == ["good"]
    assert len(problems) == 1 and "bad.episode.parquet" in problems[0] and "\n" not in problems[0]


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "nul\0"])
def test_a_name_that_leads_out_of_the_store_is_refused(tmp_path, name):
    with pytest.raises(ConversionError, match="wanted a name"):
        Store(tmp_path / "store").add(replace(episode("e"), info=replace(episode("e").info, id=name)))


@pytest.mark.parametrize("name", ["with space", "第一次尝试", "br[ack]et*?"])
def test_names_of_all_kinds_come_back_and_go(tmp_path, name):
    store = Store(tmp_path)
    store.add(episode(name))
    store.add(episode("other"))
    store.save_labels("run", name, {"value": np.zeros(20)}, {})
    assert store.load(name).info.id == name
    store.remove(name)
    assert store.load_labels("run", name) is None and [e.id for e in store.index()[0]] == ["other"]


def test_labels_of_an_episode_that_is_gone_are_not_those_of_its_successor(tmp_path):
    store = Store(tmp_path)
    store.add(episode("e"))
    store.save_labels("run", "e", {"value": np.zeros(20)}, {})
    store.path("e").unlink()  # a removal that was killed half-way
    store.add(episode("e"))
    assert store.load_labels("run", "e") is None


def test_people_overrule_the_recorded_outcome(tmp_path):
    store = Store(tmp_path)
    store.add(episode("e"))
    say(tmp_path, "ana", "e", "outcome", outcome="failure", reason="peg dropped")
    say(tmp_path, "ana", "e", "stage", stage="lift", tick=5)
    loaded = store.load("e")
    assert (loaded.info.outcome, loaded.info.reason) == ("failure", "peg dropped")
    assert list(loaded.stage[[0, 4, 5, 19]]) == ["policy", "policy", "lift", "lift"]


@pytest.mark.parametrize("writers", [1, 2])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path, writers):
    store, rng, seen = Store(tmp_path / "store"), random.Random(writers), 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["store_writer"])
    running: list = []
    at_work = context.Semaphore(0)
    deadline = time.monotonic() + 60  # on a slow machine fewer rounds will do
    for _ in range(8):
        while len(running) < writers:
            running.append(context.Process(target=write_forever, args=(store.folder, at_work)))
            running[-1].start()
            assert at_work.acquire(timeout=120)
        time.sleep(rng.uniform(0.02, 0.15))
        victim = running.pop(0)
        victim.kill()
        victim.join()
        for _ in range(3):
            entries, problems = store.index()
            assert not problems and all(e.id == "e" and 10 <= e.ticks <= 16 for e in entries)
            try:
                loaded = store.load("e")
            except FileNotFoundError:
                continue
            seen += 1
            assert (loaded.state == len(loaded)).all()  # of one write, whole
            if (labels := store.load_labels("run", "e")) is not None:
                assert (labels["value"] == len(labels["value"])).all()
        if time.monotonic() > deadline and seen:
            break
    for writer in running:
        writer.kill()
        writer.join()
    assert seen
    store.add(episode("e", 40))  # a lock dies with its holder
    assert len(store.load("e")) == 40


def test_what_is_put_in_is_on_the_disk_before_and_after_its_name_is(tmp_path, monkeypatch):
    """A power cut cannot be had here; the order of the system calls that outlast one can."""
    calls: list[tuple[str, str]] = []
    sync, put = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        sync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        calls.append(("replace", target.name))
        put(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replaced)
    store = Store(tmp_path / "store")
    store.add(episode("e"))
    part = f".e.episode.parquet.{os.getpid()}"
    assert calls == [("fsync", part), ("replace", "e.episode.parquet"), ("fsync", "store")]
    store.index()
    assert calls[3:] == [("replace", "index.parquet")]  # made anew where it is damaged
    say(store.folder, "ana", "e", "failed", tick=3)
    assert calls[4:] == [("fsync", "store"), ("fsync", "judgements.jsonl")]
