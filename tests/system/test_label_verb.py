"""`./recap label`: what people say of attempts, from the terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recap.cli import app
from recap.label_verb import label_app
from recap_learner.data.store import Store

sys.path.append(str(Path(__file__).parent.parent / "learner"))
from store_writer import TASK, episode

COMMANDS = sorted(c.name or c.callback.__name__ for c in label_app.registered_commands if c.callback)


def label(*words: str) -> dict:
    """Run in this process → the JSON line."""
    done = CliRunner().invoke(app, ["label", *words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "episodes")
    opened.add(episode("first", 100))
    opened.add(episode("second", 100, "failure"))
    return opened


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command: str) -> None:
    done = CliRunner().invoke(app, ["label", command, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert "./recap label" in done.output and "--json" in done.output


def test_the_verbs_own_help_shows_how_to_use_it() -> None:
    done = CliRunner().invoke(app, ["label", "--help"], env={"COLUMNS": "200"})
    assert all(word in done.output for word in (*COMMANDS, "./recap label episodes", "--json"))


def test_an_outcome_is_set_shown_and_taken_back(store: Store) -> None:
    folder = str(store.folder)
    label("set", folder, "fir", "failure", "--reason", "peg dropped", "--who", "ana")
    [first, second] = label(folder)["episodes"]
    assert (first["outcome"], first["recorded"], first["by"]) == ("failure", "success", ["ana"])
    assert (second["outcome"], second["by"]) == ("failure", [])
    assert [row["episode"] for row in label("list", folder, "--only", "failure")["episodes"]] == [
        "first",
        "second",
    ]
    assert label("undo", folder, "first", "--who", "ben") | {"undone": "outcome", "said_by": "ana"}
    shown = label("show", folder, "first")
    assert shown["outcome"] == "success" and [entry["who"] for entry in shown["log"]] == ["ana", "ben"]
    assert store.load("first").info.success


def test_answers_to_the_rubric_settle_the_outcome_and_marks_are_kept(store: Store) -> None:
    folder = str(store.folder)
    assert set(TASK.rubric["required"]) == {"inserted", "released"}
    assert label("judge", folder, "second", "inserted=yes")["outcome"] == "not settled yet"
    assert label("judge", folder, "second", "released=yes", "smooth=no")["outcome"] == "success"
    label("mark", folder, "second", "lift", "0.5")
    label("mark", folder, "second", "failed", "1.0")
    shown = label("show", folder, "second")
    assert shown["outcome"] == "success" and shown["stages"] == [[25, "lift"]] and shown["failed_tick"] == 50
    text = CliRunner().invoke(app, ["label", "show", folder, "second"]).output
    assert "smooth: no" in text and "lift begins at 0.50 s" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["set", "STORE", "first", "won"], "'won'"),
        (["set", "STORE", "third", "success"], "there is none"),
        (["judge", "STORE", "first", "insertd=yes"], "inserted"),
        (["judge", "STORE", "first", "inserted=1"], "inserted=no"),
        (["mark", "STORE", "first", "lfit", "1"], "lift"),
        (["mark", "STORE", "first", "lift", "2.0"], "2.00 s"),
        (["undo", "STORE", "first"], "nothing was said"),
    ],
)
def test_what_cannot_be_said_is_refused(store: Store, words: list[str], said: str) -> None:
    words = [str(store.folder) if word == "STORE" else word for word in words]
    with pytest.raises((ValueError, OSError), match=said):
        CliRunner().invoke(app, ["label", *words], catch_exceptions=False)
    assert store.judgements() == {}
