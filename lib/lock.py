"""同じ実行を、二つ同時に走らせない。"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.errors import WorkshopError

_HELD = "WORKSHOP_RUN_HELD"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """抜けるまで、この実行のフォルダを独り占めする。kill -9 で止まっても、OS が鍵を外す。

    鍵を持つ実行のノートブックが、上流を作るために自分を呼んだときは、そのまま通す。

    Raises:
        WorkshopError: ほかのプロセスが同じ実行を走らせているとき。
    """
    import fcntl

    if os.environ.get(_HELD) == str(folder):
        yield
        return
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkshopError(
                "この実行は、ほかの所でいま走っています", "終わるのを待つか、RUN に別の名前を指定してください", folder
            ) from None
        os.environ[_HELD] = str(folder)
        try:
            yield
        finally:
            del os.environ[_HELD]
