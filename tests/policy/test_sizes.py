"""The named configurations: how large they are, and that the large ones run, at their shapes but smaller."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import gemma_backbone, gemma_policy, opened, siglip
from torch import Tensor

from recap_policy.backbone import window_mask
from recap_policy.config import ConfigError, ValueConfig, to_dict, value_from_dict, vla_from_dict
from recap_policy.parameters import count, table
from recap_policy.prefix import InputError, Prefix, make_tokenizer
from recap_policy.prompt import Kind, state_bins
from recap_policy.sampling import _greedy
from recap_policy.sizes import value_config, vla_config
from recap_policy.text import GemmaTokenizer, TextError, TinyTokenizer
from recap_policy.value import ValueModel
from recap_policy.vla import VLA, Batch

pytestmark = pytest.mark.usefixtures("one_thread")
HORIZON = 50


@pytest.fixture(scope="module")
def gemma(gemma_file: Path) -> GemmaTokenizer:
    return GemmaTokenizer(gemma_file, action_codes=1000)


def test_sizes_are_those_of_the_paper() -> None:
    print(table())
    assert count("pi06")["expert"] == pytest.approx(0.86e9, rel=0.02)
    assert count("pi06")["decoder"] + count("pi06")["table"] == pytest.approx(3.88e9, rel=0.01)
    assert count("value-670m")["all"] == pytest.approx(0.67e9, rel=0.05)
    assert count("small")["decoder"] + count("small")["table"] == pytest.approx(268e6, rel=0.01)
    assert count("tiny")["all"] < 2e6 and count("value-tiny")["all"] < 1e6


def test_shapes_of_pi06_are_those_of_the_model_card() -> None:
    config = vla_config("pi06")
    assert (config.prefix.cameras, config.vision.image_size, config.vision.tokens) == (4, 448, 256)
    assert (config.horizon, config.insulate, config.prefix.state) == (50, True, "bins")
    assert [layer for layer in range(34) if not config.backbone.is_local(layer)] == [5, 11, 17, 23, 29]


@pytest.mark.parametrize("name", ["tiny", "small", "pi06"])
def test_a_policys_configuration_survives_json(name: str) -> None:
    assert vla_from_dict(to_dict(vla_config(name))) == vla_config(name)


@pytest.mark.parametrize("name", ["value-tiny", "value-670m"])
def test_a_values_configuration_survives_json(name: str) -> None:
    assert value_from_dict(to_dict(value_config(name))) == value_config(name)


def test_local_layers_without_a_window_are_refused() -> None:
    with pytest.raises(ConfigError, match="global_every is 6 and window None"):
        replace(vla_config("pi06").backbone, window=None)


def test_a_tower_that_gives_other_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="1024 tokens of width 1152, wanted 64"):
        config = value_config("value-670m")
        assert config.vision
        replace(config, vision=replace(config.vision, pool=1))


def _value() -> ValueConfig:
    whole = value_config("value-670m")
    assert whole.vision
    own = siglip(whole.vision)
    return replace(
        whole,
        vision=own,
        vision_width=own.width,
        vision_tokens=own.tokens,
        backbone=gemma_backbone(whole.backbone),
    )


def _model(name: str, tokenizer: GemmaTokenizer) -> VLA:
    return opened(VLA(gemma_policy(name), tokenizer))


def _fitted(name: str, tokenizer: GemmaTokenizer) -> VLA:
    """With statistics, and with FAST."""
    model = _model(name, tokenizer)
    state = torch.rand(40, 14) - 0.5
    chunks = state[:, None] + torch.randn(40, HORIZON, 14).cumsum(1) * 0.01
    model.fit_normalizers(chunks, state, torch.zeros(14, dtype=torch.bool))
    return model


def _batch(model: VLA) -> Batch:
    config = model.config
    size = config.vision.image_size
    images = torch.randint(0, 256, (2, config.prefix.cameras, size, size, 3), dtype=torch.uint8)
    state = torch.rand(2, 14) - 0.5
    return Batch(
        image_features=model.encode_images(images).detach(),
        state=state,
        prompt=["insert the peg", "pick up"],
        subtask=["pick up", "pick up the peg"],
        indicator=torch.tensor([1, -1]),
        actions=state[:, None] + torch.randn(2, HORIZON, 14).cumsum(1) * 0.01,
        metadata=["fast", None],
    )


def _losses(model: VLA, batch: Batch) -> dict[str, Tensor]:
    return model.loss(batch, torch.Generator().manual_seed(1), draws=2, indicator_dropout=0.0)


def _read(model: VLA, batch: Batch) -> Prefix:
    return model.prefix(batch.image_features, batch.state, model._examples(batch, batch.indicator))


@pytest.mark.parametrize("name", ["small", "pi06"])
def test_large_policies_train_and_sample(name: str, gemma: GemmaTokenizer) -> None:
    model = _fitted(name, gemma)
    batch = _batch(model)
    assert batch.image_features.shape == (2, model.config.prefix.cameras, 4, 32)
    losses = _losses(model, batch)
    losses["loss"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert set(losses) == {"loss", "flow", "subtask", "fast"}
    assert all(parameter.grad is not None for parameter in model.expert.parameters())
    for subtask in (["pick up", "insert"], None):
        sample = model.eval().sample(
            batch.image_features, batch.state, batch.prompt, beta=1.5, steps=2, subtask=subtask
        )
        assert sample.actions.shape == (2, HORIZON, 14) and bool(sample.actions.isfinite().all())
        assert subtask is None or sample.subtask == subtask


def test_what_is_read_is_gemmas_text(gemma: GemmaTokenizer) -> None:
    model = _fitted("small", gemma)
    batch = _batch(model)
    prefix = _read(model, batch)
    front = model.prefix.image_count
    assert prefix.kinds[0, :front].tolist() == [Kind.IMAGE] * front and prefix.images == front
    bins = " ".join(map(str, state_bins(model.prefix.normalizer.scaled(batch.state))[0]))
    text = f"State: {bins}\nTask: insert the peg\nMetadata: fast\nSubtask: pick up\nAdvantage: positive\n"
    hidden = (prefix.kinds[0] == Kind.ACTION) | (prefix.kinds[0] == Kind.ACTION_CUE)
    written = prefix.ids[0, front:][~hidden[front:] & prefix.valid[0, front:]].tolist()
    assert written == [*gemma.begin, *gemma.encode(text)]
    (codes,) = model.action_codes(batch.actions[:1], batch.state[:1])
    assert prefix.ids[0, hidden].tolist() == [
        *gemma.encode("Action:"), *gemma.to_actions(codes).tolist(), gemma.end
    ]  # fmt: skip
    counts = Counter(prefix.kinds[prefix.learnt].tolist())
    assert set(counts) == {Kind.SUBTASK, Kind.ACTION}
    assert counts[Kind.SUBTASK] == sum(len(gemma.line(text)) for text in batch.subtask)
    assert not (prefix.seen & (prefix.kinds == Kind.ACTION)).any()
    assert not (prefix.seen & (prefix.kinds == Kind.ACTION_CUE)).any()


@pytest.mark.parametrize("name", ["small", "pi06"])
def test_the_expert_is_blind_to_fast_tokens(name: str, gemma: GemmaTokenizer) -> None:
    model = _fitted(name, gemma)
    batch = _batch(model)
    codes = model.action_codes(batch.actions, batch.state)
    one, other = (
        _losses(model, replace(batch, fast=fast)) for fast in (codes, [codes[0][::-1].copy(), codes[1][:3]])
    )
    model.fast = None
    with pytest.raises(InputError, match="has no FAST tokenizer, wanted one: see fit_normalizers"):
        _losses(model, batch)  # never silently without the loss that an insulated backbone learns from
    model.config = replace(model.config, prefix=replace(model.config.prefix, action_codes=0))
    without = _losses(model, batch)
    assert "fast" not in without
    assert one["flow"] == pytest.approx(float(other["flow"]), abs=1e-5)
    assert one["flow"] == pytest.approx(float(without["flow"]), abs=1e-5)
    assert one["subtask"] == pytest.approx(float(without["subtask"]), abs=1e-5)
    assert one["fast"] != other["fast"]


def test_an_unknown_subtask_is_an_empty_line_to_learn(gemma: GemmaTokenizer) -> None:
    for model in (_fitted("small", gemma), VLA(vla_config("tiny"))):
        layout = model.prefix.layout
        batch = replace(_batch(model), subtask=["", "pick up"], metadata=None)
        prefix = _read(model, batch)
        learnt = prefix.ids[0][prefix.learnt[0] & (prefix.kinds[0] == Kind.SUBTASK)].tolist()
        assert learnt[-1] == layout.tokenizer.newline and layout.tokenizer.read_line(learnt) == ""
        guess = layout.guess("")
        assert guess is not None and guess.ids.tolist() == layout.no_subtask.ids.tolist()
        assert _losses(model, batch)["subtask"] > 0
        said = model.eval().sample(
            batch.image_features, batch.state, batch.prompt, subtask=batch.subtask, steps=1
        )
        assert said.subtask == ["", "pick up"]


def test_fast_tokens_given_are_those_that_are_made(gemma: GemmaTokenizer) -> None:
    model = _fitted("pi06", gemma)
    batch = _batch(model)
    one, other = (
        _losses(model, batch),
        _losses(model, replace(batch, fast=model.action_codes(batch.actions, batch.state))),
    )
    assert one == other


def test_fast_tokens_teach_the_backbone_and_the_flow_does_not(gemma: GemmaTokenizer) -> None:
    model = _fitted("pi06", gemma)
    model.config = replace(model.config, subtask_weight=0.0, fast_weight=0.0)
    rest = [*model.backbone.named_parameters(), *model.prefix.named_parameters()]
    batch = _batch(model)
    _losses(model, batch)["loss"].backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for _, p in rest)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.expert.layers[0].parameters())
    model.config = replace(model.config, fast_weight=1.0)
    _losses(model, batch)["loss"].backward()
    assert not [name for name, p in rest if p.grad is None or p.grad.abs().max() == 0]


def test_the_indicator_changes_no_logit_before_it_and_does_change_the_actions(gemma: GemmaTokenizer) -> None:
    model = _fitted("pi06", gemma)
    batch = _batch(model)
    hidden: list[Tensor] = []
    for code in (1, 0):
        prefix = _read(model, replace(batch, indicator=torch.full((2,), code)))
        hidden.append(model.backbone(prefix.x, prefix.positions, prefix.mask)[0])
    for row in range(2):
        first = int(prefix.indicator[row].nonzero()[0])
        word = first + len(gemma.encode("Advantage:"))  # the cue is the same in both
        positive, negative = (model.prefix.logits(found[row, : word + 1]) for found in hidden)
        assert torch.equal(positive[:word], negative[:word])
        assert not torch.allclose(positive[word:], negative[word:])
    positive, negative = (_losses(model, replace(batch, indicator=torch.full((2,), code))) for code in (1, 0))
    assert positive["fast"] != negative["fast"] and positive["flow"] != negative["flow"]
    assert positive["subtask"] == negative["subtask"]


def test_padding_and_guesses_change_nothing(gemma: GemmaTokenizer) -> None:
    model = _fitted("pi06", gemma).eval()
    batch = _batch(model)
    noise = torch.randn(2, HORIZON, 14)
    prompts = ["pick up", "insert the peg into the socket"]
    both = model.sample(batch.image_features, batch.state, prompts, beta=1.5, noise=noise, steps=2)
    assert "" not in both.subtask
    for guess in (both.subtask, ["", "pick up"], ["pick up " * 9, "peg"]):
        other = model.sample(
            batch.image_features, batch.state, prompts, beta=1.5, noise=noise, steps=2, guess=guess
        )
        assert other.subtask == both.subtask
        torch.testing.assert_close(other.actions, both.actions, atol=1e-4, rtol=1e-3)
    for row in range(2):
        one = slice(row, row + 1)
        alone = model.sample(
            batch.image_features[one], batch.state[one], prompts[one], beta=1.5, noise=noise[one], steps=2
        )
        assert alone.subtask == both.subtask[one]
        torch.testing.assert_close(alone.actions, both.actions[one], atol=1e-4, rtol=1e-3)


def test_guidances_branch_without_indicator_is_a_prompt_without_it(gemma: GemmaTokenizer) -> None:
    """At β = 0 the velocity is the unconditioned branch's alone: keys masked, positions closed up."""
    model = _fitted("pi06", gemma).eval()
    batch = _batch(model)
    noise = torch.randn(2, HORIZON, 14)
    arguments = (batch.image_features, batch.state, batch.prompt)
    for subtask in (["pick up", "pick up the peg"], None):
        masked = model.sample(*arguments, beta=0.0, noise=noise, steps=2, subtask=subtask)
        absent = model.sample(*arguments, indicator="", noise=noise, steps=2, subtask=subtask)
        torch.testing.assert_close(masked.actions, absent.actions, atol=1e-5, rtol=1e-4)
        told = model.sample(*arguments, noise=noise, steps=2, subtask=subtask)
        off = (masked.actions - absent.actions).abs().max()
        assert (told.actions - absent.actions).abs().max() > max(20 * float(off), 1e-4)


def test_sampling_writes_nothing_but_text(gemma: GemmaTokenizer) -> None:
    """Whatever the logits say: no action, no special token, no row of the table that no text has."""
    model = _model("small", gemma)
    hidden = torch.randn(500, model.config.backbone.width)
    written = _greedy(model, hidden)
    assert bool((written < gemma.size).all()) and gemma.writable[written.numpy()].all()


def test_a_table_wants_the_tokenizer_of_its_vocabulary(gemma: GemmaTokenizer) -> None:
    with pytest.raises(TextError, match="tokenizer is a TinyTokenizer, wanted the table's: a GemmaTokenizer"):
        VLA(gemma_policy("small"), TinyTokenizer())
    with pytest.raises(TextError, match="tokenizer is a GemmaTokenizer, wanted the table's: a TinyTokenizer"):
        VLA(vla_config("tiny"), gemma)
    config = gemma_policy("small")
    with pytest.raises(TextError, match=rf"tokenizer of {gemma.size} ids, wanted at most the table's 900"):
        VLA(replace(config, backbone=replace(config.backbone, vocabulary=900)), gemma)
    model = VLA(config)
    with pytest.raises(TextError, match="no tokenizer, wanted Gemma's"):
        model.sample(torch.randn(2, 3, 4, 32), torch.zeros(2, 14), ["pick up"] * 2)


def test_a_window_ends_behind_and_not_ahead() -> None:
    positions = torch.arange(5)[None]
    assert window_mask(positions, positions, 2)[0].int().tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]


def test_the_large_value_function_trains_on_its_own_tower(gemma: GemmaTokenizer) -> None:
    model = ValueModel(_value(), gemma)
    assert model.vision
    size = model.vision.config.image_size
    images = torch.randint(0, 256, (2, 4, size, size, 3), dtype=torch.uint8)
    features, state = model.encode_images(images), torch.rand(2, 14)
    prompts = ["pick up", "insert the peg"]
    losses = model.loss(features, state, prompts, torch.tensor([-0.2, -0.7]))
    losses["loss"].backward()
    assert model.vision.positions.grad is not None and model.vision.positions.grad.abs().max() > 0
    model, features = model.eval().requires_grad_(False), features.detach()
    value = model.value(features, state, prompts)
    assert value.shape == (2,) and bool(((value > -1) & (value < 0)).all())
    for row in range(2):
        one = slice(row, row + 1)
        alone = model.value(features[one], state[one], prompts[one])
        torch.testing.assert_close(alone, value[one], atol=1e-5, rtol=1e-4)
    about = model.value(features, state, prompts, ["fast", None])
    assert about[0] != value[0] and about[1] == pytest.approx(float(value[1]), abs=1e-5)


def test_a_value_function_without_a_tower_says_so() -> None:
    with pytest.raises(ValueError, match="no tower of its own"):
        ValueModel(value_config("value-tiny")).encode_images(torch.zeros(1, 3, 96, 96, 3, dtype=torch.uint8))


def test_bfloat16_weights_train_and_sample_near_float32(gemma: GemmaTokenizer) -> None:
    model = _fitted("pi06", gemma).eval()
    batch = _batch(model)
    noise = torch.randn(2, HORIZON, 14)
    arguments = (batch.image_features, batch.state, batch.prompt)

    def run() -> tuple[Tensor, Tensor]:
        actions = model.sample(*arguments, noise=noise, steps=2, subtask=["pick up", "insert"]).actions
        return _losses(model, batch)["loss"], actions

    loss, actions = run()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    rough, rough_actions = run()
    assert rough.dtype == rough_actions.dtype == torch.float32
    torch.testing.assert_close(rough, loss, rtol=0.05, atol=0.0)
    assert (rough_actions - actions).abs().max() < 0.1 * (actions - batch.state[:, None]).abs().max()


def test_a_fresh_model_gets_the_tokenizer_of_its_table(gemma_file: Path) -> None:
    tiny, large = vla_config("tiny"), gemma_policy("small")
    words = make_tokenizer(tiny.backbone, tiny.prefix, ["insert the peg"])
    assert isinstance(words, TinyTokenizer)
    assert set(words.words) == {"insert", " the", " peg", "insert the peg"}
    assert isinstance(make_tokenizer(large.backbone, large.prefix, [], str(gemma_file)), GemmaTokenizer)
    with pytest.raises(TextError, match="no tokenizer given, wanted Gemma's"):
        make_tokenizer(large.backbone, large.prefix, ["insert the peg"])
