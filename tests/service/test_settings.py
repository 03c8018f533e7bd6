"""Settings: the page that lists them is the code's own list, and nothing else is ever named."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from service.options import OptionError, settings_of
from service.settings import Settings
from service.settings_table import table, variable
from tests.support import ROOT

OWN = {variable(name, field) for name, field in Settings.model_fields.items()}


def test_the_page_lists_the_settings_as_they_are() -> None:
    """Every setting with its default, unit and meaning, and none that is not there. To bring it
    up to date: python -m service settings."""
    page = (ROOT / "docs" / "settings.md").read_text()
    assert table() in page
    listed = re.findall(r"^\| `(DINSERVE_\w+)` \| [^|]+\| [^|]*\| \S", page, re.MULTILINE)
    assert sorted(listed) == sorted(OWN)


def test_variables_are_read_as_they_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable of a setting sets it."""
    for name, field in Settings.model_fields.items():
        if field.annotation is int:
            with monkeypatch.context() as changed:
                changed.setenv(variable(name, field), str(field.default + 1))
                assert getattr(Settings(), name) == field.default + 1
    monkeypatch.setenv("DINSERVE_RUNS", "3")
    assert Settings().runs_side_by_side == 3


def test_a_variable_without_a_value_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a file that names all of them and sets a few."""
    for name in OWN:
        monkeypatch.setenv(name, "")
    assert Settings() == Settings.model_construct()


@pytest.mark.parametrize(
    "pages", [lambda: [ROOT / "README.md"], lambda: (ROOT / "docs").glob("*.md")]
)
def test_documents_name_no_setting_that_is_not_there(pages: Callable[[], list[object]]) -> None:
    """What a page says of a setting can be set."""
    for page in pages():
        named = set(re.findall(r"DINSERVE_[A-Z_]+", page.read_text()))  # type: ignore[attr-defined]
        assert named <= OWN, page


def test_a_url_that_is_no_store_is_refused_without_being_echoed() -> None:
    """The message names the setting and what is expected."""
    with pytest.raises(ValidationError) as caught:
        Settings(redis_url="redis+other://:hidden@host")
    [error] = caught.value.errors(include_input=False, include_url=False)
    assert error["loc"] == ("redis_url",)
    assert "expected redis://" in error["msg"]
    assert "hidden" not in error["msg"]


def test_tombstones_that_go_before_old_events_are_refused() -> None:
    """Else what a user did before the erasure could come back; both settings are named."""
    assert Settings(history_days=500, erased_days=500).erased_days == 500
    with pytest.raises(OptionError, match=r"^DINSERVE_ERASED_DAYS \(400\).*") as found:
        settings_of(history_days=401)
    assert "DINSERVE_HISTORY_DAYS (401)" in str(found.value)
