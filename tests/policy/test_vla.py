"""The policy model: its masks, its losses and its sampler, on a model of the real code at toy width."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import opened, tiny_policy
from torch import Tensor

from recap_policy.backbone import prefix_mask, token_positions
from recap_policy.config import VLAConfig
from recap_policy.expert import Commitment
from recap_policy.fast import Fast
from recap_policy.prefix import InputError, Prefix
from recap_policy.prompt import PromptError, PromptWarning
from recap_policy.text import TinyTokenizer
from recap_policy.vla import VLA, Batch

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = TinyTokenizer.fit(["insert the peg", "reach", "lift", "pass it on"], 128)


def _batch(rows: int = 8, seed: int = 0) -> Batch:
    """Smooth motions to one side where positive, to the other where negative, twice from each observation."""
    g = torch.Generator().manual_seed(seed)
    state = (torch.rand(rows // 2, 14, generator=g) - 0.5).repeat(2, 1)
    indicator = torch.arange(rows) // (rows // 2)
    ramp = torch.linspace(0, 1, 50)[None, :, None]
    actions = state[:, None] + ramp * torch.where(indicator == 1, 0.4, -0.4)[:, None, None]
    return Batch(
        image_features=torch.randn(rows // 2, 3, 2, 96, generator=g).repeat(2, 1, 1, 1),
        state=state,
        prompt=["insert the peg"] * rows,
        subtask=(["reach", "pass it on"] * rows)[: rows // 2] * 2,
        indicator=indicator,
        actions=actions,
    )


def _model(batch: Batch, tokenizer: TinyTokenizer = WORDS, config: VLAConfig | None = None) -> VLA:
    model = VLA(config or tiny_policy(), tokenizer)
    model.fit_normalizers(batch.actions, batch.state, torch.zeros(14, dtype=torch.bool))
    return model


def test_overfits_a_small_batch_and_samples_what_the_indicator_says() -> None:
    batch = _batch()
    model = _model(batch)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    g = torch.Generator().manual_seed(0)
    first = last = 0.0
    for step in range(160):
        losses = model.loss(batch, g, draws=4, indicator_dropout=0.3)
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        first = float(losses["flow"]) if step == 0 else first
        last = float(losses["flow"])
    assert last < 0.3 * first
    model.eval()
    arguments = (batch.image_features, batch.state, batch.prompt)
    good = model.sample(*arguments, indicator="positive", steps=10, generator=g)
    bad = model.sample(*arguments, indicator="negative", steps=10, generator=g)
    assert good.subtask == list(batch.subtask)
    moved_good = (good.actions[:, -1] - batch.state).mean()
    moved_bad = (bad.actions[:, -1] - batch.state).mean()
    assert moved_good == pytest.approx(0.4, abs=0.1)
    assert moved_bad == pytest.approx(-0.4, abs=0.1)
    guided = model.sample(*arguments, indicator="positive", beta=2.0, steps=10, generator=g)
    assert (guided.actions[:, -1] - batch.state).mean() > 0.3


def test_images_see_each_other_and_text_sees_only_the_past() -> None:
    valid = torch.tensor([[True, True, True, True, False, True]])
    mask = prefix_mask(valid, images=2)[0]
    assert mask.int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 1],
    ]
    assert token_positions(valid).tolist() == [[0, 1, 2, 3, 3, 4]]


def test_the_indicator_changes_no_subtask_logit_and_does_change_the_actions() -> None:
    batch = _batch()
    model = opened(_model(batch))

    def losses(code: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        changed = replace(batch, indicator=torch.full((8,), code))
        return model.loss(changed, generator, indicator_dropout=0.0)

    positive, negative, absent = losses(1), losses(0), losses(-1)
    assert positive["subtask"] == negative["subtask"] == pytest.approx(float(absent["subtask"]), abs=1e-6)
    assert positive["flow"] != negative["flow"] != absent["flow"]


def test_reading_in_pieces_equals_reading_at_once() -> None:
    """The sampler's cached prefix gives the velocity that the training pass gives for the same text."""
    batch = replace(_batch(4), indicator=torch.tensor([1, 0, -1, 1]))
    model = opened(_model(batch))
    seen: list[Tensor] = []
    told: list[Commitment] = []
    hook = model.expert.register_forward_hook(lambda _m, _i, out: seen.append(out))
    ear = model.expert.register_forward_pre_hook(lambda _m, inputs: told.append(inputs[4]))
    model.loss(batch, torch.Generator().manual_seed(3), draws=1, indicator_dropout=0.0)
    hook.remove()
    ear.remove()
    g = torch.Generator().manual_seed(3)
    torch.rand(4, generator=g)  # the dropout's draw
    noise = torch.randn(4, 1, 10, 14, generator=g)
    time = 0.999 * torch.rand((4, 1), generator=g) ** (1 / 1.5) + 0.001
    actions = model.codec.encode(batch.actions, batch.state)[:, None]
    noisy = time[..., None, None] * noise + (1 - time[..., None, None]) * actions
    for row, word in enumerate(["positive", "negative", "", "positive"]):
        one = slice(row, row + 1)
        caught: list[tuple] = []
        hook = model.expert.register_forward_pre_hook(lambda _m, inputs, out=caught: out.append(inputs))
        model.sample(
            batch.image_features[one], batch.state[one], ["insert the peg"], indicator=word, steps=1,
            subtask=[batch.subtask[row]], noise=torch.zeros(1, 10, 14),
        )  # fmt: skip
        hook.remove()
        _, _, cache, plan, _ = caught[0]
        with torch.inference_mode():
            commitment = Commitment(told=told[0].told[one])
            velocity = model.expert(noisy[one], time[one], cache, plan, commitment)
        torch.testing.assert_close(velocity, seen[0][one], atol=1e-4, rtol=1e-3)


def test_the_expert_reaches_the_backbone_unless_insulated() -> None:
    batch = _batch()

    def gradient(insulate: bool) -> Tensor:
        model = opened(_model(batch, config=replace(tiny_policy(), insulate=insulate, subtask_weight=0.0)))
        model.loss(batch, torch.Generator().manual_seed(0))["loss"].backward()
        weight = model.backbone.layers[0].attention.qkv.weight
        return weight.grad

    assert gradient(False).abs().max() > 0
    assert gradient(True).abs().max() == 0


def test_draws_do_not_see_each_other() -> None:
    batch = _batch(2)
    model = opened(_model(batch))
    seen = torch.ones(2, 2, 5, dtype=torch.bool)
    cache = [(torch.randn(2, 1, 5, 32), torch.randn(2, 1, 5, 32)) for _ in range(2)]
    plan = model.expert.plan(seen, seen.sum(2))
    noisy, time = torch.randn(2, 2, 10, 14), torch.rand(2, 2)
    both = model.expert(noisy, time, cache, plan)
    noisy[:, 1] += 1.0
    again = model.expert(noisy, time, cache, plan)
    torch.testing.assert_close(both[:, 0], again[:, 0])
    assert not torch.allclose(both[:, 1], again[:, 1])


def test_three_in_ten_indicators_are_dropped_each_on_its_own() -> None:
    drawn = _model(_batch(2)).draw(10_000, torch.Generator().manual_seed(0), 1, 0.3)
    assert drawn.dropped.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert drawn[10:20].dropped.tolist() == drawn.dropped[10:20].tolist()


def test_zero_weight_takes_an_example_out_of_the_loss() -> None:
    batch = _batch(2)
    model = opened(_model(batch))
    weighted = replace(batch, weight=torch.tensor([1.0, 0.0]))
    model.loss(weighted, torch.Generator().manual_seed(0))["loss"].backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    changed = replace(weighted, actions=weighted.actions.clone())
    changed.actions[1] += 1.0
    model.loss(changed, torch.Generator().manual_seed(0))["loss"].backward()
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_all_noise_samples_of_an_observation_share_one_prefix_pass() -> None:
    batch = _batch(2)
    model = _model(batch)
    calls: list[tuple[int, ...]] = []
    model.backbone.register_forward_hook(lambda _m, inputs, _o: calls.append(tuple(inputs[0].shape)))
    experts: list[tuple[int, ...]] = []
    model.expert.register_forward_hook(lambda _m, inputs, _o: experts.append(tuple(inputs[0].shape)))
    for draws in (1, 8):
        model.loss(batch, torch.Generator().manual_seed(0), draws=draws)
    assert calls[0] == calls[1] and len(calls) == 2
    assert experts == [(2, 1, 10, 14), (2, 8, 10, 14)]


def test_training_reads_three_in_ten_examples_without_the_indicator_and_sampling_none() -> None:
    class Enough(Exception):
        pass

    batch = _batch(2)
    model = _model(batch)
    told: list[Tensor] = []

    def look(_module: object, _inputs: object, prefix: Prefix) -> None:
        told.append(prefix.indicator.sum(1))
        raise Enough

    model.prefix.register_forward_hook(look)
    rows = 10_000
    many = Batch(
        image_features=batch.image_features[:1].expand(rows, -1, -1, -1),
        state=batch.state[:1].expand(rows, -1),
        prompt=["insert the peg"] * rows,
        subtask=["reach"] * rows,
        indicator=torch.arange(rows) % 2,
        actions=batch.actions[:1].expand(rows, -1, -1),
    )
    with pytest.raises(Enough):
        model.loss(many, torch.Generator().manual_seed(0))
    with pytest.raises(Enough):
        model.sample(many.image_features, many.state, many.prompt, subtask=many.subtask)
    trained, sampled = told
    assert set(trained.tolist()) == {0, 2}
    assert (trained == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    for code in (0, 1):  # each on its own, whatever it says
        assert (trained[code::2] == 0).float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert set(sampled.tolist()) == {2}


def test_tiny_reads_no_more_tokens_than_before() -> None:
    """Six of the images, one of the state, cue, line and end of task and sub-task, two of the indicator."""
    batch = _batch(2)
    model = _model(batch)
    lengths: list[int] = []
    model.backbone.register_forward_hook(lambda _m, inputs, _o: lengths.append(inputs[0].shape[1]))
    model.sample(batch.image_features, batch.state, batch.prompt, subtask=["reach"] * 2)
    assert lengths == [6 + 1 + (1 + 1 + 1) + (1 + 1 + 1) + 2]


def test_recomputing_activations_changes_no_gradient() -> None:
    batch = _batch(4)

    def gradients(recompute: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        config = tiny_policy()
        config = replace(config, backbone=replace(config.backbone, recompute=recompute, dropout=0.1))
        model = opened(_model(batch, config=config))
        torch.manual_seed(1)
        model.loss(batch, torch.Generator().manual_seed(0))["loss"].backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    kept, computed_again = gradients(False), gradients(True)
    assert kept.keys() == computed_again.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(computed_again[name], gradient, msg=name)


# Bad input


def test_metadata_gives_way_to_the_task_and_says_so() -> None:
    batch = _batch(2)
    model = opened(_model(batch)).eval()
    noise = torch.randn(2, 10, 14)
    task = "x" * 46
    arguments = (batch.image_features, batch.state, [task] * 2)
    subtask = ["reach"] * 2
    bare = model.sample(*arguments, noise=noise, subtask=subtask)
    with pytest.warns(PromptWarning, match="metadata 'slow and careful' cut short"):
        cut = model.sample(*arguments, noise=noise, subtask=subtask, metadata=["slow and careful"] * 2)
    torch.testing.assert_close(cut.actions, bare.actions)
    with pytest.raises(PromptError, match=r"prompt of 62 tokens, wanted at most 50: state and task 'xxx"):
        model.sample(batch.image_features, batch.state, ["x" * 60] * 2, metadata=["slow"] * 2)


def test_metadata_is_read() -> None:
    batch = _batch(2)
    model = opened(_model(batch)).eval()
    noise = torch.randn(2, 10, 14)
    arguments = (batch.image_features, batch.state, batch.prompt)
    plain, told = (
        model.sample(*arguments, noise=noise, subtask=["reach"] * 2, metadata=about).actions
        for about in (None, ["slow", None])
    )
    assert not torch.allclose(plain[0], told[0], atol=1e-4)
    torch.testing.assert_close(plain[1], told[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_features": torch.zeros(2, 2, 2, 96)}, "features of 2 cameras, wanted 3"),
        ({"image_features": torch.zeros(2, 3, 4, 96)}, "features of 4 tokens of width 96, wanted 2 of 96"),
        ({"image_features": torch.zeros(1, 3, 2, 96)}, "features of 1 examples, states of 2"),
        ({"state": torch.full((2, 14), torch.nan)}, r"state\[0, 0\] is nan, wanted a number"),
        ({"state": torch.zeros(2, 7)}, r"state is \(2, 7\), wanted \(examples, 14\)"),
        ({"prompt": ["", "insert"]}, "task is '', wanted a text"),
        ({"prompt": ["insert"]}, "1 prompts and 1 metadata, wanted one for each of 2 states"),
        ({"subtask": ["reach", " "]}, "sub-task is ' ', wanted a text"),
        ({"subtask": ["reach", "x" * 60]}, "sub-task of 62 tokens, wanted at most 50"),
        ({"metadata": ["", None]}, "metadata is '', wanted a text"),
        ({"actions": torch.zeros(2, 40, 14)}, r"actions are \(2, 40, 14\).*for chunks of 50 steps of 14"),
        ({"indicator": torch.tensor([1, 2])}, r"indicator is 2, wanted one of \[-1, 0, 1\]"),
        ({"indicator": torch.tensor([1])}, "1 indicators, wanted one for each of 2 prompts"),
        ({"fast": [np.array([1]), np.array([2])]}, "FAST code 1, wanted 0 .. -1"),
    ],
)
def test_batches_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    batch = _batch(2)
    with pytest.raises(ValueError, match=message):
        _model(batch).loss(replace(batch, **changes), indicator_dropout=0.0)


def test_images_that_do_not_fit_are_refused() -> None:
    model = _model(_batch(2))
    with pytest.raises(InputError, match=r"images \(1, 4, 96, 96, 3\) of 4 cameras, wanted 1 to 3"):
        model.encode_images(torch.zeros(1, 4, 96, 96, 3, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"images of \(48, 96, 3\) torch.uint8, wanted \(96, 96, 3\)"):
        model.encode_images(torch.zeros(1, 3, 48, 96, 3, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"torch.float32, wanted \(96, 96, 3\) torch.uint8"):
        model.encode_images(torch.zeros(1, 3, 96, 96, 3))


def test_samples_that_cannot_be_are_refused() -> None:
    batch = _batch(2)
    model = _model(batch)
    arguments = (batch.image_features, batch.state, batch.prompt)
    with pytest.raises(InputError, match=r"noise is \(2, 50, 14\), wanted \(2, 10, 14\)"):
        model.sample(*arguments, noise=torch.zeros(2, 50, 14))
    with pytest.raises(InputError, match="1 sub-tasks, wanted one for each of 2 prompts"):
        model.sample(*arguments, subtask=["reach"])
    with pytest.raises(PromptError, match="sub-task is ' ', wanted a text"):
        model.sample(*arguments, subtask=[" ", "reach"])
    with pytest.raises(ValueError, match="indicator is 'good'"):
        model.sample(*arguments, indicator="good")


def test_a_horizon_that_the_policy_was_not_made_for_is_refused() -> None:
    batch = _batch(2)
    with pytest.raises(InputError, match=r"actions are \(9, 40, 14\), wanted \(examples, 50, 14\)"):
        VLA(tiny_policy()).fit_normalizers(torch.zeros(9, 40, 14), torch.zeros(9, 14), torch.zeros(14).bool())
    fast = Fast.fit(batch.actions[:, :40].numpy())
    with pytest.raises(InputError, match="FAST for 40 steps of 14 joints, wanted 50 steps of 14"):
        VLA(tiny_policy(), fast=fast)
    with pytest.raises(InputError, match="tokens, wanted at most the vocabulary's 0"):
        VLA(tiny_policy(), fast=Fast.fit(batch.actions.numpy()))


def test_own_vocabulary_can_have_fast_too() -> None:
    """`tiny`'s tokens, with ids for FAST: the loss of all parts falls on few examples."""
    batch = _batch(4)
    config = replace(tiny_policy(), prefix=replace(tiny_policy().prefix, action_codes=300), insulate=True)
    model = _model(batch, TinyTokenizer.fit(["insert the peg"], 128, 300), config)
    assert model.fast is not None and model.fast.size <= 300
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    g, first, last = torch.Generator().manual_seed(0), {}, {}
    for _ in range(40):
        last = model.loss(batch, g, draws=2)
        first = first or last
        optimizer.zero_grad()
        last["loss"].backward()
        optimizer.step()
    assert all(last[name] < 0.8 * first[name] for name in ("fast", "subtask", "flow"))
