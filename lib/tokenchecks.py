"""トークンの検査: 学習する束、生成の入力、GGUF、Modelfile が、同じトークンを読むか。損失は答えだけに掛かるか。"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lib.answering import render
from lib.findings import Finding, judge

_ENOUGH = 512  # 先頭からこの件数まで調べる。大きなデータでも数秒で終わるように
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Supervised:
    """束に組んだ一例と、あるべき姿。

    Attributes:
        ids: 束の中のトークン（詰め物を除く）。
        counted: 損失に数える位置。
        prompt: 生成のときに読むトークン（答えの直前まで）。
        whole: 答えまでのトークン。
    """

    ids: list[int]
    counted: list[int]
    prompt: list[int]
    whole: list[int]


def collated(trainer: Any, rows: Sequence[dict[str, Any]]) -> Iterator[Supervised]:
    """Trainer が本当に作る束を 8 例ずつ作り、一例ずつ返す（例が抜け落ちていれば、比べられないので空）。"""
    tokenizer, data = trainer.processing_class, trainer.train_dataset
    if len(data) != len(rows):
        return
    for start in range(0, min(len(rows), _ENOUGH), 8):
        chunk = range(start, min(start + 8, len(rows)))
        batch = trainer.data_collator([data[i] for i in chunk])
        on = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"] == 1
        sides = ("completion",) if "labels" in batch else ("chosen", "rejected")
        pairs = [(rows[i]["prompt"], rows[i][side]) for side in sides for i in chunk]
        for number, (prompt, reply) in enumerate(pairs):
            kept = batch["attention_mask"][number].bool()
            whole = tokenizer.apply_chat_template(prompt + reply, tokenize=False)
            encoded = tokenizer([render(tokenizer, prompt), whole], add_special_tokens=False)["input_ids"]
            counted = on[number][kept].nonzero().flatten().tolist()
            yield Supervised(batch["input_ids"][number][kept].tolist(), counted, *encoded)


def supervision(tokenizer: Any, examples: Sequence[Supervised], dropped: int = 0) -> list[Finding]:
    """3〜7. EOS、切り詰め、先頭の BOS、テンプレート、損失の範囲を、束に組んだ例で調べる。"""
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    cut, total = sum(len(e.ids) < len(e.whole) for e in examples), len(examples)
    lost = f"まるごと落ちた例 {dropped} 個" if dropped else f"{cut} / {total} 例"
    remedy = "max_length を増やすか、長い例を短くしてください（終わりを学べません）"
    length = judge("切り詰め", lost, dropped or cut, remedy)
    if not examples:
        return [length]
    silent = sum(sum(e.ids[i] == eos for i in e.counted) != 1 for e in examples)
    starts = sum(_leading(e.ids, bos) != _leading(e.prompt, bos) for e in examples)
    other = sum(e.ids != e.whole[: len(e.ids)] or e.ids[: len(e.prompt)] != e.prompt for e in examples)
    outside = sum(e.counted != list(range(len(e.prompt), len(e.ids))) for e in examples)
    shown = tokenizer.decode([examples[0].ids[i] for i in examples[0].counted])
    return [
        length,
        judge("EOS", f"損失に数える EOS が 1 個でない例 {silent} / {total}", silent,
               "pad を eos と別のトークンにし、テンプレートが答えの後に EOS を書くか確かめてください"),
        judge("先頭の BOS（学習と生成）", f"数の違う例 {starts} / {total}", starts,
               "テンプレートを通した文字列には add_special_tokens=False を付けてください"),
        judge("テンプレート（学習と生成）", f"トークンの違う例 {other} / {total}", other,
               "学習と生成で、同じトークナイザとシステム文を使ってください"),
        judge("損失の範囲", f"{shown[:60]!r}（答えだけでない例 {outside} / {total}）", outside,
               "prompt と completion に分け、completion_only_loss を切らないでください"),
    ]  # fmt: skip


def _leading(ids: Sequence[int], bos: int | None) -> int:
    return next((number for number, token in enumerate(ids) if token != bos), len(ids))


def same_tokens(check: str, ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> Finding:
    """6. 同じ会話が、同じトークン列になるか。"""
    wrong = [number for number, (a, b) in enumerate(zip(ours, theirs, strict=True)) if list(a) != list(b)]
    remedy = "チャットテンプレートと特殊トークンを、学習したときのものにそろえてください"
    return judge(check, f"違う会話 {len(wrong)} / {len(ours)}", wrong, remedy)


def same_bos(check: str, bos: int | None, ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> Finding:
    """5. 先頭の BOS の数が、両方で同じか。"""
    counts = [[_leading(ids, bos) for ids in side] for side in (ours, theirs)]
    found = f"{counts[0]} 個と {counts[1]} 個"
    remedy = "add_bos_token を切るか、テンプレートから BOS を除いてください"
    return judge(check, found, counts[0] != counts[1], remedy)


_GO = {
    "{{ range .Messages }}": "{% for m in Messages %}",
    "{{ .Role }}": "{{ m.role }}",
    "{{ .Content }}": "{{ m.content }}",
    "{{ end }}": "{% endfor %}",
}


def ollama_prompt(modelfile: str, messages: Messages) -> str | None:
    """Modelfile の TEMPLATE を、会話で埋めた文字列。発言を順に並べるだけの形でなければ None。"""
    from jinja2.sandbox import SandboxedEnvironment

    _, _, rest = modelfile.partition('TEMPLATE """')
    template = rest.partition('"""')[0]
    for ours, theirs in _GO.items():
        template = template.replace(ours, theirs)
    if not rest or "{{ ." in template or "{{ if" in template or "{{ $" in template or "{{ range" in template:
        return None
    return SandboxedEnvironment(keep_trailing_newline=True).from_string(template).render(Messages=messages)
