"""MaskedLMHead: vocabulary scores of masked tokens, decoder tied to the word embeddings. Not the masks.

logits = E norm(activation(W h + b)) + c, with E (V, E) the encoder's own word embeddings: BERT's head (Devlin
et al. 2019) and those of its successors. E stays the embedding's parameter: the head only reads it, so the
state dict holds it once, and its gradient is the sum of both uses. ZeRO-3 has to be told of such a loan
(MultiTaskNet.borrowed, train/engine.py).

Shape legend: K masked tokens, D hidden, E width of the word embeddings, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.encoder import PROBE_TOLERANCE, PackedEncoder
from mtdnn_ds.model.hf_model import quiet_transformers
from mtdnn_ds.model.probe import probe_batch, relative_difference
from mtdnn_ds.model.seeded import reset_linear_layers


class MaskedLMHead(nn.Module):
    """One head for all masked_lm tasks of a run. `notes`: sentences that a run says once, at start."""

    def __init__(self, embedding: nn.Embedding, config: PreTrainedConfig, *, seed: int) -> None:
        """New weights: drawn from `seed` as BERT draws them, the decoder's bias 0."""
        super().__init__()
        # Hugging Face's heads take activation and epsilon from these names; RoBERTa's and ELECTRA's are
        # always gelu.
        activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None) or "gelu"
        self.dense = nn.Linear(config.hidden_size, embedding.embedding_dim)
        self.activation = ACT2FN[activation]
        epsilon = getattr(config, "layer_norm_eps", None) or getattr(config, "norm_eps", None) or 1e-12
        self.norm = nn.LayerNorm(embedding.embedding_dim, eps=epsilon)
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))

        std = getattr(config, "initializer_range", 0.02)
        reset_linear_layers(self, std=std, seed=seed, purpose="masked_lm_head")
        self.notes: tuple[str, ...] = ()
        self.tie(embedding)

    def tie(self, embedding: nn.Embedding) -> None:
        """Reads this embedding from now on. In a tuple, so that it does not become a part of the head."""
        self._owner = (embedding,)

    @property
    def tied_weight(self) -> nn.Parameter:
        """(V, E): a parameter of the encoder."""
        weight = self._owner[0].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, states_KD: Tensor) -> Tensor:
        """Logits (K, V). K may be 0: every parameter then still gets a gradient, of zeros."""
        return self.scores(states_KD, self.tied_weight)

    def scores(self, states_KD: Tensor, weight_VE: Tensor) -> Tensor:
        """Logits (K, V) with the given word embeddings."""
        return functional.linear(self.norm(self.activation(self.dense(states_KD))), weight_VE, self.bias)


def build_masked_lm_head(
    encoder: PackedEncoder, path: str | None, *, seed: int, trust_remote_code: bool = False
) -> MaskedLMHead:
    """The head over `encoder`, in float32: that of the checkpoint in `path`, or a new one drawn from `seed`.

    `path` None: no weights are read (encoder.random_init). A note says where the weights come from.
    """
    embedding = encoder.model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise ConfigError(
            f"masked_lm: the word embeddings of {type(encoder.model).__name__} are no table of vectors to "
            "tie a decoder to"
        )

    with torch.random.fork_rng(devices=[]):  # nn.Linear draws before it is drawn anew from the seed
        head = MaskedLMHead(embedding, encoder.config, seed=seed)
    if path is None:
        return head

    obstacle = _load_own(head, path, trust_remote_code=trust_remote_code)
    if obstacle is not None:
        head.notes = (
            f"masked_lm: {obstacle}: a new head is drawn from the seed, its decoder tied to the word "
            "embeddings",
        )
    return head


def _load_own(head: MaskedLMHead, path: str, *, trust_remote_code: bool) -> str | None:
    """Gives the head the checkpoint's weights, or says why not."""
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            theirs, report = AutoModelForMaskedLM.from_pretrained(
                path, trust_remote_code=trust_remote_code, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        first_line = (str(error).splitlines() or [""])[0]
        return f"transformers cannot load {path} with a masked-language-model head ({first_line})"
    theirs.eval()

    below = f"{theirs.base_model_prefix}."
    if any(not name.startswith(below) for name in report["missing_keys"]):
        return "the checkpoint has no masked-language-model head"

    # Weights that fit by name and shape are taken on trial: only equal logits show that heads are the same.
    own = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith(below)}
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.load_state_dict(_matched(own, head))
    if _difference(head, theirs) < PROBE_TOLERANCE:
        return None

    head.load_state_dict(before)
    return (
        f"the head of {type(theirs).__name__} is not a dense layer, {type(head.activation).__name__}, a "
        "normalisation and the tied embeddings"
    )


def _matched(theirs: Mapping[str, Tensor], head: MaskedLMHead) -> dict[str, Tensor]:
    """Their tensors under our names, told apart by shape and by 'norm' in the name.

    What they lack (a bias) is as if it were not there.
    """
    own = {name: torch.zeros_like(tensor) for name, tensor in head.state_dict().items()}
    own["norm.weight"] = torch.ones_like(own["norm.weight"])

    for name, tensor in theirs.items():
        if "norm" in name.lower():
            ours = f"norm.{name.split('.')[-1]}"
        elif tensor.shape == head.dense.weight.shape:
            ours = "dense.weight"
        elif tensor.shape == head.bias.shape:
            ours = "bias"
        else:
            ours = "dense.bias"
        if ours in own and own[ours].shape == tensor.shape:
            own[ours] = tensor
    return own


@torch.no_grad()
def _difference(head: MaskedLMHead, theirs: PreTrainedModel) -> float:
    """Between our logits and theirs on a few tokens, relative to the largest."""
    base, embedding = theirs.base_model, theirs.get_input_embeddings()
    assert isinstance(base, PreTrainedModel) and isinstance(embedding, nn.Embedding)

    ids = probe_batch(base).input_ids[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    our_logits = head.scores(base(**inputs)[0][0], embedding.weight)
    return relative_difference(our_logits, theirs(**inputs).logits[0])
