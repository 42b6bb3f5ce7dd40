"""The prompt's layout: order, kinds, loss, limits, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from recap_policy.fast import Fast
from recap_policy.prompt import (
    Kind,
    Layout,
    PromptError,
    PromptWarning,
    Row,
    main,
    state_bins,
)
from recap_policy.text import GemmaTokenizer, TextError, TinyTokenizer
from recap_policy.tokens import (
    ACTION,
    ADVANTAGE,
    END,
    FIRST_STATE_BIN,
    METADATA,
    NEWLINE,
    POSITIVE,
    STATE,
    SUBTASK,
    TASK,
    vocabulary_size,
)

DOCS = Path(__file__).resolve().parents[2] / "docs/tokens.md"
BINS = np.array([0, 127, 255])


@pytest.fixture(params=["gemma", "tiny"])
def layout(request: pytest.FixtureRequest, gemma_file: Path) -> Layout:
    return Layout(GemmaTokenizer(gemma_file, action_codes=1000) if request.param == "gemma" else tiny())


def tiny() -> TinyTokenizer:
    return TinyTokenizer(["insert", " it", "pick", " up", "fast", " slow"], word_slots=8, action_codes=1000)


def whole(layout: Layout, indicator: str = "positive") -> Row:
    return (
        layout.prompt("insert it", BINS, "fast slow")
        + layout.subtask("pick up")
        + layout.advantage(indicator)
        + layout.actions([5, 0, 999])
    )


# The layout


def test_segments_stand_in_the_papers_order(layout: Layout) -> None:
    kinds = whole(layout).kinds.tolist()
    wanted = list(Kind)[1 if layout.tokenizer.begin else 2 : Kind.ACTION + 1]
    assert [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind] == wanted


def test_gemma_reads_the_example_as_one_text(gemma_file: Path) -> None:
    layout = Layout(GemmaTokenizer(gemma_file, action_codes=1000))
    row = whole(layout)
    assert row.ids[0] == layout.tokenizer.begin[0] and row.ids[-1] == layout.tokenizer.end
    lines = "State: 0 127 255\nTask: insert it\nMetadata: fast slow\n"
    lines += "Subtask: pick up\nAdvantage: positive\nAction:"
    assert tuple(row.ids[1:-4]) == layout.tokenizer.encode(lines)
    assert tuple(row.ids[-4:-1]) == tuple(layout.tokenizer.to_actions([5, 0, 999]))


def test_tiny_reads_one_token_for_each_cue_bin_word_and_code() -> None:
    first = vocabulary_size(8)
    word = {name: vocabulary_size(0) + place for place, name in enumerate(tiny().words)}
    assert whole(Layout(tiny())).ids.tolist() == [
        *(STATE, FIRST_STATE_BIN, FIRST_STATE_BIN + 127, FIRST_STATE_BIN + 255),
        *(TASK, word["insert"], word[" it"], NEWLINE),
        *(METADATA, word["fast"], word[" slow"], NEWLINE),
        *(SUBTASK, word["pick"], word[" up"], NEWLINE),
        *(ADVANTAGE, POSITIVE),
        *(ACTION, first + 5, first, first + 999, END),
    ]


def test_loss_is_on_subtask_and_actions_with_their_ends_alone(layout: Layout) -> None:
    row = whole(layout)
    table = layout.table([row])
    learnt = row.ids[table.learnt[0]].tolist()
    tokenizer = layout.tokenizer
    assert learnt == [
        *tokenizer.line("pick up"),
        *tokenizer.to_actions([5, 0, 999]).tolist(),
        tokenizer.end,
    ]
    assert learnt.count(tokenizer.newline) == learnt.count(tokenizer.end) == 1


def test_expert_sees_all_but_the_action_line_and_padding(layout: Layout) -> None:
    row = whole(layout)
    table = layout.table([row, layout.advantage("")])
    seen = table.seen_by_expert
    assert not seen[1].any()
    without_actions = layout.prompt("insert it", BINS, "fast slow") + layout.subtask("pick up")
    without_actions = without_actions + layout.advantage("positive")
    assert row.ids[seen[0]].tolist() == without_actions.ids.tolist()


def test_indicators_place_is_known(layout: Layout) -> None:
    row = whole(layout, "negative")
    table = layout.table([row, whole(layout, "")])
    assert row.ids[table.indicator[0]].tolist() == layout.advantage("negative").ids.tolist()
    assert not table.indicator[1].any()


def test_rows_written_before_come_back_and_are_few(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recap_policy.prompt._KEPT", 3)
    for text in ("pick up", "insert it", "pick up", "a", "b", "c", "pick up"):
        fresh = Layout(layout.tokenizer)
        assert layout.subtask(text).ids.tolist() == fresh.subtask(text).ids.tolist()
        assert layout.prompt(text).ids.tolist() == fresh.prompt(text).ids.tolist()
        assert len(layout._rows) <= 3


def test_state_that_is_no_text_has_no_tokens(layout: Layout) -> None:
    without, whole = layout.prompt("insert it"), layout.prompt("insert it", BINS)
    assert without.ids.tolist() == whole.ids[whole.kinds != Kind.STATE].tolist()


def test_value_is_asked_for_behind_the_prompt_in_a_line_of_its_own(layout: Layout) -> None:
    row = layout.prompt("insert it", BINS) + layout.value_cue
    assert row.kinds[-1] == Kind.VALUE_CUE and row.ids[-1] != layout.tokenizer.pad
    assert not layout.table([row]).learnt.any()


def test_guess_is_written_as_a_subtask_and_may_be_anything(layout: Layout) -> None:
    found = layout.guess("pick up")
    assert found is not None and found.ids.tolist() == layout.subtask("pick up").ids.tolist()
    empty = layout.guess("")
    assert empty is not None and empty.ids[-1] == layout.tokenizer.newline
    assert Layout(layout.tokenizer, subtask_limit=3).guess("pick up pick up pick up") is None


def test_positive_and_negative_differ_in_the_indicator_alone(layout: Layout) -> None:
    positive, negative = whole(layout), whole(layout, "negative")
    here = positive.kinds == Kind.ADVANTAGE
    assert positive.ids[here].tolist() != negative.ids[negative.kinds == Kind.ADVANTAGE].tolist()
    assert positive.ids[~here].tolist() == negative.ids[negative.kinds != Kind.ADVANTAGE].tolist()


def test_what_is_not_given_has_no_tokens(layout: Layout) -> None:
    row = layout.prompt("insert it", BINS) + layout.advantage("") + layout.actions([1])
    assert set(row.kinds.tolist()) <= {Kind.BEGIN, Kind.STATE, Kind.TASK, Kind.ACTION_CUE, Kind.ACTION}


def test_spaces_and_newlines_in_a_text_are_single_spaces(layout: Layout) -> None:
    assert layout.prompt(" insert\n  it ", BINS).ids.tolist() == layout.prompt("insert it", BINS).ids.tolist()
    assert (layout.subtask("pick\nup").ids == layout.tokenizer.newline).sum() == 1


def test_table_pads_at_the_end(layout: Layout) -> None:
    short, long = layout.advantage("positive"), whole(layout)
    table = layout.table([short, long], length=len(long) + 3)
    assert table.ids.shape == (2, len(long) + 3) and table.ids.dtype == np.int64
    assert table.valid.sum(1).tolist() == [len(short), len(long)]
    assert (table.ids[~table.valid] == layout.tokenizer.pad).all()
    assert layout.table([]).ids.shape == (0, 0)
    with pytest.raises(PromptError, match=f"row of {len(long)} tokens, wanted at most 3"):
        layout.table([long], length=3)


# Actions back


def test_actions_written_are_actions_read(layout: Layout) -> None:
    row = layout.actions([5, 0, 999])
    written = row.ids[row.kinds == Kind.ACTION]
    assert layout.codes(written).tolist() == [5, 0, 999]
    assert layout.codes([*written, 7, 7]).tolist() == [5, 0, 999]  # what follows the end is nothing
    assert layout.codes(written[:-1]).tolist() == [5, 0, 999]  # nor need there be an end


def test_any_ids_a_model_may_write_are_a_chunk(layout: Layout) -> None:
    fast = Fast.fit(np.random.default_rng(0).normal(size=(20, 5, 2)).cumsum(1), vocabulary=200)

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 3000), max_size=30))
    def check(ids: list[int]) -> None:
        assert np.isfinite(fast.decode([layout.codes(ids)]).actions).all()

    check()


# Limits


def test_metadata_gives_way_first_and_says_so(layout: Layout) -> None:
    bare = layout.prompt("insert it", BINS)
    longer = layout.prompt("insert it", BINS, "fast slow fast slow")
    metadata = (longer.kinds == Kind.METADATA).sum()
    cue = len(layout.prompt("insert it", BINS, "fast")) - len(bare) - 2  # less one word and the newline
    for limit in range(len(bare), len(longer)):
        short = Layout(layout.tokenizer, prompt_limit=limit)
        with pytest.warns(PromptWarning, match="metadata 'fast slow fast slow' cut short"):
            row = short.prompt("insert it", BINS, "fast slow fast slow")
        assert len(row) <= limit
        assert row.ids[: len(bare)].tolist() == bare.ids.tolist()
        rest = row.ids[len(bare) :].tolist()
        if limit - len(bare) > cue + 1:
            assert len(row) == limit and rest[-1] == layout.tokenizer.newline
            assert rest[:-1] == longer.ids[len(bare) : limit - 1].tolist()
        else:
            assert rest == []
    exact = Layout(layout.tokenizer, prompt_limit=len(bare) + metadata)
    assert len(exact.prompt("insert it", BINS, "fast slow fast slow")) == len(longer)


def test_task_is_never_cut(layout: Layout) -> None:
    length = len(layout.prompt("insert it", BINS))
    short = Layout(layout.tokenizer, prompt_limit=length - 1)
    message = f"prompt of {length} tokens, wanted at most {length - 1}.*insert it"
    for metadata in (None, "fast"):
        with pytest.raises(PromptError, match=message):
            short.prompt("insert it", BINS, metadata)


def test_subtask_is_never_cut(layout: Layout) -> None:
    length = len(layout.subtask("pick up"))
    assert len(Layout(layout.tokenizer, subtask_limit=length).subtask("pick up")) == length
    with pytest.raises(PromptError, match=f"sub-task of {length} tokens, wanted at most {length - 1}"):
        Layout(layout.tokenizer, subtask_limit=length - 1).subtask("pick up")


def test_long_chunk_loses_its_end_and_says_so(layout: Layout) -> None:
    cue = len(layout.action_cue)
    short = Layout(layout.tokenizer, action_limit=cue + 3)
    assert short.actions([5, 0]).ids[-1] == layout.tokenizer.end
    with pytest.warns(PromptWarning, match="4 action tokens, wanted at most 3"):
        row = short.actions([5, 0, 999])
    assert layout.codes(row.ids[cue:]).tolist() == [5, 0, 999]
    assert layout.tokenizer.end not in row.ids


# Bad input


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_empty_text_is_refused(layout: Layout, empty: str) -> None:
    with pytest.raises(PromptError, match=r"task is .* wanted a text"):
        layout.prompt(empty, BINS)
    with pytest.raises(PromptError, match=r"metadata is .* wanted a text"):
        layout.prompt("insert it", BINS, empty)
    with pytest.raises(PromptError, match=r"sub-task is .* wanted a text"):
        layout.subtask(empty)


def test_indicator_and_code_that_do_not_exist_are_refused(layout: Layout) -> None:
    with pytest.raises(PromptError, match="indicator is 'good', wanted one of"):
        layout.advantage("good")
    with pytest.raises(TextError, match=r"FAST code 1000, wanted 0 .. 999"):
        layout.actions([1, 1000])


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        ([0, 256], r"state\[1\] is bin 256, wanted 0 .. 255"),
        ([-1, 0], r"state\[0\] is bin -1"),
        ([0.5, 0.1], r"type float64, wanted \(joints,\) integers"),
        ([[1, 2]], r"state of shape \(1, 2\)"),
    ],
)
def test_state_that_is_no_bins_is_refused(layout: Layout, bins: list, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        layout.prompt("insert it", bins)


def test_state_bins_are_256_equal_parts_of_the_range() -> None:
    edges = np.linspace(-1, 1, 257)
    assert state_bins(edges[:-1]).tolist() == list(range(256))
    assert state_bins((edges[:-1] + edges[1:]) / 2).tolist() == list(range(256))
    assert state_bins([[-7.0, 1.0, 7.0, np.inf]]).tolist() == [[0, 255, 255, 255]]
    with pytest.raises(PromptError, match=r"state\[1, 0\] is nan"):
        state_bins([[0.0], [np.nan]])


# The example


def test_docs_show_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert capsys.readouterr().out.strip() in DOCS.read_text(encoding="utf-8")


def test_command_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"none\.json: cannot be read"):
        main(["--tokenizer", str(tmp_path / "none.json")])


def test_prompts_are_written_without_torch() -> None:
    code = "import sys, recap_policy.prompt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
