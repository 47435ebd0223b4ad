"""Learning rates of whole small runs, as literals that can be checked by hand."""

from __future__ import annotations

import pytest

from mtdnn_ds.runs.schedule import Name, learning_rate, num_warmup_steps


def rates(
    name: Name,
    *,
    total_steps: int = 6,
    warmup_steps: int = 2,
    final_lr_ratio: float = 0.0,
    power: float = 2.0,
) -> list[float]:
    settings = {
        "peak": 8.0,
        "total_steps": total_steps,
        "warmup_steps": warmup_steps,
        "final_lr_ratio": final_lr_ratio,
        "power": power,
    }
    return [learning_rate(step, name=name, **settings) for step in range(1, total_steps + 1)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [4, 8, 8, 6, 4, 2]),
        ("constant", [4, 8, 8, 8, 8, 8]),
        ("polynomial", [4, 8, 8, 4.5, 2, 0.5]),
        ("cosine", [4, 8, 8, 6.8284271, 4, 1.1715729]),  # 4 (1 + cos(pi x)), x = 0, 1/4, 1/2, 3/4
    ],
)
def test_rates_of_six_steps_with_two_of_warmup(name: Name, expected: list[float]) -> None:
    assert rates(name) == pytest.approx(expected)


def test_no_step_has_rate_zero_and_the_peak_is_reached() -> None:
    for name in ("linear", "cosine", "polynomial"):
        assert min(rates(name, total_steps=50, warmup_steps=5)) > 0
        assert max(rates(name, total_steps=50, warmup_steps=5)) == 8.0


def test_final_lr_ratio_is_the_floor() -> None:
    assert rates("linear", final_lr_ratio=0.5) == pytest.approx([4, 8, 8, 7, 6, 5])


@pytest.mark.parametrize(
    ("warmup", "total", "steps"),
    [(0.1, 500, 50), (0.07, 100, 7), (0.1, 15, 2), (0, 10, 0), (1, 10, 1), (25, 100, 25)],
)
def test_warmup_below_one_is_a_fraction(warmup: float, total: int, steps: int) -> None:
    assert num_warmup_steps(warmup, total) == steps
