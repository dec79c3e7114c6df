"""まとめて貪欲に答えさせる。1 問ずつより CPU でも数倍速い。"""

from collections.abc import Sequence
from typing import Any

from lib.dataset import Example
from lib.profiles import Profile


def render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """対話を、生成の直前までのチャットテンプレートの文字列にする。"""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def answer_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[str], profile: Profile, temperature: float = 0.0
) -> list[str]:
    """テンプレート済みの文字列に、長さ順の束で答える。

    Args:
        model: 因果言語モデル。
        tokenizer: そのトークナイザ。左詰めで使い、終わったら元に戻す。
        prompts: `render` の結果の列。
        profile: 束の大きさと最大トークン数を決める。
        temperature: 0 なら貪欲。正なら、その温度で語彙全体からサンプリングする。

    Returns:
        prompts と同じ順の答え（特殊トークンを除き、前後の空白を落とした文字列）。
    """
    import torch

    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        for start in range(0, len(order), profile.answer_batch):
            chunk = order[start : start + profile.answer_batch]
            # テンプレートが特殊トークンを書き終えているので、ここで足すと BOS が二重になる。
            batch = tokenizer(
                [prompts[i] for i in chunk], return_tensors="pt", padding=True, add_special_tokens=False
            ).to(model.device)
            with torch.inference_mode():
                output = model.generate(
                    **batch,
                    max_new_tokens=profile.answer_tokens,
                    **sampling,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                )
            new_tokens = output[:, batch["input_ids"].shape[1] :]
            for index, text in zip(chunk, tokenizer.batch_decode(new_tokens, skip_special_tokens=True), strict=True):
                answers[index] = text.strip()
    finally:
        tokenizer.padding_side = side
    return answers


def answer(model: Any, tokenizer: Any, examples: Sequence[Example], profile: Profile) -> list[str]:
    """例の質問に、学習時と同じシステム文とテンプレートで答える。"""
    return answer_prompts(model, tokenizer, [render(tokenizer, e.prompt()) for e in examples], profile)
