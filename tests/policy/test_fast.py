"""FAST: round trips, whatever a decoder may be given, files, and data that does not fit."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from recap_policy.bpe import TokenizerError  # noqa: E402
from recap_policy.fast import FILE, Fast, FastError, FastWarning, Quantiles  # noqa: E402

HORIZON, DOF = 20, 4
CONSTANT, GRIPPER = 2, 3  # joints


def motions(count: int, seed: int = 0) -> np.ndarray:
    """(count, HORIZON, DOF): smooth ones, one joint that never moves, one gripper that seldom closes."""
    random = np.random.default_rng(seed)
    time = np.linspace(0, 1, HORIZON)[None, :, None]
    amplitude, frequency = random.normal(size=(2, count, 1, DOF))
    chunks = amplitude * np.sin(3 * frequency * time) + random.normal(size=(count, 1, DOF))
    chunks[..., CONSTANT] = 0.7
    chunks[..., GRIPPER] = 1.0
    chunks[:: count // 2, HORIZON // 2 :, GRIPPER] = 0.0
    return chunks


@pytest.fixture(scope="module")
def fast() -> Fast:
    return Fast.fit(motions(400), vocabulary=512)


@pytest.fixture(scope="module")
def universal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the format of physical-intelligence/fast: byte-level, so that tokens may end inside a character."""
    folder = tmp_path_factory.mktemp("universal")
    bpe = tokenizers.ByteLevelBPETokenizer()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=[chr(code) for code in range(600)]
    )
    random = np.random.default_rng(0)
    codes = (random.laplace(scale=8, size=(500, 60)).round() + 300).clip(0, 599).astype(int)
    bpe._tokenizer.train_from_iterator(["".join(map(chr, row)) for row in codes], trainer)
    bpe.save(str(folder / "tokenizer.json"))
    config = {
        "action_dim": None,
        "auto_map": {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"},
        "min_token": -300,
        "processor_class": "UniversalActionProcessor",
        "scale": 10,
        "time_horizon": None,
        "vocab_size": 900,
    }
    (folder / "processor_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def universal(universal_folder: Path) -> Fast:
    return Fast.load_universal(universal_folder, HORIZON, Quantiles.fit(motions(400)))


@pytest.fixture(params=["fitted", "universal"])
def any_fast(request: pytest.FixtureRequest, fast: Fast, universal: Fast) -> Fast:
    return fast if request.param == "fitted" else universal


inside = arrays(np.float64, (2, HORIZON, DOF), elements=st.floats(-1, 1))
anything = st.lists(st.lists(st.one_of(st.integers(-5, 1100), st.integers()), max_size=200), max_size=3)
many = settings(deadline=None, max_examples=60)


def actions(fast: Fast, normalised: np.ndarray) -> np.ndarray:
    return fast.quantiles.low + (normalised + 1) / 2 * (fast.quantiles.high - fast.quantiles.low)


# Round trip


@pytest.mark.parametrize("name", ["fast", "universal"])
def test_any_chunk_within_the_quantiles_comes_back_within_the_bound(
    name: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Fast = request.getfixturevalue(name)

    @many
    @given(inside)
    def check(normalised: np.ndarray) -> None:
        chunks = actions(tokenizer, normalised)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is clipped
            decoded = tokenizer.decode(tokenizer.encode(chunks))
        error = np.abs(decoded.actions - chunks)
        assert (error <= tokenizer.bound + 1e-5).all()
        half = (tokenizer.quantiles.high - tokenizer.quantiles.low) / 2
        assert (np.sqrt((error**2).mean(1)) <= half / (2 * tokenizer.scale) + 1e-5).all()
        assert (decoded.repaired == 0).all()

    check()


def test_bound_is_what_the_docstring_derives(fast: Fast) -> None:
    half = (fast.quantiles.high - fast.quantiles.low) / 2
    assert (fast.bound < math.sqrt(HORIZON) / (2 * fast.scale) * half).all()
    # The worst case exists: every coefficient off by a half, with the signs of one step's cosines.
    basis = np.array([cosine(k) for k in range(HORIZON)])
    step = np.abs(basis).sum(0).argmax()
    chunk = (np.sign(basis[:, step]) * 0.4999 / fast.scale) @ basis
    chunks = actions(fast, np.repeat(chunk[None, :, None], DOF, 2))
    error = np.abs(fast.decode(fast.encode(chunks)).actions - chunks).max(1)[0]
    np.testing.assert_allclose(error, fast.bound, rtol=1e-2)


def cosine(k: int) -> np.ndarray:
    time = np.arange(HORIZON)
    return np.cos(np.pi * (time + 0.5) * k / HORIZON) * math.sqrt((1 if k == 0 else 2) / HORIZON)


def test_decoded_chunk_encodes_to_the_same_tokens(any_fast: Fast) -> None:
    ids = any_fast.encode(motions(50, seed=1))
    again = any_fast.encode(any_fast.decode(ids).actions)
    assert all(np.array_equal(a, b) for a, b in zip(ids, again, strict=True))


def test_coefficients_are_dct_times_scale_lowest_frequencies_of_all_joints_first(fast: Fast) -> None:
    chunk = motions(3, seed=2)[1]
    normalised = (chunk - fast.quantiles.low) / fast.quantiles.half - 1
    wanted = [round(10 * float(cosine(k) @ normalised[:, j])) for k in range(HORIZON) for j in range(DOF)]
    text = fast.bpe.decode(fast.encode(chunk[None])[0].tolist())
    assert [ord(character) + fast.minimum for character in text] == wanted


def test_universal_tokens_are_those_of_its_own_processor(universal: Fast) -> None:
    chunk = motions(3, seed=2)[1]
    normalised = (chunk - universal.quantiles.low) / universal.quantiles.half - 1
    numbers = [round(10 * float(cosine(k) @ normalised[:, j])) for k in range(HORIZON) for j in range(DOF)]
    text = "".join(chr(number + 300) for number in numbers)
    assert universal.encode(chunk[None])[0].tolist() == universal.bpe.encode(text).ids


def test_smooth_motion_costs_few_tokens(fast: Fast) -> None:
    lengths = [len(row) for row in fast.encode(motions(100, seed=3))]
    assert np.mean(lengths) < HORIZON * DOF / 4


def test_still_joint_comes_back_exactly_and_rare_closing_within_its_bound(fast: Fast) -> None:
    chunks = motions(400)
    decoded = fast.decode(fast.encode(chunks)).actions
    np.testing.assert_allclose(decoded[..., CONSTANT], 0.7, atol=1e-6)
    assert (np.abs(decoded - chunks) <= fast.bound + 1e-5).all()
    assert np.abs(decoded[..., GRIPPER] - chunks[..., GRIPPER]).max() < 0.1
    assert np.isfinite(Fast.fit(np.full((3, 5, 2), 0.1)).bound).all()


def test_same_data_gives_the_same_tokenizer() -> None:
    chunks = motions(100)
    assert Fast.fit(chunks, vocabulary=400).to_dict() == Fast.fit(chunks, vocabulary=400).to_dict()


# A decoder that survives


@pytest.mark.parametrize("name", ["fast", "universal"])
def test_decoder_survives_any_tokens(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Fast = request.getfixturevalue(name)
    most = max(-tokenizer.lowest, tokenizer.highest) / tokenizer.scale * math.sqrt(HORIZON) + 1

    @many
    @given(anything)
    def check(rows: list[list[int]]) -> None:
        decoded = tokenizer.decode(rows)
        assert decoded.actions.shape == (len(rows), HORIZON, DOF)
        assert decoded.actions.dtype == np.float32
        normalised = tokenizer.quantiles.normalise(decoded.actions.astype(float))
        assert (np.abs(normalised) <= most + 1e-3).all()
        for row, repaired in zip(rows, decoded.repaired, strict=True):
            if any(not 0 <= token < tokenizer.size for token in row):
                assert repaired > 0

    check()


def test_no_tokens_are_the_middle_of_the_range(any_fast: Fast) -> None:
    decoded = any_fast.decode([[]])
    middle = (any_fast.quantiles.low + any_fast.quantiles.high) / 2
    np.testing.assert_allclose(decoded.actions[0], np.broadcast_to(middle, (HORIZON, DOF)), rtol=1e-5)
    assert decoded.repaired.tolist() == [HORIZON * DOF]


def test_surplus_is_dropped_and_counted(fast: Fast) -> None:
    ids = fast.encode(motions(3, seed=4))[1].tolist()
    twice = fast.decode([ids, ids + ids])
    np.testing.assert_array_equal(twice.actions[0], twice.actions[1])
    assert twice.repaired.tolist() == [0, HORIZON * DOF]


def test_a_cut_sequence_keeps_the_low_frequencies(fast: Fast) -> None:
    chunks = motions(3, seed=5)[1:2]
    ids = fast.encode(chunks)[0].tolist()
    decoded = fast.decode([ids[:-1]])
    assert 0 < decoded.repaired[0] < HORIZON * DOF
    rough = np.abs(decoded.actions - chunks).mean()
    assert rough < np.abs(fast.decode([[]]).actions - chunks).mean() / 2


def test_unknown_tokens_are_left_out_and_counted(fast: Fast) -> None:
    ids = fast.encode(motions(3, seed=6))[1].tolist()
    decoded = fast.decode([ids, [-1, *ids, fast.size]])
    np.testing.assert_array_equal(decoded.actions[0], decoded.actions[1])
    assert decoded.repaired.tolist() == [0, 2]


# Bad input


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_number_that_is_none_is_named_with_its_place(fast: Fast, value: float) -> None:
    chunks = motions(3)
    chunks[1, 7, 2] = value
    with pytest.raises(FastError, match=rf"actions\[1, 7, 2\] is {value}, wanted finite"):
        fast.encode(chunks)
    with pytest.raises(FastError, match=r"actions\[1, 7, 2\]"):
        Fast.fit(chunks)


@pytest.mark.parametrize("shape", [(2, HORIZON + 1, DOF), (2, HORIZON, DOF - 1), (HORIZON, DOF)])
def test_chunk_of_another_shape_is_refused(fast: Fast, shape: tuple[int, ...]) -> None:
    with pytest.raises(FastError, match=f"fitted for {HORIZON} steps of {DOF} joints"):
        fast.encode(np.zeros(shape))


@pytest.mark.parametrize("shape", [(0, HORIZON, DOF), (HORIZON, DOF), ()])
def test_nothing_to_learn_from_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FastError, match="wanted"):
        Fast.fit(np.zeros(shape))


def test_scale_too_fine_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(FastError, match="lower the scale"):
        Fast.fit(motions(50), scale=1000.0)


def test_action_far_outside_is_clipped_with_a_warning(fast: Fast) -> None:
    chunks = motions(2)
    chunks[0, :, 0] = 1000.0
    with pytest.warns(FastWarning, match="1 of 160 FAST coefficients clipped"):
        ids = fast.encode(chunks)
    assert fast.decode(ids).repaired.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("low", "high"), [([0.0], [0.0]), ([0.0], [1.0, 2.0]), ([np.nan], [1.0]), ([0.0], [np.inf]), (0.0, 1.0)]
)
def test_quantiles_that_are_no_range_are_refused(low: object, high: object) -> None:
    with pytest.raises(FastError, match="wanted finite vectors"):
        Quantiles(np.array(low), np.array(high))


# Files


def test_saved_and_read_again_it_is_the_same(fast: Fast, tmp_path: Path) -> None:
    for _ in range(2):  # over the old one, too
        fast.save(tmp_path / "policy")
    assert [path.name for path in (tmp_path / "policy").iterdir()] == [FILE]
    loaded = Fast.load(tmp_path / "policy")
    chunks = motions(20, seed=7)
    ids = fast.encode(chunks)
    assert all(np.array_equal(a, b) for a, b in zip(ids, loaded.encode(chunks), strict=True))
    np.testing.assert_array_equal(fast.decode(ids).actions, loaded.decode(ids).actions)
    assert loaded.to_dict() == fast.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99, wanted 1"),
        ({"horizon": None}, "no FAST tokenizer"),
        ({"horizon": 0}, "one step or more"),
        ({"scale": "fine"}, "no FAST tokenizer"),
        ({"minimum": -4000}, "no FAST tokenizer: BPE without coefficient 0"),
        ({"low": [0.0]}, "wanted finite vectors"),
        ({"bpe": {}}, "no tokenizer of the tokenizers library"),
    ],
)
def test_damaged_file_is_named_with_what_is_wrong(
    fast: Fast, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / FILE).write_text(json.dumps(fast.to_dict() | change))
    with pytest.raises(TokenizerError, match=message) as error:
        Fast.load(tmp_path)
    assert FILE in str(error.value)


def test_missing_or_torn_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=FILE):
        Fast.load(tmp_path)
    for text in ("{", "[]", "\x80"):
        (tmp_path / FILE).write_bytes(text.encode("latin-1"))
        with pytest.raises(TokenizerError, match=FILE):
            Fast.load(tmp_path)


def test_universal_keeps_its_scale_alphabet_and_vocabulary(universal: Fast) -> None:
    assert (universal.scale, universal.minimum) == (10.0, -300)
    assert (universal.lowest, universal.highest) == (-300, 299)
    assert universal.size == 900


def test_saved_universal_stays_itself(universal: Fast, tmp_path: Path) -> None:
    universal.save(tmp_path)
    chunks = motions(20, seed=8)
    loaded = Fast.load(tmp_path)
    ids = [row.tolist() for row in universal.encode(chunks)]
    assert [row.tolist() for row in loaded.encode(chunks)] == ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_horizon": 10}, "time_horizon is 10, wanted 20"),
        ({"action_dim": 7}, "action_dim is 7, wanted 4"),
        ({"scale": None}, "entry missing or wrong"),
        ({"min_token": 5}, "no positive minimum"),
    ],
)
def test_universal_for_something_else_is_refused(
    universal_folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    config = json.loads((universal_folder / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps(config | change))
    (tmp_path / "tokenizer.json").write_bytes((universal_folder / "tokenizer.json").read_bytes())
    with pytest.raises(TokenizerError, match=message):
        Fast.load_universal(tmp_path, HORIZON, Quantiles.fit(motions(10)))


def test_number_that_a_universal_bpe_never_saw_becomes_the_nearest(tmp_path: Path) -> None:
    # The processor's own fit leaves control characters without a token where the data never had them.
    bpe = tokenizers.ByteLevelBPETokenizer()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=[chr(code) for code in range(200)]
    )
    seen = [code for code in range(200) if code not in (5, 6)]
    bpe._tokenizer.train_from_iterator(["".join(map(chr, seen))] * 3, trainer)
    bpe.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "processor_config.json").write_text(json.dumps({"scale": 1, "min_token": -100}))
    tokenizer = Fast.load_universal(tmp_path, 1, Quantiles(np.full(4, -1.0), np.full(4, 1.0)))
    assert tokenizer.lowest == -100 and tokenizer.highest >= 99
    with pytest.warns(FastWarning, match="2 of 4 FAST coefficients"):
        decoded = tokenizer.decode(tokenizer.encode([[[-100.0, -95.0, -94.0, 99.0]]]))
    assert decoded.actions.tolist() == [[[-100.0, -96.0, -93.0, 99.0]]]
    assert decoded.repaired.tolist() == [0]
