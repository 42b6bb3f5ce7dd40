"""Bags and stores in an object store: what is read, put in place and said there is as in folders. Against
moto's server, by s3fs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recap_learner.data.episodes import amend_bags, convert_bags, find_bags, load_episode
from recap_learner.data.judgements import JudgementError, say, undo
from recap_learner.data.store import Store
from recap_station import storage
from recap_station.bag_reader import BagReader
from recap_station.contract import ContractError
from recap_station.files import replace_file, write_json

sys.path.append(str(Path(__file__).parent))
from attempt_bag import make_bag
from test_loader import SMALL, epoch, same
from test_loader import make_bag as film


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server with the bucket "lab", and the environment by which it is found."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (requirements-machines.txt)")
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    address = f"http://127.0.0.1:{running.get_host_and_port()[1]}"
    given = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {**given, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            patched.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir("lab")
        yield address
    running.stop()


@pytest.fixture
def lab(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of its own in the bucket."""
    monkeypatch.setenv("RECAP_CACHE", str(tmp_path / "cache"))
    return storage.path(f"s3://lab/{tmp_path.name}")


def upload(folder: Path, to: Path) -> Path:
    for file in folder.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            replace_file(to / file.relative_to(folder), lambda t, data=data: t.write_bytes(data))
    return to


def content(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.glob("*.episode.parquet")}


def test_bags_and_store_there_give_the_ticks_of_bags_and_store_here(lab: Path, tmp_path: Path) -> None:
    here = tmp_path / "bags"
    for number in range(3):
        make_bag(here / f"attempt {number} 日", number)
    (here / "broken").mkdir()
    (here / "broken" / "broken_0.mcap").write_bytes(b"nothing of the kind")
    there = upload(here, lab / "bags")
    local, _ = convert_bags([here], tmp_path / "store")
    remote, problems = convert_bags([Path(str(there))], Path(str(lab / "store")), workers=2)  # as typed
    assert [file.name for file in remote] == [file.name for file in local] and len(local) == 3
    assert len(problems) == 1 and "broken" in problems[0]
    for one, other in zip(remote, local, strict=True):
        found, wanted = load_episode(one), load_episode(other)
        assert found.info.bag == wanted.info.bag == f"../bags/{found.info.id}"
        for name in ("time_ns", "state", "command", "source", "gap"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    before = {file: file.stat().st_mtime_ns for file in remote}, content(lab / "store")
    assert convert_bags([there], lab / "store")[0] == remote  # nothing is done twice
    assert ({file: file.stat().st_mtime_ns for file in remote}, content(lab / "store")) == before
    assert not list(Path("/tmp").glob("recap-fetched-*/trees"))


@pytest.mark.parametrize("where", ["bags there", "store there"])
def test_bags_and_store_in_different_places(lab: Path, tmp_path: Path, where: str) -> None:
    bag, store = make_bag(tmp_path / "bags" / "one", 0), lab / "store"
    if where == "bags there":
        bag, store = upload(bag, lab / "one"), tmp_path / "store"
    [file], problems = convert_bags([bag], store)
    assert problems == []
    place = load_episode(file).info.bag_in(store)
    assert place == bag and BagReader(place).metadata["recap.outcome"] == "success"
    assert convert_bags([bag], store)[0] == [file]


def test_a_new_outcome_there_is_converted_anew_within_the_same_second(lab: Path, tmp_path: Path) -> None:
    bag = upload(make_bag(tmp_path / "bags" / "one", 0), lab / "bags" / "one")
    [file], _ = convert_bags([bag], lab / "store")
    assert amend_bags([lab / "bags"], {"recap.outcome": "failure"}) == ([bag], [])
    convert_bags([bag], lab / "store")
    assert load_episode(file).info.outcome == "failure"


def test_a_store_there_is_listed_labelled_and_judged(lab: Path, tmp_path: Path) -> None:
    for number in range(2):
        make_bag(tmp_path / "bags" / f"e{number}", number)
    convert_bags([tmp_path / "bags"], lab / "store")
    store = Store(lab / "store")
    assert [(entry.id, entry.outcome) for entry in store.index()[0]] == [("e0", "success"), ("e1", "success")]
    ticks = len(store.load("e0"))
    store.save_labels("run", "e0", {"indicator": np.ones(ticks, bool)}, {})
    say(store.folder, "ana", "e0", "outcome", outcome="failure", reason="peg dropped")
    say(store.folder, "ben", "e1", "outcome", outcome="discarded")
    undo(store.folder, "ben", "e1")
    with pytest.raises(JudgementError, match="nothing was said"):
        undo(store.folder, "ben", "e1")
    again = Store(Path(str(lab / "store")))  # as another process sees it
    assert again.load("e0").info.outcome == "failure" and again.load("e1").info.outcome == "success"
    labels = again.load_labels("run", "e0")
    assert labels is not None and labels["indicator"].all() and again.tags() == ["run"]
    again.remove("e0")
    assert [entry.id for entry in again.index()[0]] == ["e1"] and again.load_labels("run", "e0") is None


def test_the_index_there_reads_only_what_changed(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recap_learner.data import store as module

    bag = make_bag(tmp_path / "bags" / "e0", 0)
    make_bag(tmp_path / "bags" / "e1", 1)
    convert_bags([tmp_path / "bags"], lab / "store")
    store = Store(lab / "store")
    store.index()
    read: list[str] = []
    real = module._summary
    monkeypatch.setattr(module, "_summary", lambda file: read.append(file.name) or real(file))
    assert len(store.index()[0]) == 2 and not read
    amend_bags([bag], {"recap.outcome": "failure"})
    convert_bags([tmp_path / "bags"], lab / "store")
    assert [entry.outcome for entry in store.index()[0]] == ["failure", "success"]
    assert read == ["e0.episode.parquet"]


def test_a_store_there_gives_the_batches_of_one_here(lab: Path, tmp_path: Path) -> None:
    from recap_learner.data.loader import TrainingLoader

    here = [film(tmp_path / "bags", number) for number in range(2)]
    there = upload(tmp_path / "bags", lab / "bags")
    convert_bags(here, tmp_path / "store")
    convert_bags([there], lab / "store")
    epochs = []
    for store in (Store(tmp_path / "store"), Store(lab / "store")):
        with TrainingLoader(store, SMALL) as loader:
            epochs.append(epoch(loader))
    assert len(epochs[0]) > 1 and same(*epochs)


def test_of_two_who_judge_at_once_both_are_heard(lab: Path) -> None:
    store = lab / "store"
    threads = [
        threading.Thread(target=lambda n=n: [say(store, f"p{n}", "e", "failed", tick=k) for k in range(4)])
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = Store(store).judgements()["e"].log
    assert [entry["id"] for entry in log] == list(range(1, 9))
    for who in ("p0", "p1"):
        assert [entry["tick"] for entry in log if entry["who"] == who] == [0, 1, 2, 3]


def test_what_was_fetched_is_fetched_again_only_when_it_changes(lab: Path) -> None:
    write_json(lab / "a.json", [1])
    first = Path(os.fspath(lab / "a.json"))
    inode = first.stat().st_ino
    assert json.loads(first.read_text()) == [1]
    assert Path(os.fspath(lab / "a.json")).stat().st_ino == inode
    write_json(lab / "a.json", [2])
    assert json.loads((lab / "a.json").open().read()) == [2] and json.loads(first.read_text()) == [1]
    with pytest.raises(storage.StorageError, match="put in place whole"):
        (lab / "a.json").open("a")
    with pytest.raises(FileNotFoundError):
        os.fspath(lab / "b.json")


@pytest.mark.parametrize(
    ("change", "where", "said"),
    [
        ({}, "s3://nobody/bags", "there is no bucket 'nobody'"),
        ({}, "s3://lab/nothing", "wanted a bag or a folder of bags, found none"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "s3://lab/bags", "no credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://lab/bags", "127.0.0.1:9"),
    ],
)
def test_what_is_wrong_is_one_line(
    server: str, tmp_path: Path, change: dict[str, str | None], where: str, said: str
) -> None:
    """In a process of its own: a connection that was made goes on with the credentials that it had."""
    environment = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path), **change}
    done = subprocess.run(
        [sys.executable, "-m", "recap", "convert", where, "--store", str(tmp_path / "store")],
        env={k: v for k, v in environment.items() if v is not None}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("recap: ") and done.stderr.count("\n") == 1
    assert said in done.stderr and where in done.stderr


def test_a_store_in_a_bucket_that_is_missing_is_one_line(server: str, tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "one", 0)
    with pytest.raises(storage.StorageError, match="there is no bucket 'nobody'"):
        convert_bags([bag], storage.path("s3://nobody/store"))


# --- without a server -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("s3://lab/bags/one", "s3://lab/bags/one"),
        ("s3:/lab/bags", "s3://lab/bags"),  # as pathlib folds it
        ("s3://lab/bags/../store/", "s3://lab/store"),
        ("file:///data/bags", "/data/bags"),
        ("data/s3:/odd", "data/s3:/odd"),
        ("/data/bags", "/data/bags"),
    ],
)
def test_addresses(typed: str, meant: str) -> None:
    assert str(storage.path(typed)) == meant


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("sftp://host/bags", "wanted a path, or an address of s3"),
        ("s3://", "wanted a path|found no bucket"),
        ("s3://../x", "bucket"),
    ],
)
def test_addresses_that_cannot_be(typed: str, said: str) -> None:
    with pytest.raises(storage.StorageError, match=said):
        storage.path(typed)


def test_a_folder_named_as_an_address_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3:/bags").mkdir(parents=True)
    assert storage.path("s3:/bags") == Path("s3:/bags")


@pytest.mark.parametrize(
    ("store", "bag", "said"),
    [
        ("/a/store", "/a/bags/x", "../bags/x"),
        ("s3://lab/a/store", "s3://lab/a/bags/x", "../bags/x"),
        ("s3://lab/store", "s3://other/x", "s3://other/x"),
        ("/a/store", "s3://lab/x", "s3://lab/x"),
        ("s3://lab/store", "/a/bags/x", "file:///a/bags/x"),
    ],
)
def test_how_to_get_from_a_store_to_a_bag_and_back(store: str, bag: str, said: str) -> None:
    folder, place = storage.path(store), storage.path(bag)
    assert storage.relative_to(folder, place) == said
    assert storage.place_in(folder, said).resolve() == place


def test_without_the_library_it_is_said_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    pytest.importorskip("fsspec")
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises((storage.StorageError, ContractError), match=r"pip install .*machines\.txt"):
        find_bags([storage.path("s3://lab/bags")])


def test_a_conditional_put_is_refused_where_there_is_none() -> None:
    pytest.importorskip("fsspec")
    place: Any = storage.path("memory://lab/store")
    with pytest.raises(storage.StorageError, match="wanted s3"):
        say(place, "ana", "e", "failed", tick=1)
