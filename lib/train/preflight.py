"""04〜06 が呼ぶ、学習とマージの前の検査。致命的な問題があれば止める。`require(before_training(…))`"""

import tomllib
from collections import namedtuple
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib.data.facts import find_leaks
from lib.errors import WorkshopError
from lib.files import REPOSITORY
from lib.model.generate import render
from lib.model.load import mismatches
from lib.train.watch import LossMonitor

REMEDIES = tomllib.loads((REPOSITORY / "data" / "templates" / "remedies.toml").read_text(encoding="utf-8"))


class Finding(NamedTuple):
    """一つの検査（check）の結果。level は "ok"、"warning"（続けられる）、"fatal"（止める）。"""

    check: str
    level: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {"ok": "✓", "warning": "⚠", "fatal": "✋"}[self.level]
        return f"{mark} {self.check}: {self.found}" + (f" → {self.remedy}" if self.remedy else "")


def judge(check: str, found: str, bad: Any, remedy: str = "", level: str = "fatal") -> Finding:
    """`bad` が真なら問題のある結果、偽なら問題の無い結果にする。どうするか（remedy）は、書かなければ表から読む。"""
    return Finding(check, level, found, remedy or REMEDIES[check]) if bad else Finding(check, "ok", found)


def require(findings: Sequence[Finding]) -> None:
    """結果を一行ずつ見せ、致命的なものがあれば、最初の一つとほかの名前を伝えて止める（`WorkshopError`）。"""
    print(*findings, sep="\n")
    if fatal := [finding for finding in findings if finding.level == "fatal"]:
        more = f"（ほかに: {'、'.join(finding.check for finding in fatal[1:])}）" if fatal[1:] else ""
        raise WorkshopError(f"{fatal[0].check}: {fatal[0].found}{more}", fatal[0].remedy)


def before_training(trainer: Any, rows: Sequence[dict[str, Any]], exam: Sequence[str] = ()) -> list[Finding]:
    """SFT か DPO の Trainer を、`train()` の前に調べる。rows はもとの例（会話型）、exam は評価データの質問。"""
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    size = model.get_input_embeddings().weight.shape[0]
    found = [vocabulary(size, model.config.vocab_size, tokenizer), tied_embeddings(model), precision(model)]
    found += supervision(tokenizer, list(collated(trainer, rows)), len(rows) - len(trainer.train_dataset))
    on = any(isinstance(callback, LossMonitor) for callback in trainer.callback_handler.callbacks)
    watch = judge("損失の見張り", "付いている" if on else "付いていない", not on, level="warning")  # 12. NaN で止める
    return [*found, first_step(trainer), watch, leaks([row["prompt"][-1]["content"] for row in rows], exam)]


def before_merge(model: Any, adapter: Path) -> list[Finding]:
    """アダプタを載せたモデルを、マージする前に調べる。"""
    return [adapter_shape(adapter, model.get_base_model()), tied_embeddings(model), quantized(model)]


def adapter_shape(adapter: Path, base: Any) -> Finding:
    """1. アダプタの各テンソルが、ベースの層に合うか（語彙 32004 と 32000 の違いもここで分かる）。"""
    wrong = mismatches(adapter, base)
    return judge("アダプタの形", wrong[0] if wrong else "すべての層に合う", wrong)


def vocabulary(rows: int, vocab_size: int, tokenizer: Any) -> Finding:
    """2. 最大のトークン ID < 埋め込みの行数 == config.vocab_size。"""
    most = max(tokenizer.get_vocab().values())
    found = f"最大の ID {most}、埋め込み {rows} 行、config.vocab_size {vocab_size}"
    return judge("語彙の大きさ", found, not most < rows == vocab_size)


# バッチの一例（パディングを除く）のトークンと損失の計算対象の位置、あるべき姿（答えの直前までと、答えまでのトークン）。
Supervised = namedtuple("Supervised", "ids counted prompt whole")


def collated(trainer: Any, rows: Sequence[dict[str, Any]], most: int = 512) -> Iterator[Supervised]:
    """Trainer が本当に作るバッチを、初めの `most` 例まで一例ずつ返す（抜け落ちた例があれば、比べられないので空）。"""
    tokenizer, data = trainer.processing_class, trainer.train_dataset
    for start in range(0, min(len(rows), most) if len(data) == len(rows) else 0, 8):
        chunk = range(start, min(start + 8, len(rows)))
        batch = trainer.data_collator([data[i] for i in chunk])
        real = batch["attention_mask"].bool()
        on = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"] == 1
        sides = ("completion",) if "labels" in batch else ("chosen", "rejected")
        talks = [(rows[i]["prompt"], rows[i][side]) for side in sides for i in chunk]
        for (prompt, reply), ids, kept, counted in zip(talks, batch["input_ids"], real, on, strict=True):
            texts = [render(tokenizer, prompt), tokenizer.apply_chat_template(prompt + reply, tokenize=False)]
            encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
            yield Supervised(ids[kept].tolist(), counted[kept].nonzero().flatten().tolist(), *encoded)


def supervision(tokenizer: Any, examples: Sequence[Supervised], dropped: int = 0) -> list[Finding]:
    """3〜7. 切り詰め、EOS、先頭の BOS、テンプレート、損失の範囲を、バッチに組んだ例で調べる。"""
    eos, bos, total = tokenizer.eos_token_id, tokenizer.bos_token_id, len(examples)
    cut = sum(len(e.ids) < len(e.whole) for e in examples)
    lost = f"まるごと落ちた例 {dropped} 個" if dropped else f"{cut} / {total} 例"
    found = [judge("切り詰め", lost, dropped or cut)]
    if not examples:
        return found
    silent = sum(sum(e.ids[i] == eos for i in e.counted) != 1 for e in examples)
    starts = sum(e.ids[:2].count(bos) != e.prompt[:2].count(bos) for e in examples)
    other = sum(e.ids != e.whole[: len(e.ids)] or e.ids[: len(e.prompt)] != e.prompt for e in examples)
    outside = sum(e.counted != list(range(len(e.prompt), len(e.ids))) for e in examples)
    shown = tokenizer.decode([examples[0].ids[i] for i in examples[0].counted])[:60]
    found.append(judge("EOS", f"損失に数える EOS が 1 個でない例 {silent} / {total}", silent))
    found.append(judge("先頭の BOS（学習と生成）", f"数の違う例 {starts} / {total}", starts))
    found.append(judge("テンプレート（学習と生成）", f"トークンの違う例 {other} / {total}", other))
    return [*found, judge("損失の範囲", f"{shown!r}（答えだけでない例 {outside} / {total}）", outside)]


def tied_embeddings(model: Any) -> Finding:
    """8. 出力層が埋め込みを兼ねるモデルで、その層を学習していないか（マージで壊れる）。"""
    tied = getattr(model.config, "tie_word_embeddings", False)
    added = [n for n, p in model.named_parameters() if p.requires_grad and ("lora_" in n or "modules_to_save" in n)]
    wrong = [name for name in added if "embed_tokens" in name or "lm_head" in name]
    found = f"共有の埋め込みに掛かる差分 {len(wrong)} 個" if tied else "出力層は埋め込みと別"
    return judge("埋め込みの共有", found, tied and wrong)


def quantized(model: Any) -> Finding:
    """9. マージ先が量子化した重みでないか。"""
    config = getattr(model.config, "quantization_config", None)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if not p.is_floating_point()})
    found = f"量子化あり（{', '.join(kinds) or '設定に記録'}）" if config or kinds else "量子化なし"
    return judge("マージ先の量子化", found, config or kinds)


def first_step(trainer: Any) -> Finding:
    """10・12. 1 例で損失と勾配を求める（重みは動かさない）。損失が有限で、勾配がどこかに届くか。"""
    model, batch = trainer.model, trainer.data_collator([trainer.train_dataset[0]])
    with torch.random.fork_rng(devices=[]):  # dropout が乱数を使っても、学習の乱数を進めない
        loss = trainer.compute_loss(model, trainer._prepare_inputs(batch))
        if loss.requires_grad:
            loss.backward()
    learned = [p.grad for p in model.parameters() if p.requires_grad]
    lost = sum(grad is None for grad in learned)
    reached = sum(bool(grad.any()) for grad in learned if grad is not None)
    model.zero_grad()
    for records in getattr(trainer, "_metrics", {}).values():  # 試しの値を、学習の記録に混ぜない
        records.clear()
    found = f"損失 {loss.item():.3f}、勾配が 0 でない {reached} / {len(learned)} 個、届かない {lost} 個"
    return judge("最初のステップ", found, not loss.isfinite() or lost or not reached)


def leaks(train: Sequence[str], exam: Sequence[str]) -> Finding:
    """11. 評価の質問が学習に無いか。記号と空白を除いて同じなら止め、ほぼ同じなら知らせる（別の事実かもしれない）。"""
    found = find_leaks(train, exam)
    same = any(likeness == 1 for *_, likeness in found)
    example = f"（例「{found[0][0][:30]}」）" if found else ""
    remedy = "その質問を学習から除いてください" if same else "同じ事実への質問なら、学習から除いてください"
    said = f"{'同じもの・' if same else ''}ほぼ同じもの {len(found)} / {len(exam)} 問{example}"
    return judge("データリーク", said, found, remedy, "fatal" if same else "warning")


def precision(model: Any) -> Finding:
    """13. 学習する重みが fp16 でなく、デバイスの持たない bf16 を使っていないか。"""
    kinds = {str(p.dtype).removeprefix("torch."): p.device.type for p in model.parameters()}
    learned = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    no_bf16 = kinds.get("bfloat16") == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    found = f"学習する重み {'・'.join(sorted(learned)) or 'なし'}、全体 {'・'.join(sorted(kinds))}"
    return judge("精度", found, "float16" in learned or no_bf16)
