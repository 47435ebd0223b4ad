"""Soft and low-rank sharing on tiny models:
layout of micro-batches, weights against plain Hugging Face models, the penalty's limits, settings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.encoder_families import CONFIGS
from transformers import AutoModel, PreTrainedModel

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.data.batches.fillers import filler_lengths, num_filler_tokens
from mtdnn_ds.data.batches.packing import pack
from mtdnn_ds.data.examples import Gathered, TargetRows
from mtdnn_ds.model.copies import CopiedEncoder
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.freeze import freeze
from mtdnn_ds.model.multitask import MultiTaskNet, build_model, parameter_groups
from mtdnn_ds.model.sharing import carried_encoder, merged_encoder_state, num_parameters
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.sharing import Sharing, share
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.regularizers.sharing_penalty import SharingPenalty

TASKS = ("nli", "sts", "cola")
SPECS = (
    TaskSpec(
        name="nli", kind="classification", labels=("yes", "maybe", "no"), metrics=("accuracy",), splits={}
    ),
    TaskSpec(name="sts", kind="regression", labels=(), metrics=("pearson",), splits={}),
    TaskSpec(name="cola", kind="classification", labels=("no", "yes"), metrics=("accuracy",), splits={}),
)
LAYOUT = head_layout(SPECS)
GROUPS = {"pairs": ["nli", "sts"], "single": ["cola"]}
SOFT = share(TASKS, mode="soft", groups=GROUPS, penalty=1.0)
LOW_RANK = share(TASKS, mode="low_rank", groups=GROUPS, penalty=1.0, rank=3)
FILLER = np.array([2, 3])


@dataclass(frozen=True)
class SomeExamples:
    """One sequence and one label each; the ids tell them apart."""

    tokens: list[list[int]]

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        own = [self.tokens[example] for example in examples_B]
        every = np.arange(len(own))
        return Gathered(
            input_ids=np.concatenate(own),
            token_type_ids=np.zeros(sum(map(len, own)), dtype=np.int64),
            lengths=np.array([len(tokens) for tokens in own]),
            examples=every,
            targets=[
                TargetRows(
                    rows=every, labels=np.array([float(tokens[0] % 2) for tokens in own]), examples=every
                )
            ],
        )


SETS: list[Any] = [
    SomeExamples([[10, 11, 12, 13], [14, 15]]),
    SomeExamples([[20, 21, 22]]),
    SomeExamples([[30, 31, 32, 33, 34], [35, 36]]),
]
DRAWN = [(2, 0), (0, 0), (1, 0), (2, 1), (0, 1)]  # task, example


def batch_of(drawn: Sequence[tuple[int, int]], sharing: Sharing) -> PackedBatch:
    tasks, examples = (np.array([pair[column] for pair in drawn], dtype=np.int64) for column in (0, 1))
    return collate(
        tasks,
        examples,
        np.zeros_like(tasks),
        ExampleSets(examples=SETS, tasks=range(3), layout=LAYOUT, filler_ids=FILLER, sharing=sharing),
    )


# Layout of micro-batches


def test_each_copy_reads_its_groups_sequences_shortest_first() -> None:
    batch = batch_of(DRAWN, SOFT)
    pairs, single = batch.parts
    assert pairs.input_ids.tolist() == [14, 15, 20, 21, 22, 10, 11, 12, 13]
    assert (
        pairs.cu_seqlens.tolist() == [0, 2, 5, 9]
        and pairs.max_seqlen == 4
        and pairs.position_ids.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]
    )
    assert single.input_ids.tolist() == [35, 36, 30, 31, 32, 33, 34] and single.cu_seqlens.tolist() == [
        0,
        2,
        7,
    ]
    assert batch.input_ids.tolist() == pairs.input_ids.tolist() + single.input_ids.tolist()
    assert batch.cu_seqlens.tolist() == [0, 2, 5, 9, 11, 16] and batch.num_tokens == 16
    # Rows of targets count the sequences of all copies end to end:
    # nli's, then cola's, by their places in the micro-batch.
    assert batch.targets["class"].rows.tolist() == [2, 0, 4, 3] and batch.targets["score"].rows.tolist() == [
        1
    ]


def test_a_copy_without_sequences_reads_a_filler_that_is_not_counted() -> None:
    batch = batch_of([(2, 1)], SOFT)
    assert [part.input_ids.tolist() for part in batch.parts] == [[2, 3], [35, 36]]
    assert [part.num_tokens for part in batch.parts] == [0, 2] and batch.num_tokens == 2
    assert batch.sequence_examples.tolist() == [-1, 0] and batch.targets["class"].rows.tolist() == [1]
    nothing = batch_of([], SOFT)
    assert [part.input_ids.tolist() for part in nothing.parts] == [[2, 3], [2, 3]] and nothing.num_tokens == 0


def test_low_rank_batches_say_the_group_of_each_sequence() -> None:
    batch = batch_of(DRAWN, LOW_RANK)
    assert batch.input_ids.tolist()[:4] == [35, 36, 14, 15] and batch.parts == ()
    assert batch.sequence_groups is not None and batch.sequence_groups.tolist() == [1, 0, 0, 0, 1]


def test_fillers_are_counted_for_each_copy() -> None:
    num_fillers = partial(num_filler_tokens, filler_size=1, pad_tokens_to=1)
    lengths, tasks = np.array([9, 9, 9, 9]), np.array([0, 0, 0, 2])
    packing = pack(lengths, tasks, world_size=2, max_tokens=18, hidden_size=8)
    assert (
        packing.num_micro_batches == 1
    )  # two ranks with two sequences; one rank has no sequence of cola's copy
    assert num_fillers(packing, lengths, tasks, SOFT) == 1
    assert num_fillers(packing, lengths, tasks, LOW_RANK) == 0
    assert num_fillers(packing, lengths, tasks, share(TASKS)) == 0
    one = pack(lengths[:1], tasks[:1], world_size=2, max_tokens=18, hidden_size=8)
    assert num_fillers(one, lengths[:1], tasks[:1], SOFT) == 3
    assert num_fillers(one, lengths[:1], tasks[:1], share(TASKS)) == 1

    # 9, 27 and no tokens, of which the last has a filler of 1, are each filled up to a multiple of 16.
    filled = partial(num_filler_tokens, filler_size=1, pad_tokens_to=16)
    assert filled(packing, lengths, tasks, SOFT) == (32 - 18) + (16 - 9) + (16 - 9) + 16
    assert filled(packing, lengths, tasks, share(TASKS)) == 2 * (32 - 18)


def test_fillers_make_tokens_a_multiple_and_are_no_longer_than_the_longest_sequence() -> None:
    settings = {"longest": 5, "filler_size": 2}
    assert filler_lengths(0, pad_tokens_to=1, **settings) == [2]
    assert filler_lengths(0, pad_tokens_to=16, **settings) == [2, 5, 5, 4]
    assert filler_lengths(16, pad_tokens_to=16, **settings) == []
    assert filler_lengths(12, pad_tokens_to=16, **settings) == [4]
    assert filler_lengths(27, pad_tokens_to=16, **settings) == [5]


# Weights against plain Hugging Face models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    for seed, name in enumerate(CONFIGS):
        torch.manual_seed(seed)
        model = AutoModel.from_config(CONFIGS[name])
        for parameter in model.parameters():  # away from the small initial values, so that attention matters
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


def built(folder: Path, sharing: Sharing, *, moved: bool = True, **settings: Any) -> MultiTaskNet:
    """The model without dropout; with `moved`, its groups' weights away from each other as if trained."""
    model = build_model(
        encoder_path=str(folder), specs=SPECS, layout=LAYOUT, sharing=sharing, dropout="none", **settings
    )
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if moved and (".copies." in name or ".delta." in name):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def plain_model(folder: Path, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Hugging Face's model with the weights of a plain state;
    its pooler, where it has one of its own, is the state's.
    """
    theirs = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    own = {
        name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")
    }
    missing, unexpected = theirs.load_state_dict(own, strict=False)
    assert not unexpected and all(name.startswith("pooler.") for name in missing)
    return theirs


def hidden_states(model: PreTrainedModel, batch: PackedBatch) -> list[torch.Tensor]:
    """Hidden states of each sequence alone, unpacked."""
    return [
        model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None])[0][0]
        for ids in batch.input_ids.split(lengths_of(batch))
    ]


def lengths_of(batch: PackedBatch) -> list[int]:
    return batch.cu_seqlens.diff().tolist()


def tasks_of(batch: PackedBatch) -> list[str]:
    return [TASKS[task] for task in batch.example_tasks[batch.sequence_examples]]


@pytest.mark.parametrize("mode", ["soft", "low_rank"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_tasks_encoder_equals_the_plain_model_with_its_merged_weights(
    folders: dict[str, Path], name: str, mode: str
) -> None:
    sharing = SOFT if mode == "soft" else LOW_RANK
    if mode == "low_rank" and name in ("deberta", "modernbert"):
        with pytest.raises(
            ConfigError,
            match=(
                r"sharing.mode=low_rank: the encoder does not run on packed tokens \(.*\); use soft or hard"
            ),
        ):
            built(folders[name], sharing)
        return
    model, batch = built(folders[name], sharing).eval(), batch_of(DRAWN, sharing)
    ours = model.encoder(batch).split(lengths_of(batch))
    for task in TASKS:
        state = merged_encoder_state(model.state_dict(), sharing, [task])
        theirs = hidden_states(plain_model(folders[name], state), batch)
        others = hidden_states(AutoModel.from_pretrained(folders[name], dtype=torch.float32).eval(), batch)
        for mine, expected, unchanged, owner in zip(ours, theirs, others, tasks_of(batch), strict=True):
            if owner == task:
                torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
                assert (mine - unchanged).abs().max() > 1e-2


def test_sequence_heads_read_each_copys_own_pooler(folders: dict[str, Path]) -> None:
    model, batch = built(folders["bert"], SOFT).eval(), batch_of(DRAWN, SOFT)
    hidden = model.encoder(batch)
    ours = model.encoder.pooled(hidden, batch, torch.tensor([4, 1]))  # the longest of cola, and sts's
    for row, (sequence, task) in zip(ours, ((4, "cola"), (1, "sts")), strict=True):
        state = merged_encoder_state(model.state_dict(), SOFT, [task])
        theirs = AutoModel.from_pretrained(folders["bert"], dtype=torch.float32).eval()
        theirs.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
        ids = batch.input_ids.split(lengths_of(batch))[sequence]
        torch.testing.assert_close(row, theirs(input_ids=ids[None]).pooler_output[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sharing", [SOFT, LOW_RANK], ids=["soft", "low_rank"])
def test_shared_encoders_begin_as_the_hard_shared_one(folders: dict[str, Path], sharing: Sharing) -> None:
    hard, ours = built(folders["bert"], share(TASKS)), built(folders["bert"], sharing, moved=False)
    outputs, theirs = ours(batch_of(DRAWN, sharing)), hard(batch_of(DRAWN, share(TASKS)))
    assert outputs.keys() == theirs.keys() == {"class", "score"}
    for form in outputs:
        torch.testing.assert_close(outputs[form], theirs[form], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sharing", [share(TASKS), SOFT, LOW_RANK], ids=["hard", "soft", "low_rank"])
def test_the_number_of_parameters_is_known_from_the_config(
    folders: dict[str, Path], sharing: Sharing
) -> None:
    with torch.device("meta"):
        sizes = AutoModel.from_config(CONFIGS["bert"])
    built_encoder = built(folders["bert"], sharing).encoder
    assert num_parameters(sizes, sharing) == sum(
        parameter.numel() for parameter in built_encoder.parameters()
    )


@pytest.mark.parametrize("drawn", [DRAWN, [(2, 1)], []], ids=["all tasks", "one task", "no example"])
@pytest.mark.parametrize("sharing", [SOFT, LOW_RANK], ids=["soft", "low_rank"])
def test_every_parameter_has_a_gradient_in_every_micro_batch(
    folders: dict[str, Path], sharing: Sharing, drawn: list[tuple[int, int]]
) -> None:
    model = built(folders["bert"], sharing)
    sum(outputs.sum() for outputs in model(batch_of(drawn, sharing)).values()).backward()
    assert [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ] == []
    if drawn == [(2, 1)]:  # nothing of the other group moves
        still = ".copies.0." if sharing.mode == "soft" else ".delta."
        others = [parameter.grad for name, parameter in model.named_parameters() if still in name]
        rows = slice(None) if sharing.mode == "soft" else slice(0, sharing.rank)
        assert others and all(gradient is not None and (gradient[rows] == 0).all() for gradient in others)


def test_recomputed_layers_use_the_groups_of_their_own_micro_batch(folders: dict[str, Path]) -> None:
    """Two forwards before either's backward, as regularisers have them;
    without recomputation for comparison.
    """
    gradients = []
    for checkpointing in (False, True):
        model = built(folders["bert"], LOW_RANK, gradient_checkpointing=checkpointing)
        first, second = model(batch_of(DRAWN, LOW_RANK)), model(batch_of([(2, 0), (0, 0)], LOW_RANK))
        (first["class"].square().sum() + second["class"].sum()).backward()
        gradients.append(
            {
                name: parameter.grad
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_copies_add_noise_to_their_own_tokens(folders: dict[str, Path]) -> None:
    model, batch = built(folders["bert"], SOFT).eval(), batch_of(DRAWN, SOFT)
    noise = torch.zeros(16, 32)
    noise[9:] = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))  # cola's copy
    difference = (model.encoder(batch, noise) - model.encoder(batch)).abs().amax(dim=1)
    assert difference[:9].max() == 0 and difference[9:].min() > 1e-3


def test_poolers_of_copies_have_the_heads_learning_rate(folders: dict[str, Path]) -> None:
    model = built(folders["bert"], SOFT)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    fast = [
        names[id(parameter)]
        for group in parameter_groups(model, 0.01, 10.0)
        if group["lr_factor"] == 10
        for parameter in group["params"]
    ]
    assert sorted(fast) == sorted(
        [
            *(f"encoder.copies.{copy}.pooler.dense.{part}" for copy in (0, 1) for part in ("weight", "bias")),
            "heads.sequence.weight",
            "heads.sequence.bias",
        ]
    )


def test_freezing_the_encoder_leaves_low_rank_changes_and_heads(folders: dict[str, Path]) -> None:
    model = built(folders["bert"], LOW_RANK)
    freeze(model, ["encoder", "pooler"])
    trained = {
        name.rsplit(".", 1)[1] if ".delta." in name else name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert trained == {"a", "b", "heads.sequence.weight", "heads.sequence.bias"}


def test_a_layer_is_frozen_in_every_copy(folders: dict[str, Path]) -> None:
    model = built(folders["bert"], SOFT)
    freeze(model, ["encoder.layer.0"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.split(".layer.0.")[0] for name in frozen} == {
        "encoder.copies.0.model.encoder",
        "encoder.copies.1.model.encoder",
    }


# Carrying weights from one way of sharing to another


def test_a_run_begins_with_what_its_tasks_ran_through_or_with_what_all_shared(
    folders: dict[str, Path],
) -> None:
    hard, soft, low = (
        built(folders["bert"], sharing).state_dict() for sharing in (share(TASKS), SOFT, LOW_RANK)
    )
    key = "model.encoder.layer.1.output.dense.weight"
    changed = (
        low[f"encoder.{key}"]
        + low["encoder.model.encoder.layer.1.output.dense.delta.b"][3:].T
        @ low["encoder.model.encoder.layer.1.output.dense.delta.a"][3:]
    )

    def carried(
        theirs: Any,
        their_sharing: Sharing,
        ours: Any,
        our_sharing: Sharing,
        tasks: Sequence[str],
        copy: str = "",
    ) -> torch.Tensor:
        result = carried_encoder(theirs, their_sharing, ours, our_sharing, tasks)
        assert result.keys() == {name for name in ours if name.startswith("encoder.")}
        return result[f"encoder.{copy}{key}"]

    torch.testing.assert_close(
        carried(hard, share(TASKS), soft, SOFT, TASKS, "copies.1."), hard[f"encoder.{key}"]
    )
    torch.testing.assert_close(
        carried(soft, SOFT, hard, share(["cola"]), ["cola"]), soft[f"encoder.copies.1.{key}"]
    )
    mean = (soft[f"encoder.copies.0.{key}"] + soft[f"encoder.copies.1.{key}"]) / 2
    torch.testing.assert_close(carried(soft, SOFT, hard, share(TASKS), TASKS), mean)
    torch.testing.assert_close(carried(soft, SOFT, hard, share(["new"]), ["new"]), mean)
    torch.testing.assert_close(carried(low, LOW_RANK, hard, share(["cola"]), ["cola"]), changed)
    torch.testing.assert_close(carried(low, LOW_RANK, hard, share(TASKS), TASKS), low[f"encoder.{key}"])
    torch.testing.assert_close(carried(low, LOW_RANK, soft, SOFT, TASKS, "copies.1."), changed)
    swapped = share(["cola", "nli"], mode="low_rank", groups={"one": ["cola"], "two": ["nli"]}, rank=3)
    theirs, ours = (
        low["encoder.model.encoder.layer.0.output.dense.delta.a"],
        built(folders["bert"], LOW_RANK, moved=False).state_dict(),
    )
    result = carried_encoder(low, LOW_RANK, ours, swapped, ["cola", "nli"])
    torch.testing.assert_close(
        result["encoder.model.encoder.layer.0.output.dense.delta.a"], torch.cat([theirs[3:], theirs[:3]])
    )


# The penalty's limits, with plain gradient descent


def plain_engine(module: Any, parameters: Iterable[torch.nn.Parameter]) -> SimpleNamespace:
    """What the penalty asks of an engine, without ZeRO."""
    optimizer = SimpleNamespace(param_groups=[{"params": list(parameters)}])
    return SimpleNamespace(
        module=module, device=torch.device("cpu"), zero_optimization_stage=lambda: 0, optimizer=optimizer
    )


def descend(model: MultiTaskNet, batch: PackedBatch, lr: float, penalty: float, steps: int) -> None:
    """Gradient descent on a sum of squares, with the penalty as a run applies it."""
    engine = plain_engine(model, model.parameters())
    tie = SharingPenalty(engine, penalty)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    targets = torch.linspace(-1, 1, 6)
    for _ in range(steps):
        outputs = model(batch)
        rows = torch.cat([outputs["class"], outputs["score"]])
        gradients = torch.autograd.grad(((rows - targets) ** 2).mean(), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= lr * gradient
        tie.apply_proximal_step(lr)


def distance(
    model: MultiTaskNet, other: MultiTaskNet, copies: Callable[[MultiTaskNet], list[PackedEncoder]]
) -> float:
    """Largest difference of a weight of any of our encoders from the other model's only one."""
    assert isinstance(other.encoder, PackedEncoder)
    theirs = dict(other.encoder.named_parameters())
    return max(
        float((parameter - theirs[name]).detach().abs().max())
        for own in copies(model)
        for name, parameter in own.named_parameters()
        if name in theirs
    )


def copies_of(model: MultiTaskNet) -> list[PackedEncoder]:
    assert isinstance(model.encoder, CopiedEncoder)
    return model.encoder.encoders


def test_soft_sharing_converges_to_hard_sharing_as_the_penalty_grows(folders: dict[str, Path]) -> None:
    """Tied weights share one gradient among their two copies,
    so that hard sharing has half the learning rate, of the encoder alone.
    """
    lr, steps = 0.02, 25
    hard = built(folders["bert"], share(TASKS))
    for parameter in hard.encoder.parameters():
        parameter.register_hook(lambda gradient: gradient / 2)
    descend(hard, batch_of(DRAWN, share(TASKS)), lr, 0.0, steps)
    distances = []
    for penalty in (0.0, 1e2, 1e4, 1e8):
        soft = built(folders["bert"], SOFT, moved=False)
        descend(soft, batch_of(DRAWN, SOFT), lr, penalty, steps)
        distances.append(distance(soft, hard, copies_of))
    assert distances[0] > 1e-3 and distances[-1] < 2e-6
    assert all(smaller < larger / 10 or smaller < 2e-6 for larger, smaller in itertools.pairwise(distances))


def test_low_rank_sharing_converges_to_hard_sharing_as_the_penalty_grows(folders: dict[str, Path]) -> None:
    lr, steps = 0.02, 25
    hard = built(folders["bert"], share(TASKS))
    descend(hard, batch_of(DRAWN, share(TASKS)), lr, 0.0, steps)
    distances = []
    for penalty in (0.0, 1e8):
        low = built(folders["bert"], LOW_RANK, moved=False)
        descend(low, batch_of(DRAWN, LOW_RANK), lr, penalty, steps)
        distances.append(distance(low, hard, lambda model: [model.encoder]))  # type: ignore[list-item]
        largest = max(
            float(parameter.detach().abs().max())
            for name, parameter in low.named_parameters()
            if name.endswith(".delta.b")
        )
        assert largest < 1e-7 if penalty else largest > 1e-3
    assert distances[0] > 1e-5 and distances[1] < 1e-6


def test_the_penalty_is_half_the_squared_distance_from_the_copies_mean() -> None:
    copies = [torch.nn.Linear(2, 1, bias=False) for _ in range(3)]
    for copy, values in zip(copies, ([1.0, 0.0], [2.0, 0.0], [6.0, 3.0]), strict=True):
        copy.weight.data = torch.tensor([values])
    encoder = CopiedEncoder.__new__(CopiedEncoder)
    torch.nn.Module.__init__(encoder)
    encoder.copies = torch.nn.ModuleList(copies)
    engine = plain_engine(SimpleNamespace(encoder=encoder), encoder.parameters())
    tie = SharingPenalty(engine, 2.0)
    # The mean is (3, 1); squared distances 4 + 1, 1 + 1 and 9 + 4.
    assert tie.apply_proximal_step(lr=0.0) == pytest.approx(2.0 / 2 * 20)
    # 1 / (1 + 0.5 * 2) halves the distances.
    assert tie.apply_proximal_step(lr=0.5) == pytest.approx(2.0 / 2 * 5)
    assert [copy.weight.tolist() for copy in copies] == [[[2.0, 0.5]], [[2.5, 0.5]], [[4.5, 2.0]]]


# Settings


def load(folder: Path, tasks: Sequence[str], sharing: dict[str, Any], overrides: dict[str, str]) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {"encoder": {"path": "x"}, "tasks": list(tasks), "sharing": sharing, "train": {"steps": 10}}
        )
    )
    return load_recipe(str(path), overrides)


@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        (
            {"penalty": 1.0},
            (
                "sharing.penalty=1.0: has no effect with sharing.mode=hard; "
                "remove it, or set sharing.mode to soft or low_rank"
            ),
        ),
        (
            {"mode": "soft", "rank": 4},
            (
                "sharing.rank=4: has no effect with sharing.mode=soft; "
                "remove it, or set sharing.mode to low_rank"
            ),
        ),
        (
            {"mode": "soft", "groups": {"a": ["cola", "rte"]}},
            "sharing.mode=soft: with one group there is nothing to share",
        ),
        (
            {"mode": "soft", "groups": {"a": ["cola"], "b": ["rtee"]}},
            "sharing.groups.b: there is no task 'rtee' in the run; did you mean 'rte'?",
        ),
        (
            {"mode": "soft", "groups": {"a": ["cola"], "b": ["rtee"]}},
            "sharing.groups: task 'rte' is in none of them; put it into exactly one",
        ),
        (
            {"mode": "low_rank", "groups": {"a": ["cola", "rte"], "b": ["rte"]}},
            "sharing.groups: task 'rte' is in a and b; put it into exactly one",
        ),
        ({"mode": "sort"}, "sharing.mode"),
    ],
)
def test_contradictory_sharing_is_refused(tmp_path: Path, sharing: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, ["cola", "rte"], sharing, {})
    assert message in str(refused.value)


def test_a_flag_for_hard_sharing_drops_what_only_other_modes_have(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, ["cola", "rte"], {"mode": "low_rank", "rank": 4, "penalty": 1.0}, {"sharing.mode": "hard"}
    )
    assert recipe.sharing.model_fields_set == {"mode"}


def test_copies_of_a_frozen_encoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"sharing.mode=soft: copies of a frozen encoder stay equal; set sharing.mode to hard or low_rank"
        ),
    ):
        load(tmp_path, ["cola", "rte"], {"mode": "soft"}, {"train.freeze": "encoder"})


def test_a_rank_above_the_layers_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(
        ConfigError, match=r"sharing.rank=33: a linear layer of the encoder has rank 32 at most; set it lower"
    ):
        built(folders["bert"], replace(LOW_RANK, rank=33))


def test_notes_say_mode_groups_and_size(folders: dict[str, Path]) -> None:
    assert (
        built(folders["bert"], SOFT).notes[-1]
        == "soft sharing: 2 copies of the encoder, for pairs, single, each of 0.0 M parameters"
    )
    assert (
        built(folders["bert"], LOW_RANK).notes[-1]
        == "low-rank sharing: changes of rank 3 for pairs, single on 12 linear layers, 0.0 M parameters"
    )
