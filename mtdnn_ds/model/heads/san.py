"""SanBank: MT-DNN's answer network for pairs of texts, one for each term that asks for it. Not the loss.

Liu et al. 2019 (arXiv:1901.11504, section 3.1, "pairwise text classification output"; the network is that of
Liu et al. 2018, arXiv:1804.07888). M^p are the hidden states of text a (the premise), M^h those of text b
(the hypothesis), S = 5 steps:

    s_0 = sum_j alpha_j M^h_j              alpha_j ~ exp(theta_0 . M^h_j)
    x_k = sum_j beta_j M^p_j               beta_j ~ exp(s_{k-1} theta_1 M^p_j)        k = 1 .. S-1
    s_k = GRU(s_{k-1}, x_k)
    P_k = softmax(theta_2 [s_k; x_k; |s_k - x_k|; s_k * x_k])                         k = 0 .. S-1
    P   = the mean of P_0 .. P_{S-1}; in training of those that prediction dropout leaves, at least one

The paper has no x_0: it is what s_0 attends to, as in the authors' code, and so equals x_1. The head gives
log P, computed in float32 from log-softmaxes, so that it is finite in half precision and for any logits.

Shape legend: T packed tokens, K supervised rows, L longest sequence, D hidden, C columns, M terms of the
head, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtdnn_ds.counter_hash import mix_word
from mtdnn_ds.model.dropout.counter_dropout import STREAM
from mtdnn_ds.model.dropout.counter_masks import row_words
from mtdnn_ds.model.heads.by_term import RowsByTerm, rows_by_term
from mtdnn_ds.model.heads.linear_bank import term_dropout
from mtdnn_ds.model.seeded import seeded_normal_

# The defaults of the authors' code: --answer_num_turn and --answer_mem_drop_p of the training script in
# https://github.com/namisan/mt-dnn.
STEPS = 5
PREDICTION_DROPOUT = 0.1


class SanBank(nn.Module):
    """Parameters of all terms in banks whose first dimension counts the terms.

    Columns of `classifier` are as in the HeadLayout.
    """

    # What dimension 0 counts: a later run takes over those of a term.
    per_column = ("classifier",)
    per_term = ("summary", "attention", "input_weight", "state_weight", "input_bias", "state_bias")

    def __init__(
        self,
        *,
        hidden_size: int,
        columns: Mapping[int, range],
        num_terms_of_run: int,
        dropout_M: Sequence[float],
        prediction_dropout: float,
        initializer_range: float,
        seed: int,
    ) -> None:
        """`columns`: term id -> its columns, for the terms of this head in their order.

        `dropout_M`: of every term of the run.
        """
        super().__init__()
        num, width = len(columns), hidden_size
        self.summary = nn.Parameter(torch.empty(num, width))  # theta_0
        self.attention = nn.Parameter(torch.empty(num, width, width))  # theta_1
        # The GRU as torch.nn.GRUCell has it: rows of reset, update and new gate.
        self.input_weight = nn.Parameter(torch.empty(num, 3 * width, width))
        self.state_weight = nn.Parameter(torch.empty(num, 3 * width, width))
        self.input_bias = nn.Parameter(torch.zeros(num, 3 * width))
        self.state_bias = nn.Parameter(torch.zeros(num, 3 * width))
        self.classifier = nn.Parameter(torch.empty(sum(map(len, columns.values())), 4 * width))  # theta_2

        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                continue
            std = initializer_range
            if name == "attention":
                # Both sides of theta_1 are D wide: divided by sqrt(D), its scores are as large as theta_0's,
                # and attention starts soft.
                std = initializer_range / math.sqrt(width)
            seeded_normal_(parameter, std=std, seed=seed, purpose=f"san_head.{name}")

        is_own_MC = torch.zeros(num_terms_of_run, self.classifier.shape[0], dtype=torch.bool)
        for term, own in columns.items():
            is_own_MC[term, own.start : own.stop] = True

        self.prediction_dropout = prediction_dropout
        self.has_dropout = any(dropout_M[term] > 0 for term in columns)
        self.is_own_MC: Tensor
        self.dropout_M: Tensor
        self.register_buffer("is_own_MC", is_own_MC, persistent=False)
        self.register_buffer("dropout_M", torch.tensor(dropout_M, dtype=torch.float32), persistent=False)

    def forward(
        self,
        hidden_TD: Tensor,
        first_token_K: Tensor,
        segments_K4: Tensor,
        term_ids_K: Tensor,
        sizes: Sequence[int],
        longest: int,
        keys_K: Tensor | None = None,
    ) -> Tensor:
        """log P of each row in its term's columns, (K, C) float32, 0 in all others. K may be 0.

        `first_token_K`: where each row's sequence begins; `segments_K4`: start, length of text a, start,
        length of text b, from there; `sizes`: rows of each term of this head; `longest`: tokens of the
        longest sequence. These two are on the host. `keys_K`: for counter dropout.
        """
        grouped = rows_by_term(term_ids_K, sizes)
        first_token_K = first_token_K[grouped.order]
        segments_K4 = segments_K4[grouped.order]
        term_ids_K = term_ids_K[grouped.order]
        if keys_K is not None:
            keys_K = keys_K[grouped.order]

        with torch.autocast(hidden_TD.device.type, enabled=False):
            positions_L = torch.arange(longest, device=hidden_TD.device)
            start_a_K1, length_a_K1, start_b_K1, length_b_K1 = segments_K4[:, :, None].unbind(1)
            in_a_KL = (positions_L >= start_a_K1) & (positions_L < start_a_K1 + length_a_K1)
            in_b_KL = (positions_L >= start_b_K1) & (positions_L < start_b_K1 + length_b_K1)

            # One gather holds both memories. What belongs to neither is the zero row T: a token is gathered
            # at most once.
            tokens_KL = torch.where(in_a_KL | in_b_KL, first_token_K[:, None] + positions_L, len(hidden_TD))
            memory_KLD = _Memories.apply(hidden_TD, tokens_KL).float()

            kept_KD = self._kept_features(term_ids_K, memory_KLD, keys_K)
            features_KSF = self._steps(memory_KLD, in_a_KL, in_b_KL, kept_KD, grouped)
            logits_KSC = functional.linear(features_KSF, self.classifier.float())
            is_kept_KS = self._kept_steps(term_ids_K, keys_K)
            return _averaged(logits_KSC, self.is_own_MC[term_ids_K], is_kept_KS)[grouped.back]

    def _kept_features(self, term_ids_K: Tensor, memory_KLD: Tensor, keys_K: Tensor | None) -> Tensor | None:
        """Memory dropout with the task's probability: one mask for all tokens of a row, as the authors do.

        Both memories share it, so that |s - x| and s * x compare what both still have.
        """
        if not (self.training and self.has_dropout):
            return None
        ones_KD = memory_KLD.new_ones(len(term_ids_K), memory_KLD.shape[2])
        return term_dropout(self, ones_KD, term_ids_K, keys_K)

    def _kept_steps(self, term_ids_K: Tensor, keys_K: Tensor | None) -> Tensor | None:
        """Prediction dropout: (K, S) bool, the steps whose answers count, at least one."""
        if not (self.training and self.prediction_dropout > 0):
            return None
        if keys_K is None:
            draws_KS = torch.rand((len(term_ids_K), STEPS), device=term_ids_K.device)
        else:  # the upper 53 bits of a word are a float64 from 0 to 1
            words_KS = row_words(keys_K, term_ids_K, mix_word(getattr(self, STREAM)), STEPS)
            draws_KS = (words_KS >> 11).double() / 2**53 + 0.5

        # The step with the largest draw stays in any case: a difference only where all would be dropped.
        return (draws_KS >= self.prediction_dropout) | (draws_KS == draws_KS.amax(1, keepdim=True))

    def _steps(
        self,
        memory_KLD: Tensor,
        in_a_KL: Tensor,
        in_b_KL: Tensor,
        kept_KD: Tensor | None,
        grouped: RowsByTerm,
    ) -> Tensor:
        """[s_k; x_k; |s_k - x_k|; s_k * x_k] of every step, (K, S, 4 D)."""
        banks = (getattr(self, name) for name in self.per_term)
        # unbind, once: its backward pass joins the terms' gradients, where indexing would add up whole banks
        # of zeros.
        summary, attention, input_weight, state_weight, input_bias, state_bias = (
            {term: slices[term].float() for term in grouped.present}
            for slices in (bank.unbind(0) for bank in banks)
        )

        def by_term(
            rows_KD: Tensor, weights: Mapping[int, Tensor], biases: Mapping[int, Tensor] | None = None
        ) -> Tensor:
            parts = rows_KD.split([grouped.sizes[term] for term in weights])
            outputs = []
            for term, rows in zip(weights, parts, strict=True):
                bias = None if biases is None else biases[term]
                outputs.append(functional.linear(rows, weights[term], bias))
            return torch.cat(outputs)

        def attend(query_KD: Tensor, is_token_KL: Tensor) -> Tensor:
            # A dropped feature is missing in the memory; to leave it out of query and sum is the same and
            # takes less memory.
            if kept_KD is not None:
                query_KD = query_KD * kept_KD
            scores_KL = torch.einsum("kd,kld->kl", query_KD, memory_KLD)

            # A finite number, not -inf: a text of no tokens then has a sum of 0, not NaN.
            lowest = torch.finfo(scores_KL.dtype).min
            weights_KL = scores_KL.masked_fill(~is_token_KL, lowest).softmax(1) * is_token_KL
            sum_KD = torch.einsum("kl,kld->kd", weights_KL, memory_KLD)
            if kept_KD is not None:
                sum_KD = sum_KD * kept_KD
            return sum_KD

        # s_0 and x_0
        theta_0_KD = torch.cat([row.expand(grouped.sizes[term], -1) for term, row in summary.items()])
        # theta_1 (D, D) multiplies the state from the right: s theta_1 M.
        transposed = {term: matrix.T for term, matrix in attention.items()}
        state_KD = attend(theta_0_KD, in_b_KL)
        answer_KD = attend(by_term(state_KD, transposed), in_a_KL)

        features = [_compared(state_KD, answer_KD)]
        for step in range(1, STEPS):
            if step > 1:  # x_1 is x_0
                answer_KD = attend(by_term(state_KD, transposed), in_a_KL)
            from_input = by_term(answer_KD, input_weight, input_bias)
            from_state = by_term(state_KD, state_weight, state_bias)
            state_KD = _gru(from_input, from_state, state_KD)
            features.append(_compared(state_KD, answer_KD))
        return torch.stack(features, dim=1)


class _Memories(torch.autograd.Function):
    """(T, D) -> (K, L, D), index T giving zeros.

    No token is taken twice, so the backward pass is a gather too: no atomics, deterministic.
    """

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, tokens_KL: Tensor) -> Tensor:
        places = torch.arange(tokens_KL.numel(), device=tokens_KL.device)
        place_T = torch.full((len(hidden_TD) + 1,), tokens_KL.numel(), device=tokens_KL.device)
        place_T[tokens_KL.flatten()] = places  # the last one is that of many paddings, and not used
        ctx.save_for_backward(place_T[:-1])
        return _rows_or_zeros(hidden_TD, tokens_KL.flatten()).view(*tokens_KL.shape, hidden_TD.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (place_T,) = ctx.saved_tensors
        return _rows_or_zeros(gradients[0].flatten(0, 1), place_T), None


def _rows_or_zeros(rows: Tensor, index: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])]).index_select(0, index)


def _averaged(logits_KSC: Tensor, is_own_KC: Tensor, is_kept_KS: Tensor | None) -> Tensor:
    """log of the mean over (kept) steps of each row's softmax over its own columns, (K, C)."""
    is_own_K1C = is_own_KC[:, None]
    log_p_KSC = logits_KSC.masked_fill(~is_own_K1C, float("-inf")).log_softmax(2)
    log_p_KSC = log_p_KSC.masked_fill(~is_own_K1C, 0.0)

    log_num_kept: Tensor | float = math.log(STEPS)
    if is_kept_KS is not None:
        log_p_KSC = log_p_KSC.masked_fill(~is_kept_KS[:, :, None], float("-inf"))
        log_num_kept = is_kept_KS.sum(1, keepdim=True).log()

    return (log_p_KSC.logsumexp(1) - log_num_kept).masked_fill(~is_own_KC, 0.0)


def _compared(state_KD: Tensor, answer_KD: Tensor) -> Tensor:
    return torch.cat([state_KD, answer_KD, (state_KD - answer_KD).abs(), state_KD * answer_KD], dim=1)


def _gru(from_input_K3D: Tensor, from_state_K3D: Tensor, state_KD: Tensor) -> Tensor:
    """Cho et al. 2014 as torch.nn.GRUCell writes it: n = tanh(W x + r (U s)), s' = (1 - z) n + z s."""
    input_r, input_z, input_n = from_input_K3D.chunk(3, dim=1)
    state_r, state_z, state_n = from_state_K3D.chunk(3, dim=1)
    reset = torch.sigmoid(input_r + state_r)
    update = torch.sigmoid(input_z + state_z)
    new = torch.tanh(input_n + reset * state_n)
    return (1 - update) * new + update * state_KD
