"""init: what a run takes over from an earlier one, whatever ZeRO stage wrote it; what it says of it; that a
resumed run does not begin again. train.freeze: frozen weights stay bit for bit, the others train, under every
ZeRO stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.glue_rows import cut_glue
from helpers.processes import run_jobs, training_lines, write_json, zero_config
from helpers.tiny_encoders import write_tiny_encoder
from safetensors.torch import load_file, save_file

from mtdnn_ds.cli import main
from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.model.freeze import freeze
from mtdnn_ds.model.heads.custom import CustomHeads
from mtdnn_ds.model.multitask import MultiTaskNet, build_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.train.init.from_run import _carry, _Slot, begin_with, find_source
from mtdnn_ds.train.preflight.init_checks import preflight

EXACT = ("step", "loss", "grad_norm", "task_examples")
STAGES = (0, 1, 2, 3)
FREEZING = {"train.freeze": "embeddings,encoder.layer.0,pooler"}
FROZEN = ("encoder.model.embeddings.", "encoder.model.encoder.layer.0.", "encoder.pooler.")


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    """A folder with data, recipe, DeepSpeed JSONs and finished runs of two ranks."""
    folder = tmp_path_factory.mktemp("init")
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=40, dev_rows=6)
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 40},
        "tasks": ["cola", "stsb", "rte"],
        "batch": {"examples_per_step": 8, "max_tokens_per_micro_batch": 160},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "train": {"steps": 4, "save_every": 2, "seed": 3},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for stage in STAGES:
        write_json(folder / f"zero{stage}.json", zero_config(stage))
    jobs = [job(folder, "source_2", 2), job(folder, "source_3", 3)]
    jobs += [job(folder, f"frozen_{stage}", stage, **FREEZING) for stage in STAGES]
    jobs += [job(folder, "second", 3, **second(folder))]
    run_jobs(jobs, folder, 2)
    return folder


def job(folder: Path, name: str, stage: int, resume: str = "none", **overrides: str) -> dict[str, Any]:
    return {
        "recipe": str(folder / "recipe.yaml"),
        "deepspeed_config": str(folder / f"zero{stage}.json"),
        "output_dir": str(folder / name),
        "overrides": overrides,
        "resume": resume,
    }


def second(folder: Path) -> dict[str, str]:
    return {"tasks": "rte,cola,mrpc", "init.run": str(folder / "source_2"), "train.freeze": "heads"}


def best(run: Path) -> dict[str, torch.Tensor]:
    """The only evaluation is after the last step, so these are the final weights."""
    return load_file(run / "best/average/model.safetensors")


def new_model(recipe: Recipe) -> MultiTaskNet:
    specs = resolve_tasks(recipe)
    return build_model(encoder_path=recipe.encoder.path, specs=specs, layout=head_layout(specs), seed=7)


def begun(
    run_files: Path, tasks: str, **overrides: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], str]:
    """A new model's weights before and after it begins with the source run, and what is said of it."""
    recipe = load_recipe(str(run_files / "recipe.yaml"), {"tasks": tasks, **overrides})
    model, source = new_model(recipe), find_source(recipe)
    assert source is not None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = begin_with(model, resolve_tasks(recipe), source)
    return before, model.state_dict(), said


# What is carried


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("checkpoint", ["latest", "step_4", "best/average", "best/rte"])
def test_encoder_and_matching_heads_are_those_of_the_run(
    run_files: Path, stage: int, checkpoint: str
) -> None:
    theirs = best(run_files / f"source_{stage}")
    before, after, said = begun(
        run_files,
        "rte,mrpc,cola",
        **{"init.run": str(run_files / f"source_{stage}"), "init.checkpoint": checkpoint},
    )
    encoder = [name for name in after if name.startswith("encoder.")]
    assert len(encoder) > 20 and all(torch.equal(after[name], theirs[name]) for name in encoder)
    # Columns there: cola 0 and 1, stsb 2, rte 3 and 4. Columns here: rte 0 and 1, mrpc 2 and 3, cola 4 and 5.
    for bank in ("heads.sequence.weight", "heads.sequence.bias"):
        assert torch.equal(after[bank][[0, 1, 4, 5]], theirs[bank][[3, 4, 0, 1]])
        assert torch.equal(after[bank][[2, 3]], before[bank][[2, 3]])
    assert said.endswith(
        ": encoder and pooler carried; heads of rte, cola carried; drawn from the seed: mrpc (no such "
        "task there)"
    )


@pytest.mark.distributed
def test_new_heads_where_they_are_wanted_or_do_not_match(run_files: Path) -> None:
    before, after, said = begun(
        run_files, "cola,rte", **{"init.run": str(run_files / "source_2"), "init.heads": "none"}
    )
    assert torch.equal(after["heads.sequence.weight"], before["heads.sequence.weight"])
    assert not torch.equal(after["encoder.pooler.dense.weight"], before["encoder.pooler.dense.weight"])
    assert said.endswith("all heads drawn from the seed (init.heads=none)")


@pytest.mark.distributed
def test_a_task_with_other_outputs_or_labels_gets_a_new_head(run_files: Path) -> None:
    rows = run_files / "rows.csv"
    rows.write_text("text,label\na,x\nb,y\nc,z\n")
    own = {
        "kind": "classification",
        "files": {"train": str(rows)},
        "text_columns": ["text"],
        "label_column": "label",
    }
    run = run_files / "source_2"
    said = []
    for there, here in ((["x", "y"], ["x", "y", "z"]), (["x", "y"], ["y", "x"]), (None, ["x", "y"])):
        recipes = []
        for labels in (there, here):
            recipe = yaml.safe_load((run_files / "recipe.yaml").read_text())
            numbers = {**own, "kind": "regression"} if labels is None else {**own, "labels": labels}
            recipes.append({**recipe, "tasks": {"own": numbers, "cola": {}}})
        theirs, ours = run_files / "theirs", run_files / "ours.yaml"
        theirs.mkdir(exist_ok=True)
        (theirs / "recipe.yaml").write_text(yaml.safe_dump(recipes[0]))
        shutil.copytree(run / "best", theirs / "best", dirs_exist_ok=True)
        ours.write_text(
            yaml.safe_dump({**recipes[1], "init": {"run": str(theirs), "checkpoint": "best/average"}})
        )
        loaded = load_recipe(str(ours), {})
        source = find_source(loaded)
        assert source is not None
        said.append(begin_with(new_model(loaded), resolve_tasks(loaded), source))
    reasons = ("2 outputs there and 3 here", "other labels there", "its loss is score there and class here")
    assert [text.split("; ")[1:] for text in said] == [
        ["heads of cola carried", f"drawn from the seed: own ({reason})"] for reason in reasons
    ]


def test_heads_with_parameters_per_term_are_carried_term_by_term(run_files: Path, tmp_path: Path) -> None:
    """SAN.

    There mrpc is term 0 with columns 0 and 1, rte term 1 with 2 and 3; here mnli is term 0, rte term 1, and
    mrpc has another head.
    """
    recipe = yaml.safe_load((run_files / "recipe.yaml").read_text())
    (tmp_path / "run/best/average").mkdir(parents=True)
    (tmp_path / "run/recipe.yaml").write_text(
        yaml.safe_dump({**recipe, "tasks": {"mrpc": {"head": "san"}, "rte": {"head": "san"}}})
    )
    written = load_recipe(str(tmp_path / "run/recipe.yaml"), {})
    assert list(written.tasks) == ["mrpc", "rte"]
    there = build_model(
        encoder_path=recipe["encoder"]["path"],
        specs=resolve_tasks(written),
        layout=head_layout(resolve_tasks(written)),
        seed=5,
    )
    save_file(there.state_dict(), tmp_path / "run/best/average/model.safetensors")
    init = {"run": str(tmp_path / "run"), "checkpoint": "best/average"}
    tasks = {"cola": {}, "mnli": {"head": "san"}, "mrpc": {}, "rte": {"head": "san"}}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump({**recipe, "tasks": tasks, "init": init}))
    ours = load_recipe(str(tmp_path / "ours.yaml"), {})
    model, source = new_model(ours), find_source(ours)
    assert source is not None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = begin_with(model, resolve_tasks(ours), source)
    theirs, after = there.state_dict(), model.state_dict()
    # Terms of the head here: mnli with columns 0 to 2, rte with 3 and 4.
    assert torch.equal(after["heads.san.classifier"][3:], theirs["heads.san.classifier"][2:])
    assert torch.equal(after["heads.san.classifier"][:3], before["heads.san.classifier"][:3])
    for bank in ("summary", "attention", "input_weight", "state_weight", "input_bias", "state_bias"):
        assert torch.equal(after[f"heads.san.{bank}"][1], theirs[f"heads.san.{bank}"][1])
        assert torch.equal(after[f"heads.san.{bank}"][0], before[f"heads.san.{bank}"][0])
    assert torch.equal(after["heads.sequence.weight"], before["heads.sequence.weight"])
    new = "cola (no such task there), mrpc (its loss is san there and class here), mnli (no such task there)"
    assert said.endswith(f"; heads of rte carried; drawn from the seed: {new}")


def test_a_task_begins_with_the_head_of_a_task_of_another_name(run_files: Path) -> None:
    """rte's and qnli's labels are equal; qnli takes rte's columns, 3 and 4 of the earlier run's bank."""
    changes = {"tasks": "qnli,cola", "init.run": str(run_files / "source_2"), "init.head_of": "{qnli: rte}"}
    ours = load_recipe(str(run_files / "recipe.yaml"), changes)
    model, source = new_model(ours), find_source(ours)
    assert source is not None
    said = begin_with(model, resolve_tasks(ours), source)
    assert torch.equal(
        model.heads["sequence"].weight.detach()[:2],
        best(run_files / "source_2")["heads.sequence.weight"][[3, 4]],
    )
    assert said.endswith("; heads of qnli, cola carried")


HEADS = {
    "no such task here": (
        {"init.head_of": "{qnil: rte}"},
        "init.head_of.qnil: there is no task 'qnil' in the run; did you mean 'qnli'?",
    ),
    "no such task there": (
        {"init.head_of": "{qnli: rts}"},
        "source_2 has no task 'rts'; did you mean 'rte'?",
    ),
    "other labels": (
        {"init.head_of": "{qnli: cola}"},
        "init.head_of.qnli=cola: kind, head and labels "
        "must be equal, and are ('classification', 'linear', ['unacceptable', 'acceptable']) there",
    ),
    "no heads at all": (
        {"init.head_of": "{qnli: rte}", "init.heads": "none"},
        "init.head_of: has no effect with init.heads=none; remove one of the two",
    ),
}


@pytest.mark.parametrize(("changes", "message"), HEADS.values(), ids=list(HEADS))
def test_heads_that_cannot_be_taken_are_refused(
    run_files: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        recipe = load_recipe(
            str(run_files / "recipe.yaml"),
            {"tasks": "qnli,cola", "init.run": str(run_files / "source_2"), **changes},
        )
        preflight(recipe, resolve_tasks(recipe), goes_on=False)
    assert message in str(raised.value)


def test_heads_of_the_users_own_are_carried_task_by_task() -> None:
    def heads(*outputs: int) -> CustomHeads:
        columns, first = {}, 0
        for term, number in enumerate(outputs):
            columns[term], first = range(first, first + number), first + number
        return CustomHeads(
            [torch.nn.Linear(4, number) for number in outputs],
            columns=columns,
            dropout_M=[0.0] * len(outputs),
        )

    def slot(index: int, outputs: int) -> _Slot:
        return _Slot(form="own", labels=(), num_outputs=outputs, first_column=0, index=index)

    theirs, ours = heads(2, 3), heads(3, 5)
    expected = {
        **ours.state_dict(),
        "of_tasks.0.weight": theirs.of_tasks[1].weight,
        "of_tasks.0.bias": theirs.of_tasks[1].bias,
    }
    carried = _carry(ours, theirs.state_dict(), [(slot(0, 3), slot(1, 3))])
    assert carried.keys() == expected.keys() and all(
        torch.equal(carried[name], expected[name]) for name in expected
    )


@pytest.mark.distributed
def test_a_run_begins_with_the_other_runs_weights(run_files: Path) -> None:
    """Its frozen heads are bit for bit what it began with; its encoder has trained on."""
    theirs, ours = best(run_files / "source_2"), best(run_files / "second")
    assert torch.equal(ours["heads.sequence.weight"][:4], theirs["heads.sequence.weight"][[3, 4, 0, 1]])
    assert not torch.equal(ours["encoder.pooler.dense.weight"], theirs["encoder.pooler.dense.weight"])
    assert yaml.safe_load((run_files / "second/recipe.yaml").read_text())["init"] == {
        "run": str(run_files / "source_2"),
        "checkpoint": "latest",
        "heads": "matching",
    }


@pytest.fixture(scope="module")
def resumed(run_files: Path) -> dict[str, str]:
    """Copies of two runs without their last checkpoint, gone on with; the run that one began with has moved
    away. What they said.
    """
    for name in ("second", "frozen_2"):
        shutil.copytree(run_files / name, run_files / f"resumed_{name}")
        shutil.rmtree(run_files / f"resumed_{name}/checkpoints/step_4")
    moved = {**second(run_files), "init.run": "moved/source_2"}
    jobs = [
        job(run_files, "resumed_second", 3, "auto", **moved),
        job(run_files, "resumed_frozen_2", 2, "auto", **FREEZING),
    ]
    return run_jobs(jobs, run_files, 2)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["second", "frozen_2"])
def test_a_resumed_run_does_not_begin_again(run_files: Path, resumed: dict[str, str], name: str) -> None:
    """It goes on from its own checkpoint, frozen parts and all, and gives the same losses."""
    said = resumed[f"resumed_{name}"]
    assert "resuming after step 2 of 4" in said and "starting from" not in said
    kept, expected = (
        [{key: line[key] for key in EXACT} for line in training_lines(run_files / run)]
        for run in (f"resumed_{name}", name)
    )
    assert kept == expected


# Freezing


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
def test_frozen_parts_stay_and_the_others_train(run_files: Path, tiny_encoder: Path, stage: int) -> None:
    pretrained, ours = load_file(tiny_encoder / "model.safetensors"), best(run_files / f"frozen_{stage}")
    encoder = {name: tensor for name, tensor in ours.items() if name.startswith("encoder.")}
    assert {name for name in encoder if name.startswith(FROZEN)} == {
        name
        for name in encoder
        if torch.equal(encoder[name], pretrained[name.removeprefix("encoder.").removeprefix("model.")])
    }
    assert any("layer.1." in name for name in encoder)
    assert training_lines(run_files / f"frozen_{stage}")[3]["loss"] == pytest.approx(
        training_lines(run_files / "frozen_0")[3]["loss"], rel=1e-4
    )


def test_parts_are_what_their_names_say(tiny_encoder: Path, run_files: Path) -> None:
    recipe = load_recipe(str(run_files / "recipe.yaml"), {})
    sizes = {}
    for part in (
        "embeddings",
        "encoder.layer.1",
        "encoder.layer.0-1",
        "encoder",
        "pooler",
        "heads",
        "heads.sequence",
    ):
        model = new_model(recipe)
        (note,) = freeze(model, [part])
        sizes[part] = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert note.startswith(f"train.freeze: {part}; ")
    assert all(name.startswith("encoder.model.embeddings.") for name in sizes["embeddings"])
    assert all(name.startswith("encoder.model.encoder.layer.1.") for name in sizes["encoder.layer.1"])
    assert sizes["encoder"] == sizes["embeddings"] | sizes["encoder.layer.0-1"]
    assert sizes["pooler"] == {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
    assert sizes["heads"] == sizes["heads.sequence"] == {"heads.sequence.weight", "heads.sequence.bias"}


# Refusals


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.freeze": "embedings"}, "train.freeze: unknown part 'embedings'; did you mean 'embeddings'?"),
        (
            {"train.freeze": "encoder.layer.1-5"},
            "train.freeze: encoder.layer.1-5: the encoder has 2 layers, encoder.layer.0 to encoder.layer.1",
        ),
        (
            {"train.freeze": "encoder.layer.1-0"},
            "train.freeze: encoder.layer.1-0: runs backwards; write the lower layer first",
        ),
        ({"train.freeze": "heads.tokens"}, "train.freeze: this run has no head 'tokens'; (known: sequence)"),
        ({"train.freeze": "pooler,pooler"}, "train.freeze: 'pooler' is named twice; name it once"),
        (
            {"train.freeze": "encoder,pooler,heads"},
            "train.freeze: encoder, pooler and heads are everything; leave something to train",
        ),
        (
            {"init.run": "PATH/none"},
            "init.run=PATH/none: not a run folder (recipe.yaml is missing); give "
            "the --output_dir of a training run",
        ),
        (
            {"init.checkpoint": "best/average"},
            "init.checkpoint=best/average: has no effect without init.run; remove it, or name",
        ),
        (
            {"init.run": "BASE/source_2", "init.checkpoint": "best/averge"},
            "init.checkpoint=best/averge: not in BASE/source_2; did you mean 'best/average'?",
        ),
        ({"init.run": "BASE/empty"}, "init.run=BASE/empty: it has no checkpoint yet; let it train first"),
        (
            {"init.run": "BASE/wide", "init.checkpoint": "best/average"},
            "init.run=BASE/wide: hidden_size is 48 there and 32 here; start from a run",
        ),
        (
            {"tasks.cola.sample_seed": "1"},
            "tasks.cola.sample_seed=1: has no effect without tasks.cola.train_fraction; remove it",
        ),
        ({"tasks.cola.train_fraction": "0"}, "--tasks.cola.train_fraction 0: must be above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_is_refused(
    run_files: Path, minilm: Path, overrides: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, encoder in (("empty", None), ("wide", run_files / "wide_encoder")):
        if not (run_files / name).exists():
            recipe = yaml.safe_load((run_files / "recipe.yaml").read_text())
            shutil.copytree(
                run_files / "source_2/best", run_files / name / ("best" if encoder else "not_best")
            )
            recipe["encoder"]["path"] = str(
                (encoder and write_tiny_encoder(encoder, minilm, hidden_size=48)) or recipe["encoder"]["path"]
            )
            (run_files / name / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    flags = [
        word
        for name, text in overrides.items()
        for word in (f"--{name}", text.replace("BASE", str(run_files)))
    ]
    assert (
        main(
            [
                "train",
                "--recipe",
                str(run_files / "recipe.yaml"),
                "--output_dir",
                str(run_files / "refused"),
                *flags,
            ]
        )
        == 2
    )
    assert message.replace("BASE", str(run_files)) in capsys.readouterr().err
    assert not (run_files / "refused").exists()


def test_weights_that_do_not_fit_are_refused_with_both_shapes(run_files: Path, tmp_path: Path) -> None:
    """The other run's encoder folder is gone, so that only its weights can tell."""
    recipe = yaml.safe_load((run_files / "recipe.yaml").read_text())
    recipe["encoder"]["path"] = str(tmp_path / "gone")
    shutil.copytree(run_files / "source_2/best", tmp_path / "run/best")
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(
        str(run_files / "recipe.yaml"), {"init.run": str(tmp_path / "run"), "init.checkpoint": "best/average"}
    )
    model = new_model(loaded)
    model.encoder.pooler.dense = torch.nn.Linear(32, 16)
    source = find_source(loaded)
    assert source is not None
    with pytest.raises(
        CheckpointError,
        match=r"encoder\.pooler\.dense\.bias is \(32,\) there and \(16,\) here; init needs a run with this",
    ):
        begin_with(model, resolve_tasks(loaded), source)


def test_a_model_of_which_nothing_is_left_to_train_is_refused(run_files: Path) -> None:
    model = new_model(load_recipe(str(run_files / "recipe.yaml"), {}))
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze(model, ["embeddings", "encoder.layer.0-1", "pooler", "heads"])


def test_a_changed_source_is_refused_and_a_moved_one_is_not(run_files: Path) -> None:
    from mtdnn_ds.runs.state import RunState, check_fit

    recipe = load_recipe(str(run_files / "recipe.yaml"), {"init.run": "runs/a"}).model_dump(mode="json")
    moved, changed = json.loads(json.dumps(recipe)), json.loads(json.dumps(recipe))
    moved["init"]["run"], changed["init"]["run"] = "elsewhere/a", "runs/b"

    class Plan:
        def step_of_state(self, state: dict[str, int]) -> int:
            return state["step"]

    place = {"world_size": 1, "zero_stage": 0, "precision": "fp32"}
    saved = {"recipe": recipe, "topology": place, "plan": {"step": 2}, "step": 2}
    check_fit("C", saved, RunState(step=0, recipe=moved, plan={}, topology=place), Plan())  # type: ignore[arg-type]
    with pytest.raises(
        CheckpointError, match=r"C: init\.run was 'runs/a' when it was saved and is 'runs/b' now"
    ):
        check_fit("C", saved, RunState(step=0, recipe=changed, plan={}, topology=place), Plan())  # type: ignore[arg-type]
