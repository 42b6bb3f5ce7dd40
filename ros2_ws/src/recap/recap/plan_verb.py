"""`./recap plan`: what a training would take on rented machines, from FLOPs, bytes and the data's size."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recap.output import Json

if TYPE_CHECKING:
    from recap_learner.training.plan import Assumed, Job


def plan(
    config: Annotated[str, typer.Option(help="Named configuration of a policy or value function.")] = "pi06",
    gpus: Annotated[str, typer.Option(help="How many of which: H100, H200 or A100.")] = "8xH100",
    batch: Annotated[int, typer.Option(min=1, help="Samples a step, of all GPUs together.")] = 256,
    hours: Annotated[float, typer.Option(min=0.01, help="Of recording to train on.")] = 100.0,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over it.")] = 2.0,
    steps: Annotated[int, typer.Option(min=0, help="Of the optimiser, instead of hours and epochs.")] = 0,
    strategy: Annotated[str, typer.Option(help="ddp or fsdp; auto: looked for.")] = "auto",
    checkpointing: Annotated[bool, typer.Option(help="With a strategy: activation checkpointing.")] = False,
    accumulation: Annotated[int, typer.Option(min=1, help="With a strategy: passes a step.")] = 1,
    cameras: Annotated[int, typer.Option(min=0, help="Of the robot; 0: as many as the model has.")] = 0,
    images: Annotated[
        bool,
        typer.Option(help="The tower runs in every step; else its tokens are cached, as the learner does."),
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change an assumption.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Memory a GPU, time a step and days of a training, with everything that was assumed.

    Nothing is measured: FLOPs and bytes are counted, the rest are the assumptions printed below.

    Example: `./recap plan --config pi06 --gpus 8xH100 --hours 200 --set of_flops=0.35`
    """
    from recap.bringup import UsageError
    from recap_learner.training import plan as planning
    from recap_policy.config import ConfigError

    try:
        assumed = planning.Assumed().changed(set_ or [])
        shape = planning.find_config(config)
        count, card = planning.find_gpus(gpus)
        if cameras > shape.prefix.cameras:
            raise ConfigError(f"cameras is {cameras}, wanted at most the {shape.prefix.cameras} of {config}")
        known = ("auto", "ddp", "fsdp")
        if strategy not in known:
            raise ConfigError(f"strategy is {strategy!r}, wanted one of {', '.join(known)}")
        if batch < count * accumulation:
            raise ConfigError(f"batch is {batch}, wanted at least {count * accumulation}: a sample a pass")
    except ConfigError as error:
        raise UsageError(str(error)) from error
    job = planning.Job(shape, card, count, batch, images, cameras or shape.prefix.cameras)
    way = None
    if strategy != "auto" or checkpointing or accumulation > 1:
        word = "one" if count == 1 else ("fsdp" if strategy == "auto" else strategy)
        way = planning.Way(word, checkpointing, accumulation)
    total = steps or planning.steps(hours, epochs, batch, assumed)
    found = planning.report(job, total, way, assumed, epochs)
    if as_json:
        print(json.dumps({"ok": True, **found, "assumed": asdict(assumed)}))
        return
    print(sheet(job, found, assumed))


def sheet(job: Job, found: dict[str, Any], assumed: Assumed) -> str:
    """What is printed, and stands in docs/scale.md."""
    from recap_learner.training.plan import LINK_GB_S, MEMORY_GB, best, cost, fits, ways
    from recap_policy.latency import DEVICES

    card = DEVICES[job.card]
    read = "images through the tower" if job.images else "cached image tokens"
    lines = [
        f"{found['config']} on {job.gpus} x {card.name} ({MEMORY_GB[job.card]:g} GB, "
        f"{card.flops / 1e12:g} TFLOP/s, {card.bandwidth / 1e12:g} TB/s, links {LINK_GB_S[job.card]:g} GB/s)",
        f"batch {job.batch}, {read}, {found['prefix_tokens']} prefix tokens, "
        f"{found['tflop_per_sample']:.2f} TFLOP a sample, {found['trained'] / 1e6:.0f} M trained parameters",
        "",
        f"{'way':36} {'samples a pass':>14} {'GB a GPU':>9} {'fits':>5} {'s a step':>9}",
    ]
    chosen = found["way"]
    shown = [cost(job, way, assumed) for way in ways(job) if way.accumulation == 1 or str(way) == chosen]
    if not any(str(one.way) == chosen for one in shown):
        shown += [one for one in (best(job, assumed),) if one and str(one.way) == chosen]
    for one in shown:
        mark = "  <-" if str(one.way) == chosen else ""
        lines.append(
            f"{one.way!s:36} {one.rows:>14} {one.total_gb:>9.1f} {'yes' if fits(one, job) else 'no':>5} "
            f"{one.step_s:>9.3f}{mark}"
        )
    lines += ["", f"{chosen}:"]
    lines += [f"  {name:20} {gb:8.2f} GB" for name, gb in found["memory_gb"].items()]
    lines += [
        f"  {'a GPU':20} {found['memory_per_gpu_gb']:8.1f} GB"
        + ("" if found["fits"] else f"   does not fit into {MEMORY_GB[job.card]:g} GB"),
        f"  {'step':20} {found['step_s']:8.3f} s    computing {found['compute_s']:.3f}, "
        f"communication not hidden {found['communication_s']:.3f}, update {found['update_s']:.3f}",
        f"  {'all':20} {found['days']:8.2f} days {found['steps']} steps",
        f"  {'data':20} {found['samples_per_s']:8.0f} samples/s, {found['mb_per_s']:.0f} MB/s, "
        + (
            f"{found['decode_cores']:.1f} cores to decode images"
            if job.images
            else f"{found['cache_gb']:.0f} GB of cached tokens"
        ),
        "",
        "assumed (--set NAME=VALUE): " + ", ".join(f"{k}={v:g}" for k, v in asdict(assumed).items()),
    ]
    return "\n".join(lines)
