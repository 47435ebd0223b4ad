"""Regularisers against hand-written references: divergences, noise, SMART, FreeLB, R-Drop; no engine, one
process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.encoder_families import CONFIGS
from helpers.regularized_loop import Perturbation, ReferenceModel, TokenExample, example_objective
from helpers.tiny_encoders import write_tiny_encoder
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

from mtdnn_ds.batch import PackedBatch, Targets
from mtdnn_ds.batch.groups import attention_groups
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import RegularizerSettings
from mtdnn_ds.losses.divergence import DIVERGENCES, divergence_sums
from mtdnn_ds.losses.forms import build_losses
from mtdnn_ds.losses.objective import micro_batch_loss
from mtdnn_ds.losses.sums import term_table
from mtdnn_ds.model.encoder import load_encoder
from mtdnn_ds.model.multitask import MultiTaskNet, build_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.regularized import COMPARABLE_FORMS, regularized_tasks
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.regularizers.noise import Ball, ascend, draw_noise
from mtdnn_ds.train.regularizers.regularizer import PLAIN, Regularizer, build_regularizer, mean_losses


def spec(name: str, kind: str, num_labels: int = 0, **changes: Any) -> TaskSpec:
    labels = tuple(str(number) for number in range(num_labels))
    return TaskSpec(name=name, kind=kind, labels=labels, metrics=(), splits={}, **changes)


SPECS = (spec("nli", "classification", 3), spec("sts", "regression"), spec("cola", "classification", 2))
LAYOUT = head_layout(SPECS)
LENGTHS, TASKS, LABELS = [4, 6, 7, 9], [1, 0, 2, 1], [3.5, 2.0, 1.0, 0.5]


def targets(
    term_ids: Sequence[int],
    labels: Sequence[float],
    groups: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> Targets:
    of_row = torch.tensor(range(len(term_ids)) if groups is None else groups, dtype=torch.int64)
    return Targets(
        rows=torch.tensor(range(len(term_ids)) if rows is None else rows, dtype=torch.int64),
        term_ids=torch.tensor(term_ids, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.float32),
        groups=of_row,
        examples=np.arange(len(set(of_row.tolist()))),
    )


def batch_of(members: Sequence[int], filler: bool = False) -> PackedBatch:
    """Some of four sequences, one example each: number m has LENGTHS[m] tokens, task TASKS[m] and label
    LABELS[m].
    """
    lengths = [3] * filler + [LENGTHS[member] for member in members]
    groups, packed_to_padded = attention_groups(np.array(lengths))
    ids = [torch.arange(9)] * filler + [
        torch.randint(5, 90, (9,), generator=torch.Generator().manual_seed(member)) for member in members
    ]
    by_form = {"class": [m for m in members if TASKS[m] != 1], "score": [m for m in members if TASKS[m] == 1]}
    return PackedBatch(
        input_ids=torch.cat([own[:length] for own, length in zip(ids, lengths, strict=True)]),
        token_type_ids=torch.cat([(torch.arange(length) > 2).long() for length in lengths]),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        max_seqlen=max(lengths),
        attention_groups=groups,
        packed_to_padded=packed_to_padded,
        targets={
            form: targets(
                [TASKS[m] for m in own],
                [LABELS[m] for m in own],
                rows=[list(members).index(m) + filler for m in own],
            )
            for form, own in by_form.items()
        },
        unit_counts=np.zeros(3),
        example_tasks=np.array([TASKS[m] for m in members], dtype=np.int64),
        example_rows=np.array(members, dtype=np.int64),
        sequence_examples=np.array([*[-1] * filler, *range(len(members))]),
        num_tokens=sum(lengths),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    return write_tiny_encoder(
        tmp_path_factory.mktemp("regularized"), minilm, vocab_size=100, initializer_range=0.2
    )


def model_of(folder: Path, dropout: str = "none") -> MultiTaskNet:
    return build_model(encoder_path=str(folder), specs=SPECS, layout=LAYOUT, dropout=dropout, seed=3)  # type: ignore[arg-type]


def regularizer_of(model: MultiTaskNet, **settings: Any) -> Regularizer:
    regularizer, _ = build_regularizer(
        RegularizerSettings(**settings),
        model,
        specs=SPECS,
        layout=LAYOUT,
        seed=11,
        compute_dtype=torch.float32,
        device=torch.device("cpu"),
    )
    assert regularizer is not None
    return regularizer


def run_passes(
    model: MultiTaskNet, regularizer: Regularizer | None, batch: PackedBatch, step: int = 1
) -> tuple[float, float]:
    """What the engine does with a micro-batch: (sum of losses, sum of what is added), and gradients of both
    together.
    """
    losses = build_losses(LAYOUT, SPECS, "cpu")
    total, added = 0.0, 0.0
    model.zero_grad()
    for one in [PLAIN] if regularizer is None else regularizer.passes(batch, batch, step):
        outputs, added_M = model(batch, within=one.within)
        sums = losses.sums(mean_losses(losses, outputs, batch.targets))
        own = micro_batch_loss(sums, torch.ones(3)) * one.share
        extra = torch.zeros(()) if added_M is None else added_M.sum()
        (own + extra).backward()
        total, added = total + own.item(), added + extra.item()
    return total, added


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


# Divergences


def symmetric_kl(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    return float(
        functional.kl_div(ours, theirs.exp(), reduction="sum")
        + functional.kl_div(theirs, ours.exp(), reduction="sum")
    )


def both(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(shape[0])
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


def sums_of(
    specs: Sequence[TaskSpec], form: str, of_form: Targets, ours: Tensor, theirs: Tensor
) -> list[float]:
    layout = head_layout(specs)
    return divergence_sums(
        {form: ours}, {form: theirs}, {form: of_form}, term_table(layout, "cpu"), (form,)
    ).tolist()


def test_divergence_of_a_distribution_checked_by_hand() -> None:
    """P = (3/4, 1/4) and Q = (1/4, 3/4): (1/2) log 3 + (-1/2) log(1/3) = log 3."""
    ours, theirs = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert sums_of(
        [spec("a", "classification", 2)], "class", targets([0], [0]), ours, theirs
    ) == pytest.approx([1.0986123])


@pytest.mark.parametrize(
    ("kind", "form", "changes"),
    [
        ("classification", "class", {}),
        ("token_classification", "tag", {}),
        ("classification", "san", {"head": "san"}),
    ],
)
def test_divergence_of_classes_equals_torch_over_each_terms_own_columns(
    kind: str, form: str, changes: dict[str, str]
) -> None:
    specs = [spec("a", kind, 3, **changes), spec("b", kind, 2, **changes)]
    ours, theirs = both(3, 5)
    expected = [
        symmetric_kl(ours[0, :3], theirs[0, :3]) + symmetric_kl(ours[2, :3], theirs[2, :3]),
        symmetric_kl(ours[1, 3:], theirs[1, 3:]),
    ]
    assert sums_of(specs, form, targets([0, 1, 0], [0, 0, 0]), ours, theirs) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "form", "changes"),
    [("multiple_choice", "choice", {}), ("ranking", "pairwise", {"objective": "pairwise"})],
)
def test_divergence_of_candidates_equals_torch_over_each_examples_rows(
    kind: str, form: str, changes: dict[str, str]
) -> None:
    ours, theirs = both(5, 1)
    expected = symmetric_kl(ours[:2, 0], theirs[:2, 0]) + symmetric_kl(ours[2:, 0], theirs[2:, 0])
    of_form = targets([0] * 5, [0] * 5, groups=[0, 0, 1, 1, 1])
    assert sums_of([spec("a", kind, 2, **changes)], form, of_form, ours, theirs) == pytest.approx(
        [expected], rel=1e-5
    )


def test_divergence_of_spans_is_the_mean_of_start_and_end() -> None:
    ours, theirs = both(5, 2)
    expected = sum(
        symmetric_kl(ours[rows, side], theirs[rows, side]) / 2
        for rows in (slice(0, 3), slice(3, 5))
        for side in (0, 1)
    )
    assert sums_of(
        [spec("a", "span")], "span", targets([0] * 5, [0] * 5, groups=[0, 0, 0, 1, 1]), ours, theirs
    ) == pytest.approx([expected], rel=1e-5)


def test_divergences_of_numbers_are_squared_differences() -> None:
    ours, theirs = torch.tensor([[1.5], [2.0]]), torch.tensor([[1.0], [4.0]])
    assert sums_of([spec("a", "regression")], "score", targets([0, 0], [0, 0]), ours, theirs) == [4.25]
    pairs = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # cosines 1 and 0
    for form, changes in (("cosine", {}), ("contrastive", {"objective": "contrastive"})):
        assert sums_of(
            [spec("a", "similarity", **changes)], form, targets([0, 0], [1, 1], groups=[0, 0]), *pairs
        ) == pytest.approx([1.0])


@pytest.mark.parametrize("form", COMPARABLE_FORMS)
def test_no_rows_diverge_by_a_zero_that_is_still_connected(form: str) -> None:
    specs = [spec("a", "classification", 3)]
    outputs = torch.zeros((0, 3), requires_grad=True)
    value = DIVERGENCES[form](
        outputs, outputs.detach(), targets([], []), term_table(head_layout(specs), "cpu")
    )
    value.sum().backward()
    assert value.tolist() == [] and outputs.grad is not None


def test_every_form_has_a_rule_or_is_known_to_have_none() -> None:
    assert tuple(DIVERGENCES) == COMPARABLE_FORMS


# Noise

VALUES = torch.tensor(
    [[3.0, 4.0], [0.0, 0.0], [0.6, -0.8]]
)  # a sequence of two tokens and one of a single token
UNIT = torch.tensor([2, 1])


@pytest.mark.parametrize(
    ("norm", "per", "expected"),
    [
        ("inf", "token", [[0.75, 1.0], [0.0, 0.0], [0.75, -1.0]]),
        ("inf", "sequence", [[0.75, 1.0], [0.0, 0.0], [0.75, -1.0]]),
        ("l2", "token", [[0.6, 0.8], [0.0, 0.0], [0.6, -0.8]]),
        ("l2", "sequence", [[0.6, 0.8], [0.0, 0.0], [0.6, -0.8]]),
    ],
)
def test_a_step_of_ascent_has_the_norm_asked_for(norm: Any, per: Any, expected: list[list[float]]) -> None:
    ball = Ball(norm=norm, per=per, radius=10.0, step_size=1.0)
    torch.testing.assert_close(ascend(torch.zeros(3, 2), VALUES, UNIT, ball), torch.tensor(expected))


def test_a_sequences_norm_is_that_of_all_its_tokens() -> None:
    gradient = torch.tensor([[2.0, 0.0], [0.0, 4.0], [1.0, 0.0]])
    assert ascend(
        torch.zeros(3, 2), gradient, UNIT, Ball(norm="inf", per="sequence", radius=10, step_size=1)
    ).tolist() == [
        [0.5, 0],
        [0, 1],
        [1, 0],
    ]
    moved = ascend(
        torch.zeros(3, 2), gradient, UNIT, Ball(norm="l2", per="sequence", radius=10, step_size=20**0.5)
    )
    torch.testing.assert_close(moved, torch.tensor([[2.0, 0.0], [0.0, 4.0], [20**0.5, 0.0]]))
    back = ascend(
        torch.zeros(3, 2), gradient, UNIT, Ball(norm="l2", per="sequence", radius=1.0, step_size=20**0.5)
    )
    torch.testing.assert_close(
        back[:2], torch.tensor([[2.0, 0.0], [0.0, 4.0]]) / 20**0.5
    )  # their length was the root of 20


def test_noise_is_brought_back_to_the_nearest_point_of_the_ball() -> None:
    noise = torch.tensor([[0.9, 0.1], [3.0, 4.0], [0.0, 0.0]])
    still = torch.zeros(3, 2)
    assert ascend(noise, still, UNIT, Ball(norm="inf", per="token", radius=1, step_size=1)).tolist() == [
        [pytest.approx(0.9), pytest.approx(0.1)],
        [1, 1],
        [0, 0],
    ]
    torch.testing.assert_close(
        ascend(noise, still, UNIT, Ball(norm="l2", per="token", radius=1, step_size=1)),
        torch.tensor([[0.9, 0.1], [0.6, 0.8], [0.0, 0.0]]),
    )


@pytest.mark.parametrize("per", ["token", "sequence"])
@pytest.mark.parametrize("norm", ["inf", "l2"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_moves_nothing(norm: Any, per: Any, bad: float) -> None:
    gradient = torch.tensor([[bad, 1.0], [1.0, bad], [0.0, 0.0]])
    moved = ascend(torch.full((3, 2), 0.25), gradient, UNIT, Ball(norm=norm, per=per, radius=1, step_size=1))
    assert moved.tolist() == [[0.25, 0.25]] * 3


def drawn(
    batch: PackedBatch,
    step: int = 1,
    is_noisy: Sequence[bool] = (True, True, True),
    std: float | None = 0.5,
    **ball: Any,
) -> Tensor:
    where = Ball(**{**dict(norm="l2", per="sequence", radius=0.4, step_size=1.0), **ball})
    return draw_noise(
        batch, batch, width=32, is_noisy_N=np.array(is_noisy), std=std, ball=where, seed=1, step=step
    )


def test_noise_on_cpus_is_what_a_generator_seeded_for_the_sequence_draws() -> None:
    """Runs that go on, and results that were kept, rely on it."""
    for member in range(4):
        place = [1, 0x6E6F6973, 5, TASKS[member], member, 0]
        seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]) >> 1
        generator = torch.Generator().manual_seed(seed)
        expected = torch.empty(LENGTHS[member], 32).normal_(0.0, 0.5, generator=generator)
        assert torch.equal(drawn(batch_of([member]), step=5), expected)


def test_an_examples_noise_does_not_depend_on_how_the_step_was_cut() -> None:
    whole = drawn(batch_of([0, 1, 2, 3])).split(LENGTHS)
    for members in ([0, 2], [1, 3]):
        for member, own in zip(
            members, drawn(batch_of(members)).split([LENGTHS[m] for m in members]), strict=True
        ):
            assert torch.equal(own, whole[member])
    assert not torch.equal(whole[0], drawn(batch_of([0]), step=2))
    assert not torch.equal(whole[0], whole[1][:4])


def test_sequences_of_one_example_have_noise_of_their_own() -> None:
    batch = dataclasses.replace(batch_of([0, 1]), sequence_examples=np.array([0, 0]))
    first, second = drawn(batch).split([4, 6])
    assert not torch.equal(first, second[:4])
    assert torch.equal(first, drawn(batch_of([0])))


def test_noise_has_the_spread_asked_for_and_only_where_asked_for() -> None:
    noise = drawn(batch_of([0, 1, 2, 3], filler=True), is_noisy=(True, False, True)).split([3, *LENGTHS])
    assert [bool(part.any()) for part in noise] == [False, False, True, True, False]
    assert float(torch.cat([noise[2], noise[3]]).std()) == pytest.approx(0.5, rel=0.1)
    uniform = drawn(batch_of([3]), std=None)  # radius / sqrt(9 * 32), whose norm is about radius / sqrt(3)
    assert float(uniform.abs().max()) == pytest.approx(0.4 / (9 * 32) ** 0.5, rel=0.02)
    assert float(uniform.norm()) == pytest.approx(0.4 / 3**0.5, rel=0.1)
    assert float(drawn(batch_of([3]), std=None, norm="inf").abs().max()) == pytest.approx(0.4, rel=0.02)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("backend", ["grouped", "padded"])
def test_noise_of_zero_changes_no_encoders_hidden_states(name: str, backend: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModel.from_config(CONFIGS[name]).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), attention=backend, dropout="none")
    batch = dataclasses.replace(batch_of([0, 1, 2, 3]), input_ids=batch_of([0, 1, 2, 3]).input_ids % 45 + 3)
    noise = torch.zeros(sum(LENGTHS), encoder.embedding_size)
    torch.testing.assert_close(encoder(batch, noise), encoder(batch), atol=1e-6, rtol=1e-6)
    noise[0, 0] = 1.0
    changed = (encoder(batch, noise) - encoder(batch)).abs().sum(1).split(LENGTHS)
    assert [bool(part.max() > 1e-3) for part in changed] == [True, False, False, False]


# SMART, FreeLB, R-Drop


def reference(
    model: MultiTaskNet, folder: Path, step: int, std: float | None, ball: Ball
) -> tuple[ReferenceModel, list[TokenExample]]:
    head = model.heads["sequence"]
    heads = {
        own.name: (head.weight[list(term.columns)].detach(), head.bias[list(term.columns)].detach())
        for own, term in zip(SPECS, LAYOUT.terms, strict=True)
    }  # type: ignore[index, union-attr, operator]
    examples = []
    for member, (task, label) in enumerate(zip(TASKS, LABELS, strict=True)):
        batch = batch_of([member])
        every_task = np.ones(3, dtype=bool)
        noise = draw_noise(
            batch, batch, width=32, is_noisy_N=every_task, std=std, ball=ball, seed=11, step=step
        )
        examples.append(
            TokenExample(
                SPECS[task].name, batch.input_ids.tolist(), batch.token_type_ids.tolist(), label, noise
            )
        )
    theirs = ReferenceModel(folder, heads, {"sts"})
    theirs.bert.pooler.load_state_dict(model.encoder.pooler.state_dict())
    return theirs, examples


SETTINGS = [
    dict(name=name, ascent_steps=steps, norm=norm, norm_per=per, radius=0.05, step_size=0.03)
    for name, steps in (("smart", 1), ("smart", 3), ("freelb", 1), ("freelb", 3))
    for norm, per in (("inf", "token"), ("l2", "token"), ("l2", "sequence"), ("inf", "sequence"))
]


@pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda s: f"{s['name']}{s['ascent_steps']}-{s['norm']}-{s['norm_per']}"
)
def test_losses_and_gradients_equal_a_hand_written_loop(folder: Path, settings: dict[str, Any]) -> None:
    smart = dict(factor=2.5, noise_std=0.02) if settings["name"] == "smart" else {}
    model = model_of(folder)
    regularizer = regularizer_of(model, **settings, **smart)
    assert regularizer.ball is not None
    ours = run_passes(model, regularizer, batch_of([0, 1, 2, 3]), step=4)
    theirs, examples = reference(model, folder, 4, regularizer.noise_std, regularizer.ball)
    how = Perturbation(
        settings["name"],
        settings["ascent_steps"],
        settings["step_size"],
        settings["radius"],
        settings["norm"],
        settings["norm_per"],
        factor=2.5,
    )
    parts = [example_objective(theirs, theirs, example, how) for example in examples]
    torch.stack([loss + added for loss, added in parts]).sum().backward()
    assert ours[0] == pytest.approx(sum(loss.item() for loss, _ in parts), rel=1e-5)
    assert ours[1] == pytest.approx(sum(added.item() for _, added in parts), rel=1e-3, abs=1e-9)
    assert settings["name"] == "freelb" or ours[1] > 1e-6
    own = gradients(model)
    for name, gradient in gradients(theirs.bert).items():
        mine = own[f"encoder.{name}" if name.startswith("pooler") else f"encoder.model.{name}"]
        torch.testing.assert_close(mine.double(), gradient, atol=2e-5, rtol=1e-3)
    stacked = torch.cat([theirs.weights[own.name].grad for own in SPECS])  # type: ignore[misc]
    torch.testing.assert_close(own["heads.sequence.weight"].double(), stacked, atol=2e-5, rtol=1e-3)


def test_perturbed_predictions_differ_more_than_randomly_perturbed_ones(folder: Path) -> None:
    """The ascent really goes up: without a step of it the divergence is smaller."""
    model, batch = model_of(folder), batch_of([0, 1, 2, 3])
    after = {
        step_size: run_passes(
            model,
            regularizer_of(model, name="smart", noise_std=0.01, radius=0.02, step_size=step_size),
            batch,
        )[1]
        for step_size in (1e-9, 0.02)
    }
    assert after[0.02] > 2 * after[1e-9]


def test_r_drop_is_the_mean_of_both_losses_and_half_the_divergence(folder: Path) -> None:
    model, batch = model_of(folder, dropout="model"), batch_of([0, 1, 2, 3])
    torch.manual_seed(5)
    ours = run_passes(model, regularizer_of(model, name="r_drop", factor=3.0), batch)
    torch.manual_seed(5)
    with torch.no_grad():
        first, second = model(batch), model(batch)
    rows = [
        ("class", 0, [0, 1, 2], 2),
        ("score", 0, [3], None),
        ("class", 1, [4, 5], 1),
        ("score", 1, [3], None),
    ]
    loss, divergence = 0.0, 0.0
    labels = iter([2.0, 3.5, 1.0, 0.5])
    for form, row, columns, label in rows:
        score, pair = next(labels), [outputs[form][row, columns] for outputs in (first, second)]
        if label is None:
            loss += sum(float((each[0] - score) ** 2) for each in pair) / 2
            divergence += float((pair[0] - pair[1]) ** 2)
        else:
            loss += sum(float(functional.cross_entropy(each, torch.tensor(label))) for each in pair) / 2
            divergence += symmetric_kl(*pair)
    assert ours == (pytest.approx(loss, rel=1e-5), pytest.approx(3.0 / 2 * divergence, rel=1e-4))
    assert divergence > 1e-4


def test_freelb_keeps_the_same_dropout_in_all_passes(folder: Path) -> None:
    """With steps too short to matter, the passes of one micro-batch are equal."""
    model, batch = model_of(folder, dropout="model"), batch_of([0, 1, 2, 3])
    regularizer = regularizer_of(model, name="freelb", step_size=1e-9)
    found = []
    for one in regularizer.passes(batch, batch, 1):
        (outputs,), _ = model(batch, within=one.within)
        found.append(torch.cat([outputs["class"].flatten(), outputs["score"].flatten()]))
        found[-1].sum().backward()
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0], found[2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(
        found[0], torch.cat([model(batch)[form].flatten() for form in ("class", "score")]), atol=1e-3
    )


@pytest.mark.parametrize("name", ["smart", "r_drop"])
def test_a_factor_of_zero_is_a_plain_run(folder: Path, name: str) -> None:
    dropout = "none" if name == "smart" else "model"
    model, batch = model_of(folder, dropout=dropout), batch_of([0, 1, 2, 3])
    regularizer = dataclasses.replace(regularizer_of(model, name=name), factor=0.0)
    if name == "r_drop":
        model.eval()  # both passes alike
    ours = run_passes(model, regularizer, batch), gradients(model)
    plain = run_passes(model, None, batch), gradients(model)
    assert ours[0] == (pytest.approx(plain[0][0], rel=1e-6), 0.0)
    for parameter, gradient in plain[1].items():
        torch.testing.assert_close(ours[1][parameter], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["smart", "freelb", "r_drop"])
@pytest.mark.parametrize("members", [[], [0], [1, 2]])
def test_every_parameter_has_a_gradient_whatever_is_in_the_micro_batch(
    folder: Path, name: str, members: list[int]
) -> None:
    model = model_of(folder, dropout="model")
    loss, added = run_passes(model, regularizer_of(model, name=name), batch_of(members, filler=not members))
    assert [
        key
        for key, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ] == []
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients(model).values())
    if not members:
        assert (loss, added) == (0.0, 0.0)


def test_shares_of_micro_batches_add_up(folder: Path) -> None:
    for name in ("smart", "freelb"):
        model = model_of(folder)
        regularizer = regularizer_of(model, name=name, radius=0.05, step_size=0.05)
        whole, of_whole = run_passes(model, regularizer, batch_of([0, 1, 2, 3])), gradients(model)
        first, of_first = run_passes(model, regularizer, batch_of([0, 2])), gradients(model)
        second, of_second = run_passes(model, regularizer, batch_of([1, 3])), gradients(model)
        assert [a + b for a, b in zip(first, second, strict=True)] == pytest.approx(whole, rel=1e-4)
        for key, gradient in of_whole.items():
            torch.testing.assert_close(of_first[key] + of_second[key], gradient, atol=5e-5, rtol=1e-3)


def test_only_the_tasks_named_are_regularised(folder: Path) -> None:
    model, batch = model_of(folder), batch_of([0, 1, 2, 3])
    every = run_passes(model, regularizer_of(model, name="smart"), batch)
    some = [run_passes(model, regularizer_of(model, name="smart", tasks=[own.name]), batch) for own in SPECS]
    assert sum(added for _, added in some) == pytest.approx(every[1], rel=1e-4)
    assert all(added > 0 for _, added in some)
    plain = run_passes(model, None, batch)[0]
    alone = [run_passes(model, None, batch_of([member]))[0] for member in range(4)]
    freelb = regularizer_of(model, name="freelb", tasks=["sts"])
    both_kinds = run_passes(model, freelb, batch)[0]
    only_scores = run_passes(model, regularizer_of(model, name="freelb"), batch_of([0, 3]))[0]
    assert both_kinds == pytest.approx(only_scores + alone[1] + alone[2], rel=1e-5)
    assert both_kinds != pytest.approx(plain, rel=1e-5)


# The proximal term


class _Engine:
    """What AveragedModel.follow asks of an engine without ZeRO 3."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def zero_optimization_stage(self) -> int:
        return 0


def test_the_proximal_term_is_the_divergence_from_the_averaged_model(folder: Path) -> None:
    model, batch = model_of(folder), batch_of([0, 1, 2, 3])
    settings = dict(name="smart", factor=1e-30, proximal_factor=4.0, proximal_momentum=0.75)
    regularizer = regularizer_of(model, **settings)
    assert run_passes(model, regularizer, batch)[1] == pytest.approx(0.0, abs=1e-12)  # nothing has moved yet
    with torch.no_grad():
        before = model(batch)
        for parameter in model.parameters():
            parameter += 0.05
        after = model(batch)
    expected = sum(float((before["score"][row, 3] - after["score"][row, 3]) ** 2) for row in (0, 1))
    expected += symmetric_kl(before["class"][0, :3], after["class"][0, :3]) + symmetric_kl(
        before["class"][1, 4:], after["class"][1, 4:]
    )
    assert run_passes(model, regularizer, batch)[1] == pytest.approx(4.0 * expected, rel=1e-4)


def test_the_averaged_model_follows_the_weights_and_is_saved(folder: Path, tmp_path: Path) -> None:
    model = model_of(folder)
    momentum = regularizer_of(model, name="smart", proximal_factor=1.0, proximal_momentum=0.75).averaged
    assert momentum is not None
    bias = model.heads["sequence"].bias
    with torch.no_grad():
        bias.fill_(1.0)  # type: ignore[operator]
    for expected in (0.25, 0.4375):  # 0.75 * 0 + 0.25 * 1, then 0.75 * 0.25 + 0.25
        momentum.follow(_Engine(model))
        assert momentum.model.heads["sequence"].bias.tolist() == [expected] * 6  # type: ignore[operator, union-attr]
    momentum.save(tmp_path)
    other = regularizer_of(model_of(folder), name="smart", proximal_factor=1.0).averaged
    assert other is not None
    other.load(tmp_path)
    for mine, saved in zip(momentum.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, saved)


# Refusals


def test_kinds_without_a_rule_are_left_out_and_named() -> None:
    own = (SPECS[0], spec("wiki", "masked_lm", options={"next_sentence": False}))
    assert regularized_tasks("smart", None, own) == (
        ("nli",),
        ("regularizer smart does not apply to wiki (masked_lm): it has no rule for their predictions",),
    )
    assert regularized_tasks("freelb", None, own) == (("nli", "wiki"), ())
    with pytest.raises(ConfigError) as refused:
        regularized_tasks("smart", ["wiki"], own)
    assert str(refused.value) == (
        "regularizer.name=smart: has no rule for the predictions of wiki (masked_lm); take them out of "
        "regularizer.tasks, or set "
        "regularizer.name to freelb, which needs none, or to none"
    )
    with pytest.raises(ConfigError, match="has no rule for the predictions of wiki"):
        regularized_tasks("r_drop", None, own[1:])


def test_r_drop_without_any_dropout_is_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match="r_drop: neither encoder nor heads have dropout, so both passes are equal"
    ):
        regularizer_of(model_of(folder), name="r_drop")
