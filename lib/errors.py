"""利用者が起こしうる失敗を、一文の日本語で伝える例外。"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class WorkshopError(Exception):
    """何が（what）・どこで（where。ファイルや行）・どうすればよいか（remedy）を、一文で伝える失敗。"""

    def __init__(self, what: str, remedy: str, where: str | Path | None = None) -> None:
        super().__init__(f"{what}（{where}）。{remedy}" if where else f"{what}。{remedy}")

    def _render_traceback_(self) -> list[str]:
        """Jupyter が呼ぶ表示の口。トレースバックの代わりに一文だけを見せる。"""
        return [f"✋ {self}"]


@contextmanager
def command_line() -> Iterator[None]:
    """コマンドの入口で使い、`WorkshopError` を一文と終了コード 1 に、Ctrl-C を 130（128 + SIGINT）に変える。"""
    try:
        yield
    except WorkshopError as error:
        print(f"✋ {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\n⏸ 止めました。終わった分は残っています。同じコマンドで続きから始まります。", file=sys.stderr)
        raise SystemExit(130) from None
