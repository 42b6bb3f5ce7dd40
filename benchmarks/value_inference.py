"""Values for labelling: each image encoded once, in batches, against tick by tick. The last line is JSON.

    python benchmarks/value_inference.py [--seconds 6] [--plain-ticks 60] [--threads 1] [--device auto]
        [--precisions float32 bfloat16] [--batch 512]

One attempt of `--seconds` at 50 Hz with the station's cameras at their rate, by `tiny`'s image tower and
`value-tiny` with weights drawn at random. Ways, in turns:

- plain: at each tick all cameras' newest images through the tower and the value function, one tick at a time,
  float32; measured on the first `--plain-ticks` ticks of each turn
- once: each image through the tower once, in batches of 64; every tick through the value function, in
  batches; in each of the precisions
- frames: as once, at 10 frames a second, values of the ticks between them interpolated: what the learner does

`speedup` is ticks a second of `once`, in the precision that measured fastest, over `plain`'s, the median of
the turns; `frames_speedup` likewise. `difference`: the largest one of values between plain and once in
float32, `precision_difference`: between once in float32 and in the fastest. Wanted (`held`, and
exit 0): a speedup of at least 3.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext

import numpy as np
import torch

from recap_learner.data.episodes import Episode, EpisodeInfo
from recap_learner.data.frames import Frames
from recap_learner.data.samples import FRAME_HZ
from recap_learner.value.value_inference import outlook, per_tick
from recap_policy.device import CHOICES, RuntimeConfig, resolve
from recap_policy.sizes import value_config, vla_config
from recap_policy.text import TinyTokenizer
from recap_policy.value import ValueModel
from recap_policy.vision import VisionTower
from recap_station.contract import load_station, load_task

TURNS = 3


class Attempt:
    """Pictures of noise, which image of each camera belongs to each tick, and states."""

    def __init__(self, seconds: float, size: int) -> None:
        rng = np.random.default_rng(0)
        self.station, self.task = load_station("aloha"), load_task("handover_insert")
        self.ticks = round(seconds * self.station.control_rate_hz)
        self.index = np.stack(
            [
                np.arange(self.ticks) * camera.rate_hz / self.station.control_rate_hz
                for camera in self.station.cameras
            ],
            1,
        ).astype(int)
        counts = self.index.max(0) + 1
        self.images = [torch.from_numpy(rng.integers(0, 256, (n, size, size, 3), np.uint8)) for n in counts]
        wobble = rng.normal(0, 0.1, (self.ticks, self.station.dof))
        self.state = (self.station.home + wobble).astype(np.float32)

    def frames(self, tokens: np.ndarray, every: int) -> Frames:
        """Every so many ticks a frame. tokens: (T', C, P, W), of those ticks."""
        tick = np.arange(0, self.ticks, every)
        info = EpisodeInfo("e", "", "success", "", "rollout", "", 0, self.task, self.station)
        nothing = np.zeros(self.ticks, bool)
        words = np.full(self.ticks, "policy")
        episode = Episode(
            info, np.arange(self.ticks), self.state, self.state, self.state, self.state, words, nothing,
            words, nothing,
        )  # fmt: skip
        return Frames([episode], "", tokens, self.state[tick], np.zeros(len(tick), int), tick)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of the attempt")
    parser.add_argument("--plain-ticks", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", choices=CHOICES["device"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=CHOICES["dtype"])
    parser.add_argument("--batch", type=int, default=512)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device = resolve(RuntimeConfig(given.device, "float32", cuda_graphs="off")).device
    shape, small = vla_config("tiny"), value_config("value-tiny")
    attempt = Attempt(given.seconds, shape.vision.image_size)
    words = TinyTokenizer.fit([attempt.task.prompt], small.prefix.word_slots, small.prefix.action_codes)
    tower, model = VisionTower(shape.vision).to(device).eval(), ValueModel(small, words).to(device).eval()
    model.fit_normalizers(torch.from_numpy(attempt.state))
    prompt = [attempt.task.prompt]
    cameras = len(attempt.images)

    @torch.inference_mode()
    def plain() -> np.ndarray:
        values = []
        for tick in range(min(given.plain_ticks, attempt.ticks)):
            newest = torch.stack([attempt.images[c][attempt.index[tick, c]] for c in range(cameras)])
            features = tower(newest.to(device))[None]
            state = torch.from_numpy(attempt.state[tick : tick + 1]).to(device)
            values.append(float(model.value(features, state, prompt)[0]))
        return np.array(values)

    def encoded(index: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        by_camera = []
        half = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
        for camera in range(cameras):
            unique, back = np.unique(index[:, camera], return_inverse=True)
            images = attempt.images[camera][torch.from_numpy(unique)]
            with torch.inference_mode(), half:
                parts = [tower(images[i : i + 64].to(device)) for i in range(0, len(images), 64)]
            by_camera.append(torch.cat(parts).float().cpu().numpy()[back])
        return np.stack(by_camera, 1)

    def batched(dtype: torch.dtype, every: int) -> np.ndarray:
        frames = attempt.frames(encoded(attempt.index[::every], dtype), every)
        found = outlook([model], frames, batch=given.batch, precision=dtype)
        return per_tick(found.value, frames)["e"]

    asked = {p: resolve(RuntimeConfig(given.device, p, cuda_graphs="off")).dtype for p in given.precisions}
    every = round(attempt.station.control_rate_hz / FRAME_HZ)
    ways = {"plain": plain}
    for name, dtype in asked.items():
        ways[f"once {name}"] = lambda dtype=dtype: batched(dtype, 1)
        ways[f"frames {name}"] = lambda dtype=dtype: batched(dtype, every)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    values = {name: way() for name, way in ways.items()}  # and warm
    for _ in range(TURNS):
        for name, way in ways.items():
            begin = time.perf_counter()
            count = min(given.plain_ticks, attempt.ticks) if name == "plain" else attempt.ticks
            way()
            rates[name].append(count / (time.perf_counter() - begin))
    for name, found in rates.items():
        print(f"{name:18} {np.median(found):9.0f} ticks a second")

    def fastest(kind: str) -> tuple[str, float]:
        over = {p: float(np.median(np.array(rates[f"{kind} {p}"]) / np.array(rates["plain"]))) for p in asked}
        best = max(over, key=lambda p: over[p])
        return best, over[best]

    precision, speedup = fastest("once")
    _, frames_speedup = fastest("frames")
    reference = values.get("once float32", values[f"once {precision}"])
    near = np.abs(reference[: len(values["plain"])] - values["plain"]).max()
    result = {
        "speedup": round(speedup, 1),
        "frames_speedup": round(frames_speedup, 1),
        "precision": precision,
        "ticks_per_s": {name.replace(" ", "_"): round(float(np.median(r))) for name, r in rates.items()},
        "images": int(sum(len(images) for images in attempt.images)),
        "ticks": attempt.ticks,
        "difference": float(near),
        "precision_difference": float(np.abs(values[f"once {precision}"] - reference).max()),
        "device": device.type,
    }
    held = result["speedup"] >= 3.0
    print(json.dumps({**result, "held": held}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
