"""The published sizes that official files are held to, as their owners give them."""

from __future__ import annotations

from training.readers import ali_ccp, alimama, amazon, movielens, taobao


def test_amazon_electronics_has_the_size_that_the_din_paper_gives() -> None:
    """Table 1 of arXiv 1706.06978."""
    assert amazon.PUBLISHED == {
        "Electronics": {
            "reviews": 1_689_188,
            "users": 192_403,
            "goods": 63_001,
            "categories": 801,
        }
    }


def test_movielens_20m_has_the_size_of_its_readme() -> None:
    """GroupLens, ml-20m."""
    assert movielens.PUBLISHED_20M == {"ratings": 20_000_263, "users": 138_493, "movies": 27_278}


def test_alimama_has_the_size_of_its_page() -> None:
    """Tianchi, data set 56."""
    sizes = {"impressions": 26_557_961, "ads": 846_811, "users with a profile": 1_061_768}
    assert sizes == alimama.PUBLISHED


def test_ali_ccp_has_the_size_of_its_page() -> None:
    """Tianchi, data set 408."""
    sizes = {"train": {"samples": 42_300_135}, "test": {"samples": 43_016_840}}
    assert sizes == ali_ccp.PUBLISHED


def test_taobao_has_the_size_of_its_page() -> None:
    """Tianchi, data set 649."""
    assert taobao.PUBLISHED == {
        "rows": 100_150_807,
        "users": 987_994,
        "items": 4_162_024,
        "categories": 9_439,
    }
