"""Batches: what is in them, that only the seed decides their order, and that they go on where they were."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch

from recap_learner.data.drawn_images import DrawnImages
from recap_learner.data.episodes import ConversionError, convert_bags
from recap_learner.data.frames import load_frames
from recap_learner.data.image_index import PictureReader, locate_images
from recap_learner.data.images import decode, jpeg_size
from recap_learner.data.loader import LoaderConfig, TrainingLoader
from recap_learner.data.store import Store
from recap_station import topics
from recap_station.bags import BagReader, BagWriter
from recap_station.cdr import compressed_image, joint_state
from recap_station.contract import load_station, load_task

STATION, TASK = load_station("aloha"), load_task("handover_insert")
START, STEP, TICKS = 1_700_000_000_000_000_000, 20_000_000, 60
SMALL = LoaderConfig(batch=8, size=(24, 32), horizon=10, rate_hz=None, workers=0, cache_bytes=0)


def picture(shade: int) -> np.ndarray:
    """240×320, with edges and a shade that tells which it is."""
    image = np.full((240, 320, 3), shade, np.uint8)
    cv2.circle(image, (160, 120), 60, (shade, 255 - shade, 128), -1)
    return image


def shade_of(episode: int, tick: int, camera: int) -> int:
    return 60 * episode + tick // 5 * 4 + camera


def make_bag(folder: Path, number: int, outcome: str = "success") -> Path:
    bag = folder / f"attempt{number}"
    with BagWriter(bag, topics.recorded_topics(STATION), topics.LATCHED) as writer:
        for tick in range(TICKS):
            now = START + tick * STEP
            for topic in (topics.JOINT_STATES, topics.JOINT_COMMAND):
                value = [number + tick / 100] * STATION.dof
                writer.write(topic, now, joint_state(now, STATION.joint_names, value, "policy"))
            if tick % 5 == 0:
                for index, camera in enumerate(STATION.camera_names):
                    jpeg = cv2.imencode(".jpg", picture(shade_of(number, tick, index)))[1].tobytes()
                    writer.write(topics.image_topic(camera), now, compressed_image(now, jpeg, camera))
        contract = {"recap.station": json.dumps(STATION.to_dict()), "recap.task": json.dumps(TASK.to_dict())}
        writer.set_metadata({**contract, "recap.outcome": outcome})
    return bag


@pytest.fixture
def store(tmp_path: Path) -> Store:
    bags = [make_bag(tmp_path / "bags", number) for number in range(3)]
    files, problems = convert_bags(bags, tmp_path / "store")
    assert len(files) == 3 and not problems
    return Store(tmp_path / "store")


def epoch(loader: TrainingLoader) -> list[tuple[np.ndarray, ...]]:
    return [(b.episode.numpy(), b.tick.numpy(), b.images.numpy(), b.chunk.numpy()) for b in loader]


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)
    )


def test_a_sample_is_the_images_state_and_commands_of_its_tick(store):
    with TrainingLoader(store, SMALL) as loader:
        seen = set()
        for batch in loader:
            assert batch.images.shape == (8, len(STATION.camera_names), 24, 32, 3)
            assert batch.images.dtype == torch.uint8 and batch.chunk.shape == (8, 10, STATION.dof)
            assert batch.prompt == [TASK.prompt] * 8 and set(batch.indicator.tolist()) == {-1}
            for row, (e, tick) in enumerate(zip(batch.episode.tolist(), batch.tick.tolist(), strict=True)):
                seen.add((e, tick))
                assert batch.state[row, 0] == np.float32(e + tick / 100)
                ahead = np.minimum(tick + np.arange(10), TICKS - 1)
                np.testing.assert_allclose(batch.chunk[row, :, 0], e + ahead / 100, rtol=1e-6)
                for camera in range(len(STATION.camera_names)):
                    corner = batch.images[row, camera, :4, :4].float().mean().item()
                    assert corner == pytest.approx(shade_of(e, tick, camera), abs=1.5)
        assert len(seen) == 8 * len(loader) > 150  # every sample once


def test_the_order_is_the_seeds_and_neither_workers_nor_cache_change_it(store):
    with TrainingLoader(store, SMALL) as loader:
        first, second = epoch(loader), epoch(loader)
    assert not same(first, second)
    for how in (
        LoaderConfig(**{**SMALL.__dict__, "workers": 1, "cache_bytes": 40 * 24 * 32 * 3}),
        LoaderConfig(**{**SMALL.__dict__, "workers": 3, "prefetch": 1, "cache_bytes": 1 << 24}),
    ):
        with TrainingLoader(store, how) as loader:
            assert same(epoch(loader), first) and same(epoch(loader), second)
    with TrainingLoader(store, LoaderConfig(**{**SMALL.__dict__, "seed": 1})) as loader:
        assert not same(epoch(loader), first)


def test_it_goes_on_in_mid_epoch_after_the_last_batch_given(store):
    how = LoaderConfig(**{**SMALL.__dict__, "workers": 1})
    with TrainingLoader(store, how) as loader:
        whole = epoch(loader) + epoch(loader)
    with TrainingLoader(store, how) as loader:
        given = iter(loader)
        for _ in range(5):
            next(given)
        state = json.loads(json.dumps(loader.state_dict()))
    with TrainingLoader(store, SMALL) as loader:
        loader.load_state_dict(state)
        assert same(epoch(loader) + epoch(loader), whole[5:])


def test_a_state_of_other_data_is_refused(store):
    with TrainingLoader(store, SMALL) as loader:
        state = loader.state_dict()
    store.remove("attempt1")
    with TrainingLoader(store, SMALL) as loader, pytest.raises(ValueError, match="data and settings"):
        loader.load_state_dict(state)


def test_labels_of_the_tag_are_the_indicator_and_others_are_unlabelled(store):
    positive = np.arange(TICKS) % 2 == 0
    store.save_labels("run1", "attempt0", {"indicator": positive}, {})
    with TrainingLoader(store, LoaderConfig(**{**SMALL.__dict__, "tag": "run1"})) as loader:
        for batch in loader:
            of_first = batch.episode == 0
            expected = torch.where(of_first, (batch.tick % 2 == 0).long(), -1)
            assert torch.equal(batch.indicator.long(), expected)
    store.save_labels("run1", "attempt0", {"indicator": positive[:9]}, {})
    with pytest.raises(ValueError, match="9 ticks, the episode has 60"):
        TrainingLoader(store, LoaderConfig(**{**SMALL.__dict__, "tag": "run1"}))


@pytest.mark.parametrize("size", [(96, 96), (224, 224), (60, 80)])
def test_decoding_at_a_reduced_scale_is_close_to_decoding_whole(size):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    scene = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
    cv2.putText(scene, "RECAP", (80, 260), cv2.FONT_HERSHEY_SIMPLEX, 5, (250, 250, 250), 12)
    jpeg = cv2.imencode(".jpg", scene, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    assert jpeg_size(jpeg) == (480, 640)
    whole = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    wanted = cv2.resize(whole, size[::-1], interpolation=cv2.INTER_AREA)
    given = np.zeros((2, *size, 3), np.uint8)
    decode(jpeg, size, given[1])
    off = np.abs(given[1].astype(int) - wanted)
    assert off.mean() < 2.0 and off.max() < 48


def test_images_are_read_in_place_and_are_the_bytes_recorded(store):
    episode = store.load("attempt1")
    tables = locate_images(episode, store.folder)
    bag = (store.folder / episode.info.bag).resolve()
    assert {file.resolve().parent for table in tables.values() for file in table.files} == {bag}
    camera = STATION.camera_names[1]
    table = tables[camera]
    reader = PictureReader(table.files, most=1)
    messages = [cdr for _, _, cdr in BagReader(bag).messages([topics.image_topic(camera)])]
    for number, cdr in enumerate(messages):
        data = reader.read(table.file[number], table.offset[number], table.length[number])
        assert data[:2] == b"\xff\xd8" and cdr.endswith(data)
    reader.close()


@pytest.mark.parametrize("compression", ["ZSTD", "LZ4"])
def test_images_in_compressed_chunks_are_packed_once(store, tmp_path, compression):
    from mcap.reader import make_reader
    from mcap.writer import CompressionType, Writer

    episode = store.load("attempt0")
    before = {c: _bytes(t) for c, t in locate_images(episode, store.folder).items()}
    [file] = (store.folder / episode.info.bag).glob("*.mcap")
    copy = tmp_path / "copy.mcap"
    with file.open("rb") as source, copy.open("wb") as target:
        writer = Writer(target, compression=getattr(CompressionType, compression))
        writer.start(profile="ros2", library="test")
        channels: dict[int, int] = {}
        reader = make_reader(source)
        for schema, channel, message in reader.iter_messages():
            if channel.id not in channels:
                schema_id = writer.register_schema(schema.name, schema.encoding, schema.data)
                channels[channel.id] = writer.register_channel(channel.topic, "cdr", schema_id)
            writer.add_message(channels[channel.id], message.log_time, message.data, message.publish_time)
        writer.finish()
    copy.replace(file)
    tables = locate_images(episode, store.folder)
    assert {f.parent for t in tables.values() for f in t.files} == {store.folder / "images"}
    assert {c: _bytes(t) for c, t in tables.items()} == before


def _bytes(table) -> list[bytes]:
    reader = PictureReader(table.files)
    return [bytes(reader.read(*place)) for place in zip(table.file, table.offset, table.length, strict=True)]


def test_a_bag_that_was_cut_since_is_named(store):
    with TrainingLoader(store, LoaderConfig(**{**SMALL.__dict__, "workers": 1})) as loader:
        [file] = (store.folder.parent / "bags" / "attempt2").glob("*.mcap")
        with file.open("r+b") as opened:
            opened.truncate(5000)
        with pytest.raises(ConversionError, match=r"attempt2_0\.mcap: wanted \d+ bytes .* it was cut since"):
            epoch(loader)
            epoch(loader)


def test_a_batch_that_could_not_be_read_is_the_next_one_when_it_can(store):
    [file] = (store.folder.parent / "bags" / "attempt2").glob("*.mcap")
    content = file.read_bytes()
    how = LoaderConfig(**{**SMALL.__dict__, "workers": 2})
    with TrainingLoader(store, SMALL) as loader:
        whole = epoch(loader)
    with TrainingLoader(store, how) as loader:
        given = []
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ConversionError, match="it was cut since"):
            for batch in loader:
                given.append(batch.tick.numpy())
        assert loader.batch == len(given) < len(whole)
        file.write_bytes(content)
        given += [batch.tick.numpy() for batch in loader]
    assert [list(ticks) for ticks in given] == [list(ticks) for _, ticks, _, _ in whole]


def test_an_image_of_another_moment_at_its_place_is_not_taken_for_it(store):
    """A bag that was written anew may have any image there: the stamps tell."""
    episode, camera = store.load("attempt0"), STATION.camera_names[0]
    age = {**episode.image_age, camera: episode.image_age[camera] + np.float32(0.1)}
    tables = locate_images(replace(episode, image_age=age), store.folder)
    assert [c for c, t in tables.items() if t.files[0].parent.name == "images"] == [camera]


def test_a_worker_that_is_killed_is_an_error_and_not_a_wait(store):
    others = set(psutil.Process().children())  # of tests before
    with TrainingLoader(store, LoaderConfig(**{**SMALL.__dict__, "workers": 2})) as loader:
        given = iter(loader)
        next(given)
        for child in set(psutil.Process().children()) - others:
            child.kill()
        with pytest.raises(RuntimeError, match=r"worker \d of the loader died with exit code -9"):
            list(given)
    assert set(psutil.Process().children()) <= others


def test_what_a_killed_loader_left_is_removed_and_what_another_uses_is_not(store, tmp_path):
    def folder_of(loader: TrainingLoader) -> Path:
        return loader._folder.path

    with TrainingLoader(store, SMALL) as other:
        left = folder_of(other).with_name(f"recap-loader-left{os.getpid()}")
        left.mkdir()
        (left / "lock").touch()
        for folder in (left, folder_of(other)):
            os.utime(folder / "lock", (1e9, 1e9))
        with TrainingLoader(store, SMALL) as loader:
            assert not left.exists() and folder_of(other).exists() and len(epoch(loader)) == len(loader)
        assert len(epoch(other)) == len(other)
    assert not folder_of(other).exists()


def test_workers_do_not_import_the_training_script(store, tmp_path):
    """Which would start it anew where it has no `if __name__ == "__main__"`, and torch with it."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, psutil, sys\n"
        "from recap_learner.data.loader import LoaderConfig, TrainingLoader\n"
        "from recap_learner.data.store import Store\n"
        "how = LoaderConfig(batch=8, size=(24, 32), horizon=10, workers=1)\n"
        "with TrainingLoader(Store(sys.argv[1]), how) as loader:\n"
        "    batch = next(iter(loader))\n"
        "    [worker] = psutil.Process().children()\n"
        "    loaded = {m.path for m in worker.memory_maps()}\n"
        "    print(len(batch.tick), any('torch' in path for path in loaded))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(store.folder)],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("8 False\n", 0), done.stderr


def test_discarded_attempts_are_left_out_and_nothing_at_all_is_an_error(tmp_path):
    convert_bags([make_bag(tmp_path / "bags", 0, "discarded")], tmp_path / "store")
    with pytest.raises(ValueError, match="no episode that is not discarded"):
        TrainingLoader(Store(tmp_path / "store"), SMALL)


def test_a_camera_without_any_image_is_no_obstacle_to_finding_the_others(store):
    episode, silent = store.load("attempt0"), STATION.camera_names[2]
    none = np.full(TICKS, -1, np.int32)
    places = {**episode.image_at, silent: np.full((TICKS, 4), -1)}
    tables = locate_images(
        replace(episode, image={**episode.image, silent: none}, image_at=places), store.folder
    )
    assert {camera: len(table) for camera, table in tables.items()} == {
        camera: 0 if camera == silent else TICKS // 5 for camera in STATION.camera_names
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_training_draws_is_read_wherever_it_starts(store, workers):
    frames = load_frames(store.files(), None).where(np.arange(5, 30))
    assert frames.tokens.size == 0

    def drawn(step: int) -> np.ndarray:
        return np.random.default_rng(step).integers(0, len(frames), 8)

    how, parts = replace(SMALL, batch=5, workers=workers), [slice(0, 5), slice(5, 8)]
    asked = [(0, parts[0]), (0, parts[1]), (1, parts[0]), (7, parts[1]), (8, parts[0]), (8, slice(2, 3))]
    images = DrawnImages(frames, how, drawn, parts)
    try:
        for step, rows in asked:  # in order, then in the middle, then one alone
            read = images.take(step, rows)
            picks = drawn(step)[rows]
            assert len(read["images"]) == len(picks) == rows.stop - rows.start
            for row, pick in enumerate(picks):
                number = frames.episodes[frames.episode[pick]].info.id.removeprefix("attempt")
                e, tick = int(number), int(frames.tick[pick])
                for camera in range(len(STATION.camera_names)):
                    corner = read["images"][row, camera, :4, :4].astype(float).mean()
                    assert corner == pytest.approx(shade_of(e, tick, camera), abs=1.5)
                assert read["state"][row, 0] == np.float32(e + tick / 100)
                ahead = np.minimum(tick + np.arange(10), TICKS - 1)
                np.testing.assert_allclose(read["chunk"][row, :, 0], e + ahead / 100, rtol=1e-6)
    finally:
        images.close()
    with pytest.raises(ValueError, match="frames without a store"):
        DrawnImages(replace(frames, store=None), how, drawn, parts)
