"""Names of mt-dnn's splits in ours: matched_dev -> dev, mismatched_dev -> dev_mismatched. Pure text."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ROLES = (("train", "train"), ("dev", "dev"), ("valid", "dev"), ("val", "dev"), ("test", "test"))


def our_splits(names: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """{our split: theirs}, and the names that are none. All training splits become one; the first dev and test split keep those names."""
    splits: dict[str, tuple[str, ...]] = {}
    left_out = []
    for name in names:
        role = next((ours for word, ours in _ROLES if word in name.lower()), None)
        if role is None:
            left_out.append(name)
        elif role == "train":
            splits["train"] = (*splits.get("train", ()), name)
        else:
            rest = re.sub(
                r"[^A-Za-z0-9]+", "_", re.sub("valid|dev|val|test", "", name, flags=re.IGNORECASE)
            ).strip("_")
            ours = role if role not in splits else f"{role}_{rest or len(splits)}"
            splits[ours if ours not in splits else f"{ours}_{len(splits)}"] = (name,)
    return splits, left_out
