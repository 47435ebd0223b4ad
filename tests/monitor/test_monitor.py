"""What a run writes and shows:
metrics.jsonl, TensorBoard files (read back with TensorBoard's own reader), progress lines, formulas.
"""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.monitor.console import configure_logging, print_table, silenced, speaking
from mtdnn_ds.monitor.flops import (
    StepCost,
    activation_bytes,
    encoder_flops,
    model_flops_utilisation,
    model_state_bytes,
    peak_flops_per_second,
    step_cost,
)
from mtdnn_ds.monitor.progress import Progress, RowProgress
from mtdnn_ds.monitor.run_monitor import EvalRecord, RunMonitor, StepRecord, check_monitors
from mtdnn_ds.train.results import TaskResult, format_results

log = logging.getLogger("mtdnn_ds.a_module")

TASK_METRICS = {"rte": ["accuracy"], "mrpc": ["f1", "accuracy"]}
SETTINGS = {
    "optimizer": {"lr": 5e-5, "betas": [0.9, 0.999]},
    "train": {"steps": 4, "epochs": None},
    "encoder": {"path": "bert", "random_init": True},
}


def step_record(step: int, loss: float = 0.5, **changes: object) -> StepRecord:
    fields: dict[str, object] = dict(
        step=step,
        loss=loss,
        task_loss={"rte": 0.25, "mrpc": 0.75},
        task_examples={"rte": 3, "mrpc": 5},
        lr=1e-4,
        grad_norm=2.0,
        loss_scale=1.0,
        skipped=False,
        tokens=120,
        tokens_per_second=1500.0,
        padding_efficiency=0.75,
        rank_imbalance=1.125,
        micro_batches=2,
        seconds=0.5,
    )
    return StepRecord(**{**fields, **changes})  # type: ignore[arg-type]


def eval_record(step: int) -> EvalRecord:
    return EvalRecord(
        step=step, eval={"rte": {"accuracy": 0.5}, "mrpc": {"f1": 0.75, "accuracy": 0.625}}, average=0.625
    )


def open_monitor(run_dir: Path, last_step: int = 0, **options: Any) -> RunMonitor:
    return RunMonitor(run_dir, task_metrics=TASK_METRICS, settings=SETTINGS, last_step=last_step, **options)


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def board(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard")).Reload()


def points(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board(run_dir).Scalars(tag)]


def test_lines_have_exactly_the_documented_fields(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as monitor:
        monitor.write(step_record(1, mfu=0.4, wait_fraction=0.1))
        on_disk_before_close = lines_of(tmp_path / "metrics.jsonl")
        monitor.write(eval_record(1))
    assert on_disk_before_close == [
        {
            "step": 1,
            "loss": 0.5,
            "task_loss": {"rte": 0.25, "mrpc": 0.75},
            "task_examples": {"rte": 3, "mrpc": 5},
            "lr": 1e-4,
            "grad_norm": 2.0,
            "loss_scale": 1.0,
            "skipped": False,
            "tokens": 120,
            "tokens_per_second": 1500.0,
            "padding_efficiency": 0.75,
            "rank_imbalance": 1.125,
            "micro_batches": 2,
            "seconds": 0.5,
            "wait_fraction": 0.1,
        }
    ]
    assert lines_of(tmp_path / "metrics.jsonl")[1] == {
        "step": 1,
        "eval": {"rte": {"accuracy": 0.5}, "mrpc": {"f1": 0.75, "accuracy": 0.625}},
        "average": 0.625,
    }


def test_regulariser_and_adaptive_scales_are_logged_where_they_are_on(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as monitor:
        monitor.write(step_record(1, regularizer=0.125, task_scale={"rte": 0.75, "mrpc": 0.25}))
        monitor.write(step_record(2))
    first, second = lines_of(tmp_path / "metrics.jsonl")
    assert (first["regularizer"], first["task_scale"]) == (0.125, {"rte": 0.75, "mrpc": 0.25})
    assert set(first) - set(second) == {"regularizer", "task_scale"}
    assert points(tmp_path, "regularizer") == [(1, 0.125)]
    assert points(tmp_path, "task_scale/mrpc") == [(1, 0.25)]


def test_gradient_norms_of_tasks_are_logged_in_the_steps_that_measure_them(tmp_path: Path) -> None:
    settings = {**SETTINGS, "train": {**SETTINGS["train"], "gradient_norms_every": 2}}
    with RunMonitor(tmp_path, task_metrics=TASK_METRICS, settings=settings) as monitor:
        monitor.write(step_record(1))
        monitor.write(step_record(2, task_grad_norm={"rte": 0.75, "mrpc": float("inf")}))
    first, second = lines_of(tmp_path / "metrics.jsonl")
    assert second["task_grad_norm"] == {"rte": 0.75, "mrpc": None}
    assert set(second) - set(first) == {"task_grad_norm"}
    assert points(tmp_path, "task_grad_norm/rte") == [(2, 0.75)]
    assert "task_grad_norm/mrpc" not in board(tmp_path).Tags()["scalars"]

    [event] = board(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert list(layout.category[0].chart[2].multiline.tag) == ["task_grad_norm/rte$", "task_grad_norm/mrpc$"]


def test_nan_is_null_in_the_line_and_no_point_on_the_board(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as monitor:
        monitor.write(step_record(1, loss=float("nan"), task_loss={"rte": float("inf")}, grad_norm=None))
        monitor.write(step_record(2, grad_norm=3.0))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    first = lines_of(tmp_path / "metrics.jsonl")[0]
    assert (first["loss"], first["task_loss"], first["grad_norm"]) == (None, {"rte": None}, None)
    assert points(tmp_path, "loss") == [(2, 0.5)]
    assert points(tmp_path, "grad_norm") == [(2, 3.0)]


def test_board_holds_every_scalar_under_its_tag(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as monitor:
        monitor.write(step_record(1))
        monitor.write(step_record(2, loss=0.25, skipped=True, mfu=0.5, wait_fraction=0.125))
        monitor.write(eval_record(2))
    assert set(board(tmp_path).Tags()["scalars"]) == {
        "loss",
        "loss/rte",
        "loss/mrpc",
        "examples/rte",
        "examples/mrpc",
        "lr",
        "grad_norm",
        "loss_scale",
        "skipped",
        "tokens_per_second",
        "mfu",
        "padding_efficiency",
        "rank_imbalance",
        "micro_batches",
        "seconds",
        "wait_fraction",
        "eval/rte/accuracy",
        "eval/mrpc/f1",
        "eval/mrpc/accuracy",
        "eval/average",
    }
    assert points(tmp_path, "loss") == [(1, 0.5), (2, 0.25)]
    assert points(tmp_path, "loss/mrpc") == [(1, 0.75), (2, 0.75)]
    assert points(tmp_path, "examples/rte") == [(1, 3.0), (2, 3.0)]
    assert points(tmp_path, "skipped") == [(1, 0.0), (2, 1.0)]
    assert points(tmp_path, "mfu") == [(2, 0.5)]
    assert points(tmp_path, "wait_fraction") == [(1, 0.0), (2, 0.125)]
    assert points(tmp_path, "eval/mrpc/f1") == [(2, 0.75)]
    assert points(tmp_path, "eval/average") == [(2, 0.625)]


def test_custom_page_opens_with_all_losses_then_all_main_metrics(tmp_path: Path) -> None:
    open_monitor(tmp_path).close()
    [event] = board(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = [chart for category in layout.category for chart in category.chart]
    assert list(charts[0].multiline.tag) == ["loss$", "loss/rte$", "loss/mrpc$"]
    assert list(charts[1].multiline.tag) == ["eval/average$", "eval/rte/accuracy$", "eval/mrpc/f1$"]
    later = [tag for chart in charts[2:] for tag in chart.multiline.tag]
    assert {"tokens_per_second$", "rank_imbalance$", "padding_efficiency$"} <= set(later)
    assert not [tag for tag in later if tag.startswith("task_grad_norm")]


@pytest.mark.parametrize(("fails", "status"), [(False, "STATUS_SUCCESS"), (True, "STATUS_FAILURE")])
def test_hparams_tab_shows_settings_metrics_and_outcome_without_a_second_run(
    tmp_path: Path, fails: bool, status: str
) -> None:
    from tensorboard.plugins.hparams import api_pb2

    def run() -> None:
        with open_monitor(tmp_path) as monitor:
            monitor.write(eval_record(1))
            if fails:
                raise RuntimeError("stopped by the test")

    if fails:
        with pytest.raises(RuntimeError, match="stopped by the test"):
            run()
    else:
        run()
    data = {}
    for tag, content in board(tmp_path).PluginTagToContent("hparams").items():
        data[tag] = plugin_data_pb2.HParamsPluginData.FromString(content)
    assert sorted(data) == [
        "_hparams_/experiment",
        "_hparams_/session_end_info",
        "_hparams_/session_start_info",
    ]
    hparams = data["_hparams_/session_start_info"].session_start_info.hparams
    assert hparams["optimizer.lr"].number_value == 5e-5
    assert hparams["optimizer.betas"].string_value == "[0.9, 0.999]"
    assert hparams["encoder.random_init"].bool_value is True
    assert "train.epochs" not in hparams
    metrics = [info.name.tag for info in data["_hparams_/experiment"].experiment.metric_infos]
    assert metrics == ["eval/average", "eval/rte/accuracy", "eval/mrpc/f1", "eval/mrpc/accuracy"]
    assert data["_hparams_/session_end_info"].session_end_info.status == api_pb2.Status.Value(status)
    assert [path for path in (tmp_path / "tensorboard").iterdir() if path.is_dir()] == []


def test_resume_moves_later_lines_aside_and_curves_do_not_overlap(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as monitor:
        for step in (1, 2, 3):
            monitor.write(step_record(step, loss=float(step)))
        monitor.write(eval_record(3))
    with open_monitor(tmp_path, last_step=2) as resumed:
        assert resumed.num_discarded_lines == 2
        resumed.write(step_record(3, loss=30.0))
    kept = lines_of(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in kept] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    discarded = lines_of(tmp_path / "metrics.discarded.jsonl")
    assert [(line["step"], "eval" in line) for line in discarded] == [(3, False), (3, True)]
    assert points(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert points(tmp_path, "eval/average") == []
    assert len(board(tmp_path).Tensors("custom_scalars__config__")) >= 1


def test_a_second_resume_keeps_what_the_first_one_discarded(tmp_path: Path) -> None:
    for last_step in (0, 1, 1):
        with open_monitor(tmp_path, last_step=last_step) as monitor:
            first = last_step + 1
            monitor.write(step_record(first))
            monitor.write(step_record(first + 1))
    assert [line["step"] for line in lines_of(tmp_path / "metrics.discarded.jsonl")] == [2, 2, 3]
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_run_that_starts_over_discards_all_lines(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as monitor:
        monitor.write(step_record(1, loss=9.0))
    with open_monitor(tmp_path) as again:
        assert again.num_discarded_lines == 1
        again.write(step_record(1, loss=0.5))
    assert points(tmp_path, "loss") == [(1, 0.5)]


@pytest.mark.parametrize("torn", [b'{"step": 2, "loss": 0.', b"\x00\x00\x00", b"17"])
def test_a_torn_last_line_is_moved_aside(tmp_path: Path, torn: bytes) -> None:
    with open_monitor(tmp_path) as monitor:
        monitor.write(step_record(1))
    with (tmp_path / "metrics.jsonl").open("ab") as lines:
        lines.write(torn)
    with open_monitor(tmp_path, last_step=2) as resumed:
        assert resumed.num_discarded_lines == 1
        resumed.write(step_record(3))
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [1, 3]
    assert (tmp_path / "metrics.discarded.jsonl").read_bytes() == torn + b"\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.discarded.jsonl",
        "metrics.jsonl",
        "tensorboard",
    ]


def test_deepspeeds_monitor_gets_the_same_scalars(tmp_path: Path) -> None:
    received: list[tuple[str, float, int]] = []
    with open_monitor(tmp_path, write_events=received.extend) as monitor:
        monitor.write(step_record(1))
        monitor.write(eval_record(1))
    assert ("loss/mrpc", 0.75, 1) in received and ("eval/mrpc/accuracy", 0.625, 1) in received
    assert {tag for tag, _, _ in received} == set(board(tmp_path).Tags()["scalars"])


def test_closing_twice_writes_one_end(tmp_path: Path) -> None:
    monitor = open_monitor(tmp_path)
    monitor.close()
    monitor.close(succeeded=False)
    assert len(board(tmp_path).Tensors("_hparams_/session_end_info")) == 1


def test_missing_tensorboard_is_refused_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_monitors({})
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # Python's own way to say: not importable
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        check_monitors({})


def test_missing_package_of_a_deepspeed_monitor_is_refused_on_every_rank() -> None:
    check_monitors({"wandb": {"enabled": False}})
    with pytest.raises(
        ConfigError,
        match="enables comet, but the package comet_ml is missing; install it with: pip install comet_ml",
    ):
        check_monitors({"comet": {"enabled": True}})


def test_plain_lines_say_step_loss_speed_and_time_left() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = Progress(num_steps=240, stream=stream, seconds_between_lines=10.0, clock=lambda: now[0])
    for step in range(1, 26):
        now[0] += 0.5
        progress.update(step=step, loss=0.8119, tokens_per_second=1523.4)
    assert stream.getvalue().splitlines() == [
        "step 1/240  loss 0.812  1,523 tokens/s",
        "step 21/240  loss 0.812  1,523 tokens/s  0:01:50 left",
    ]
    progress.update(step=240, loss=0.1, tokens_per_second=2000.0)
    assert stream.getvalue().splitlines()[-1] == "step 240/240  loss 0.100  2,000 tokens/s"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_gets_a_bar_with_notes_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with speaking(terminal):
        progress = Progress(num_steps=4, first_step=2, stream=terminal)
        log.info("4 tasks")
        assert terminal.getvalue() == "4 tasks\n"
        progress.update(step=3, loss=0.75, tokens_per_second=1000.0)
        log.info("evaluating")
        progress.update(step=4, loss=0.5, tokens_per_second=1000.0)
        progress.close()
    shown = terminal.getvalue()
    assert (
        "evaluating\n" in shown
        and "2/4" in shown
        and "4/4" in shown
        and "loss 0.500, 1,000 tokens/s" in shown
    )


def test_notes_are_said_once_and_on_rank_0_only() -> None:
    main, other = io.StringIO(), io.StringIO()
    for stream, is_main in ((main, True), (other, False)):
        progress = Progress(num_steps=2, is_main=is_main, stream=stream)
        with speaking(stream):
            progress.say_once("mnli: 3 rows skipped")
            progress.say_once("mnli: 3 rows skipped")
        progress.update(step=2, loss=0.5, tokens_per_second=1.0)
    assert main.getvalue().count("mnli: 3 rows skipped") == 1
    assert "step 2/2" in main.getvalue()
    assert other.getvalue() == ""


def test_lines_are_printed_on_rank_0_inside_speaking_and_not_while_silenced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log.info("before")
    with speaking():
        log.info("rows: 100 %d")
        with silenced():
            log.info("twice")
        with speaking(), silenced(False):
            log.info("inside")
        # RANK says nothing where a test before this one has begun a process group.
        monkeypatch.setattr("mtdnn_ds.dist.rank", lambda: 1)
        log.info("of another rank")
    log.info("after")
    assert capsys.readouterr() == ("rows: 100 %d\ninside\n", "")
    assert not logging.getLogger("mtdnn_ds").handlers and logging.getLogger("mtdnn_ds").propagate


def test_log_level_error_hides_our_warnings_and_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    with speaking(log_level="error"):
        log.warning("--train.steps replaces train.epochs")
        log.info("rows: 100")
        log.error("no space is left")
    assert capsys.readouterr() == ("rows: 100\n", "no space is left\n")


def test_a_bar_leaves_the_cursor_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    progress = RowProgress(2000, stream=terminal)
    shown = terminal.getvalue()  # a process that ends at once closes no bar
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")
    progress.close()


def test_a_file_is_shown_as_a_bar_in_a_terminal_and_as_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = RowProgress(2000, done=500, stream=stream, seconds=0.0)
        progress.update(2000)
        progress.close()
    assert "2000/2000" in terminal.getvalue() and "rows/s" in terminal.getvalue()
    assert file.getvalue().startswith("2,000 of 2,000 rows  ") and file.getvalue().endswith(" rows/s\n")


def test_a_table_in_a_file_has_a_width_of_its_own_and_no_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("task", "labels", title="built-in tasks", box=None, pad_edge=False)
    table.add_row("mnli", "x" * 100)
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"mnli  {'x' * 100}"
    assert not any("\x1b" in line or line.endswith(" ") for line in lines)


def test_results_table_sets_metrics_beside_the_majority_baseline() -> None:
    results = [
        TaskResult(
            task="mrpc",
            num_rows=1408,
            metrics={"f1": 0.875, "accuracy": 0.8125},
            majority_baseline=0.8122,
            best_value=0.88,
            best_step=1200,
        ),
        TaskResult(
            task="stsb",
            num_rows=9,
            metrics={"pearson": 0.5},
            majority_baseline=None,
            best_value=None,
            best_step=None,
        ),
    ]
    assert format_results(results, 0.6875).splitlines() == [
        "task     dev rows  metric     value  majority    best  at step",
        "-------  --------  --------  ------  --------  ------  -------",
        "mrpc        1,408  f1        0.8750    0.8122  0.8800    1,200",
        "                   accuracy  0.8125",
        "stsb            9  pearson   0.5000         -       -        -",
        "average                      0.6875",
    ]


@pytest.mark.parametrize(
    ("log_level", "rank", "shown"),
    [("warning", 0, True), ("warning", 1, False), ("error", 0, False), ("info", 1, True)],
)
def test_deepspeed_warnings_reach_the_user_once(log_level: str, rank: int, shown: bool) -> None:
    script = (
        "import sys; from mtdnn_ds.monitor.console import configure_logging\n"
        f"configure_logging({log_level!r}, rank={rank})\n"
        "from deepspeed.utils.logging import logger\n"
        "logger.warning('Setting accelerator to CPU. If you have'); "
        "logger.info('detail'); logger.warning('real trouble')\n"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert ("real trouble" in output) is shown
    assert ("detail" in output) is (log_level == "info")
    assert ("Setting accelerator" in output) is (log_level == "info")


def test_only_libraries_warnings_of_old_names_are_hidden() -> None:
    script = (
        "import warnings; from mtdnn_ds.monitor.console import configure_logging\n"
        "configure_logging('warning', rank=0)\n"
        "def warn(module, kind): warnings.warn_explicit(f'{module} says', kind, 'file.py', 1, module)\n"
        "warn('torch.distributed.c10d_logger', FutureWarning); "
        "warn('transformers.modeling_utils', FutureWarning)\n"
        "warn('torch.distributed.c10d_logger', UserWarning); warn('users_code', FutureWarning)\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    assert shown.count(" says") == 2
    assert (
        "UserWarning: torch.distributed.c10d_logger says" in shown
        and "FutureWarning: users_code says" in shown
    )


def test_logging_may_be_configured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRANSFORMERS_VERBOSITY", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, "error")  # so that the test leaves the environment as it was
    logger = logging.getLogger("DeepSpeed")
    before = list(logger.filters)
    try:
        configure_logging("warning", rank=0)
        configure_logging("error", rank=0)
        assert [type(known).__name__ for known in logger.filters].count("_UsersLevel") == 1
    finally:
        logger.filters = before


def test_flops_of_one_bert_large_layer_by_hand() -> None:
    # D = 1024, F = 4096, L = 128: projections 2*4*1024^2 = 8,388,608; feed-forward 2*2*1024*4096 =
    # 16,777,216; attention 4*128*1024 = 524,288; sum 25,690,112 forward, times 3 = 77,070,336 a token.
    sizes = dict(num_layers=1, hidden_size=1024, intermediate_size=4096)
    assert encoder_flops(
        **sizes, num_tokens=128 + 2, sum_squared_lengths=128**2 + 2**2
    ) == 77_070_336 * 128 + 2 * 3 * (25_165_824 + 4 * 2 * 1024)


def test_mfu_by_hand() -> None:
    # 8 devices of 100 FLOP/s for 2 s could do 1600; 400 were useful.
    assert (
        model_flops_utilisation(flops=400.0, seconds=2.0, num_devices=8, peak_flops_per_second=100.0) == 0.25
    )
    assert (
        model_flops_utilisation(flops=400.0, seconds=2.0, num_devices=8, peak_flops_per_second=None) is None
    )


def test_mfu_of_a_step_by_hand() -> None:
    # One layer, D = F = 1, lengths 2 and 3: 3 * ((8 + 4) * 5 + 4 * (4 + 9)) = 336 FLOPs;
    # 2 devices of 84 FLOP/s for 4 s could do 672.
    cost = StepCost(num_layers=1, hidden_size=1, intermediate_size=1, peak_flops_per_second=84.0)
    assert cost.mfu(tokens=5, sum_squared_lengths=13, seconds=4.0, num_devices=2) == 0.5


def test_a_cpu_has_no_known_peak_and_so_no_mfu(tiny_encoder: Path) -> None:
    from transformers import AutoConfig

    cost = step_cost(AutoConfig.from_pretrained(tiny_encoder), precision="fp32", device=torch.device("cpu"))
    assert cost == StepCost(num_layers=2, hidden_size=32, intermediate_size=64, peak_flops_per_second=None)
    assert cost.mfu(tokens=5, sum_squared_lengths=13, seconds=4.0, num_devices=2) is None


@pytest.mark.parametrize(
    ("device_name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "autocast_bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "bf16", 989e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA L40S", "fp16", 362e12),
        ("NVIDIA A10", "bf16", 125e12),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA A100-SXM4-80GB", "fp32", None),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2e12),
        ("NVIDIA B200", "bf16", 2250e12),
        ("NVIDIA GB200", "bf16", 2500e12),
        ("NVIDIA B300 SXM6 AC", "bf16", 2250e12),
        ("NVIDIA GB300", "fp16", 2500e12),
        ("NVIDIA GH200 480GB", "bf16", 990e12),
        ("NVIDIA H20", "bf16", 148e12),
        ("NVIDIA H20-3e", "bf16", 148e12),
        ("NVIDIA A30", "fp16", 165e12),
        ("NVIDIA L40", "bf16", 181e12),
        ("NVIDIA RTX A6000", "bf16", 154.8e12),
        ("NVIDIA RTX 6000 Ada Generation", "bf16", 364.2e12),
        ("Quadro RTX 6000", "fp16", None),
        ("NVIDIA GeForce RTX 5090", "bf16", 209.5e12),
        ("NVIDIA GeForce RTX 5090 D", "bf16", None),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", "bf16", None),
        ("NVIDIA B200", "fp32", None),
        ("cpu", "bf16", None),
    ],
)
def test_peaks_are_known_or_said_to_be_unknown(device_name: str, precision: str, peak: float | None) -> None:
    assert peak_flops_per_second(device_name, precision) == peak  # type: ignore[arg-type]


def test_model_states_of_335_million_parameters_by_hand() -> None:
    def device_gb(stage: int, precision: str = "bf16", ranks: int = 8, **options: object) -> float:
        return (
            model_state_bytes(
                num_parameters=335_000_000, zero_stage=stage, precision=precision, num_ranks=ranks, **options
            ).device
            / 1e9
        )  # type: ignore[arg-type]

    assert device_gb(0) == 5.36  # 16 bytes a parameter
    assert device_gb(0, "fp32") == 5.36
    assert device_gb(1) == 1.8425  # 2 + 2 + 12/8 = 5.5
    assert device_gb(2) == 1.25625  # 2 + 14/8 = 3.75
    assert device_gb(3) == 0.67  # 16/8 = 2
    assert device_gb(0, gradient_bytes=4) == 6.03  # 2 + 4 + 12
    assert device_gb(0, num_optimizer_states=1) == 4.02  # 2 + 2 + 4 + 4
    offloaded = model_state_bytes(
        num_parameters=1000, zero_stage=2, precision="bf16", num_ranks=2, offload_optimizer=True
    )
    assert (offloaded.device, offloaded.host) == (2000, 7000)  # device 2; host (12 + 2) / 2
    everything = model_state_bytes(
        num_parameters=1000,
        zero_stage=3,
        precision="bf16",
        num_ranks=2,
        offload_optimizer=True,
        offload_parameters=True,
    )
    assert (everything.device, everything.host) == (0, 8000)


def test_offload_that_a_stage_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="zero_stage 1, 2 or 3"):
        model_state_bytes(
            num_parameters=1, zero_stage=0, precision="bf16", num_ranks=1, offload_optimizer=True
        )
    with pytest.raises(ValueError, match="zero_stage 3"):
        model_state_bytes(
            num_parameters=1, zero_stage=2, precision="bf16", num_ranks=1, offload_parameters=True
        )


def test_activations_are_34_bytes_a_token_layer_and_hidden_unit() -> None:
    sizes = dict(num_tokens=10, num_layers=24, hidden_size=1024, intermediate_size=4096, bytes_per_value=2)
    assert activation_bytes(**sizes) == 10 * 24 * 34 * 1024
    assert activation_bytes(**sizes, gradient_checkpointing=True) == 10 * 1024 * (24 * 2 + 34)
