"""The commands as a user types them, mostly in this process, on the digits."""

import csv
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from safetensors.torch import save_file
import timm
import torch
from toys import SMALL_DIGITS, make_photos
import yaml

from lit_distill import DigitsCNN, FrozenTeacher, LitDistiller, Teacher, TeacherOutput
from lit_distill.batch import Batch
from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.checkpoint import AtomicCheckpointIO
from lit_distill.cli import main
from lit_distill.datamodules import DigitsDataModule, ImageFolderDataModule

ROOT = Path(__file__).parents[2]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(*flags: str, epochs: int = 1, batches: int = 3, config: str = SMALL_DIGITS) -> Path:
    """Run a short fit and return its folder."""
    before = set(Path("logs").glob("*/version_*"))
    short = [f"--trainer.max_epochs={epochs}", f"--trainer.limit_train_batches={batches}"]
    main(["fit", "--config", config, *short, *flags])
    (folder,) = set(Path("logs").glob("*/version_*")) - before
    return folder


def load(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same_weights(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return ours["state_dict"].keys() == theirs["state_dict"].keys() and all(
        torch.equal(value, theirs["state_dict"][key]) for key, value in ours["state_dict"].items()
    )


class Plain(torch.nn.Module):
    """A student of somebody's own, without any of this project's arguments."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(image)
        return out


class Several(Teacher):
    """A teacher of somebody's own, with a list of networks."""

    def __init__(self, networks: list[torch.nn.Module]) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)
        self.num_classes = 10

    def forward(self, batch: Batch) -> TeacherOutput:
        return TeacherOutput(torch.stack([network(batch.image) for network in self.networks]).mean(dim=0))


def test_a_teacher_with_a_list_of_networks_comes_back_for_test(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "somebodys", sys.modules[__name__])
    monkeypatch.setattr(Several, "__module__", "somebodys")
    network = "{class_path: lit_distill.DigitsCNN, init_args: {pretrained: true}}"
    teacher = f"{{class_path: somebodys.Several, init_args: {{networks: [{network}, {network}]}}}}"
    Path("several.yaml").write_text(f"model: {{teacher: {teacher}}}")
    folder = fit("--config=several.yaml")
    assert "teacher: Several(classes=10)\n" in capsys.readouterr().out
    main(["test", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")])
    assert "test/teacher_accuracy" in capsys.readouterr().out


def test_a_student_need_not_take_num_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "somebodys", sys.modules[__name__])
    monkeypatch.setattr(Plain, "__module__", "somebodys")
    folder = fit("--model.student=somebodys.Plain", "--model.student.width=8")
    assert load(folder)["state_dict"]["student.net.1.weight"].shape == (8, 64)
    main(["test", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")])


def test_both_checkpoints_are_where_the_best_one_is_wanted() -> None:
    for name in ("a", "b"):
        main(["fit", "--config", SMALL_DIGITS, "--trainer.logger=false", f"--checkpoint.dirpath=mine/{name}"])
        best, last = sorted(path.name for path in Path("mine", name).iterdir())
        assert re.fullmatch(r"best-epoch=0-accuracy_mean_probs=0\.\d{4}\.ckpt", best)
        assert last == "last.ckpt"
    assert not Path("checkpoints").exists()


def test_a_fit_ends_with_a_table_and_the_places_of_its_files(digits_run: Any) -> None:
    folder, out = digits_run.folder, digits_run.out
    for row in (
        "teacher accuracy",
        "student accuracy, class head",
        "student accuracy, distillation head",
        "student accuracy, mean of logits",
        "student accuracy, mean of softmaxes",
        "agreement with the teacher",
        "negative log-likelihood",
        "expected calibration error",
    ):
        assert re.search(rf"^{row}.* +\d+\.\d+%? +\d+\.\d+%?(  predicts)?$", out, re.MULTILINE), row
    assert re.search(r"last epoch +best epoch", out)
    for place in ("checkpoints/last.ckpt", "checkpoints/best-epoch="):
        assert str(folder.relative_to(folder.parents[2]) / place) in out
    assert (folder / "config.yaml").is_file()
    assert (folder / "metrics.csv").is_file()
    assert load(folder)["epoch"] == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--model.distillation=SoftDistillation --model.distillation.temperature=3", "temperature=3.0"),
        ("--model.distillation=null", "None"),
        ("--model.criterion=torch.nn.CrossEntropyLoss --model.criterion.label_smoothing=0.1", "0.1"),
        ("--retrospection=null", "None"),
        ("--retrospection.interval=3", "3"),
        ("--model.teacher=null --model.distillation=null", "None"),
    ],
)
def test_every_choice_is_a_flag(flags: str, expected: str, monkeypatch) -> None:
    from lit_distill.cli.app import DistillCLI

    built: list[Any] = []
    monkeypatch.setattr(DistillCLI, "_run_subcommand", lambda cli, command: built.append(cli))
    main(["fit", "--config", SMALL_DIGITS, *flags.split()])
    (cli,) = built
    retrospection = next((c for c in cli.trainer.callbacks if type(c).__name__ == "LearningWithRetrospection"), None)
    shown = {
        "--model.distillation": cli.model.distillation,
        "--model.criterion": getattr(cli.model.criterion, "label_smoothing", None),
        "--retrospection": retrospection and retrospection.interval,
        "--model.teacher": cli.model.teacher,
    }[flags.partition("=")[0].replace(".interval", "")]
    assert expected in str(shown)


def test_the_family_and_the_compact_table_are_flags_too(capsys) -> None:
    from lit_distill.cli.app import DistillCLI

    built: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillCLI, "_run_subcommand", lambda cli, command: built.append(cli))
        flags = ["--retrospection.top_k=5", "--retrospection.dtype=float32"]
        main(["fit", "--config", "digits", *flags])
    (memory,) = (c for c in built[0].trainer.callbacks if isinstance(c, LearningWithRetrospection))
    assert (memory.top_k, memory.dtype) == (5, torch.float32)
    assert isinstance(built[0].trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    for name, flag in (("ProgressiveSelfDistillation", "alpha=0.5"), ("SelfAdaptiveTraining", "start=1")):
        more = ["--retrospection=null", f"--trainer.callbacks+={name}", f"--trainer.callbacks.{flag}"]
        states = load(fit(*more, epochs=2))["callbacks"]
        assert any(key.startswith(name) for key in states)
        assert not any(key.startswith("LearningWithRetrospection") for key in states)


def test_a_checkpoint_within_the_epoch_is_the_last_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[tuple[str, int]] = []
    save = AtomicCheckpointIO.save_checkpoint

    def spy(self: Any, checkpoint: dict[str, Any], path: Any, **kwargs: Any) -> None:
        saved.append((Path(path).name, checkpoint["global_step"]))
        save(self, checkpoint, path, **kwargs)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", spy)
    folder = fit("--checkpoint.every_n_train_steps=2", epochs=2, batches=5)
    assert [step for name, step in saved if name == "last.ckpt"] == [2, 4, 5, 6, 8, 10, 10]
    assert {step for name, step in saved if name.startswith("best")} <= {5, 10}  # when there is something to compare
    assert load(folder)["global_step"] == 10
    assert [file.name for file in (folder / "checkpoints").glob(".*")] == []


def test_two_processes_from_the_command_line(tmp_path) -> None:
    """Each of them runs the command; one of them speaks, and its progress bar reads values that only it computes."""
    flags = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--retrospection.interval=1"]
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", "digits", *flags]
    short = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=3"]
    done = subprocess.run([*command, *short], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.count("teacher: DigitsCNN") == done.stdout.count("student accuracy, class head") == 1
    (folder,) = Path("logs").glob("*/version_*")
    (memory,) = (v for k, v in load(folder)["callbacks"].items() if k.startswith("LearningWithRetrospection"))
    assert int((memory["epochs"] == 1).sum()) == 2 * 3 * 64
    assert "retrospection/unrecorded" in (folder / "metrics.csv").read_text()


def test_two_runs_with_one_seed_are_bit_identical_and_another_seed_is_not() -> None:
    first, second, other = load(fit()), load(fit()), load(fit("--seed_everything=7"))
    assert same_weights(first, second)
    assert not same_weights(first, other)


def test_test_and_predict_need_nothing_but_the_checkpoint(digits_run: Any, capsys) -> None:
    last = Path(shutil.copy(digits_run.last, "last.ckpt")).resolve()
    main(["test", "--ckpt_path", str(last)])
    tested = capsys.readouterr().out
    nll = re.search(r"negative log-likelihood \(nats\) +(\S+)", digits_run.out)[1]
    assert f"{float(re.search(r'test/nll +.*?([0-9.]+)', tested)[1]):.4f}" == nll
    assert "test/teacher_accuracy" in tested
    main(["validate", f"--ckpt_path={last}"])
    assert "val/agreement" in capsys.readouterr().out

    for name in ("predictions.csv", "predictions-1.csv"):  # nothing is overwritten
        main(["predict", "--ckpt_path", str(last)])
        assert f"wrote 360 predictions to {last.with_name(name)}" in capsys.readouterr().out
    rows = list(csv.DictReader(last.with_name("predictions.csv").read_text().splitlines()))
    assert len(rows) == 360
    assert sum(float(rows[5][f"p({k})"]) for k in range(10)) == pytest.approx(1, abs=1e-4)
    assert float(rows[5]["probability"]) == pytest.approx(max(float(rows[5][f"p({k})"]) for k in range(10)))
    main(["predict", "--ckpt_path", str(last), "--output", "mine.csv"])
    with pytest.raises(SystemExit):
        main(["predict", "--ckpt_path", str(last), "--output", "mine.csv"])
    assert "mine.csv exists and is not overwritten: choose another --output" in capsys.readouterr().err
    written = ["last.ckpt", "mine.csv", "predictions-1.csv", "predictions.csv"]
    assert sorted(path.name for path in Path().iterdir()) == written


def test_a_checkpoint_outlives_its_teachers_files(capsys) -> None:
    save_file(DigitsCNN(pretrained=True).state_dict(), "teacher.safetensors")
    folder = fit("--model.teacher.model.pretrained=false", "--model.teacher.weights=teacher.safetensors")
    last = folder / "checkpoints" / "last.ckpt"
    main(["test", "--ckpt_path", str(last)])
    with_teacher = capsys.readouterr().out
    Path("teacher.safetensors").unlink()
    for command in ("test", "validate", "predict"):
        main([command, "--ckpt_path", str(last)])
    out = capsys.readouterr().out
    without = "note: going on without the teacher, its accuracy and agreement: no weights file at teacher.safetensors"
    assert out.count(without) == 2
    assert "test/teacher_accuracy" in with_teacher
    assert "test/teacher_accuracy" not in out
    nll = r"test/nll +.*?([0-9.]+)"
    assert re.search(nll, out)[1] == re.search(nll, with_teacher)[1]
    Path("moved.safetensors").write_bytes(b"")
    save_file(DigitsCNN(pretrained=True).state_dict(), "moved.safetensors")
    main(["test", "--ckpt_path", str(last), "--model.teacher.weights=moved.safetensors"])
    assert "test/teacher_accuracy" in capsys.readouterr().out
    module = LitDistiller.load_from_checkpoint(last, weights_only=True)
    assert module.teacher is None
    assert module(torch.rand(2, 1, 8, 8)).distill_logits.shape == (2, 10)


def test_checkpoints_hold_no_teacher_and_only_plain_things(digits_run: Any) -> None:
    checkpoint = load(digits_run.folder)
    assert not [key for key in checkpoint["state_dict"] if "teacher" in key]
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {"student"}


def test_resuming_with_the_checkpoint_alone_equals_an_uninterrupted_run(capsys) -> None:
    whole = load(fit("--retrospection.interval=2", "--model.student.dropout=0.1", epochs=5))
    flags = ["--retrospection.interval=2", "--model.student.dropout=0.1", "--retrospection.max_epochs=5"]
    half = fit(*flags, "--model.scheduler.total_steps=15", epochs=2)
    capsys.readouterr()
    main(["fit", "--ckpt_path", str(half / "checkpoints" / "last.ckpt"), "--trainer.max_epochs=5"])
    assert capsys.readouterr().err == "note: trainer.max_epochs=5 replaces the checkpoint's 2\n"
    resumed = load(max(Path("logs").glob("*/version_*")))
    assert resumed["epoch"] == whole["epoch"] == 4
    assert same_weights(resumed, whole)
    memory = "LearningWithRetrospection{'criterion': 'criterion'}"
    for key in ("rows", "epochs"):
        assert torch.equal(resumed["callbacks"][memory][key], whole["callbacks"][memory][key])


def test_a_resumed_run_does_not_search_for_its_learning_rate_again(capsys) -> None:
    search = ["--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.num_training_steps=10"]
    began = fit(*search) / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    main(["fit", "--ckpt_path", str(began), "--trainer.max_epochs=2"])
    assert "note: LearningRateFinder does not search again: the checkpoint has the learning" in capsys.readouterr().err
    resumed, before = load(max(Path("logs").glob("*/version_*"))), torch.load(began, weights_only=True)
    assert (resumed["epoch"], resumed["global_step"]) == (1, 6)
    initial = [checkpoint["optimizer_states"][0]["param_groups"][0]["initial_lr"] for checkpoint in (resumed, before)]
    assert initial[0] == initial[1]


def test_a_flag_wins_over_the_checkpoint_and_a_line_says_so(capsys) -> None:
    last = fit("--model.distillation=SoftDistillation") / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    flags = ["--model.distillation.temperature=3", "--model.alpha=0.25", "--trainer.max_epochs=2"]
    main(["fit", "--ckpt_path", str(last), *flags])
    errors = capsys.readouterr().err.splitlines()
    assert sorted(errors) == [
        "note: model.alpha=0.25 replaces the checkpoint's 0.5",
        "note: model.distillation.temperature=3.0 replaces the checkpoint's 1.0",
        "note: trainer.max_epochs=2 replaces the checkpoint's 1",
    ]
    config = yaml.safe_load((max(Path("logs").glob("*/version_*")) / "config.yaml").read_text())
    assert config["model"]["distillation"]["init_args"]["temperature"] == 3.0
    main(["fit", "--ckpt_path", str(last), "--model.distillation=HardDistillation", "--trainer.max_epochs=2"])
    assert "HardDistillation replaces the checkpoint's" in capsys.readouterr().err


def test_an_optimizer_flag_that_a_resumed_optimizer_would_ignore_is_refused(digits_run: Any, capsys) -> None:
    resume = ["fit", "--ckpt_path", str(digits_run.last), "--trainer.max_epochs=3"]
    for flag in ("--model.optimizer.lr=0.5", "--model.scheduler.warmup=0.5"):
        with pytest.raises(SystemExit):
            main([*resume, flag])
        assert "but resuming restores the optimizer's state: leave it out" in capsys.readouterr().err
    main([*resume, "--model.scheduler.total_steps=99"])


def test_a_named_version_is_resumed_into_a_folder_of_its_own() -> None:
    main(["fit", "--config", SMALL_DIGITS, "--trainer.logger.version=mine"])
    folder = Path("logs/digits/mine")
    main(["fit", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), "--trainer.max_epochs=2"])
    assert {path.name for path in Path("logs/digits").iterdir()} == {"mine", "version_0"}


def test_a_checkpoint_that_does_not_fit_the_flags_is_refused_in_one_line(digits_run: Any, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path", str(digits_run.last), "--model.student.dim=32"])
    *notes, error = capsys.readouterr().err.splitlines()
    assert "note: model.student.dim=32 replaces the checkpoint's 16" in notes
    assert error.startswith("error: the checkpoint does not fit the model: size mismatch for student.cls_token")


def test_without_a_checkpoint_test_and_predict_say_that_nothing_was_trained(capsys) -> None:
    main(["test", "--config", SMALL_DIGITS])
    assert capsys.readouterr().err.startswith("note: without --ckpt_path the student is as its class makes it")


def test_without_validation_the_places_of_the_files_are_told(capsys) -> None:
    folder = fit("--trainer.limit_val_batches=0")
    out = capsys.readouterr().out
    assert "best epoch" not in out
    assert str(folder / "checkpoints" / "last.ckpt") in out


def interrupt(*flags: str) -> tuple[int, str, str]:
    """Start a long fit and send Ctrl-C once its first checkpoint is there."""
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", "digits", "--trainer.max_epochs=500", *flags]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs, this test's runner among them, with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while process.poll() is None and not list(Path("logs").rglob("last.ckpt")):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_prints_the_command_that_resumes() -> None:
    code, out, err = interrupt()
    assert code == 130
    assert err == ""
    (command,) = re.findall(r"python\S* \S+train.py (fit --ckpt_path \S+)", out)
    main([*command.split(), *QUIET, "--trainer.max_epochs=1"])  # loads; is already past its end


CONFIGS = sorted((ROOT / "configs").glob("digits*.yaml"))  # the others: test_recipes.py


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_takes_a_step_validates_and_reloads(config: Path) -> None:
    folder = fit(*QUIET, config=str(config), batches=1)
    main(["validate", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")])


def accuracies(out: str) -> dict[str, float]:
    rows = re.findall(r"^(.+?) +([0-9.]+)% +[0-9.]+%(?:  predicts)?$", out, re.MULTILINE)
    return {name.strip(): float(value) for name, value in rows}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_digits_config_runs_whole_and_reaches_its_accuracy_in_the_last_epoch(config: Path, capsys) -> None:
    main(["fit", "--config", str(config), *QUIET])
    reached = accuracies(capsys.readouterr().out)
    student = reached.get("student accuracy, mean of softmaxes", reached.get("student accuracy"))
    assert student >= 97.8
    assert reached.get("teacher accuracy", 100.0) >= 99.0
    if config.stem == "digits_teacher":  # makes a teacher as good as the shipped one
        data = DigitsDataModule(eval_batch_size=360)
        data.setup()
        image, target, _ = next(iter(data.val_dataloader()))
        shipped = FrozenTeacher(DigitsCNN(pretrained=True))(image).argmax(dim=1).eq(target).float().mean().item()
        assert student > 100 * shipped - 100 * 3 / 360  # another processor rounds otherwise, and ends a few images away


TINY = ["--model.student=DistillableViT", *(f"--model.student.{name}=8" for name in ("dim", "heads", "mlp_dim"))]
PHOTOS = ["--data=ImageFolderDataModule", "--data.root=photos", "--data.batch_size=8", "--trainer.max_epochs=1"]


def fit_on_photos(*flags: str) -> dict[str, Any]:
    """Run an epoch on made photos, and return what its checkpoint says of the student."""
    make_photos(Path("photos"), [f"{kind}/{i}.png" for kind in "abc" for i in range(5)])
    main(["fit", *PHOTOS, *QUIET, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", *flags])
    (folder,) = Path("logs").glob("*/version_*")
    student: dict[str, Any] = load(folder)["lit_distill_config"]["model"]["student"]["init_args"]
    return student


def test_the_student_has_its_size_and_normalisation_from_the_data() -> None:
    student = fit_on_photos("--data.image_size=16", *TINY, "--model.student.patch_size=8", "--model.student.depth=1")
    data = ImageFolderDataModule("photos", image_size=16)
    assert (student["image_size"], student["num_classes"]) == (16, 3)
    assert (student["mean"], student["std"]) == (data.mean, data.std)


def test_what_is_given_is_not_the_datas() -> None:
    given = ["--model.student.image_size=24", "--model.student.mean=[0.1,0.2,0.3]", "--model.student.std=[1,1,1]"]
    shape = ["--data.image_size=24", "--model.student.patch_size=8", "--model.student.depth=1"]
    student = fit_on_photos(*TINY, *given, *shape)
    assert (student["image_size"], student["mean"], student["std"]) == (24, [0.1, 0.2, 0.3], [1.0, 1.0, 1.0])


@pytest.mark.parametrize("weights", [False, True])
def test_a_network_that_begins_from_weights_keeps_their_normalisation(weights: bool) -> None:
    timm_student = ["--model.student=TimmStudent", "--model.student.name=resnet10t", "--model.student.img_size=16"]
    if weights:
        torch.save(timm.create_model("resnet10t").state_dict(), "weights.pt")
        timm_student.append("--model.student.weights=weights.pt")
    student = fit_on_photos("--data.image_size=16", *timm_student)
    assert student["mean"] == (None if weights else ImageFolderDataModule("photos", image_size=16).mean)


def test_a_printed_and_a_saved_configuration_are_the_run_again(capsys) -> None:
    given = ["--model.student.mean=[0.1,0.2,0.3]", "--model.student.std=[1,1,1]", "--data.image_size=16"]
    shape = [*TINY, "--model.student.patch_size=8", "--model.student.depth=1"]
    make_photos(Path("photos"), [f"{kind}/{i}.png" for kind in "abc" for i in range(5)])
    main_exits(["fit", *PHOTOS, *QUIET, *shape, *given, "--print_config"])
    Path("printed.yaml").write_text(capsys.readouterr().out)
    main(["fit", "--config=printed.yaml", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"])
    (first,) = Path("logs").glob("*/version_*")
    main(["fit", f"--config={first}/config.yaml", "--trainer.max_epochs=1"])
    (second,) = set(Path("logs").glob("*/version_*")) - {first}
    for run in (first, second):
        student = load(run)["lit_distill_config"]["model"]["student"]["init_args"]
        assert (student["mean"], student["image_size"], student["num_classes"]) == ([0.1, 0.2, 0.3], 16, 3)
    assert same_weights(load(first), load(second))


def main_exits(args: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(args)
    assert not end.value.code


def test_other_classes_than_were_learned_are_refused(capsys) -> None:
    fit_on_photos("--data.image_size=16", *TINY, "--model.student.patch_size=8", "--model.student.depth=1")
    (checkpoint,) = Path("logs").rglob("last.ckpt")
    make_photos(Path("others"), [f"{kind}/{i}.png" for kind in "abx" for i in range(5)])
    for command in ("predict", "test", "validate", "fit"):
        with pytest.raises(SystemExit):
            main([command, f"--ckpt_path={checkpoint}", "--data.root=others", "--trainer.max_epochs=2"])
        err = capsys.readouterr().err
        assert "knows other classes than the data has: only the student has c, only the data has x; for new" in err
    main(["fit", f"--ckpt_path={checkpoint}", "--data.root=photos", "--trainer.max_epochs=2"])


@pytest.mark.parametrize("flags", [["check_val_every_n_epoch=2"], ["val_check_interval=0.4"]], ids=str)
def test_the_best_checkpoint_is_validated_to_the_value_in_its_name_and_in_the_table(flags: list[str], capsys) -> None:
    folder = fit(*(f"--trainer.{flag}" for flag in flags), "--model.optimizer.lr=0.02", epochs=4, batches=5)
    table = capsys.readouterr().out
    (best,) = (folder / "checkpoints").glob("best-*.ckpt")
    named = best.stem.rpartition("=")[2]
    shown = re.search(r"mean of softmaxes +[\d.]+% +([\d.]+)%", table)[1]
    main(["validate", "--ckpt_path", str(best)])
    measured = float(re.search(r"val/accuracy_mean_probs +.*?([0-9.]+)", capsys.readouterr().out)[1])
    assert f"{measured:.4f}" == named
    assert f"{measured:.2%}" == f"{shown}%"
