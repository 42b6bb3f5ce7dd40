import os
import xml.etree.ElementTree as ElementTree

import pytest

from recap_station.nodes.discovery import PROFILE, VARIABLES, announce_often


def test_a_users_profile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(VARIABLES[1], "mine.xml")
    announce_often()
    assert [os.environ.get(variable) for variable in VARIABLES] == [None, "mine.xml"]


def test_without_one_ours_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
    announce_often()
    assert {os.environ[variable] for variable in VARIABLES} == {str(PROFILE)}
    assert ElementTree.parse(PROFILE).getroot().tag.endswith("dds")
