"""The latency sheet: its FLOPs are torch's, its table is the document's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recap_policy.config import VLAConfig
from recap_policy.latency import (
    DEVICES,
    PAPER_MS,
    Stage,
    Workload,
    decoder_flops,
    expert_flops,
    main,
    stages,
    table_flops,
    vision_flops,
)
from recap_policy.sizes import vla_config
from recap_policy.vla import VLA

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/latency.md"


def _small(name: str) -> VLAConfig:
    """`small` and `pi06` at a few thousand parameters, in the same shapes otherwise."""
    whole = vla_config(name)
    if name == "tiny":
        return whole
    return replace(
        whole,
        vision=replace(
            whole.vision, image_size=4 * whole.vision.patch, width=32, layers=2, heads=4, mlp=48, pool=2
        ),
        backbone=replace(whole.backbone, width=48, layers=7, head_dim=16, mlp=64, vocabulary=2000),
        expert=replace(whole.expert, width=32, mlp=48),
    )


def _counted(call) -> int:
    # The counter knows no flops of the CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["tiny", "small", "pi06"])
def test_flops_are_those_that_torch_counts(name: str, device: str) -> None:
    config = _small(name)
    with torch.device(device):
        model = VLA(config)
        size, backbone = config.vision.image_size, config.backbone
        images = torch.zeros(3, size, size, 3, dtype=torch.uint8)
        assert _counted(lambda: model.vision(images)) == 3 * vision_flops(config.vision)

        length, read = 23, 5
        x = torch.zeros(1, length, backbone.width)
        positions, mask = torch.arange(length)[None], torch.ones(1, length, length, dtype=torch.bool)
        hidden, cache = model.backbone(x, positions, mask, read=slice(0, read))
        counted = _counted(lambda: model.backbone(x, positions, mask, read=slice(0, read)))
        assert counted == decoder_flops(backbone, length, length, read)
        vocabulary = model.prefix.table.num_embeddings
        assert _counted(lambda: model.prefix.logits(hidden)) == table_flops(backbone, vocabulary, read)
        one = torch.zeros(1, 1, backbone.width)
        place, seen = torch.arange(length + 1)[None], torch.ones(1, 1, length + 1, dtype=torch.bool)
        counted = _counted(lambda: model.backbone(one, place, seen, past=cache))
        assert counted == decoder_flops(backbone, 1, length + 1, 1)

        for draws in (1, 2):
            known = torch.ones(1, draws, length, dtype=torch.bool)
            plan = model.expert.plan(known, known.sum(2))
            noisy = torch.zeros(1, draws, config.action_tokens, config.prefix.dof)
            dof, one_step = config.prefix.dof, torch.ones(1, dtype=torch.int64)
            told = model.commitment(torch.zeros(1, config.horizon, dof), one_step, torch.zeros(1, dof))
            counted = _counted(lambda: model.expert(noisy, torch.ones(1, draws), cache, plan, told))  # noqa: B023
            assert counted == expert_flops(config, length, draws)


def test_the_document_holds_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--config", "pi06", "--device", "h100"], ["--guided"], ["--subtask-every", "1"]):
        assert main(words) == 0
        assert capsys.readouterr().out in DOCUMENT.read_text()


def test_a_stage_takes_the_longer_of_its_two_times() -> None:
    device = DEVICES["h100"]
    assert Stage("", 989e9, 0.0).seconds(device, 0.5, 0.7) == pytest.approx(2e-3)
    assert Stage("", 0.0, 3.35e9).seconds(device, 0.5, 0.7) == pytest.approx(1e-3 / 0.7)


def test_guidance_costs_only_the_expert_and_a_camera_more_than_its_tower() -> None:
    config = vla_config("pi06")
    plain, guided, four = (
        stages(config, work, 2) for work in (Workload(), Workload(draws=2), Workload(cameras=4))
    )
    assert guided[:3] == plain[:3] and guided[3].bytes == plain[3].bytes
    assert 1.9 < guided[3].flops / plain[3].flops < 2.2
    assert four[0].flops == pytest.approx(plain[0].flops * 4 / 3) and four[1].flops > 1.2 * plain[1].flops
    assert sum(stage.seconds(DEVICES["h100"]) for stage in plain) < PAPER_MS * 1e-3


def test_what_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, problem in ((["--config", "pi6"], "did you mean 'pi06'?"), (["--steps", "0"], "at least 1")):
        with pytest.raises(SystemExit):
            main(words)
        assert problem in capsys.readouterr().err
