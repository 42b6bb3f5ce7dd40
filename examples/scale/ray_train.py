"""Ray: one process a GPU, wherever the cluster has them. With `pip install ray` and a running cluster:

    python examples/scale/ray_train.py --gpus 16 -- --store episodes --vision pretrain/vision --out big/policy

Checkout, store and output lie on a file system that all machines see. Run again, it goes on from the last
save.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

SETTINGS = ["policy", "--strategy", "fsdp", "--precision", "bfloat16", "--checkpointing"]


@ray.remote
class Process:
    def meeting_place(self) -> tuple[str, int]:
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def train(self, rank: int, ranks: int, place: tuple[str, int], words: list[str]) -> int:
        # Ray shows a process its own GPU alone, which is then number 0.
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": place[0], "MASTER_PORT": str(place[1])}
        from recap_learner.train import main

        return main(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", type=int, default=8, help="processes; 0 with --cpus")
    parser.add_argument("--cpus", type=int, default=0, help="processes without a GPU, instead")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="-- and what recap_learner.train is told")
    given = parser.parse_args()
    ranks, each = given.cpus or given.gpus, {"CPU": 1} if given.cpus else {"CPU": 4, "GPU": 1}
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}})
    group = placement_group([each] * ranks, strategy="PACK")
    ray.get(group.ready())
    here = PlacementGroupSchedulingStrategy(group)
    processes = [
        Process.options(num_cpus=each["CPU"], num_gpus=each.get("GPU", 0), scheduling_strategy=here).remote()
        for _ in range(ranks)
    ]
    place = ray.get(processes[0].meeting_place.remote())
    words = [*SETTINGS, *(word for word in given.words if word != "--")]
    codes = ray.get([p.train.remote(rank, ranks, place, words) for rank, p in enumerate(processes)])
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
