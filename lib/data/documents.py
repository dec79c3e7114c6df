"""文書 → 問答の表（`make pairs`）: 文を規則か教師モデルで問いにし、人が採否を書く。言葉は `data/own/pairs.toml`。"""

import json
import os
import re
import tomllib
from collections import namedtuple
from collections.abc import Iterator
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from urllib.request import Request, urlopen

import pandas
from markdown_it import MarkdownIt

from lib.data.facts import DATA, normalise_question
from lib.data.own import decode
from lib.errors import WorkshopError
from lib.files import write_text
from lib.text.quantities import key_figures, located, readable, states
from lib.text.words import morphemes, sentences

RULES = tomllib.loads((DATA / "own" / "pairs.toml").read_text(encoding="utf-8"))
PATIENCE = 60  # 教師モデルの返事を待つ秒数
# 文書の一つの文: 場所（3 行目、2 ページ）、見出し、問いにする文、文書に書かれたままの文か表の行
Statement = namedtuple("Statement", "place heading text source")


def statements(path: Path) -> list[Statement]:
    """文書（Markdown・テキスト・PDF）の文と、表の行。読めない、日本語の文が無いときは `WorkshopError`。"""
    try:
        if path.suffix.lower() == ".pdf":
            import pypdf

            texts = [re.sub(RULES["short"], "\\g<0>\n", page.extract_text()) for page in pypdf.PdfReader(path).pages]
            found = [one._replace(place=f"{n} ページ") for n, text in enumerate(texts, 1) for one in _read(text)]
        else:
            found = list(_read(decode(path.read_bytes())[0]))
    except Exception as error:  # pypdf の例外は、壊れ方ごとに違う
        what = f"文書を読めません（{' '.join(str(getattr(error, 'strerror', 0) or error).split())[:80]}）"
        raise WorkshopError(what, RULES["says"]["unread"], path) from None
    text = "".join(one.source for one in found)
    if re.search("[\0-\x08]", text) or not re.search("[ぁ-ん]", text):
        raise WorkshopError(f"{'日本語の' if text else ''}文がありません", RULES["says"]["empty"], path)
    return found


def _read(document: str) -> Iterator[Statement]:
    """段落・箇条書き・表の文。表は、数値のある最初の列（無ければ 2 列目）から右の欄を値とみる。"""
    tokens, heading, header = MarkdownIt().enable("table").disable("code").parse(document), "", list[str]()
    inline = ((b.tag, (t.map or [0])[0] + 1, t) for b, t in pairwise(tokens) if t.type == "inline")
    for (tag, line), group in groupby(inline, key=lambda row: row[:2]):
        cells = ["".join(c.content or "\n" * ("break" in c.type) for c in token.children or ()) for *_, token in group]
        plain, cuts, end = cells[0].replace("\n", ""), [*accumulate(map(len, cells[0].split("\n")))], 0
        if tag[:1] == "h":
            heading = re.sub(r"^[\d.\s]+", "", plain)
        elif tag == "th":
            header = cells
        elif tag == "td":
            first = next((n for n, cell in enumerate(cells) if n and located(cell)), 1)
            for name, cell in zip(header[first:], cells[first:], strict=False):
                text = "の".join(filter(None, [*cells[:first], name])) + f"は{cell}です。"
                yield Statement(f"{line} 行目", heading, text, " | ".join(cells))
        else:
            for sentence in sentences(plain):
                end = (start := plain.index(sentence, end)) + len(sentence)
                yield Statement(f"{line + sum(cut <= start for cut in cuts)} 行目", heading, sentence, sentence)


def ask_by_rules(text: str) -> list[tuple[str, str]]:
    """一文の (質問, 答え)。数値を一つずつ、数値が無ければ「A は B です」の B を尋ねる。規則に合わなければ空。"""
    rule = next(rule for rule in RULES["endings"].values() if re.search(rule["pattern"], text))
    clause, made, end = re.sub(rule["pattern"], "", text), list[tuple[str, str]](), 0
    figures = key_figures(clause) if located(clause) else re.findall(rule["noun"], clause)
    for figure in figures if not re.search(RULES["unclear"], text) else ():
        end = (start := clause.index(figure, end)) + len(figure)
        found = re.match(RULES["figure"], f"{clause[:start]}\0{clause[end:]}")
        asked = readable(figure) if located(figure) else RULES["who"].get(morphemes(figure)[-1].feature.pos3, "何")
        for pattern, new in RULES["what"]:
            asked = re.sub(pattern, new, asked)
        if found and rule["topic"] in found["before"]:
            asked = re.sub(RULES["tidy"], "\\1\\2", found["before"] + asked + clause[end:])
            made += [(form.format(asked), f"{found['about']}{figure}{found['tail']}です。") for form in rule["forms"]]
    return made


def ask_teacher(one: Statement, url: str) -> list[tuple[str, str]]:
    """教師モデル（OpenAI と同じ口の番地）の (質問, 答え)。返事が来なければ `WorkshopError`。鍵は転送先に渡さない。"""
    told = {"role": "user", "content": RULES["teacher"]["ask"] % (one.heading, one.source)}
    body = RULES["teacher"]["body"] | {"model": os.environ.get("WORKSHOP_TEACHER_MODEL", "default"), "messages": [told]}
    try:
        request = Request(f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        request.add_unredirected_header("Authorization", f"Bearer {os.environ.get('WORKSHOP_TEACHER_KEY', 'none')}")
        with urlopen(request, timeout=PATIENCE) as response:
            said = json.load(response)["choices"][0]["message"]["content"]
        return re.findall(RULES["teacher"]["pair"], said)
    except Exception as error:  # 回線・番地・返事の形の失敗は、種類が多い
        what = f"教師モデルの返事を受け取れません（{type(error).__name__} {' '.join(f'{error}'.split())[:80]}）"
        raise WorkshopError(what, RULES["says"]["teacher"], f"{url}、文書の {one.place}") from None


def write_pairs(source: str | Path, folder: Path = DATA / "my") -> Path:
    """採否の空いた問答の CSV を書く。同じ名前の CSV があるとき、一つも作れないときは `WorkshopError`。"""
    path, url, kept = Path(source), os.environ.get("WORKSHOP_TEACHER_URL", "").rstrip("/"), dict[str, list[str]]()
    if (target := folder / f"{path.stem}.csv").exists():
        raise WorkshopError("もうあります（人の書いた採否を消しません）", "別の場所に移すか消してください", target)
    for number, one in enumerate(found := statements(path), 1):
        made = ask_by_rules(re.sub(RULES["citation"], "", one.text))
        pairs = {"規則": made, "教師モデル": ask_teacher(one, url) if url else []}
        for how, question, answer in [(how, *pair) for how, some in pairs.items() for pair in some]:
            figures = key_figures(re.sub("です[。．]?$", "", answer))
            if all(figures) and all(states(one.source, f) and not states(question, f) for f in figures):
                row = ["", question, answer, words := "、".join(figures), f"{number}: {words}"]
                kept.setdefault(normalise_question(question), [*row, f"{path.name} {one.place}", how, one.source])
    if not any(row[-2] == ("教師モデル" if url else "規則") for row in kept.values()):
        raise WorkshopError("使える問答が一つも作れません", RULES["says"]["nothing"], f"{path} {url}".strip())
    write_text(target, "\ufeff" + pandas.DataFrame(kept.values(), columns=RULES["columns"]).to_csv(index=False))
    left = [one.place for one in found if not any(row[-1] == one.source for row in kept.values())]
    print(RULES["says"]["done"].format(target, len(kept), len(found), len(left), "、".join(left[:20])))
    return target
