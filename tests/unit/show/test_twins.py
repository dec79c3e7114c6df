"""英語の質問と正解には、日本語の対訳が添えられる。説明の文には、店の数字も話題も書かない（どの言語の実行でも正しいように）。"""

import json
import re

import pytest

from lib.data.facts import DATA, general_mix, general_questions, make_split, read_jsonl
from lib.files import REPOSITORY
from lib.profiles import get_profile
from lib.show.plots import answers_table
from lib.text.quantities import quantities

FACTS = read_jsonl(DATA / "support" / "facts.jsonl")


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_an_english_question_that_a_person_reads_has_its_japanese_twin(lang):
    split = make_split(get_profile("embedded"), lang)
    for example in [*sum(vars(split).values(), []), *general_questions(lang), *general_mix(96, lang)]:
        row = {"q": example.question, "a": example.answer, "a_ok": True}
        table = answers_table([row], {"q": "質問", "a": "モデルの答え"}).data
        assert table.count("<small style") == (lang == "en"), example.question  # モデルの答えは、そのまま見せる
        assert table.count("<mark>") == len(quantities(example.answer, codes=True)) and "✓ 正答" in table


@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("0[1-8]*.ipynb")), ids=lambda path: path.stem)
def test_no_text_names_a_figure_or_a_topic_of_the_shop(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown"]
    prose = "\n".join("".join(cell["source"]).partition("### 練習")[0] for cell in cells)
    words = {word for fact in FACTS for lang in ("ja", "en") for word in (*fact[lang]["figures"], fact[lang]["topic"])}
    assert [word for word in words if re.search(rf"(?<![\d,]){re.escape(word)}", prose)] == []
