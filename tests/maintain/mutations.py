"""大事な所をわざと壊し、テストが必ず赤くなるかを見る。`make mutate` の中身（リポジトリの写しの中だけで壊す）。

使い方: python tests/maintain/mutations.py [名前の一部 ...]
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def place(name: str) -> str:
    """テストのファイルの場所。"""
    return str(next((ROOT / "tests").rglob(name)).relative_to(ROOT))


# (何を壊すか, ファイル, もとの字, 壊した字, 赤くなるべきテスト)
MUTATIONS = [
    (
        "分割: 試験の文型を学習に混ぜる",
        "lib/data/facts.py",
        "near=_examples(taught, NEAR_FORMS)",
        "near=_examples(taught, TRAIN_FORMS[:2])",
        "test_data.py -k split_keeps",
    ),
    (
        "分割: 教えた事実を「教えていない」とする",
        "lib/data/facts.py",
        "facts[-profile.heldout_facts :]\n    ask_train",
        "facts[: profile.heldout_facts]\n    ask_train",
        "test_data.py -k split_keeps",
    ),
    (
        "分割: 実行のたびに並びが変わる",
        "lib/data/facts.py",
        "return hashlib.sha256(key.encode()).hexdigest()",
        "return str(hash(key))",
        "test_mutable.py -k order",
    ),
    (
        "漏れ: 見つけても黙る",
        "lib/data/facts.py",
        "if near >= threshold:",
        "if near > 1:",
        "test_data.py -k planted_leak",
    ),
    (
        "マスク: よその例が見える",
        "lib/train/trainers.py",
        "seen[node] |= seen[parent]",
        "seen[node] |= seen[node - 1]",
        "test_sft.py -k own_beginning",
    ),
    (
        "マスク: 損失の位置が一つずれる",
        "lib/train/trainers.py",
        "logits_to_keep=row.place[:, :-1][counted],",
        "logits_to_keep=row.place[:, 1:][counted],",
        "test_sft.py -k gradients",
    ),
    (
        "マスク: 質問にも損失が掛かるのを見逃す",
        "lib/train/preflight.py",
        "e.counted != list(range(len(e.prompt), len(e.ids)))",
        "not e.counted",
        "test_preflight.py -k loss-on-prompt",
    ),
    (
        "EOS: 消えても見逃す",
        "lib/train/preflight.py",
        "for i in e.counted) != 1",
        "for i in e.counted) > 1",
        "test_preflight.py -k eos-lost",
    ),
    (
        "EOS: pad と同じままにする",
        "lib/model/load.py",
        "        tokenizer.pad_token = fallback",
        "        fallback = fallback",
        "test_workspace.py -k pad_equal_to_eos",
    ),
    (
        "テンプレート: 答えの前の印を書かない",
        "lib/model/generate.py",
        "add_generation_prompt=True",
        "add_generation_prompt=False",
        "test_preflight.py -k sound_training",
    ),
    (
        "テンプレート: 違いを見逃す",
        "lib/train/preflight.py",
        "sum(e.ids != e.whole[: len(e.ids)] or e.ids[: len(e.prompt)] != e.prompt for e in examples)",
        "sum(len(e.ids) > len(e.whole) for e in examples)",
        "test_preflight.py -k template-differs",
    ),
    (
        "BOS: 二重に足す",
        "lib/model/generate.py",
        'encoded = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]',
        'encoded = [[tokenizer.bos_token_id, *ids] for ids in tokenizer(list(prompts))["input_ids"]]',
        "test_mutable.py -k generation_reads",
    ),
    (
        "採点: ほかの数値を言っても正答",
        "lib/text/quantities.py",
        " and not unexpected(answer, expected)",
        "",
        "test_metrics.py -k right_answer",
    ),
    (
        "採点: 語の途中でも当たり",
        "lib/score/answers.py",
        "(?<![a-z0-9]){re.escape",
        "{re.escape",
        "test_metrics.py -k word_boundaries",
    ),
    (
        "採点: 断りを見ない",
        "lib/score/answers.py",
        "        return is_refusal(answer)\n    return matches",
        "        return True\n    return matches",
        "test_metrics.py -k refusals",
    ),
    (
        "区間: Wilson の幅が違う",
        "lib/score/answers.py",
        "z * z / (4 * total * total)",
        "z * z / (4 * total)",
        "test_metrics.py -k wilson",
    ),
    (
        "区間: 事実をまとめずに引き直す",
        "lib/score/exam.py",
        'setdefault(one["fact"], [])',
        'setdefault(one["question"], [])',
        "test_metrics.py -k bootstrap_by_fact",
    ),
    (
        "区間: 対応のある差を取らない",
        "lib/score/exam.py",
        'int(other["correct"]) - int(one["correct"])',
        'int(other["correct"])',
        "test_metrics.py -k verdict",
    ),
    (
        "区間: 引き直しの種が毎回違う",
        "lib/score/exam.py",
        "generator = random.Random(0)  # 報告",
        "generator = random.Random()  # 報告",
        "test_metrics.py -k same_interval",
    ),
    (
        "検定: p が 0 になる",
        "lib/score/exam.py",
        "(extreme + 1) / (rounds + 1)",
        "extreme / rounds",
        "test_metrics.py -k never_zero",
    ),
    (
        "種: 違う種の実行に上書きする",
        "lib/run.py",
        '"seed": int(seed)}\n    if (folder',
        '"seed": 0}\n    if (folder',
        "test_workspace.py -k another_profile_or_seed",
    ),
    (
        "DPO: 回答の対数確率を、足さずに平均する",
        "lib/train/trainers.py",
        "sums = _per_token(logits, batch[2])[0].sum(-1)",
        "sums = _per_token(logits, batch[2])[0].mean(-1)",
        "test_mutable.py -k logprobs",
    ),
    (
        "再開: 設定が変わっても続ける",
        "lib/train/watch.py",
        'record.read_text(encoding="utf-8") == text:',
        "True:",
        "test_resume.py -k changed_settings",
    ),
    (
        "再開: 書きかけの控えを使う",
        "lib/train/watch.py",
        'found[int(json.loads(path.read_text(encoding="utf-8"))["global_step"])]',
        'found[int(path.parent.name.split("-")[1])]',
        "test_resume.py -k only_finished",
    ),
    (
        "見張り: NaN で止まらない",
        "lib/train/watch.py",
        'if not math.isfinite(float(logs.get("loss", 0.0))):',
        'if float(logs.get("loss", 0.0)) < 0:',
        "test_resume.py -k broken_loss",
    ),
    (
        "成果物: 書きかけが本物に見える",
        "lib/run.py",
        'work = Path(temporary) / "new"',
        "work = path",
        "test_workspace.py -k appears_only_when_whole",
    ),
    (
        "成果物: 別のベースに載せても黙る",
        "lib/model/load.py",
        "if recorded is not None and recorded != fingerprint(base):",
        "if not base:",
        "test_preflight.py -k another_base",
    ),
    (
        "成果物: 層の合わないアダプタを捨てて読む",
        "lib/model/load.py",
        "if wrong := mismatches(folder, model):",
        "if wrong := []:",
        "test_preflight.py -k another_base",
    ),
    (
        "埋め込みの共有を見逃す",
        "lib/train/preflight.py",
        'if "embed_tokens" in name or "lm_head" in name',
        'if "nothing" in name',
        "test_preflight.py -k tied",
    ),
    (
        "変換: 型の落ち先が違う",
        "notebooks/06_merge_to_gguf.ipynb",
        "Q.Q4_K: Q.Q5_0,",
        "Q.Q4_K: Q.Q4_0,",
        "test_export.py -k llama_quantize",
    ),
    (
        "Modelfile: 引用符を見ない",
        "lib/export/serve.py",
        "if '\"\"\"' in text or text.endswith('\"'):",
        "if not text:",
        "test_ollama.py -k modelfile",
    ),
    (
        "期待値: ずれても合格",
        "lib/regression.py",
        'ok = abs(value - rule["value"]) <= rule["tolerance"]',
        "ok = True",
        "test_house.py -k drifted",
    ),
    (
        "表示: 答えの HTML を素通しする",
        "data/templates/answers.html",
        '{{ row.get(key, "") }}',
        '{{ row.get(key, "") | safe }}',
        "test_hostile.py -k html",
    ),
    (
        "llama.cpp: よその頁にも答えを読ませる",
        "lib/export/serve.py",
        '"http://127.0.0.1", True, False',
        '"*", True, True',
        "test_llamacpp.py -k no_other_page",
    ),
    (
        "QLoRA: 答えさせるときも 4 bit のまま",
        "lib/model/load.py",
        "small := profile.four_bit and trainable",
        "small := profile.four_bit",
        "test_qlora.py -k only_training",
    ),
]


def run_tests(folder: Path, selections: list[str]) -> bool:
    """テストが緑か。テストそのものが動かない（終了コード 2 以上）のは、赤とは言わない。"""
    files = sorted({place(selection.split(" -k ")[0]) for selection in selections})
    names = " or ".join(dict.fromkeys(selection.split(" -k ")[1] for selection in selections))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files, "-k", names]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if result.returncode not in (0, 1):
        sys.exit(f"✋ テストが動きません（{names}）。\n{result.stdout[-2000:]}{result.stderr[-500:]}")
    return result.returncode == 0


def main() -> None:
    """写しを作り、まず壊さずに緑を確かめ、一つずつ壊しては戻す。見逃しがあれば終了コード 1。"""
    wanted = [m for m in MUTATIONS if not sys.argv[1:] or any(word in m[0] for word in sys.argv[1:])]
    survived = 0
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        folder = Path(name)
        for part in ("lib", "tests", "data", "notebooks"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "kernel-ipc*"))
        for path in ROOT.glob("*"):
            if path.is_file():
                shutil.copy(path, folder)
        if not run_tests(folder, [tests for *_, tests in wanted]):
            sys.exit("✋ 壊す前からテストが赤です。先に make test を緑にしてください。")
        for what, file, old, new, tests in wanted:
            start, path = time.monotonic(), folder / file
            text = path.read_text(encoding="utf-8")
            if text.count(old) != 1:
                sys.exit(f"✋ {file} に、壊す所がちょうど一つありません: {old}")
            path.write_text(text.replace(old, new), encoding="utf-8")
            caught = not run_tests(folder, [tests])
            path.write_text(text, encoding="utf-8")
            survived += not caught
            state = "見つけた" if caught else "✋ 見逃した"
            print(f"{state}  {time.monotonic() - start:>4.0f} 秒  {what}  （{tests}）", flush=True)
    print(f"{len(wanted)} か所を壊し、{len(wanted) - survived} か所を見つけました")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
