"""モデルと変換器を先に取っておく。`make fetch` の中身。"""

import argparse

from lib.errors import command_line
from lib.export.gguf import fetch_converter
from lib.model.load import resolve
from lib.profiles import get_profile


def main() -> None:
    """コマンドの入口。"""
    parser = argparse.ArgumentParser(description="モデルと変換器を先に取っておく")
    parser.add_argument("--profile", default="embedded")
    options = parser.parse_args()
    with command_line():
        print(f"モデル: {resolve(get_profile(options.profile))}")
        print(f"変換器: {fetch_converter()}")


if __name__ == "__main__":
    main()
