"""設定の入口: プロファイル（`data/profiles.toml`）が、モデル・デバイス・精度・予算をすべて決める。

ノートブックは `profile.sft_epochs` のように読むだけで、`if colab` や `.to("cuda")` はどこにも現れない。
"""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError


@dataclass(frozen=True)
class ModelSpec:
    """モデルの身元。値の意味は `data/models.toml` にある。"""

    hub_id: str
    licence: str
    parameters: int
    download_gb: float
    terms: str = ""
    wheel: dict[str, Any] | None = None
    attention: str | None = None


@dataclass(frozen=True)
class Profile:
    """一つの機械・一つの目的のための設定一式。値の単位と、その値にした理由を右に書く。"""

    name: str
    model: str  # `data/models.toml` の鍵
    why: str  # このプロファイルがある理由
    sources: tuple[str, ...] = ("local", "hub", "wheel")  # 重みを探す順
    device: str = "cpu"  # "cpu" / "cuda" / "mps"
    dtype: str = "float32"  # 読み込む精度
    precision: str = "float32"  # 学習の計算の精度。"mixed" なら凍結した線形層だけ bf16（`prepare_cpu` が測って決める）
    lang: str = "en"  # データの言語。モデルが読めるほう（`DATA_LANG` で替えられる）
    mix: float = 0.3  # 学習例のうち、一般の問答の割合（忘却を防ぐ）。0.2 より忘却が軽かった
    train_facts: int = 32  # 学習に使う事実の数。× 7 言い回し = 224 例
    train_forms: int = 7  # 1 事実あたりの言い回しの数。用意した学習用の型の全部
    heldout_facts: int = 12  # 一度も見せない事実の数。24 問で、偶然の正答 1 問が 4 点。少ないとデータリークが見えない
    sft_epochs: int = 5  # バッチ 8 で 200 ステップ。6 エポックでは far が 80〜90% に増え、一般の質問が 35〜50% に減った
    sft_batch: int = 8  # 4 より 1 ステップあたりの例が多く、速い
    sft_learning_rate: float = 7e-4  # 5e-4 では near が 92%、1e-3 では忘却が大きかった。7B の定番は 2e-4
    lora_rank: int = 64  # 16 より far が高かった（試しの記録: 50〜63% と 38%）
    lora_from_layer: int = 0  # LoRA を付ける最初の層。速さの比は `make bench` が測る
    first_steps: int = 20  # 04 で、二つの Trainer に同じ学習をさせて比べるステップ数
    patience: int = 2  # 検証損失が何エポック続けて最良を更新しなければ止めるか。1 回の上下では止めない
    max_length: int = 256  # 1 例の最大トークン数。最長の例が 148 トークン。切り詰めは 0 件（02 で確かめる）
    preference_pairs: int = 200  # 用意したペアのほぼ全部（事実 100、回答を控える 96）
    preference_epochs: int = 2  # 1 エポック（バッチ 8、25 ステップ）の試走では、回答拒否率は 2% だった
    dpo_learning_rate: float = 1e-4  # 検証の質問で選んだ（05 の 7 節）。大きなモデルの LoRA では 5e-6 が目安
    preference_steps: int = 40  # DPO のステップ数。バッチ 4 ペアで 160 ペア分
    answer_batch: int = 64  # まとめて答える問数。120 問（2 コア）: 16 で 60 秒、32 で 47 秒、64 で 42 秒。答えは同じ
    answer_tokens: int = 48  # 1 問の最大トークン数。正解は最長 24 字 ≒ 43 トークン。EOS の分を足した
    exam_questions: int = 0  # 評価の部分（near、far など）ごとの問題の数。0 なら全部
    quantizations: tuple[str, ...] = ("Q8_0", "Q6_K", "Q4_K_M", "Q2_K")  # 06 で作る GGUF の種類
    experiments: bool = False  # 付録の実験を計算するか。1〜2 時間掛かるので、ふだんは記録を見せる
    four_bit: bool = False  # 学習の間だけ、ベースモデルを NF4 に縮めて置くか（QLoRA）。135M では得が無い（A1）
    expected_seconds: tuple[int, ...] = ()  # 01〜08 の実測の秒数（2 コア）。測っていなければ空

    def trainer_arguments(self, report_to: str = "none") -> dict[str, Any]:
        """TRL の設定に渡す、デバイスと記録の引数。学習の進めかたは変えない（bf16 では、丸めの分だけ値が変わる）。"""
        logs = {"logging_steps": 1, "report_to": report_to, "disable_tqdm": True, "use_cpu": self.device == "cpu"}
        return {**logs, "bf16": self.dtype == "bfloat16", "dataloader_pin_memory": self.device == "cuda"}


def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((Path(__file__).resolve().parent.parent / "data" / name).read_text(encoding="utf-8"))


def _profiles() -> dict[str, Profile]:
    """`data/profiles.toml` を読む。like があれば、そのプロファイルから変えたもの（実測の秒は引き継がない）。"""
    made: dict[str, Profile] = {}
    for name, row in _table("profiles.toml").items():
        row = {"expected_seconds": [], **row, "name": name}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k != "like"}
        made[name] = replace(made[row["like"]], **values) if "like" in row else Profile(**values)
    return made


MODELS = {name: ModelSpec(**row) for name, row in _table("models.toml").items()}
PROFILES = _profiles()


def get_profile(name: str) -> Profile:
    """名前からプロファイルを得る。知らない名前なら、使える名前を並べて止める（`WorkshopError`）。"""
    if name not in PROFILES:
        remedy = f"PROFILE に次のどれかを指定してください: {', '.join(PROFILES)}"
        raise WorkshopError(f"プロファイル「{name}」はありません", remedy, "data/profiles.toml")
    return PROFILES[name]
