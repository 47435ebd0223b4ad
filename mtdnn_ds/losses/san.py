"""The loss of SAN's rows (model/heads/san.py): its outputs are log-probabilities already, averaged over steps in log space.

Shape legend: K supervised rows, C columns of the head.
"""

from __future__ import annotations

from torch import Tensor

from mtdnn_ds.batch import Targets
from mtdnn_ds.losses.sums import TermTable, own_outputs


def san_losses(outputs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """-log P of each row's class, (K,); labels are class ids."""
    return (
        -own_outputs(outputs_KC, targets.term_ids, table).gather(1, targets.labels.long()[:, None]).squeeze(1)
    )
