"""What is unknown on a command line is refused with the choices there are: exit code 2."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from terminal.commands import Commands

app = Commands("Two commands.")


@app.command()
def paint(colour: str = "red", wide: bool = False) -> None:
    """Nothing of it matters."""


@app.command("wash-up")
def wash() -> None:
    """Likewise."""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["paint", "--color", "red"],
            "No such option: --color (Possible options: --colour, --wide)",
        ),
        (["dust"], "No such command 'dust'. (Commands: paint, wash-up)"),
        (["--zzz"], "No such option: --zzz"),
        (["paint", "--colour"], "Option '--colour' requires an argument"),
    ],
)
def test_what_is_unknown_is_refused_with_the_choices(words: list[str], expected: str) -> None:
    ended = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert ended.exit_code == 2
    assert expected in ended.stderr


def test_what_is_known_runs() -> None:
    assert CliRunner().invoke(app, ["paint", "--colour", "blue", "--wide"]).exit_code == 0
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
