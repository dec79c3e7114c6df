"""走らせる前の検査。学習・マージ・変換を黙って壊す落とし穴を調べ、致命的なら止める。

一つの検査が一つの関数で、どれも `Finding` を返す。`before_…` が、場面ごとの組。使い方: `require(before_training(…))`
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.data.facts import find_leaks
from lib.errors import WorkshopError
from lib.files import check_folder, read_json
from lib.model.generate import render
from lib.model.load import mismatches
from lib.train.watch import LossMonitor

_MARKS = {"ok": "✓", "warning": "⚠", "fatal": "✋"}


@dataclass(frozen=True)
class Finding:
    """一つの検査の結果。

    Attributes:
        check: 何を調べたか。
        level: "ok"、"warning"（続けられる）、"fatal"（止める）。
        found: 見つかったこと。
        remedy: どうするか。問題が無ければ空。
    """

    check: str
    level: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{_MARKS[self.level]} {self.check}: {self.found}" + (f" → {self.remedy}" if self.remedy else "")


def require(findings: Sequence[Finding]) -> None:
    """結果を一行ずつ見せ、致命的なものがあれば止める。

    Raises:
        WorkshopError: 致命的な問題があるとき（最初の一つと、ほかの名前を伝える）。
    """
    print(*findings, sep="\n")
    if fatal := [finding for finding in findings if finding.level == "fatal"]:
        more = f"（ほかに: {'、'.join(finding.check for finding in fatal[1:])}）" if fatal[1:] else ""
        raise WorkshopError(f"{fatal[0].check}: {fatal[0].found}{more}", fatal[0].remedy)


def judge(check: str, found: str, bad: Any, remedy: str, level: str = "fatal") -> Finding:
    """`bad` が真なら問題のある結果、偽なら問題の無い結果にする。"""
    return Finding(check, level, found, remedy) if bad else Finding(check, "ok", found)


Messages = list[dict[str, str]]


def before_training(trainer: Any, rows: Sequence[dict[str, Any]], exam: Sequence[str] = ()) -> list[Finding]:
    """SFT か DPO の Trainer を、`train()` の前に調べる。

    Args:
        trainer: TRL の SFTTrainer か DPOTrainer。
        rows: もとの例（会話型の prompt と completion、または chosen と rejected）。
        exam: 試験の質問。学習の質問と比べる。
    """
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    asked = [row["prompt"][-1]["content"] for row in rows]
    found = [vocabulary(*_embedding(model), tokenizer), tied_embeddings(model), precision(model)]
    found += supervision(tokenizer, list(collated(trainer, rows)), len(rows) - len(trainer.train_dataset))
    return [*found, first_step(trainer), watched(trainer), leaks(asked, exam)]


def before_merge(model: Any, adapter: Path) -> list[Finding]:
    """アダプタを載せたモデルを、足し込む前に調べる。"""
    return [adapter_shape(adapter, model.get_base_model()), tied_embeddings(model), quantized(model)]


def before_conversion(folder: Path, tokenizer: Any) -> list[Finding]:
    """マージ済みの重みのフォルダを、GGUF に変換する前に調べる（重みは読まず、見出しだけを見る）。"""
    from safetensors import safe_open

    rows = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            names = [name for name in tensors.keys() if name.endswith("embed_tokens.weight")]  # noqa: SIM118
            rows += sum(tensors.get_slice(name).get_shape()[0] for name in names)
    return [manifest(folder), vocabulary(rows, read_json(folder / "config.json")["vocab_size"], tokenizer)]


def after_conversion(
    chat: Any, tokenizer: Any, conversations: Sequence[Messages], modelfile: str = ""
) -> list[Finding]:
    """動いている llama.cpp（`lib.export.serve.serve`）と Modelfile が、HF と同じトークンを読むかを調べる。"""
    ids = [tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"] for messages in conversations]
    theirs = [chat.tokenize(chat.template(messages)) for messages in conversations]
    found = [
        same_tokens("テンプレート（GGUF）", ids, theirs),
        same_bos("先頭の BOS（GGUF）", tokenizer.bos_token_id, ids, theirs),
    ]
    if modelfile:
        texts = [ollama_prompt(modelfile, messages) for messages in conversations]
        if None in texts:
            remedy = "Ollama で実際に答えさせて、同じ答えかを見てください"
            found.append(Finding("テンプレート（Modelfile）", "warning", "この形の TEMPLATE は読めません", remedy))
        else:
            found.append(same_tokens("テンプレート（Modelfile）", ids, [chat.tokenize(text) for text in texts]))
    return found


def adapter_shape(adapter: Path, base: Any) -> Finding:
    """1. アダプタの各テンソルが、ベースの層に合うか（語彙 32004 と 32000 の違いもここで分かる）。"""
    wrong = mismatches(adapter, base)
    remedy = "学習したときと同じベースを使ってください。語彙を足したなら、ベースの行も同じだけ増やします（縮めません）"
    return judge("アダプタの形", wrong[0] if wrong else "すべての層に合う", wrong, remedy)


def _embedding(model: Any) -> tuple[int, int]:
    return model.get_input_embeddings().weight.shape[0], model.config.vocab_size


def vocabulary(rows: int, vocab_size: int, tokenizer: Any) -> Finding:
    """2. 最大のトークン ID < 埋め込みの行数 == config.vocab_size。"""
    most = max(tokenizer.get_vocab().values())
    found = f"最大の ID {most}、埋め込み {rows} 行、config.vocab_size {vocab_size}"
    remedy = "トークンを足したら resize_token_embeddings で行を増やし、そのモデルを保存し直してください"
    return judge("語彙の大きさ", found, not most < rows == vocab_size, remedy)


def tied_embeddings(model: Any) -> Finding:
    """8. 出力層が埋め込みを兼ねるモデルで、その層を学習していないか（マージで壊れる）。"""
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    layers = [name for name, p in model.named_parameters() if p.requires_grad and "lora_" in name]
    layers += [name for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" in name]
    wrong = [name for name in layers if "embed_tokens" in name or "lm_head" in name]
    remedy = "target_modules と modules_to_save から embed_tokens と lm_head を外してください"
    found = f"共有の埋め込みに掛かる差分 {len(wrong)} 個" if tied else "出力層は埋め込みと別"
    return judge("埋め込みの共有", found, tied and wrong, remedy)


def quantized(model: Any) -> Finding:
    """9. 足し込む先が量子化した重みでないか。"""
    config = getattr(model.config, "quantization_config", None)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if not p.is_floating_point()})
    remedy = "量子化する前の重みを読み直し、そこへマージしてから量子化してください"
    found = f"量子化あり（{', '.join(kinds) or '設定に記録'}）" if config or kinds else "量子化なし"
    return judge("マージ先の量子化", found, config or kinds, remedy)


def same_logits(check: str, before: Any, after: Any) -> Finding:
    """9・13. 前後のロジットで、一番の語が変わった位置が無いか（マージの前と後、MPS と CPU など）。"""
    before, after = before.float().cpu(), after.float().cpu()
    changed = int((before.argmax(-1) != after.argmax(-1)).sum())
    found = f"一番の語が変わった位置 {changed} / {before[..., 0].numel()}、差は最大 {(before - after).abs().max():.1e}"
    return judge(check, found, changed, "fp32 の、量子化していない重みでやり直してください")


def first_step(trainer: Any) -> Finding:
    """10・12. 1 例で損失と勾配を求める（重みは動かさない）。損失が有限で、勾配がどこかに届くか。"""
    import torch

    model = trainer.model
    count = 1 if len(trainer.train_dataset) else 0
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(count)]))
    with torch.random.fork_rng(devices=[]):  # dropout が乱数を使っても、学習の乱数を進めない
        loss = trainer.compute_loss(model, batch)
        if loss.requires_grad:
            loss.backward()
    learned = [p for p in model.parameters() if p.requires_grad]
    reached = sum(p.grad is not None and bool(p.grad.any()) for p in learned)
    lost = sum(p.grad is None for p in learned)
    model.zero_grad()
    for records in getattr(trainer, "_metrics", {}).values():  # 試しの値を、学習の記録に混ぜない
        records.clear()
    found = f"損失 {loss.item():.3f}、勾配が 0 でない {reached} / {len(learned)} 個、届かない {lost} 個"
    remedy = "activation_checkpointing を切り、学習率と dtype、target_modules を確かめてください"
    return judge("最初の一歩", found, not math.isfinite(loss.item()) or lost or not reached, remedy)


def watched(trainer: Any) -> Finding:
    """12. 損失が壊れたら止める見張り（`LossMonitor`）が付いているか。"""
    on = any(isinstance(callback, LossMonitor) for callback in trainer.callback_handler.callbacks)
    found = "付いている" if on else "付いていない"
    return judge("損失の見張り", found, not on, "callbacks に LossMonitor を加えてください", "warning")


def leaks(train: Sequence[str], exam: Sequence[str]) -> Finding:
    """11. 試験の質問が学習に無いか。

    記号と空白を除いて同じなら止める。ほぼ同じだけなら知らせる（「鉛筆はいくら」と「風船はいくら」は、別の事実かもしれない）。
    """
    found = find_leaks(train, exam)
    same = any(likeness == 1 for *_, likeness in found)
    example = f"（例「{found[0][0][:30]}」）" if found else ""
    remedy = "その質問を学習から除いてください" if same else "同じ事実への質問なら、学習から除いてください"
    said = f"{'同じもの・' if same else ''}ほぼ同じもの {len(found)} / {len(exam)} 問{example}"
    return judge("試験の漏れ", said, found, remedy, "fatal" if same else "warning")


def precision(model: Any) -> Finding:
    """13. 学習する重みが fp16 でなく、機器の持たない bf16 を使っていないか。"""
    import torch

    kinds = {str(p.dtype).removeprefix("torch."): p.device.type for p in model.parameters()}
    learned = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    no_bf16 = kinds.get("bfloat16") == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    found = f"学習する重み {'・'.join(sorted(learned)) or 'なし'}、全体 {'・'.join(sorted(kinds))}"
    remedy = "dtype を float32 にしてください（T4 は bf16 を持ちません）"
    return judge("精度", found, "float16" in learned or no_bf16, remedy)


def manifest(folder: Path) -> Finding:
    """保存したときの記録と、いまのファイルが同じか。"""
    if not (folder / "manifest.json").exists():
        remedy = "この段のノートブックを実行し直すと、記録ができます"
        return Finding("ファイルの記録", "warning", "記録（manifest.json）がありません", remedy)
    try:
        check_folder(folder)
    except WorkshopError as error:
        return Finding("ファイルの記録", "fatal", str(error).rstrip("。"), "この段のノートブックを実行し直してください")
    return Finding("ファイルの記録", "ok", "保存したときのまま")


_ENOUGH = 512  # 先頭からこの件数まで調べる。大きなデータでも数秒で終わるように


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
