"""実行済みの発表ノートブックを、回線が無くても開ける 1 ファイルのスライドにする。

1 枚は 1280×720。セルの `slideshow` の印（slide・subslide・-・notes）で組み、印の無いセルは載せない。
`source_hidden` のセルはコードを隠す（JupyterLab で折り畳むのと同じ印）。字形は、使う字だけを切り出して埋め込む。
"""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.files import write_text

_STYLE = """
*{box-sizing:border-box}html,body{margin:0;height:100%;background:#1b1f24;overflow:hidden}
body{font-family:"Workshop","Workshop Symbols",sans-serif;color:#1b1f24}
#stage{position:absolute;left:50%;top:50%;width:1280px;height:720px;transform-origin:0 0}
.slide{display:none;position:absolute;inset:0;background:#fff;padding:34px 60px 48px;overflow:hidden;font-size:21px;
line-height:1.55}.slide.on{display:block}
.slide h1{font-size:50px;margin:130px 0 10px}.slide h2{font-size:36px;margin:0 0 6px;color:#0059a8}
.slide h3{font-size:29px;margin:0 0 10px;color:#0059a8}.slide h1+h3{color:#1b1f24;margin-bottom:50px}
.slide p{margin:6px 0}.slide ul,.slide ol{margin:8px 0;padding-left:1.4em}.slide li{margin:4px 0}
.slide table{border-collapse:collapse;margin:10px 0;font-size:19px;border:0}.slide th,.slide td{text-align:left;
padding:5px 12px;border:0;border-bottom:1px solid #d9dde3}.slide td:first-child{white-space:nowrap}
.slide thead th{border-bottom:2px solid #8a8f98}
.slide pre{font:16px/1.42 "DejaVu Sans Mono","Workshop","Workshop Symbols",monospace;margin:6px 0;white-space:pre-wrap}
.slide .highlight,.slide .jp-RenderedText pre{background:#f4f6f8;padding:8px 14px;border-radius:6px}
.slide .highlight pre{margin:0}.slide .highlight .highlight{padding:0}
.slide code{font-family:"DejaVu Sans Mono","Workshop",monospace;font-size:.9em}
.slide img{max-width:100%;max-height:430px}
.slide hr{border:0;border-top:1px solid #d9dde3;margin:8px 0}.slide small{color:#57606a;font-size:14px}
.slide a.anchor-link,.jp-InputPrompt,.jp-OutputPrompt{display:none}
.slide footer{position:absolute;left:60px;right:60px;bottom:14px;display:flex;justify-content:space-between;
font-size:15px;color:#57606a}
.slide aside{display:none;position:absolute;left:0;right:0;bottom:0;max-height:62%;overflow:auto;background:#fff8e6;
border-top:3px solid #E69F00;padding:12px 60px;font-size:19px}.notes .slide aside{display:block}
@media print{@page{size:1280px 720px;margin:0}html,body{overflow:visible;background:#fff}
#stage{position:static;transform:none!important}.slide{display:block;position:relative;height:720px;page-break-after:always}}
"""
_SCRIPT = """
const slides=[...document.querySelectorAll('.slide')],stage=document.getElementById('stage');
function fit(){const s=Math.min(innerWidth/1280,innerHeight/720);
stage.style.transform=`scale(${s}) translate(-50%,-50%)`}
function show(n){n=Math.min(Math.max(n,0),slides.length-1);slides.forEach((s,i)=>s.classList.toggle('on',i===n));
history.replaceState(null,'','#'+(n+1))}
const now=()=>slides.findIndex(s=>s.classList.contains('on'));
document.querySelectorAll('aside details').forEach(d=>d.open=true);
addEventListener('resize',fit);addEventListener('hashchange',()=>show((parseInt(location.hash.slice(1))||1)-1));
addEventListener('keydown',e=>{const go={ArrowRight:1,PageDown:1,' ':1,Enter:1,ArrowLeft:-1,PageUp:-1}[e.key];
if(go){show(now()+go);e.preventDefault()}else if(e.key==='Home')show(0);else if(e.key==='End')show(slides.length-1);
else if(e.key==='n'||e.key==='N')document.body.classList.toggle('notes')});
fit();show((parseInt(location.hash.slice(1))||1)-1);
"""


@dataclass
class Slide:
    """スライド 1 枚。`cells` が載せるセル、`notes` が話し手だけのセル。"""

    cells: list[Any] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)


def group(cells: Sequence[Any]) -> list[Slide]:
    """セルを、印に従ってスライドに分ける。"""
    slides: list[Slide] = []
    for cell in cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type", "skip")
        if kind in ("slide", "subslide"):
            slides.append(Slide())
        if kind == "notes":
            slides[-1].notes.append(cell)
        elif kind != "skip":
            slides[-1].cells.append(cell)
    return slides


def _body(cells: Sequence[Any]) -> str:
    """セルを HTML の断片にする。折り畳む印のあるセルは、出力だけを載せる。"""
    import nbformat
    from nbconvert import HTMLExporter

    tag = "hidden-in-slides"
    copies = []
    for cell in cells:
        copies.append(nbformat.from_dict(cell))
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            copies[-1].metadata["tags"] = [*cell.metadata.get("tags", []), tag]
    exporter = HTMLExporter(template_name="basic")
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = exporter.exclude_anchor_links = True
    exporter.config.TagRemovePreprocessor.update(enabled=True, remove_input_tags={tag})
    exporter.register_preprocessor("nbconvert.preprocessors.TagRemovePreprocessor", enabled=True)
    return exporter.from_notebook_node(nbformat.v4.new_notebook(cells=copies))[0]


def _embedded(path: Path, family: str, characters: set[int]) -> str:
    """字形のファイルから、使う字だけを切り出して CSS に埋め込む。"""
    from fontTools import subset

    options = subset.Options(flavor="woff", notdef_outline=True)
    font = subset.load_font(str(path), options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=characters & set(font.getBestCmap()))
    cutter.subset(font)
    buffer = io.BytesIO()
    subset.save_font(font, buffer, options)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'@font-face{{font-family:"{family}";src:url(data:font/woff;base64,{data}) format("woff")}}'


def _fonts(text: str) -> str:
    """日本語は IPAex ゴシック、それに無い記号は DejaVu。どちらも図が使っているもの。"""
    import matplotlib
    import matplotlib_fontja

    used = {ord(character) for character in text} | set(range(32, 127))
    japanese = Path(matplotlib_fontja.__file__).parent / "fonts" / "ipaexg.ttf"
    symbols = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return _embedded(japanese, "Workshop", used) + _embedded(symbols, "Workshop Symbols", used)


def write_deck(source: Path, target: Path, title: str) -> Path:
    """実行済みのノートブックから、スライドの HTML を書く。

    Args:
        source: 実行済みのノートブック。
        target: 書く HTML。
        title: 発表の題。
    """
    import nbformat
    from pygments.formatters import HtmlFormatter

    slides = group(nbformat.read(source, as_version=4).cells)
    pages = []
    for number, slide in enumerate(slides, start=1):
        footer = f"<footer><span>{html.escape(title)}</span><span>{number} / {len(slides)}</span></footer>"
        aside = f"<aside>{_body(slide.notes)}</aside>" if slide.notes else ""
        pages.append(f'<section class="slide">{_body(slide.cells)}{footer}{aside}</section>')
    body = "".join(pages)
    fonts = _fonts(html.unescape(re.sub(r"data:image/[^\"]+|<[^>]+>", "", body)))
    code = HtmlFormatter().get_style_defs(".highlight")
    page = (
        f'<!doctype html><html lang="ja"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{fonts}{code}{_STYLE}</style></head>"
        f'<body><div id="stage">{body}</div><script>{_SCRIPT}</script></body></html>'
    )
    return write_text(target, page)
