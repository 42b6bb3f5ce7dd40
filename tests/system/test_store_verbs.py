"""`./recap inspect`, `export` and `import`, as they are run from a terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recap.cli import app
from recap_learner.data.store import Store

sys.path.append(str(Path(__file__).parent.parent / "learner"))
from store_writer import episode


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "episodes")
    opened.add(episode("first", 100))  # its bag is not there, and all its joints are beyond their ranges
    return opened


@pytest.mark.parametrize(
    ("fail_on", "code"), [("", 0), ("duplicate", 0), ("black,limit", 1), ("any", 1), ("unreadable", 1)]
)
def test_inspect_fails_on_what_it_is_told_to(store: Store, fail_on: str, code: int) -> None:
    done = CliRunner().invoke(app, ["inspect", str(store.folder), "--fail-on", fail_on, "--json"])
    assert done.exit_code == code, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] is (code == 0) and result["findings"] == {"limit": 1, "unreadable": 1}
    assert {finding["kind"] for finding in result["found"]} == {"limit", "unreadable"}


def test_inspect_writes_a_page_and_says_what_it_found(store: Store, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(store.folder), "--html", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert "episodes: 1" in done.stdout and "limit" in done.stdout
    html = (tmp_path / "page.html").read_text()
    assert "2 findings in 1 episode" in html and "<img" in html
    assert 'src="http' not in html


def test_an_unknown_kind_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="'blck'"):
        CliRunner().invoke(app, ["inspect", str(store.folder), "--fail-on", "blck"], catch_exceptions=False)


@pytest.mark.parametrize(
    "words", ["inspect", "export", "import", "export lerobot", "export rerun", "import lerobot"]
)
def test_help_has_an_example_and_json(words: str) -> None:
    done = CliRunner().invoke(app, [*words.split(), "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert f"./recap {words}" in done.output and "--json" in done.output
