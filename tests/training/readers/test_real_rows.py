"""Real rows of Alimama and Ali-CCP, put back from others' preparations into the official layout."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from tests.training.prepared import read_chunks, read_tables
from tests.training.readers import files
from training.dataset import build, learn_encoder
from training.logs import LogsError
from training.option import OptionError
from training.readers import read_ali_ccp, read_alimama

FIXTURES = Path(__file__).resolve().parents[3].parent / "shared/data/fixtures"
LENGTH = 50  # behaviours of an impression in the prepared rows; btag 0 or category 0 is padding


def text_of(name: str) -> str:
    path = FIXTURES / name
    if not path.exists():
        pytest.skip(f"no real data in {FIXTURES}")
    return gzip.decompress(path.read_bytes()).decode()


def rows_of(name: str) -> list[list[str]]:
    return [line.strip().split(",") for line in text_of(name).splitlines()]


@pytest.mark.real_data
def test_real_rows_of_alimama_are_read(tmp_path: Path) -> None:
    """500 impressions with 210 clicks, whose users, ads and behaviours all arrive."""
    rows = rows_of("alimama-dmr-500rows.csv.gz")
    shown, log, ads, people = [], [], dict[str, str](), dict[str, str]()
    for at, row in enumerate(rows):
        user, profile = row[250], row[251:259]
        ad, category, campaign, customer, brand, price, _, click = row[259:]
        ts = files.ALIMAMA_FIRST + at * 1000
        shown.append(f"{user},{ts},{ad},430548_1007,{1 - int(click)},{click}")
        ads[ad] = f"{ad},{category},{campaign},{customer},{brand},{price}"
        people[user] = ",".join([user, *profile])
        actions, categories, brands = (row[n * LENGTH : (n + 1) * LENGTH] for n in range(3))
        past = zip(actions, categories, brands, strict=True)
        names = {"1": "pv", "2": "fav", "3": "cart", "4": "buy"}
        log += [
            f"{user},{ts - LENGTH + n},{names[a]},{c},{b}"
            for n, (a, c, b) in enumerate(past)
            if a in names
        ]
    folder = files.alimama(tmp_path, shown, log, [*ads.values()], [*people.values()])
    logs = read_chunks(read_alimama, folder, partial=True)
    assert logs.malformed.count == 0
    assert logs.users.height == 230
    impressions = logs.events.filter(~pl.col("behaviour"))
    assert (impressions.height, impressions["ctr"].sum()) == (500, 210)
    assert impressions["adgroup_id"].n_unique() == 297
    assert set(impressions["item_id"]) <= set(logs.items["item_id"])
    sets = build(logs, learn_encoder(logs))
    seen = [length for part in sets.values() for length in part.stop - part.start]
    assert max(seen) == LENGTH
    assert sum(length > 0 for length in seen) > 490


@pytest.mark.real_data
def test_real_samples_of_ali_ccp_are_read(tmp_path: Path) -> None:
    """Every field of the samples is one that the reader knows, and none is lost."""
    rows = rows_of("aliccp-esmm-10rows.txt.gz")
    samples, users = [], []
    for number, click, buy, *pairs in rows:
        each = [(*pair.split(":"), "1.0") for pair in pairs]
        own = [feature for feature in each if feature[0][0] in "23578"]
        users.append(files.common(number, *(feature for feature in each if feature not in own)))
        samples.append(files.sample(int(number), int(click), int(buy), number, *own))
    logs = read_chunks(
        read_ali_ccp, files.ali_ccp(tmp_path, (samples, users), (samples, users)), partial=True
    )
    assert logs.malformed.count == 0
    train = logs.events.filter(pl.col("split").is_in(["train", "validation"]))
    assert train.height == 10
    labels = {(number, int(click), int(buy)) for number, click, buy, *_ in rows}
    found = train.select(pl.col("user_id").str.strip_prefix("train:"), "ctr", "conversion")
    assert set(found.iter_rows()) == labels
    assert train.select("item_id", "product", "shop", "scene").null_count().row(0) == (0, 0, 0, 0)
    past = [sum(pair.startswith("109_14:") for pair in pairs) for _, _, _, *pairs in rows]
    assert logs.events["behaviour"].sum() == 2 * sum(past) > 0


@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["common_features", "sample_skeleton"])
def test_a_preparation_of_ali_ccp_is_not_its_official_layout(tmp_path: Path, kind: str) -> None:
    """One row of numbered columns, with a header, is refused with its lines and what they lack."""
    users = [files.common("a", ("101", "1", "1.0"))]
    samples = [files.sample(1, 0, 0, "a", ("206", "1", "1.0"))]
    folder = files.ali_ccp(tmp_path, (samples, users), (samples, users))
    file = folder / f"{kind}_train.csv"
    file.write_text(text_of("aliccp-100rows.csv.gz"))
    number = 3 if kind == "common_features" else 6
    reason = f"the number of fields is not {number}"
    with pytest.raises(LogsError, match=f"line 1: {reason}") as refused:
        read_chunks(read_ali_ccp, folder, partial=True)
    assert refused.value.malformed.bad[:2] == ((str(file), 1, reason), (str(file), 2, reason))


@pytest.mark.real_data
def test_rows_of_aliexpress_lack_what_own_tables_need(tmp_path: Path) -> None:
    """They have a search and two labels, and neither a user, an item nor a time."""
    (tmp_path / "events.csv").write_text(text_of("aliexpress-100rows.csv.gz"))
    schema = tmp_path / "schema.toml"
    task = '[[task]]\nname = "click"\n'
    schema.write_text(f'name = "x"\nhistory_length = 5\n{task}[[item]]\nname = "item_id"\n')
    columns = {"user_id": "search_id", "item_id": "categorical_1"}
    with pytest.raises(OptionError, match=r"--schema: ts: expected columns of .*events\.csv"):
        read_tables(tmp_path, schema, columns=columns)
    with pytest.raises(OptionError, match=r"--schema: user_id, item_id, ts: expected columns of"):
        read_tables(tmp_path, schema)
