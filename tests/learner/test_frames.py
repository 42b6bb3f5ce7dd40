"""Frames of a store: what people said of its attempts comes with them."""

from dataclasses import replace

import numpy as np

from recap_learner.data import frames as module
from recap_learner.data.frames import load_frames
from recap_learner.data.judgements import say
from recap_learner.data.samples import frame_ticks
from recap_learner.data.store import Store
from recap_policy.checkpoint import vision_identity


def test_outcomes_and_marks_of_failure_come_with_the_frames(frames, vision, tmp_path) -> None:
    store = Store(tmp_path)
    tokens = store.folder / "tokens" / vision_identity(vision)
    tokens.mkdir(parents=True)
    files = []
    for episode in frames.episodes[:3]:
        cameras = episode.info.station.camera_names
        image = {camera: np.arange(len(episode), dtype=np.int32) for camera in cameras}
        none = np.full((len(episode), 4), -1)
        age = {camera: np.zeros(len(episode), np.float32) for camera in cameras}
        places = {camera: none for camera in cameras}
        seen = replace(episode, image=image, image_age=age, image_at=places)
        files.append(store.add(seen))
        # as if the tower had seen it
        np.save(module._cache(tokens, files[-1]), np.zeros((len(frame_ticks(seen)), 3, 2, 96), np.float16))
    say(store.folder, "ana", "e0", "failed", tick=120)
    say(store.folder, "ana", "e1", "outcome", outcome="failure")
    found = load_frames(files, vision)
    assert found.failed_at == {"e0": 120}
    assert [e.info.outcome for e in found.episodes] == ["failure", "failure", "failure"]
    assert found.where(np.arange(5)).failed_at == found.failed_at
