"""Tokens of texts, and how they become input sequences: special tokens and truncation. Keeps nothing on disk.

Texts are tokenised untruncated, unpadded and without special tokens; everything that depends on the sequence
length happens at gather time (prepared_split.py), so one cache serves every length. Equal to `tokenizer(a, b,
truncation=True, max_length=...)` of transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from mtdnn_ds.config.errors import ConfigError

_TEXTS_PER_CALL = 2048  # an Encoding takes kilobytes; only its ids are kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """Ids and token types of prefix a suffix, or of prefix a middle b suffix, as the tokenizer has them."""

    prefix: tuple[int, ...]
    middle: tuple[int, ...]  # empty for one text
    suffix: tuple[int, ...]
    prefix_types: tuple[int, ...]
    middle_types: tuple[int, ...]
    suffix_types: tuple[int, ...]
    first_type: int
    second_type: int

    @property
    def num_special(self) -> int:
        return len(self.prefix) + len(self.middle) + len(self.suffix)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialTokens:
    """Templates of one and of two texts, the side where the tokenizer truncates, and its special ids."""

    single: Template
    pair: Template
    truncates_left: bool
    num_ids: int  # ids 0 .. num_ids - 1
    special_ids: tuple[int, ...]  # rising
    mask_id: int | None


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer of a model folder or hub name. Raises ConfigError if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        lines = str(error).splitlines() or [""]
        raise ConfigError(f"encoder.path={path}: no tokenizer can be loaded ({lines[0]})") from error

    if not tokenizer.is_fast:
        raise ConfigError(
            f"encoder.path={path}: has only a slow tokenizer; "
            "save a fast one (tokenizer.json) beside the model"
        )
    # Where config.json stands alone, transformers makes a tokenizer up.
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
        raise ConfigError(
            f"encoder.path={path}: its tokenizer has no words, only special tokens; "
            "put tokenizer.json beside config.json, or set encoder.tokenizer"
        )
    return tokenizer


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 of everything that decides the ids of a text; not of padding and truncation."""
    _make_plain(tokenizer)
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """Templates as the tokenizer applies them, read off two encoded probes."""
    _make_plain(tokenizer)
    # Models that take no token_type_ids (DistilBERT) get none from transformers, which equals all zeros,
    # whatever the template says.
    typed = "token_type_ids" in tokenizer.model_input_names
    return SpecialTokens(
        single=_template(tokenizer.backend_tokenizer.encode("a"), typed),
        pair=_template(tokenizer.backend_tokenizer.encode("a", "a"), typed),
        truncates_left=tokenizer.truncation_side == "left",
        num_ids=len(tokenizer),
        special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
        mask_id=tokenizer.mask_token_id,
    )


def encodings(tokenizer: Any, texts: Sequence[str], *, offsets: bool = False) -> Iterable[Any]:
    """An Encoding of each text with all its `ids`, without special tokens.

    With `offsets`, also each token's (start, end) and word.
    """
    _make_plain(tokenizer)
    backend = tokenizer.backend_tokenizer
    # The fast one leaves offsets and words empty.
    encode = backend.encode_batch if offsets else backend.encode_batch_fast

    for start in range(0, len(texts), _TEXTS_PER_CALL):
        yield from encode(list(texts[start : start + _TEXTS_PER_CALL]), add_special_tokens=False)


def word_starts(encoding: Any) -> np.ndarray:
    """(tokens,) uint8: 1 where a token begins a word as the tokenizer cuts words, before it cuts pieces."""
    words = encoding.word_ids
    starts = (index == 0 or word is None or word != words[index - 1] for index, word in enumerate(words))
    return np.fromiter(starts, np.uint8, len(words))


def word_prefix(tokenizer: Any) -> str:
    """What a word that is tokenised alone needs in front to get the tokens it has inside a text.

    Nothing, or a blank (byte-level BPE). Equal to `tokenizer(words, is_split_into_words=True)`, for
    byte-level BPE to that with add_prefix_space. Raises ConfigError if neither does.
    """
    a, b, blank_b, both = (encoding.ids for encoding in encodings(tokenizer, ["a", "b", " b", "a b"]))
    if a + b == both:
        return ""
    if a + blank_b == both:
        return " "
    raise ConfigError(
        "encoder.tokenizer: cuts 'a b' into other tokens than its words, so words cannot be labelled; "
        "choose another encoder"
    )


def flatten(lists: Iterable[list[int]], dtype: np.dtype) -> np.ndarray:
    """All ids end to end."""
    return np.fromiter(chain.from_iterable(lists), dtype=dtype)


def _make_plain(tokenizer: Any) -> None:
    """Switch off padding and truncation, which would end up in the cache.

    A tokenizer.json may ask for them (sentence-transformers' do).
    """
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def _template(probe: Any, typed: bool) -> Template:
    """The template of an encoded text or pair; without `typed` all its token types are 0."""
    owners = probe.sequence_ids  # None for a special token, else 0 or 1
    types = probe.type_ids if typed else [0] * len(probe.ids)
    first = [index for index, owner in enumerate(owners) if owner == 0]
    second = [index for index, owner in enumerate(owners) if owner == 1]
    assert first and (not second or first[-1] < second[0]), (
        f"a tokenizer whose template is not 'a' or 'a b': {probe.tokens}"
    )

    before, between = slice(0, first[0]), slice(0, 0)
    after, second_type = slice(first[-1] + 1, None), 0
    if second:
        between = slice(first[-1] + 1, second[0])
        after, second_type = slice(second[-1] + 1, None), types[second[0]]

    return Template(
        prefix=tuple(probe.ids[before]),
        middle=tuple(probe.ids[between]),
        suffix=tuple(probe.ids[after]),
        prefix_types=tuple(types[before]),
        middle_types=tuple(types[between]),
        suffix_types=tuple(types[after]),
        first_type=types[first[0]],
        second_type=second_type,
    )


def kept_lengths(first_S: np.ndarray, second_S: np.ndarray, num_kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens kept of both texts when `num_kept` fit: longest first, as `truncate_encodings` of HF tokenizers.

    The shorter text is whole as long as the longer one keeps at least as many tokens; else both get half, the
    longer one the odd token (the second text, if both are equally long). Examples: (3, 9) into 8 -> (3, 5);
    (7, 9) into 9 -> (4, 5); (9, 7) into 9 -> (5, 4).
    """
    # TruncationStrategy::LongestFirst, with n1 <= n2: n2 = n1 if n1 > room else max(n1, room - n1);
    # if n1 + n2 > room: n1 = room // 2, n2 = n1 + room % 2. See
    # https://github.com/huggingface/tokenizers/blob/v0.21.0/tokenizers/src/utils/truncation.rs
    shorter_S, longer_S = np.minimum(first_S, second_S), np.maximum(first_S, second_S)
    cut_longer_S = np.where(shorter_S > num_kept, shorter_S, np.maximum(shorter_S, num_kept - shorter_S))

    both_S = shorter_S + cut_longer_S > num_kept
    kept_shorter_S = np.where(both_S, num_kept // 2, shorter_S)
    kept_longer_S = np.where(both_S, num_kept // 2 + num_kept % 2, cut_longer_S)

    fits_S = shorter_S + longer_S <= num_kept
    kept_shorter_S = np.where(fits_S, shorter_S, kept_shorter_S)
    kept_longer_S = np.where(fits_S, longer_S, kept_longer_S)

    swapped_S = first_S > second_S
    kept_first_S = np.where(swapped_S, kept_longer_S, kept_shorter_S)
    kept_second_S = np.where(swapped_S, kept_shorter_S, kept_longer_S)
    return kept_first_S, kept_second_S


def room_for_texts(template: Template, max_length: int) -> int:
    """Tokens left for texts. Raises ConfigError if the special tokens alone fill the sequence."""
    room = max_length - template.num_special
    if room < 1:
        raise ConfigError(
            f"encoder.max_length={max_length}: {template.num_special} special tokens leave no room for text; "
            "raise it"
        )
    return room
