"""Rows of a file: one cut, whether it is fast or looks twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import rows
from training.logs import LogsError
from training.rows import Rows, cut, pour, whole

LINE = st.text(alphabet='ab1 ,,"\u00e9\r\t|', max_size=8)
CELL = st.text(min_size=1, max_size=4).map(lambda text: text.translate({10: "x", 44: "y"}))
REGULAR = st.lists(CELL, min_size=3, max_size=3).map(",".join)
LINES = st.lists(REGULAR, max_size=6) | st.lists(REGULAR | LINE, max_size=6)


@given(LINES, st.booleans(), st.booleans())
def test_the_fast_cut_is_the_careful_one(lines: list[str], ended: bool, broken: bool) -> None:
    """Whatever the text: where the fast way gives columns, the careful one gives the same."""
    data = ("\n".join(lines) + "\n" * ended).encode(errors="replace") + b"\xff,1,2\n" * broken
    names = ("x", "y", "z")
    fast = rows._regular(data, 5, names)
    if fast is not None:
        careful = rows._split(rows._lines(data, "utf-8", 5), names, ",")
        assert fast.rows() == careful.rows()


def test_regular_lines_are_cut_fast() -> None:
    """The property above is not empty: plain lines go the fast way, others do not."""
    assert rows._regular(b"a,b\nc,d\n", 1, ("x", "y")) is not None
    for other in (
        b"",
        b"a,b\n\n",
        b"a,b\r\n",
        b"a,\n",
        b"a\n",
        b"a,b,c\n",
        b'"a",b\n',
        b"\xff,b\n",
    ):
        assert rows._regular(other, 1, ("x", "y")) is None


@given(st.lists(LINE, max_size=12), st.integers(1, 12))
def test_parts_give_what_the_whole_gives(lines: list[str], each: int) -> None:
    """Lines keep their numbers and reasons however many there are in a part."""
    data = [f"{line}\n".encode() for line in lines]
    parts = [b"".join(data[at : at + each]) for at in range(0, len(data), each)]
    names = ("x", "y", "z")
    one = whole(cut("f", [b"".join(data)], "utf-8", ",", names)).frame
    assert whole(cut("f", parts, "utf-8", ",", names)).frame.rows() == one.rows()


def test_a_given_header_is_the_first_line_with_something_in_it() -> None:
    """Spaces around names, a byte order mark, CRLF and empty lines before it do no harm."""
    parts = [b"\xef\xbb\xbf\r\n", b"\n x, y \r\n", b"1,2\r\n"]
    assert whole(cut("f", parts, "utf-8", ",", ("x", "y"), header=True)).frame.rows() == [
        (4, None, "1", "2")
    ]
    with pytest.raises(LogsError, match="f: line 1: expected the header x,y, found '1,2'"):
        whole(cut("f", [b"1,2\n"], "utf-8", ",", ("x", "y"), header=True))
    with pytest.raises(LogsError, match=r"f: header: expected a line with the names .*: x,y"):
        whole(cut("f", [b"\n"], "utf-8", ",", ("x", "y"), header=True))


def test_a_file_none_of_which_is_sound_so_far_is_given_up() -> None:
    """The rest is not asked for; a share of malformed rows is judged at the end only."""
    asked = []

    def parts(*texts: bytes) -> Iterator[Rows]:
        for text in texts:
            asked.append(text)
            yield from cut("f", [text], "utf-8", ",", ("x", "y"))

    with pytest.raises(LogsError, match="found 2 of 2"):
        pour(parts(b"1\n2\n", b"1,2\n"), 0.1, lambda _: None)
    assert len(asked) == 1
    sound: list[pl.DataFrame] = []
    dropped = pour(parts(b"1,2\n3\n4\n", b"5\n"), 0.1, sound.append)
    assert [frame.rows() for frame in sound] == [[("1", "2")], []]
    assert (dropped.count, dropped.total) == (3, 4)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    """And its columns all the same."""
    assert whole(cut("f", [], "utf-8", ",", ("x", "y"))).sound().schema == {
        "x": pl.String,
        "y": pl.String,
    }
