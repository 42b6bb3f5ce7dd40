"""Where and how a policy computes: settings refused in words, and graphs that change no result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recap_policy.backbone import prefix_mask, token_positions
from recap_policy.cuda_graphs import BUCKET, MOST_GRAPHS, StaticExpert, record_cuda_graph, record_eagerly
from recap_policy.device import CHOICES, Placement, RuntimeConfig, place, resolve
from recap_policy.rtc import Inpainting
from recap_policy.sampling import Context, _commitment, _denoise
from recap_policy.sizes import vla_config
from recap_policy.text import TinyTokenizer
from recap_policy.vla import VLA
from recap_station.contract import ContractError

GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="this machine has no GPU")
without_gpu = pytest.mark.skipif(GPU, reason="this machine has a GPU")
WORDS = TinyTokenizer.fit(["insert the peg", "reach", "lift"], 128)


@pytest.fixture
def model() -> VLA:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return _open(VLA(vla_config("tiny"), WORDS).eval())


def _open(model: VLA) -> VLA:
    for parameter in model.expert.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)  # the gates open, so that all reaches the actions
    return model


@pytest.mark.parametrize("name", CHOICES)
def test_unknown_choices_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ContractError, match=f"{name} is 'fast', wanted one of {', '.join(CHOICES[name])}"):
        RuntimeConfig(**{name: "fast"})


@without_gpu
def test_auto_is_float32_on_the_cpu_without_a_gpu() -> None:
    assert str(resolve(RuntimeConfig())) == "cpu, float32"
    assert str(resolve(RuntimeConfig("auto", "bfloat16", "default"))) == "cpu, bfloat16, compile default"


@without_gpu
@pytest.mark.parametrize("config", [RuntimeConfig(device="cuda"), RuntimeConfig(cuda_graphs="on")])
def test_what_wants_a_gpu_is_refused_without_one(config: RuntimeConfig) -> None:
    with pytest.raises(ContractError, match=r"is 'cuda', but|is 'on', but there is no GPU"):
        resolve(config)


@needs_gpu
def test_auto_is_bfloat16_with_graphs_on_a_gpu() -> None:
    assert str(resolve(RuntimeConfig())) == "cuda, bfloat16, CUDA graphs"


def test_weights_change_their_type_and_statistics_keep_theirs(model: VLA) -> None:
    place(model, resolve(RuntimeConfig(device="cpu", dtype="bfloat16")))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    assert {buffer.dtype for buffer in statistics} == {torch.float32}
    assert _sample(model, "insert the peg", "reach").isfinite().all()


def _sample(model: VLA, prompt: str, subtask: str, beta: float = 1.0, committed: int = 0) -> Tensor:
    """Repeatable: noise, features and state depend on the prompt alone."""
    generator = torch.Generator().manual_seed(len(prompt))
    config = model.config
    device = model.expert.token_embedding.device
    features = torch.randn(
        1, config.prefix.cameras, config.vision.tokens, config.vision.width, generator=generator
    ).to(device)
    state = (torch.rand(1, config.prefix.dof, generator=generator) - 0.5).to(device)
    noise = torch.randn(1, config.action_tokens, config.prefix.dof, generator=generator).to(device)
    ahead = state[:, None].expand(-1, committed, -1) if committed else None
    return model.sample(
        features, state, [prompt], beta=beta, subtask=[subtask], noise=noise, committed=ahead
    ).actions.cpu()


CASES = [
    ("insert the peg", "reach", 1.0, 0),
    ("lift", "insert the peg, slowly and with care", 1.0, 4),  # longer: another prefix in the same buffers
    ("insert the peg", "reach", 1.5, 0),
    ("lift the peg", "a sub-task of forty-eight bytes, which is the most", 2.5, 10),
    ("insert the peg", "reach", 1.0, 0),  # shorter again: nothing of the longer is left
]


def _agree(model: VLA, static: StaticExpert, atol: float) -> None:
    eager = model.expert.forward
    plain = [_sample(model, *case) for case in CASES]
    assert (plain[0] - plain[2]).abs().max() > 1e-3  # what is compared depends on the case
    model.expert.forward = static  # type: ignore[method-assign, assignment]
    for case, wanted in zip(CASES, plain, strict=True):
        torch.testing.assert_close(_sample(model, *case), wanted, atol=atol, rtol=0.0)
    model.expert.forward = eager  # type: ignore[method-assign]


def test_static_buffers_change_no_result(model: VLA) -> None:
    recorded = []

    def record(work):
        recorded.append(work)
        return record_eagerly(work)

    _agree(model, StaticExpert(model.expert.forward, record), 1e-5)
    assert len(recorded) < len(CASES)  # prompts of other lengths share a graph


def test_static_buffers_hold_clean_tokens_too() -> None:
    """Where tokens are time steps, a commitment is a mask; and in-painting goes past the buffers."""
    tiny = vla_config("tiny")
    model = _open(VLA(replace(tiny, action_basis="steps", action_tokens=tiny.horizon), WORDS).eval())
    static = StaticExpert(model.expert.forward, record_eagerly)
    _agree(model, static, 1e-5)
    kept = len(static._steps)
    eager, state = model.expert.forward, torch.zeros(1, 14)
    features, noise = torch.randn(1, 3, tiny.vision.tokens, tiny.vision.width), torch.randn(1, 50, 14)

    def painted() -> Tensor:
        painting = Inpainting(state[:, None].expand(-1, 20, -1), 4)
        how = {"noise": noise, "subtask": ["reach"], "inpainting": painting}
        return model.sample(features, state, ["lift"], **how).actions

    wanted = painted()
    model.expert.forward = static  # type: ignore[method-assign, assignment]
    torch.testing.assert_close(painted(), wanted)
    model.expert.forward = eager  # type: ignore[method-assign]
    assert len(static._steps) == kept


def test_a_prefix_that_was_not_finite_leaves_nothing_behind(model: VLA) -> None:
    long, short = ("lift", "insert the peg, slowly and with care"), ("insert the peg", "reach")
    wanted = _sample(model, *short)
    static = StaticExpert(model.expert.forward, record_eagerly)
    model.expert.forward = static  # type: ignore[method-assign, assignment]
    table = model.prefix.table.weight.data
    kept = table.clone()
    table.fill_(torch.nan)
    assert not _sample(model, *long).isfinite().all()
    table.copy_(kept)
    assert len(static._steps) == 1  # the same buffers
    torch.testing.assert_close(_sample(model, *short), wanted, atol=1e-5, rtol=0.0)


def test_graphs_are_kept_to_a_number(model: VLA) -> None:
    static = StaticExpert(model.expert.forward, record_eagerly)
    layers, backbone = model.config.backbone.layers, model.config.backbone
    with torch.inference_mode():
        for count in range(MOST_GRAPHS + 4):
            length = 1 + count * BUCKET
            known = torch.ones(1, 1, length, dtype=torch.bool)
            one = torch.zeros(1, backbone.kv_heads, length, backbone.head_dim)
            plan = model.expert.plan(known, known.sum(2))
            static(torch.zeros(1, 1, 10, 14), torch.ones(1, 1), [(one, one)] * layers, plan)
    assert len(static._steps) == MOST_GRAPHS


@needs_gpu
def test_captured_graphs_change_no_result(model: VLA) -> None:
    place(model, resolve(RuntimeConfig(device="cuda", dtype="float32", cuda_graphs="off")))
    _agree(model, StaticExpert(model.expert.forward, record_cuda_graph), 1e-4)


@needs_gpu
def test_a_policy_on_the_gpu_is_near_the_one_on_the_cpu(tmp_path) -> None:
    import numpy as np

    from recap_policy.checkpoint import save_policy
    from recap_policy.interface import Sampling
    from recap_policy.runtime import Policy
    from recap_station.contract import load_station

    station = load_station("aloha")
    save_policy(VLA(vla_config("tiny"), WORDS), tmp_path / "policy", {}, station=station)
    images = {c.name: np.full((c.height, c.width, 3), 128, np.uint8) for c in station.cameras}
    chunks = [
        Policy.load(tmp_path / "policy", runtime=config).infer(images, station.home, "insert the peg", how)
        for config in (RuntimeConfig("cpu"), RuntimeConfig("cuda"))
        for how in (Sampling(beta=1.0), Sampling(beta=1.5))
    ]
    for one, other in zip(chunks[:2], chunks[2:], strict=True):
        assert np.abs(one.positions - other.positions).max() < 0.1


@pytest.mark.parametrize("name", ["tiny", "pi06"])
def test_the_euler_steps_are_made_where_the_model_is(name: str) -> None:
    """On the meta device, which takes no memory and refuses what lies elsewhere, as a GPU does. Texts are
    left out: what they decide is not known there."""
    config = vla_config(name)
    dof, size = config.prefix.dof, config.vision.image_size
    with torch.device("meta"):
        model = VLA(config).eval()
        images = torch.zeros(1, config.prefix.cameras, size, size, 3, dtype=torch.uint8)
        ids = torch.zeros(1, 20, dtype=torch.int64)
        state, noise = torch.zeros(1, dof), torch.zeros(1, config.action_tokens, dof)
    place(model, Placement(torch.device("meta"), torch.bfloat16, "off", False))
    with torch.inference_mode():
        x = torch.cat([model.prefix.images(model.encode_images(images)), model.prefix.text(ids)], 1)
        valid = x.new_ones(x.shape[:2], dtype=torch.bool)
        _, cache = model.backbone(x, token_positions(valid), prefix_mask(valid, model.prefix.image_count))
        context, seen = Context(cache, valid, valid), torch.stack([valid, valid], 1)
        for ahead in (None, state[:, None]):
            commitment, begin = _commitment(model, ahead, state)
            found = _denoise(model, context, seen, noise, commitment, begin, 1.5, 2, None)
            actions = model.codec.decode(model.codec.clamp(found), state)
            assert actions.device.type == "meta" and actions.dtype == torch.float32
