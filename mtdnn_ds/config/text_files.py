"""Texts that a user gives, a recipe or a DeepSpeed JSON: a file read strictly, or a program's own. Knows no
format."""

from __future__ import annotations

import os
import re
import stat

from mtdnn_ds.config.errors import ConfigError

MAX_BYTES = 2**19  # of a recipe or a DeepSpeed JSON; real ones have a few thousand
MAX_DEPTH = 50  # mappings and lists within each other; a recipe needs six
TOO_DEEP = f"values are nested more than {MAX_DEPTH} deep; write them flatter"
MAX_DIGITS = 400  # of a whole number; a 64-bit one has 20

# YAML's and JSON's escapes can spell them, no file name and no tokenizer takes them.
UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


class GivenText(str):
    """What stands in a recipe or a DeepSpeed JSON that a program gives instead of a file's path.

    As a text it is the name that messages call it by; `content` is what would stand in the file.
    """

    content: str

    def __new__(cls, name: str, content: str) -> GivenText:
        text = super().__new__(cls, name)
        text.content = content
        return text


def read_text(path: str, what: str) -> str:
    """The text of a user's file, or of a GivenText. `what`: what the file was meant to be, in messages, e.g.
    "recipe"."""
    try:
        text = _read_bytes(path, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the {what} as UTF-8") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such {what}; give the path of an existing file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this {what}: {error.strerror or error}") from None
    except ValueError:  # a path with U+0000, or one that its file system cannot spell
        raise ConfigError(
            f"{path!r}: no file can have this name; give the path of an existing file"
        ) from None

    text = text.replace("\r\n", "\n").replace("\r", "\n")
    bad = invisible_in(text)
    if bad is not None:
        line = text.count("\n", 0, bad) + 1
        raise ConfigError(
            f"{path}:{line}: character U+{ord(text[bad]):04X} does not belong in a {what}; remove it"
        )
    return text


def invisible_in(text: str) -> int | None:
    """The place of the first character that nobody could see; None without one."""
    places = (i for i, letter in enumerate(text) if not letter.isprintable() and letter not in "\t\n")
    return next(places, None)


def unwritable_in(text: str) -> str | None:
    """What is wrong with a text that nothing takes; None with any other."""
    bad = UNWRITABLE.search(text)
    if bad is None:
        return None
    return f"text holds U+{ord(bad[0]):04X}, which is no character; remove it"


def _read_bytes(path: str, what: str) -> bytes:
    if isinstance(path, GivenText):
        return path.content.encode()

    # Not blocking: opening a named pipe would else wait for a writer, before anybody can see that it is one.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise ConfigError(
                f"{path}: is a pipe or a device, and a {what} is read more than once; save it to a file"
            )
        with open(descriptor, "rb", closefd=False) as stream:
            content = stream.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)

    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{path}: is larger than {MAX_BYTES // 2**10} KiB, so it is no {what}; give the right file"
        )
    return content
