"""A run goes on elsewhere whatever it trains: copies, low-rank changes, averaged models, other optimizers.

Other ranks and ZeRO stages as in test_elastic.py. Real engines.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.elastic_runs import (
    STEPS,
    Chain,
    check_chain,
    check_weights,
    files,
    go_on,
    plain,
    train_first,
    write_elastic_files,
)
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

CHAINS = [
    Chain("soft", ("2", "2_round_robin", "0")),
    Chain("low_rank", ("0", "3", "0")),
    Chain("tied", ("1", "3", "1")),
    Chain("counter", ("3", "2", "3"), tokens=(200, 60, 120)),
    Chain("adamw", ("0", "2_offload", "3_offload")),
]
# DeepSpeed compiles both its forms first, for some minutes.
COMPILED = Chain("deepspeed_adamw", ("0", "2_offload", "3_offload"))


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    return write_elastic_files(tmp_path_factory.mktemp("elastic"), official_files, tiny_encoder)


@pytest.fixture(scope="module")
def said(run_files: Path) -> dict[str, str]:
    """All chains, after the plain run that low_rank begins with; what each run said."""
    outputs = train_first(run_files, [plain("000"), *CHAINS])
    before = {chain.name: files(run_files / chain.folder(0)) for chain in CHAINS}

    for hop in (1, 2):
        outputs |= go_on(run_files, CHAINS, hop)

    after = {chain.name: files(run_files / chain.folder(0)) for chain in CHAINS}
    assert after == before  # nothing is written where a run goes on from
    return outputs


@pytest.mark.distributed
@pytest.mark.parametrize("hop", [1, 2])
@pytest.mark.parametrize("chain", CHAINS, ids=[chain.name for chain in CHAINS])
def test_a_run_goes_on_elsewhere_as_if_nothing_had_changed(
    run_files: Path, said: dict[str, str], chain: Chain, hop: int
) -> None:
    check_chain(run_files, said, chain, hop)


@pytest.mark.bars
@pytest.mark.distributed
def test_a_run_with_deepspeeds_adam_goes_on_elsewhere(run_files: Path) -> None:
    outputs = train_first(run_files, [COMPILED])
    for hop in (1, 2):
        outputs |= go_on(run_files, [COMPILED], hop)
        check_chain(run_files, outputs, COMPILED, hop)


@pytest.mark.distributed
def test_the_averaged_model_is_carried(run_files: Path, said: dict[str, str]) -> None:
    chain = next(chain for chain in CHAINS if chain.recipe == "low_rank")
    straight, *ours = (
        load_file(run_files / chain.folder(hop) / f"checkpoints/step_{STEPS}/momentum.safetensors")
        for hop in range(3)
    )
    for weights in ours:
        assert weights.keys() == straight.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, straight[name], atol=2e-6, rtol=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name)
def test_weights_are_found_as_deepspeed_itself_finds_them(
    run_files: Path, said: dict[str, str], chain: Chain
) -> None:
    check_weights(run_files, chain)
