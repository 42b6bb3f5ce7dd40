"""Train one model on a store of episodes, in one process or in those that torchrun starts.

    python -m recap_learner.train policy --store episodes --vision runs/demo/pretrain/vision --out big/policy
    torchrun --nproc-per-node 8 -m recap_learner.train policy ... --strategy fsdp --precision bfloat16

Killed, the same command goes on from the last save in OUT/../training/, also with another number of
processes. Several machines need a file system that all of them see. docs/scale.md has the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from recap_learner.data.frames import Frames, load_frames
from recap_learner.data.store import Store
from recap_learner.training.distributed import STRATEGIES, Crew, join
from recap_learner.training.logs import WANDB
from recap_learner.training.policy_training import TOWERS, PolicyTraining, train_policy
from recap_learner.training.training import Schedule
from recap_learner.value.value_training import ValueTraining, train_value
from recap_policy.device import CHOICES

Training = PolicyTraining | ValueTraining


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(argv)
    if given.wandb:
        os.environ[WANDB] = given.wandb
    with join() as crew:
        try:
            report = run(given, crew)
        except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
            who = f"process {crew.rank}: " if crew.ranks > 1 else ""
            print(f"train: {who}{' '.join(str(error).split())}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("train: interrupted; the same command goes on from the last save", file=sys.stderr)
            return 130
        if crew.first:
            print(json.dumps(report))
    return 0


def run(given: argparse.Namespace, crew: Crew) -> dict[str, Any]:
    """Train what the command line asks for → what came of it. Raises what `fit` raises, and ValueError."""
    how = settings(given)
    if given.out.exists():
        return {"checkpoint": str(given.out), "done": "before"}
    store = Store(given.store)
    cached = isinstance(how, ValueTraining) or how.tower == "cached"
    if crew.first and cached:  # the tower is run over the images once; the other processes read what it saw
        load_frames(store.files(), given.vision)
    crew.wait()
    frames = load_frames(store.files(), given.vision if cached else None)
    used = [e.info.outcome != "discarded" for e in frames.episodes]
    frames = frames.without([i for i, use in enumerate(used) if not use])
    lineage = {
        "start": str(given.start or ""), "training": asdict(how), "seed": given.seed, "tag": given.tag,
        "episodes": [e.info.id for e in frames.episodes], "frames": len(frames),
    }  # fmt: skip

    def progress(fraction: float, note: str) -> None:
        print(f"{100 * fraction:5.1f} %  {note}", file=sys.stderr, flush=True)

    if isinstance(how, ValueTraining):
        found = train_value(frames, given.out, given.start, how, given.seed, lineage, progress).report
        return {"checkpoint": str(given.out), "frames": len(frames), **found.to_dict()}
    frames, indicator = labelled(frames, store, given.tag)
    log = train_policy(
        frames, indicator, given.out, given.start, given.vision, how, given.seed, lineage, progress
    )
    return {"checkpoint": str(given.out), "frames": len(frames), "first": log[0], "last": log[-1]}


def labelled(frames: Frames, store: Store, tag: str) -> tuple[Frames, np.ndarray]:
    """The frames at which somebody acted, and their indicators (F,) int8 under a tag; "": all positive.

    Raises ValueError where an episode has no labels.
    """
    acted = [frames.episodes[e].source[t] != "hold" for e, t in zip(frames.episode, frames.tick, strict=True)]
    frames = frames.where(np.array(acted))
    if not tag:
        return frames, np.ones(len(frames), np.int8)
    columns = {}
    for episode in frames.episodes:
        labels = store.load_labels(tag, episode.info.id)
        if labels is None:
            known = ", ".join(store.tags()) or "none"
            raise ValueError(
                f"{store.folder}: {episode.info.id} has no labels {tag!r} (tags: {known}); label the store"
            )
        columns[episode.info.id] = labels["indicator"]
    return frames, frames.per_tick(columns).astype(np.int8)


def settings(given: argparse.Namespace) -> Training:
    """What the options change of a model's usual training."""
    how: Training = PolicyTraining() if given.what == "policy" else ValueTraining()
    names = {f.name for f in Schedule.__dataclass_fields__.values()}
    options = {name: value for name, value in vars(given).items() if value is not None}
    schedule = replace(how.schedule, **{k: v for k, v in options.items() if k in names})
    own = {k: v for k, v in options.items() if k in how.__dataclass_fields__}
    return replace(how, schedule=schedule, **own)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recap_learner.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("policy", "value"))
    parser.add_argument("--store", type=Path, required=True, help="folder of episodes (./recap convert)")
    parser.add_argument("--vision", type=Path, required=True, help="checkpoint with the image tower")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; if there, done")
    parser.add_argument("--start", type=Path, help="checkpoint to fine-tune; none: a fresh model")
    parser.add_argument("--tag", default="", help="labels of the indicator; none: every frame is positive")
    parser.add_argument("--config", help="named configuration of a fresh model")
    parser.add_argument("--tokenizer", help="Gemma's tokenizer.json, for a fresh model of its vocabulary")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, help="samples a step, of all processes together")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--average", type=float, help="decay of averaged weights; 0: none, 4 bytes less each")
    parser.add_argument("--save-every-s", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=CHOICES["device"])
    parser.add_argument("--precision", choices=CHOICES["dtype"])
    parser.add_argument("--checkpointing", action="store_true", default=None)
    parser.add_argument("--accumulation", type=int, help="passes of each process a step")
    parser.add_argument("--strategy", choices=STRATEGIES)
    parser.add_argument(
        "--tower", choices=TOWERS, help="image tokens in memory, or images read from the bags in every step"
    )
    parser.add_argument(
        "--loader-workers", type=int, help="processes of each training process that read them"
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="curves to Weights & Biases too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
