"""Readers of the owners' formats, each to `Logs`: one module per data set.

A malformed row is dropped, counted and listed with its line; above ``max_bad_share`` of a file the
job stops. Where the published size of a data set is known, another size is an error unless the
files are said to be ``partial``. All shares of users come from a hash of the id, so a user keeps
its split between runs.
"""

from training.readers.ali_ccp import read_ali_ccp
from training.readers.alimama import read_alimama
from training.readers.amazon import read_amazon, read_amazon_reviews
from training.readers.movielens import read_movielens, read_movielens_20m
from training.readers.taobao import read_taobao

__all__ = [
    "read_ali_ccp",
    "read_alimama",
    "read_amazon",
    "read_amazon_reviews",
    "read_movielens",
    "read_movielens_20m",
    "read_taobao",
]
