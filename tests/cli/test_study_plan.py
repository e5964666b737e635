"""The file of a study: its rows by short names, and what is wrong with it in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_distill.cli.study_plan import LOSSES, Plan, find_study, read_plan, with_seed

BASE = {"base": "digits", "epochs": 20, "seeds": 2}
TEACHER = {"base": "digits_teacher", "epochs": 1}


def plan_of(tmp_path: Path, rows: Any, *flags: str, **study: Any) -> Plan:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(BASE | {"rows": rows} | study, sort_keys=False))
    return read_plan(path, {}, flags)


def test_short_names_are_losses_with_and_without_lwr(tmp_path) -> None:
    names = [name for name in LOSSES if name != "LWR"]
    both = [f"{name} + LWR" for name in names if name not in ("PS-KD", "SAT")]
    plan = plan_of(tmp_path, [*names, *both])
    assert plan.baseline == ["cross-entropy"]
    assert plan.seeds == [0, 1]
    for name, run in plan.rows.items():
        is_taught = name.split(" +")[0] in ("hard", "soft", "DKD", "DIST", "logit standardisation")
        assert (run.config["model"]["distillation"] is not None) is is_taught
        assert (run.config["model"]["teacher"] is not None) is is_taught
        assert (run.config["retrospection"] is not None) is name.endswith("LWR")
    assert plan.rows["label smoothing"].config["model"]["criterion"]["init_args"] == {"label_smoothing": 0.1}
    assert '"start": 6' in " ".join(plan.rows["SAT"].flags)
    lwr = plan_of(tmp_path, ["LWR"]).rows["LWR"].config
    assert lwr == plan.rows["cross-entropy + LWR"].config


def test_a_row_changes_what_it_names_and_what_all_rows_have_comes_first(tmp_path) -> None:
    rows = {"mine": {"loss": "Soft+lwr", "model.distillation.temperature": 2, "model.student.depth": 1}}
    plan = plan_of(tmp_path, rows, "--data.batch_size=8", set={"data.split_seed": "{seed}"})
    run = with_seed(plan.rows["mine"], 7)
    flags = ["--data.split_seed=7", "--data.batch_size=8", "--model.distillation.temperature=2"]
    assert run.flags == [*flags, "--model.student.depth=1"]
    assert run.config["seed_everything"] == 7
    assert run.config["model"]["distillation"]["class_path"].endswith("SoftDistillation")


def test_the_order_of_options_changes_no_run(tmp_path) -> None:
    options = {"model.optimizer.lr": 0.1, "model.optimizer": "torch.optim.SGD", "model.alpha": 0.3}
    one, other = (
        plan_of(tmp_path, {"soft": chosen}, set=chosen).rows["soft"]
        for chosen in (options, dict(reversed(options.items())))
    )
    assert one == other
    assert one.flags[-2:] == ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"]


def test_the_trainer_of_the_base_becomes_flags_without_its_budget_and_logger(tmp_path) -> None:
    trainer = {"max_epochs": 99, "precision": "bf16-mixed", "logger": False}
    base = {"model": {"student": "DigitsCNN"}, "data": "DigitsDataModule", "trainer": trainer}
    plan = plan_of(tmp_path, ["cross-entropy"], base=base)
    assert plan.rows["cross-entropy"].flags == ["--trainer.precision=bf16-mixed"]
    assert plan.epochs == 20


def test_a_teacher_of_the_study_is_the_first_unless_a_row_names_another(tmp_path) -> None:
    teachers = {"small": {"base": "digits_teacher", "epochs": 1}, "large": {"base": "digits_teacher", "epochs": 2}}
    rows = {"soft": {}, "soft, large": {"loss": "soft", "teacher": "large"}, "cross-entropy": {"teacher": "large"}}
    plan = plan_of(tmp_path, rows, teachers=teachers)
    assert [plan.rows[name].teacher for name in rows] == ["small", "large", None]
    assert plan.rows["soft"].config["model"]["teacher"]["init_args"]["model"] == "<teacher small>"
    assert [*plan.teachers] == ["small", "large"]
    assert not plan_of(tmp_path, ["cross-entropy"], teachers=teachers).teachers
    with pytest.raises(ValueError, match="row 'soft' has no such teacher: did you mean 'large'"):
        plan_of(tmp_path, {"soft": {"teacher": "lrge"}}, teachers=teachers)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["soft", "sofft"], "unknown loss 'sofft': did you mean 'soft'"),
        (["cross entropi"], "did you mean 'cross-entropy'"),
        (["logit standardizatoin"], "did you mean 'logit standardisation'"),
        (["zzz"], "unknown loss 'zzz': expected 'cross-entropy'"),
        (["hard + soft"], "expected one loss, and perhaps"),
        (["SAT + LWR"], "SAT and LWR both replace the criterion"),
        (["soft", "soft"], "rows: 'soft' is there twice: remove one"),
        (
            {"warm": {"model.alpha": 1}},
            "row 'warm' has an unknown loss 'warm': .*any other name says its loss, such as loss: soft",
        ),
        (["soft", {"warm": {"loss": "soft"}}], r"rows with options are no list but .* rows: \{warm: \{loss: soft, "),
        ({1: {"loss": "soft"}, "1": {"loss": "hard"}}, "rows: '1' is there twice: remove one"),
        ("soft", "rows must be a mapping of names to values, got 'soft'"),
        ({"soft": 5}, "row 'soft' must be a mapping of names to values, got 5"),
        ({"soft": ["a"]}, r"row 'soft' must be a mapping of names to values, got \['a'\]"),
        ({"soft": {1: 2}}, "row 'soft' has an unknown key '1': expected loss"),
        (["LWR", "cross-entropy + LWR"], "rows 'LWR' and 'cross-entropy \\+ LWR' are the same run"),
        ({"a": {"loss": "soft"}, "b": {"loss": "soft"}}, "rows 'a' and 'b' are the same run"),
        ([], "there are no rows"),
        ({"soft": {"trainer.max_epochs": 3}}, "all rows have the same budget"),
        ({"soft": {"lose": "hard"}}, "unknown key 'lose': did you mean 'loss'"),
        ({"mine": {"lose": "hard"}}, "row 'mine' has an unknown key 'lose': did you mean 'loss'"),
        ({"soft": {"model.alpha=0.5": 1}}, "unknown key"),
    ],
)
def test_what_is_wrong_with_rows_is_said(rows: Any, message: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        plan_of(tmp_path, rows)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"seeds": [1, 1]}, "seeds has one twice"),
        ({"seeds": 0}, "seeds must be a whole number >= 1, got 0"),
        ({"seeds": []}, "seeds has none: give a list of whole numbers, or how many"),
        ({"seeds": 2.5}, "seeds must be a whole number >= 1, got 2.5"),
        ({"seeds": "3"}, "seeds must be a whole number >= 1, got '3'"),
        ({"seeds": ["a"]}, "seeds must be a whole number >= 0, got 'a'"),
        ({"seeds": [-1]}, "seeds must be a whole number >= 0, got -1"),
        ({"epochs": "2"}, "epochs must be a whole number >= 1, got '2'"),
        ({"epochs": True}, "epochs must be a whole number >= 1, got True"),
        ({"set": ["a"]}, r"set must be a mapping of names to values, got \['a'\]"),
        ({"set": {"trainer.max_epochs": 7}}, "set sets trainer.max_epochs: all rows have .*: use epochs"),
        ({"set": {"trainer.min_steps": 7}}, "set sets trainer.min_steps: all rows have .*: use epochs"),
        ({"epochs": None}, "has no epochs"),
        ({"epoch": 3}, "unknown key 'epoch': did you mean 'epochs'"),
        ({"baseline": "softt"}, "baseline: 'softt' is no row: did you mean 'soft'"),
        ({"choose": ["softt"]}, "choose: 'softt' is no row: did you mean 'soft'"),
        ({"choose": []}, "choose has no row: name one, or several to choose the baseline from"),
        ({"choose": ["soft", "soft"]}, "choose: 'soft' is there twice"),
        ({"choose": {"soft": 1}}, "choose: .* is no row"),
        ({"choose": ["soft"], "baseline": "soft"}, "there are baseline and choose"),
        ({"base": "digitz"}, "no recipe of that name: did you mean 'digits'"),
        ({"base": 3}, "base must be a recipe"),
        ({"base": {"model": {}, "data": "DigitsDataModule"}}, "row 'soft' needs a teacher"),
        ({"base": {"model": 3}}, "model of base must be a mapping of names to values, got 3"),
        ({"base": {"trainer": "gpu"}}, "trainer of base must be a mapping of names to values, got 'gpu'"),
        ({"base": {"trainer": {"max_steps": 9}}}, "base sets trainer.max_steps: all rows have .*: use epochs"),
        ({"extends": "digitz"}, "no file digitz, and no study of that name: did you mean 'digits'"),
        ({"teachers": {"x": {"epochs": 3}}}, "teacher 'x' has no base"),
        ({"teachers": ["x"]}, r"teachers must be a mapping of names to values, got \['x'\]"),
        ({"teachers": {"x": TEACHER | {"epochs": "3"}}}, "epochs of teacher 'x' must be a whole number >= 1, got '3'"),
        ({"teachers": {"x": TEACHER | {"seed": 0.5}}}, "seed of teacher 'x' must be a whole number >= 0, got 0.5"),
        ({"teachers": {"x": TEACHER | {"set": ["a"]}}}, "set of teacher 'x' must be a mapping"),
        (
            {"teachers": {"x": TEACHER | {"set": {"trainer.max_epochs": 1}}}},
            "set of teacher 'x' sets trainer.max_epochs",
        ),
    ],
)
def test_what_is_wrong_with_a_study_is_said(study: Any, message: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        plan_of(tmp_path, ["soft"], **study)
    assert "\n" not in str(error.value)


def test_flags_set_no_budget_but_may_shorten_the_epochs_of_all_rows(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"--trainer.max_epochs=3 changes the budget of the runs.*: use --epochs"):
        plan_of(tmp_path, ["soft"], "--trainer.max_epochs=3")
    short = "--trainer.limit_train_batches=2"
    assert short in plan_of(tmp_path, ["soft"], short).rows["soft"].flags


def test_a_study_of_the_package_is_extended_by_its_name(tmp_path) -> None:
    (tmp_path / "study.yaml").write_text("extends: digits\nepochs: 3\n")
    plan = read_plan(tmp_path / "study.yaml", {})
    assert (plan.epochs, len(plan.seeds)) == (3, 10)


def test_the_teacher_of_the_base_may_be_a_name(tmp_path) -> None:
    base = {"model": {"student": "DigitsCNN", "teacher": "lit_distill.FrozenTeacher"}, "data": "DigitsDataModule"}
    plan = plan_of(tmp_path, ["soft"], base=base, teachers={"x": TEACHER})
    arguments = {"init_args": {"model": "<teacher x>"}}
    assert plan.rows["soft"].config["model"]["teacher"] == {"class_path": "lit_distill.FrozenTeacher"} | arguments


def test_a_study_that_names_its_baseline_does_not_choose_as_the_one_that_it_extends(tmp_path) -> None:
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(BASE | {"rows": ["SAT", "soft"], "choose": ["SAT", "soft"]}))
    (tmp_path / "second.yaml").write_text(yaml.safe_dump({"extends": "first.yaml", "baseline": "soft"}))
    (tmp_path / "third.yaml").write_text(yaml.safe_dump({"extends": "fourth.yaml", "seeds": 1}))
    (tmp_path / "fourth.yaml").write_text(yaml.safe_dump({"extends": "first.yaml", "seeds": 5}))
    plans = [read_plan(tmp_path / f"{name}.yaml", {}) for name in ("first", "second", "third")]
    assert [plan.baseline for plan in plans] == [["SAT", "soft"], ["soft"], ["SAT", "soft"]]
    assert [plan.chooses_first for plan in plans] == [True, False, True]
    assert plans[2].seeds == [0]
    (tmp_path / "first.yaml").write_text(yaml.safe_dump({"extends": "third.yaml"}))
    with pytest.raises(ValueError, match=r"first.yaml extends .*third.yaml, which extends it"):
        read_plan(tmp_path / "third.yaml", {})


def test_a_row_that_stands_twice_is_refused_where_yaml_would_keep_the_last(tmp_path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("base: digits\nepochs: 1\nseeds: 1\nrows:\n  soft: {}\n  soft: {model.alpha: 0.1}\n")
    with pytest.raises(ValueError, match="'soft' is there twice"):
        read_plan(path, {})
    path.write_text("rows: [")
    with pytest.raises(ValueError, match=r'cannot be read.*in ".*study\.yaml", line 1'):
        read_plan(path, {})


def test_the_packages_studies_are_found_by_name_and_can_be_read() -> None:
    names = sorted(path.stem for path in find_study("cifar10").parent.glob("*.yaml"))
    assert names[:4] == ["cifar10", "cifar10_few", "cifar10_long", "cifar10_losses"]
    for name in names:
        plan = read_plan(find_study(name), {})
        assert set(plan.baseline) <= set(plan.rows)
    assert len(read_plan(find_study("digits"), {}).seeds) == 10
    wrong = read_plan(find_study("cifar10_wrong40"), {})
    assert all("--data.wrong_labels=0.4" in run.flags for run in wrong.rows.values())
    assert "--data.wrong_labels=0.4" not in wrong.teachers["ResNet-10"].run.flags
    assert wrong.seeds == [0, 1, 2]
    fewer = read_plan(find_study("cifar10_wrong20"), {})
    assert fewer.rows["SAT"].flags == [flag.replace("=0.4", "=0.2") for flag in wrong.rows["SAT"].flags]
    pretrained, mixed = (read_plan(find_study(name), {}) for name in ("cifar10_pretrained", "cifar10_mixed"))
    shared = pretrained.rows.keys() & mixed.rows.keys()
    assert shared == {"cross-entropy", "cross-entropy, mixed"}
    assert all(pretrained.rows[name] == mixed.rows[name] for name in shared)  # so they may share a folder of runs
    assert {run.teacher for run in pretrained.rows.values()} == {None, *pretrained.teachers}
    live = mixed.rows["soft, mixed"].flags
    assert pretrained.rows["soft, mixed, pretrained"].flags == [flag.replace("=120", "=40") for flag in live]
    views = read_plan(find_study("cifar10_views"), {}).rows
    assert views["soft, mixed"] == mixed.rows["soft, mixed"]
    assert [run.flags for run in list(views.values())[1:5]] == [
        [flag.replace("=120", f"={count}") for flag in live] for count in (40, 30, 10, 3)
    ]
    assert mixed.teachers == read_plan(find_study("cifar10"), {}).teachers
    few = read_plan(find_study("cifar10_few"), {})
    for run in (*few.rows.values(), few.teachers["ResNet-10"].run):
        assert {"--data.train_per_class=100", "--trainer.check_val_every_n_epoch=4"} <= set(run.flags)
    with pytest.raises(ValueError, match="no study of that name: did you mean 'digits'"):
        find_study("digit")
    with pytest.raises(ValueError, match=r"no file flowers/it\.yaml, and no study of that name: there are cifar10, "):
        find_study("flowers/it.yaml")


def test_rows_may_be_merged_and_a_runs_own_configuration_is_a_base(tmp_path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "base:\n  model: {student: {class_path: lit_distill.DistillableViT}}\n"
        "  trainer: {max_steps: -1, min_epochs: null}\n"
        "epochs: 1\nseeds: 1\nrows:\n  one: &one {loss: cross-entropy, model.alpha: 0.1, model.head: class}\n"
        "  two: &two {<<: *one, model.alpha: 0.2}\n  three: {<<: *two, model.head: distill}\n"
    )
    rows = read_plan(path, {}).rows
    assert [run.flags[-2:] for run in rows.values()] == [
        ["--model.alpha=0.1", "--model.head=class"],
        ["--model.alpha=0.2", "--model.head=class"],
        ["--model.alpha=0.2", "--model.head=distill"],
    ]
