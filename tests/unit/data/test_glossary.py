"""用語集: 重ならず、指すノートブックに本当にその言葉がある。"""

import csv
import re

from lib.files import REPOSITORY


def test_every_term_is_explained_and_found_where_it_points():
    path = REPOSITORY / "data" / "glossary" / "terms.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        terms = list(csv.DictReader(stream))
    assert len(terms) >= 30 and all(all(term.values()) for term in terms)
    assert len({term["ja"] for term in terms}) == len({term["en"] for term in terms}) == len(terms)
    for term in terms:
        page = (REPOSITORY / "notebooks" / f"{term['notebook']}.ipynb").read_text(encoding="utf-8")
        text = page.lower().replace("_", " ")
        spelled = re.sub(r"（.+）", "", term["ja"])
        assert spelled.lower() in text or term["en"].lower() in text, term["ja"]
