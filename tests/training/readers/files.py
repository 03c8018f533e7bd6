"""Small files in the exact layout of the owners', for the tests of their readers."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

PROFILE = (
    "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,"
    "shopping_level,occupation,new_user_class_level "  # the space is the owners'
)
DAY = 86_400
ALIMAMA_FIRST = 1_494_000_000  # 2017-05-06, 0:00 in China
Feature = tuple[str, str, str]


def text(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def gzipped(path: Path, *lines: str) -> None:
    path.write_bytes(gzip.compress(text(*lines).encode()))


def tarred(path: Path, member: str, *lines: str) -> None:
    """A .tar.gz with some other file before the one of this name."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (("README", "nothing"), (member, text(*lines))):
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))


def movielens_20m(folder: Path, ratings: Sequence[str]) -> Path:
    movies = ('1,"American President, The (1995)",Comedy|Drama', "2,Plain,(no genres listed)")
    path = folder / "ml-20m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml-20m/movies.csv", text("movieId,title,genres", *movies))
        header = "userId,movieId,rating,timestamp"
        archive.writestr("ml-20m/ratings.csv", text(header, *ratings))
    return path


def review(user: str, item: str, time: int) -> str:
    about = {"reviewerID": user, "asin": item, "helpful": [0, 1], "reviewText": 'So "good" {x}'}
    return json.dumps({**about, "overall": 5.0, "unixReviewTime": time, "reviewTime": "06 2, 2013"})


def described(item: str, *categories: Sequence[str], price: float = 1.5) -> str:
    """A line of the metadata: a Python literal, which no reader of JSON takes."""
    return repr({"asin": item, "title": "It's", "price": price, "categories": list(categories)})


def amazon(folder: Path, reviews: Sequence[str], meta: Sequence[str], name: str = "Toys") -> Path:
    gzipped(folder / f"reviews_{name}_5.json.gz", *reviews)
    gzipped(folder / f"meta_{name}.json.gz", *meta)
    return folder


def alimama(
    folder: Path,
    shown: Sequence[str],
    behaviours: Sequence[str],
    ads: Sequence[str] = ("1,6406,83237,11,95471,170.0", "2,6407,83237,11,NULL,19.5"),
    people: Sequence[str] = ("1,0,5,2,5,,3,0,3", "2,7,5,1,5,2,3,1,"),
) -> Path:
    files = {
        "raw_sample.csv": ("user,time_stamp,adgroup_id,pid,nonclk,clk", shown),
        "ad_feature.csv": ("adgroup_id,cate_id,campaign_id,customer,brand,price", ads),
        "user_profile.csv": (PROFILE, people),
        "behavior_log.csv": ("user,time_stamp,btag,cate,brand", behaviours),
    }
    for name, (header, lines) in files.items():
        (folder / name).write_text(text(header, *lines))
    return folder


def features(*each: Feature) -> str:
    """The number of features, and the features."""
    joined = "\x01".join(f"{field}\x02{number}\x03{value}" for field, number, value in each)
    return f"{len(each)},{joined}"


def common(index: str, *each: Feature) -> str:
    return f"{index},{features(*each)}"


def sample(number: int, click: int, buy: int, index: str, *each: Feature) -> str:
    return f"{number},{click},{buy},{index},{features(*each)}"


def ali_ccp(
    folder: Path, train: tuple[Sequence[str], Sequence[str]], test: tuple[Sequence[str], ...]
) -> Path:
    """Skeleton and common features of each split."""
    for split, (skeleton, users) in (("train", train), ("test", test)):
        (folder / f"sample_skeleton_{split}.csv").write_text(text(*skeleton))
        (folder / f"common_features_{split}.csv").write_text(text(*users))
    return folder


def taobao(folder: Path, *lines: str) -> Path:
    path = folder / "UserBehavior.csv"
    path.write_text(text(*lines))
    return path
