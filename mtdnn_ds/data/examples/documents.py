"""Examples of masked_lm: chunks of documents, masked anew in every epoch, and pairs of segments.

Decides no mask.

Which tokens are masked is in masks.py. Everything random follows from (seed, task name, epoch, example), so
an example is the same on any rank, and a sequence has the same length in every epoch. Pairs, for
next-sentence prediction, are as BERT's (Devlin et al. 2019, appendix A.2): a chunk is cut in two at a random
end of a sentence, and in half of the cases the second segment gives way to a piece of another document. Where
they differ from BERT's own preparation: the piece has as many tokens as the segment it replaces (there the
pair is then cut to fit), a chunk of one sentence is cut between any two tokens (there its second segment is
always random), no sequences are made short on purpose, and every epoch draws anew.

Positions count the tokens of all documents end to end.

Shape legend: E examples (chunks), B examples asked for, D documents, N tokens of their texts, T tokens, K
masked ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.counter_hash import epoch_keys, stream_of, words
from mtdnn_ds.data.cache.prepared_split import PreparedSplit, TextRange
from mtdnn_ds.data.cache.tokenize import room_for_texts
from mtdnn_ds.data.examples.base import Decoded, Gathered, TargetRows, TermOutputs
from mtdnn_ds.data.examples.masks import chosen_tokens, replaced
from mtdnn_ds.data.ragged import ragged_ranges, starts_of
from mtdnn_ds.tasks.spec import TaskSpec

IS_NEXT, IS_RANDOM = 0.0, 1.0  # as in transformers' BertForPreTraining

# Keys beside those of masks.py.
CUT, SWAP, DOCUMENT, SENTENCE = (np.array([number], np.uint64) for number in range(8, 12))


def cut_chunks(
    bounds: np.ndarray, document_begins: np.ndarray, document_ends: np.ndarray, *, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """(begin (E,), end (E,)) of the chunks in order, each of at most `room` tokens; the same in every epoch.

    `bounds`: where sentences begin, and where the last one ends. A chunk never crosses a document's end. It
    takes whole sentences as long as they fit; a sentence that is longer than `room` is cut, and what is left
    of it begins the next chunk. Example: one document of sentences of 3, 3, 9 tokens, room 7: chunks of 6
    (two sentences), 7 and 2.
    """
    begins = [np.zeros(0, dtype=np.int64)]
    ends = [np.zeros(0, dtype=np.int64)]
    filled = document_begins < document_ends
    at, stop = document_begins[filled], document_ends[filled]

    while at.size:  # the next chunk of every document that is not used up
        limit = np.minimum(at + room, stop)
        whole = bounds[np.searchsorted(bounds, limit, side="right") - 1]  # the last sentence end that fits
        end = np.where(whole > at, whole, limit)
        begins.append(at)
        ends.append(end)
        at, stop = end[end < stop], stop[end < stop]

    begin_E, end_E = np.concatenate(begins), np.concatenate(ends)
    order = np.argsort(begin_E)
    return begin_E[order], end_E[order]


class DocumentExamples:
    """Sequences of one chunk, or of a chunk's two segments with `next_sentence`."""

    def __init__(
        self,
        spec: TaskSpec,
        split: PreparedSplit,
        *,
        max_length: int,
        seed: int,
        left_out: np.ndarray | None = None,
    ) -> None:
        """`left_out`: documents that no random segment is taken from."""
        self.split, self.spec = split, spec
        self._mask_rate = float(spec.options["mask_rate"])
        self._whole_words = spec.options["masking"] == "whole_word"
        self._next_sentence = bool(spec.options["next_sentence"])
        self._seed, self._stream = seed, np.array([stream_of(f"{spec.name} masks")], np.uint64)

        specials = split.specials
        if specials.mask_id is None:
            raise ConfigError(
                f"tasks.{spec.name}: the tokenizer has no mask token, which masked_lm needs; "
                "use another encoder or tokenizer"
            )
        self._mask_id = specials.mask_id
        self._special_ids = np.array(specials.special_ids, dtype=np.int64)
        self._ordinary_ids = np.setdiff1d(np.arange(specials.num_ids), self._special_ids)
        self._template = specials.pair if self._next_sentence else specials.single

        # Where documents and sentences stand, and the end of the last.
        lengths_D = split.row_lengths()
        self._document_ends = np.cumsum(lengths_D)
        self._bounds = np.concatenate(([0], np.cumsum(split.text_lengths())))
        self._first_sentence = np.concatenate(([0], np.cumsum(split.texts_per_row())))
        self._shard_begins = np.cumsum([0, *(len(shard.tokens) for shard in split.shards[:-1])])

        begins, ends = cut_chunks(
            self._bounds,
            self._document_ends - lengths_D,
            self._document_ends,
            room=room_for_texts(self._template, max_length),
        )
        # A chunk of one token cannot be cut in two, and is left out.
        usable = ends - begins >= (2 if self._next_sentence else 1)
        self._begins, self._ends = begins[usable], ends[usable]
        self.num_examples = len(self._begins)
        self.lengths = self._ends - self._begins + self._template.num_special

        self.rows = np.searchsorted(self._document_ends, self._begins, side="right")
        longest_first = np.argsort(-lengths_D, kind="stable")
        if left_out is not None:
            longest_first = longest_first[~np.isin(longest_first, left_out)]
        self._longest_first = longest_first
        self._negative_lengths = -lengths_D[self._longest_first]
        self._place = np.zeros_like(lengths_D)  # of each document, from the longest on
        self._place[self._longest_first] = np.arange(len(self._longest_first))
        self._check()

    def _check(self) -> None:
        where = f"tasks.{self.spec.name}: {self.split.split}"
        if self.num_examples == 0:
            raise DataError(f"{where}: its documents have no tokens")
        if self._next_sentence and len(np.intersect1d(self.rows, self._longest_first)) < 2:
            raise DataError(
                f"{where}: next_sentence takes random segments from other documents, and there is only one: "
                "separate documents by blank lines (.txt), or set next_sentence to false"
            )

    def source_row(self, example: int) -> int:
        return int(self.split.source_rows[self.rows[example]])

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        epoch_keys_B = epoch_keys(self._seed, self._stream, epochs_B.astype(np.uint64))
        keys_B = words(epoch_keys_B, examples_B.astype(np.uint64))
        every = np.arange(len(examples_B))
        begin_B, end_B = self._begins[examples_B], self._ends[examples_B]

        second = None
        of_pairs: list[TargetRows] = []
        if self._next_sentence:
            cut_B, second_B, labels_B = self._segments(examples_B, keys_B)
            first = self._range(begin_B, cut_B - begin_B)
            second = self._range(second_B, end_B - cut_B)
            of_pairs = [TargetRows(rows=every, labels=labels_B, examples=every)]
        else:
            first = self._range(begin_B, end_B - begin_B)

        input_ids, token_type_ids, lengths = self.split.assemble(first, second)
        masked, of_tokens = self._masked(input_ids, lengths, first, second, keys_B)
        return Gathered(
            input_ids=masked,
            token_type_ids=token_type_ids,
            lengths=lengths,
            examples=every,
            targets=[of_tokens, *of_pairs],
        )

    def _masked(
        self,
        input_ids_T: np.ndarray,
        lengths_B: np.ndarray,
        first: TextRange,
        second: TextRange | None,
        keys_B: np.ndarray,
    ) -> tuple[np.ndarray, TargetRows]:
        """The sequences with some tokens replaced, and the tokens that stood there as labels."""
        sequence_B = starts_of(lengths_B)
        into_B = sequence_B + len(self._template.prefix)
        into, texts = [into_B], [first]
        if second is not None:
            into.append(into_B + first.length + len(self._template.middle))
            texts.append(second)

        # Segments of one sequence next to each other, (segments * B,).
        begins = np.stack(into, axis=1).reshape(-1)
        sizes = np.stack([text.length for text in texts], axis=1).reshape(-1)
        place_N = ragged_ranges(begins, sizes)
        owner_N = np.repeat(np.arange(len(begins)) // len(texts), sizes)
        position_N = place_N - sequence_B[owner_N]

        is_start_T = np.ones(len(input_ids_T), dtype=bool)
        if self._whole_words:
            for at, text in zip(into, texts, strict=True):
                is_start_T[ragged_ranges(at, text.length)] = self.split.token_column("word_starts", text)
            is_start_T[begins[sizes > 0]] = True  # a segment may begin inside a word
        is_candidate_N = ~np.isin(input_ids_T[place_N], self._special_ids)
        chosen = chosen_tokens(
            keys_B, owner_N, position_N, is_start_T[place_N], is_candidate_N, self._mask_rate
        )

        place_K, owner_K = place_N[chosen], owner_N[chosen]
        labels_K = input_ids_T[place_K]
        masked_T = input_ids_T.copy()
        masked_T[place_K] = replaced(
            labels_K,
            keys_B[owner_K],
            position_N[chosen],
            mask_id=self._mask_id,
            ordinary_ids=self._ordinary_ids,
        )
        return masked_T, TargetRows(rows=place_K, labels=labels_K.astype(np.float32), examples=owner_K)

    def _segments(
        self, examples_B: np.ndarray, keys_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(B,) each: where a chunk is cut, where its second segment begins, and if that is next or random."""
        begin_B, end_B, own_B = self._begins[examples_B], self._ends[examples_B], self.rows[examples_B]

        # At an end of a sentence within the chunk; without any, at any token.
        low_B = np.searchsorted(self._bounds, begin_B, side="right")
        inside_B = np.searchsorted(self._bounds, end_B, side="left") - low_B
        at_sentence_B = self._bounds[low_B + _draw(keys_B, CUT, inside_B)]
        cut_B = np.where(inside_B > 0, at_sentence_B, begin_B + 1 + _draw(keys_B, CUT, end_B - begin_B - 1))
        length_B = end_B - cut_B

        # Other documents with at least as many tokens: the longest ones, without its own, which is one of
        # them.
        others_B = np.searchsorted(self._negative_lengths, -length_B, side="right") - 1
        pick_B = _draw(keys_B, DOCUMENT, others_B)
        pick_B += pick_B >= self._place[own_B]
        other_B = self._longest_first[np.minimum(pick_B, len(self._longest_first) - 1)]

        # Sentences of it that are followed by enough tokens: its first ones.
        first_B = self._first_sentence[other_B]
        last_start_B = self._document_ends[other_B] - length_B
        num_starts_B = np.searchsorted(self._bounds, last_start_B, side="right") - first_B
        random_B = self._bounds[first_B + _draw(keys_B, SENTENCE, num_starts_B)]

        # Where no other document is long enough, the segment stays.
        swapped_B = (_draw(keys_B, SWAP, np.full_like(own_B, 2)) == 1) & (others_B > 0)
        second_B = np.where(swapped_B, random_B, cut_B)
        labels_B = np.where(swapped_B, IS_RANDOM, IS_NEXT).astype(np.float32)
        return cut_B, second_B, labels_B

    def _range(self, begin: np.ndarray, length: np.ndarray) -> TextRange:
        shard = np.searchsorted(self._shard_begins, begin, side="right") - 1
        return TextRange(shard=shard, begin=begin - self._shard_begins[shard], length=length)

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        """Masked tokens, and then next or random: one array for each term."""
        tokens, *pairs = outputs
        predictions = [tokens.values[:, 0], *(pair.values.argmax(axis=1) for pair in pairs)]
        return Decoded(predictions=predictions, references=[of_term.labels for of_term in outputs])


def _draw(keys: np.ndarray, purpose: np.ndarray, size: np.ndarray) -> np.ndarray:
    """An integer in [0, size) for each key; 0 where size is below 1."""
    return (words(keys, purpose) % np.maximum(size, 1).astype(np.uint64)).astype(np.int64)
