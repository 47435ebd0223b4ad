"""A run goes on with other ranks, another ZeRO stage, other micro-batches, as if nothing had changed.

Real engines, dropout off, in fp32, bf16 and fp16. Other things that are trained: test_elastic_recipes.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.elastic_runs import (
    HOP,
    RANKS,
    STEPS,
    TOLERANCE,
    Chain,
    check_chain,
    check_weights,
    compare,
    files,
    go_on,
    job,
    plain,
    saved_state,
    train_first,
    write_elastic_files,
)

from mtdnn_ds.checkpoint.restore import _check_shapes, changes
from mtdnn_ds.checkpoint.shard_reader import open_saved
from mtdnn_ds.config.errors import CheckpointError

QUICK = [plain("000"), plain("111"), Chain("plain", ("3", "3_sub_groups", "3"))]
# With those, every stage to every other.
SLOW = [
    plain("222"),
    plain("101", tokens=(200, 60, 120)),
    Chain("plain", ("2", "1_aligned", "2")),
    # Predictions rounded to bf16 and fp16 may differ in the last place on other ranks; 3e-3 is that of a
    # score of 3 in bf16.
    Chain("plain", ("2_bf16", "3_bf16", "1_bf16"), loss=3e-3, norm=1e-2),
    # Under ZeRO 3 DeepSpeed 0.19.8 divides the gradients of the step that doubles the scale by the doubled
    # one: none of its steps does here.
    Chain("plain", ("2_fp16", "1_fp16", "3_fp16"), norm=2e-3),
]
EACH_CHAIN = [
    *(pytest.param(chain, id=chain.name) for chain in QUICK),
    *(pytest.param(chain, id=chain.name, marks=pytest.mark.slow) for chain in SLOW),
]


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    return write_elastic_files(tmp_path_factory.mktemp("elastic"), official_files, tiny_encoder)


@pytest.fixture(scope="module")
def said(run_files: Path) -> dict[str, str]:
    """The quick chains; what each run said.

    The first two hops of plain 0 and 3 are in the folder of the run that they go on from.
    """
    outputs = train_first(run_files, QUICK)
    with nothing_written(run_files, QUICK):
        for hop in (1, 2):
            in_place = run_files / f"in_place_hop{hop}"
            shutil.copytree(run_files / ("plain_1" if hop == 1 else "in_place_hop1"), in_place)
            for step in range(HOP * hop + 1, STEPS + 1):
                shutil.rmtree(in_place / f"checkpoints/step_{step}", ignore_errors=True)
            goes_on_in_place = {**job(run_files, plain("132"), hop, "auto"), "output_dir": str(in_place)}
            outputs |= go_on(run_files, QUICK, hop, [goes_on_in_place])
    return outputs


@pytest.fixture(scope="module")
def slow_said(run_files: Path, said: dict[str, str]) -> dict[str, str]:
    """plain("101") begins with the run of plain("111")."""
    outputs = train_first(run_files, [chain for chain in SLOW if chain.folder(0) not in said])
    with nothing_written(run_files, SLOW):
        for hop in (1, 2):
            outputs |= go_on(run_files, SLOW, hop)
    return outputs


@contextmanager
def nothing_written(run_files: Path, chains: Sequence[Chain]) -> Iterator[None]:
    """Where these chains begin: a run that goes on elsewhere leaves the folder that it goes on from alone."""
    firsts = {chain.folder(0) for chain in chains}
    before = {name: files(run_files / name) for name in firsts}
    yield
    assert {name: files(run_files / name) for name in firsts} == before


def said_of(request: pytest.FixtureRequest, chain: Chain) -> dict[str, str]:
    """What the chain's runs said."""
    outputs: dict[str, str] = request.getfixturevalue("said" if chain in QUICK else "slow_said")
    return outputs


@pytest.mark.distributed
@pytest.mark.parametrize("hop", [1, 2])
@pytest.mark.parametrize("chain", EACH_CHAIN)
def test_a_run_goes_on_elsewhere_as_if_nothing_had_changed(
    request: pytest.FixtureRequest, run_files: Path, chain: Chain, hop: int
) -> None:
    check_chain(run_files, said_of(request, chain), chain, hop)


@pytest.mark.distributed
def test_auto_goes_on_in_the_same_folder(run_files: Path, said: dict[str, str]) -> None:
    for hop, stage in ((1, "3 instead of 1"), (2, "2 instead of 3")):
        run = run_files / f"in_place_hop{hop}"
        compare(run, run_files / "plain_1", range(1, STEPS + 1), TOLERANCE, TOLERANCE)
        note = (
            f"goes on with {RANKS[hop]} rank{'s' * (hop == 1)} instead of {RANKS[hop - 1]}, ZeRO stage "
            f"{stage}: the same examples in the same steps"
        )
        assert note in said[run.name]
        assert f"metrics.jsonl: {STEPS - HOP * hop} lines after step {HOP * hop} moved" in said[run.name], (
            said[run.name]
        )


@pytest.mark.distributed
@pytest.mark.parametrize("chain", [each for each in EACH_CHAIN if "16" not in str(each.id)])
def test_weights_are_found_as_deepspeed_itself_finds_them(
    request: pytest.FixtureRequest, run_files: Path, chain: Chain
) -> None:
    said_of(request, chain)
    check_weights(run_files, chain)


@pytest.mark.distributed
def test_a_checkpoint_that_cannot_be_taken_apart_is_refused(
    run_files: Path, said: dict[str, str], tmp_path: Path
) -> None:
    old = tmp_path / "step_2"
    shutil.copytree(run_files / "plain_0/checkpoints/step_2", old)
    shard = old / "mp_rank_00_model_states.pt"
    contents = torch.load(shard, weights_only=True)
    torch.save({**contents, "mtdnn_ds": {"step": 2}}, shard)
    with pytest.raises(
        CheckpointError,
        match=r"step_2: was saved at ZeRO stage 0 by mtdnn_ds 0\.2 or older.*resume once with ZeRO stage 0",
    ):
        open_saved(old, zero_stage=0, num_ranks=1)
    torch.save({name: value for name, value in contents.items() if name != "optimizer"}, shard)
    with pytest.raises(
        CheckpointError,
        match=r"not laid out as DeepSpeed 0\.19\.8 writes them \(KeyError: 'optimizer'\); resume with the "
        r"number",
    ):
        open_saved(old, zero_stage=0, num_ranks=1)
    with pytest.raises(
        CheckpointError, match="not laid out as DeepSpeed"
    ):  # says another stage than its files are of
        open_saved(old, zero_stage=2, num_ranks=1)


@pytest.mark.distributed
def test_other_parameters_are_refused_by_name(run_files: Path, said: dict[str, str]) -> None:
    saved = saved_state(run_files / "plain_0", 2)
    ours = {name: torch.empty(shape) for name, shape in saved.shapes.items()}
    _check_shapes(ours, saved, "step_2")
    first, second, *_ = ours
    ours[first] = torch.empty(1, 2)
    del ours[second]
    with pytest.raises(CheckpointError) as caught:
        _check_shapes(ours, saved, "step_2")
    shapes = [tuple(saved.shapes[name]) for name in (first, second)]
    advice = "resume with the encoder, the tasks and the mtdnn_ds that it was saved with"
    assert sorted(caught.value.problems) == sorted(
        [
            f"step_2: {first} is {shapes[0]} there and (1, 2) here; {advice}",
            f"step_2: {second} is {shapes[1]} there and not trained here; {advice}",
        ]
    )


def test_what_has_changed_is_said() -> None:
    def notes(dropout: str, tokens: int = 400, **topology: Any) -> list[str]:
        before = {"world_size": 1, "zero_stage": 1, "precision": "fp32"}
        recipe: dict[str, Any] = {"batch": {"max_tokens_per_micro_batch": 400}, "train": {"dropout": dropout}}
        now = {**recipe, "batch": {"max_tokens_per_micro_batch": tokens}}
        return changes({"topology": before, "recipe": recipe}, now, {**before, **topology})

    assert notes("model") == []
    assert notes("none", world_size=2, zero_stage=3, offload_optimizer=True) == [
        "goes on with 2 ranks instead of 1, ZeRO stage 3 instead of 1, "
        "zero_optimization.offload_optimizer True instead of off: the same examples "
        "in the same steps; every rank takes its part of the weights and of the optimizer's state from "
        "the checkpoint's shards"
    ]
    assert notes("counter", tokens=200) == [
        "goes on with batch.max_tokens_per_micro_batch 200 instead of 400: the same examples in the same "
        "steps"
    ]
    assert notes("model", zero_stage=2)[1:] == []  # dropout knows no stage
    for changed in ({"world_size": 2}, {"tokens": 200}):
        assert notes("model", **changed)[1:] == [
            "train.dropout=model: dropout is drawn by rank and micro-batch, so the losses from here on "
            "are not those that the run would have had "
            "where it was; train.dropout=none, or counter, does not depend on it"
        ]
