"""発表のスライドと話し手のページを、回線が無くても開ける 1 ファイルの HTML にする。文と図は data/templates/talk。"""

import base64
import html
import io
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lib.data.facts import DATA, SYSTEM, make_split
from lib.files import read_json, write_text
from lib.profiles import MODELS, PROFILES
from lib.score.answers import is_refusal
from lib.show.plots import twins
from lib.talk.plan import RECORDING, TALK, load_plan

RECORDED = RECORDING.parent


def three(stage: str, key: str, profile: str = "embedded") -> list[float]:
    """シードごとの、記録済みの指標。"""
    rows = read_json(RECORDED / "seeds.json")[profile].values()
    return [row[stage][key] for row in rows if key in row.get(stage, {})]


def span(values: Sequence[float]) -> str:
    """割合（0–1）の列を「47〜53%」の形に。同じなら一つだけ書く。"""
    low, high = (f"{100 * end + 1e-9:.0f}" for end in (min(values), max(values)))
    return f"{low}%" if low == high else f"{low}〜{high}%"


def mark(row: Mapping[str, Any], key: str) -> str:
    """答えの印: abstained（控えた）、right（正しい数値だけを言った）、wrong。"""
    return "abstained" if is_refusal(row[key]) else "right" if row[f"{key}_ok"] else "wrong"


def environment(demo: Mapping[str, Any]) -> Environment:
    """スライドと想定問答の文に、記録の数字を入れる道具。知らない名前は、黙って空にせず例外にする。"""
    made = Environment(loader=FileSystemLoader(DATA / "templates"), undefined=StrictUndefined, autoescape=True)
    made.trim_blocks, profile = True, PROFILES["talk-ja" if demo.get("profile") == "talk-ja" else "talk"]
    made.filters |= {"span": span, "percent": lambda value: f"{value + 1e-9:.0%}"}
    names = ("seeds", "what_for", "company", "requantize", "experiments", "talk")
    made.globals |= {name: read_json(RECORDED / f"{name}.json") for name in names}
    made.globals |= {"three": three, "median": statistics.median, "demo": demo}
    made.globals["shares"] = lambda text: [float(value) / 100 for value in text.split(" / ")]
    made.globals |= {"profiles": PROFILES, "demo_profile": profile, "models": MODELS, "system": SYSTEM["en"]}
    made.globals |= {"taught": make_split(PROFILES["embedded"]).train, "twins": twins(), "ollama": ""}
    made.globals |= {"english": read_json(RECORDED / "answers.json")["embedded"], "mark": mark}
    made.globals |= {name: made.get_template(f"talk/{name}.html").module for name in ("memory", "contrast")}
    return made


def answers(made: Environment) -> list[dict[str, Any]]:
    """想定問答に、数字と、合わなくなった前提（broken）を入れたもの。"""

    def prepared(row: dict[str, Any]) -> dict[str, Any]:
        broken = [claim for claim in row.get("holds", []) if not made.compile_expression(claim)(made.globals)]
        return {"slide": False, **row, "measured": Markup(made.from_string(row["measured"]).render()), "broken": broken}

    return [prepared(row) for row in read_json(TALK / "answers.json")]


def _embedded(path: Path, family: str, text: str) -> str:
    """フォントのファイルから、使う字だけを切り出した CSS。"""
    from fontTools import subset

    options = subset.Options(flavor="woff", notdef_outline=True)
    font, cut = subset.load_font(str(path), options), io.BytesIO()
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=set(map(ord, text)) & set(font.getBestCmap()))
    cutter.subset(font)
    subset.save_font(font, cut, options)
    data = base64.b64encode(cut.getvalue()).decode()
    return f'@font-face{{font-family:"{family}";src:url(data:font/woff;base64,{data}) format("woff")}}'


def write_deck(target: Path, demo: Mapping[str, Any]) -> Path:
    """台本・記録・実演の結果 `demo` から、スライドの HTML を書く。"""
    import matplotlib
    import matplotlib_fontja

    made, plan = environment(demo), load_plan()
    files = [(TALK / name).read_text(encoding="utf-8") for name in ("compare.css", "deck.css", "deck.js")]
    given = {"plan": plan, "answers": answers(made), "css": files[0] + files[1], "script": files[2]}
    page = made.get_template("talk/deck.html").render(given)
    text = html.unescape(re.sub(r"<[^>]+>", "", page)) + "0123456789:−"
    # 日本語は IPAex ゴシック、それに無い記号は DejaVu。どちらも図が使っているもの。
    japanese = Path(matplotlib_fontja.__file__).parent / "fonts" / "ipaexg.ttf"
    symbols = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [(japanese, "Workshop"), (symbols / "DejaVuSans.ttf", "Workshop Symbols")]
    fonts.append((symbols / "DejaVuSansMono.ttf", "Workshop Mono"))
    cut = "".join(_embedded(path, family, text) for path, family in fonts)
    return write_text(target, page.replace("/* fonts */", cut, 1))
