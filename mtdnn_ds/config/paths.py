"""Whether a text can be the path of a file or folder at all. Looks at no file: whether it is there is for its
reader to say."""

from __future__ import annotations

import os

MAX_PATH = 2000  # bytes; the system takes 4,095, with what is put before and behind
MAX_NAME = 200  # bytes of one folder's or file's name; file systems take 255, with what is put behind


def path_problem(text: str) -> str | None:
    """What keeps `text` from being a path, and what to do; None if it can be one."""
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds U+{ord(text[error.start]):04X}, which is no character; rename the file or folder"
    if b"\0" in raw:
        return "holds U+0000, which no file name can; remove it"
    if len(raw) > MAX_PATH or any(len(name) > MAX_NAME for name in raw.split(b"/")):
        return (
            f"is too long for a path ({MAX_PATH:,} bytes, {MAX_NAME} for each name in it); use shorter names"
        )
    if text.startswith("~"):
        user = text.split("/")[0]
        if os.path.expanduser(user) == user:  # noqa: PTH111 (Path.expanduser raises instead)
            return f"there is no user {user.removeprefix('~') or 'with a home folder'}; write the whole path"
    return None


def usable_path(text: str) -> str:
    """`text`, for a setting's validator. Raises ValueError with what is wrong with it."""
    problem = path_problem(text)
    if problem is not None:
        raise ValueError(
            f"{text[:60]!r} {problem}" if problem.startswith(("holds", "is")) else f"{text[:60]}: {problem}"
        )
    return text
