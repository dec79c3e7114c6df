"""実行済みの発表ノートブックを、回線が無くても開ける 1 ファイルのスライドにする。組み方と見た目は `TEMPLATE`。"""

import base64
import html
import io
import re
from pathlib import Path

from lib.files import REPOSITORY, write_text

TEMPLATE = REPOSITORY / "data" / "templates" / "talk" / "deck.html.j2"


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


def write_deck(source: Path, target: Path, title: str) -> Path:
    """実行済みのノートブック `source` から、題が `title` のスライドの HTML を書く。"""
    import matplotlib
    import matplotlib_fontja
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    colours = Config(CSSHTMLHeaderPreprocessor={"style": "default"})  # コードの色
    exporter = HTMLExporter(template_file=str(TEMPLATE), config=colours)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = exporter.exclude_anchor_links = True
    deck, _ = exporter.from_notebook_node(nbformat.read(source, 4), {"metadata": {"name": title}})
    text = html.unescape(re.sub(r"data:image/[^\"]+|<[^>]+>", "", deck))
    # 日本語は IPAex ゴシック、それに無い記号は DejaVu。どちらも図が使っているもの。
    japanese = Path(matplotlib_fontja.__file__).parent / "fonts" / "ipaexg.ttf"
    symbols = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    fonts = _embedded(japanese, "Workshop", text) + _embedded(symbols, "Workshop Symbols", text)
    return write_text(target, deck.replace("/* fonts */", fonts))
