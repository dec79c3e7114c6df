"""言葉の歯止め: 検索しても出てこない言い方の数は、下がるだけ。言い換えの表は、教材の用語の決まりのとおり。

数を減らしたら、ここの数も下げる（増やしてはならない）。
"""

import json
import re

import pytest

from lib.files import REPOSITORY

# 避ける言い方の正規表現 → (使う言い方, いまの数)
BANNED = {
    r"取り置き|取り置い|取り置く": ("ホールドアウト、評価データ", 61),
    r"見せていない(?:言い回し|文型)|別の文型": ("言い換え（近い）", 19),
    r"別の言葉(?:で|の質問)": ("言い換え（遠い）", 12),
    r"教えていない事実": ("未学習の事実", 23),
    r"試験(?!的)": ("評価、テストデータ", 76),
    r"束\s?\d|[はをのに、（]束[のはをがに、。ご）]|束ごと": ("バッチ", 22),
    r"\d\s?周(?![囲年辺])|周回|周ごと|[何一]周": ("エポック", 40),
    r"\d\s?歩(?!い|く|き)|歩数|何歩|各歩|その歩|歩目": ("ステップ", 55),
    r"(?<!こ)(?<!その)[\d一二三つの]種(?=[のはとで、。）])|種\s?\d|乱数の種|別の種|種を変え|種[はも]一つ|種ごと": (
        "シード",
        50,
    ),
    r"開発用": ("検証データ、検証損失", 24),
    r"(?<!抜け)漏れ(?!なく)": ("データリーク", 32),
    r"詰め物": ("パディング", 16),
    r"途中の控え|控えを?残|控えから": ("チェックポイント", 2),
    r"土台(?!に(?:した|する|して))": ("ベースモデル", 14),
    r"凍らせ|凍った": ("凍結する", 12),
    r"注意を隠|注意の隠": ("アテンションマスク", 2),
    r"損失[がはを]?の?掛[かけ]": ("損失の計算対象", 11),
    r"最適化の状態": ("オプティマイザの状態", 4),
    r"前向きと逆向き|逆向き(?:の計算|計算)": ("順伝播・逆伝播", 1),
    r"余弦(?:で下|スケ|の?学習率)": ("コサインスケジューラ", 1),
    r"全\s?7?\s?射影": ("全線形層", 9),
    r"挿し込": ("ボトルネック型 Adapter", 9),
    r"仮想の言葉": ("仮想トークン", 1),
    r"(?<!一つの)つまみ": ("スライダー", 6),
    r"機器": ("デバイス", 35),
    r"録画": ("記録済みの結果", 77),
    r"でたらめ|作り話": ("ハルシネーション", 42),
    r"断(?:る|れた|れない|れる|り(?!書)|ら)": ("回答を控える", 68),
    r"答えの無い質問": ("回答不能な質問", 30),
    r"手本": ("教師データ", 13),
    r"足し込": ("マージする", 15),
    r"審判": ("LLM-as-a-judge", 19),
    r"採点器": ("評価指標", 12),
    r"目隠し": ("ブラインド評価", 9),
    r"門番": ("リリースゲート", 1),
    r"抜け道": ("報酬ハッキング", 1),
    r"好みを教|好みの学習": ("選好チューニング", 8),
    r"この冊|1 冊|一冊": ("このノートブック", 15),
    r"資料の(?:値|数字|表|主張|配分)|元の資料": ("（出どころを言わずに確かめる）", 14),
    r"引き直": ("再標本化", 13),
    r"1 位の語|一番の語": ("top-1 トークン", 11),
    r"目盛り": ("スケール", 2),
    r"字形(?!になる)": ("フォント", 8),
    r"(?<![必重主])要(?:る|らない|ります|りません)": ("必要・不要", 56),
}


def texts():
    """学ぶ人と利用者が読む文章のすべて。"""
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        yield "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])
    files = [REPOSITORY / name for name in ("README.md", "Makefile", "environment.yml")]
    files += [*(REPOSITORY / "lib").rglob("*.py"), *(REPOSITORY / "data").glob("*/README.md")]
    files += [*(REPOSITORY / "data").glob("*/*.json"), REPOSITORY / "data" / "glossary" / "terms.csv"]
    for path in files:
        if "recorded" not in path.parts:
            yield path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def everything():
    return "\n".join(texts())


@pytest.mark.parametrize("pattern", BANNED)
def test_a_banned_word_only_gets_rarer(pattern, everything):
    instead, most = BANNED[pattern]
    found = len(re.findall(pattern, everything))
    assert found <= most, f"「{pattern}」が {found} 個（上限 {most}）。「{instead}」と書いてください"
