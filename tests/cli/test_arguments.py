"""Arguments before they are parsed: recipes by name, flags that may be repeated, folders named in several ways."""

from pathlib import Path

import pytest

from lit_distill.cli.arguments import one_trust, take, with_class_names, with_recipes
from lit_distill.cli.distill import _with_named_folder


def test_a_flag_is_taken_in_both_forms_and_the_others_keep_their_order() -> None:
    args = ["test", "--ckpt_path", "a.ckpt", "--x=1", "-v", "--ckpt_path=b.ckpt", "word"]
    values, others = take(args, "--ckpt_path")
    assert values.ckpt_path == ["a.ckpt", "b.ckpt"]
    assert others == ["test", "--x=1", "-v", "word"]


def test_packages_to_trust_are_named_one_by_one_or_as_a_list() -> None:
    assert one_trust(["test", "--trust=a", "--trust", "['b', 'c']"]) == ["test", '--trust=["a", "b", "c"]']
    assert one_trust(["test", "--alpha=1"]) == ["test", "--alpha=1"]


@pytest.mark.parametrize("name", ["digits", "digits.yaml", "configs/digits.yaml", "./digits"])
@pytest.mark.parametrize("flag", ["--config", "-c"])
def test_a_recipe_is_found_by_its_name(flag: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    joined, parted = with_recipes(["fit", f"{flag}={name}"]), with_recipes(["fit", flag, name, "--model.alpha=1"])
    assert joined[1] == f"{flag}={parted[2]}"
    assert parted == ["fit", flag, parted[2], "--model.alpha=1"]
    assert Path(parted[2]).name == "digits.yaml"
    assert Path(parted[2]).is_file()


def test_a_file_is_no_recipe_and_neither_is_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").touch()
    for args in (["--config", "digits.yaml"], ["--config={model: {}}"], ["--config=other/folder/digits.yaml"], []):
        assert with_recipes(args) == args
    with pytest.raises(ValueError, match="no configuration file digit, and no recipe of that name: did you mean 'digi"):
        with_recipes(["fit", "--config=digit"])


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["photos"], ["--data.root=photos"]),
        (["--epochs=3", "photos"], ["--epochs=3", "--data.root=photos"]),
        (["--epochs", "3", "photos"], ["--epochs", "3", "--data.root=photos"]),
        (["--epochs", "3"], ["--epochs", "3"]),
        (["--root", "my photos", "--onnx=true"], ["--data.root", "my photos", "--onnx=true"]),
        (["--root=photos"], ["--data.root=photos"]),
        ([], []),
    ],
)
def test_a_word_alone_is_the_folder(args: list[str], expected: list[str]) -> None:
    assert _with_named_folder(args) == expected


def test_a_folder_that_is_given_as_the_data_is_its_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    assert _with_named_folder(["--data", "photos"]) == ["--data.root", "photos"]
    assert _with_named_folder(["--data=photos"]) == ["--data.root=photos"]
    assert _with_named_folder(["--data=CIFAR10DataModule"]) == ["--data=CIFAR10DataModule"]


def test_a_class_name_of_the_teacher_is_a_class_unless_it_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flag = "--model.teacher.model"
    assert with_class_names([flag, "DigitsCNN"]) == [flag, '{"class_path": "DigitsCNN"}']
    for name in ("resnet18", "a.B", "Export"):
        Path("Export").mkdir(exist_ok=True)
        assert with_class_names([f"{flag}={name}", "--x=Y"]) == [f"{flag}={name}", "--x=Y"]
