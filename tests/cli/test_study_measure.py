"""What is measured of a run: the scores against other implementations, and the images that they are measured on."""

from pathlib import Path

import pytest
from sklearn.metrics import log_loss
import torch
from toys import make_photos

from lit_distill.cli.study_measure import RunSeconds, StudyImages, result_of, scores
from lit_distill.cli.study_stage import RunFailedError

DIGITS = "lit_distill.datamodules.DigitsDataModule"
FOLDER = "lit_distill.datamodules.ImageFolderDataModule"


def test_scores_are_those_of_other_implementations() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(200, 5, generator=generator, dtype=torch.float64).log_softmax(dim=1)
    target = torch.randint(5, (200,), generator=generator)
    found = scores(log_probs, target)
    right = log_probs.argmax(dim=1) == target
    assert found["accuracy"] == pytest.approx(right.double().mean().item())
    assert found["nll"] == pytest.approx(log_loss(target, log_probs.exp(), labels=range(5)))
    confidence = log_probs.exp().amax(dim=1)
    # A risk at every coverage, the most confident first.
    order = sorted(range(200), key=lambda row: -confidence[row].item())
    risks = [sum(not right[row] for row in order[:count]) / count for count in range(1, 201)]
    assert found["aurc"] == pytest.approx(sum(risks) / 200)
    bins = [((confidence > low / 15) & (confidence <= (low + 1) / 15)) for low in range(15)]
    gaps = [abs(confidence[b].mean() - right[b].double().mean()) * b.double().mean() for b in bins if b.any()]
    assert found["ece"] == pytest.approx(sum(gaps).item(), abs=1e-6)


def test_the_seconds_of_a_run_go_on_where_it_was_resumed() -> None:
    first, second = RunSeconds(), RunSeconds()
    first.load_state_dict({"seconds": 5.0})
    first.on_train_start(None, None)  # type: ignore[arg-type]
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["seconds"] == pytest.approx(5.0, abs=0.5)


@pytest.mark.parametrize("diverged", ["last", "best"])
def test_a_student_that_has_diverged_at_its_last_step_is_no_result(diverged: str, tmp_path, monkeypatch) -> None:
    images = StudyImages({"class_path": DIGITS, "init_args": {"val_fraction": 0.2}})
    paths = {name: tmp_path / f"{name}.ckpt" for name in ("last", "best")}
    callbacks = {
        "RunSummary": {"last": {"val/accuracy_distill": 0.5}, "best": {}},
        "BestCheckpoint{}": {"best_model_path": str(paths["best"])},
        "RunSeconds": {"seconds": 1.0},
    }
    state = {
        "callbacks": callbacks,
        "state_dict": {"student.w": torch.zeros(1)},
        "lit_distill_about": {"head": "distill"},
    }
    for path in paths.values():
        torch.save(state, path)
    values = {"accuracy": 0.1, "nll": 1.0}
    monkeypatch.setattr("lit_distill.cli.study_measure.measure", lambda *_: values)
    assert result_of(paths["last"], images, "cpu")["head"] == "distill"

    def measured(path: Path, *_: object) -> dict[str, float]:
        return values | {"nll": float("nan")} if path == paths[diverged] else values

    monkeypatch.setattr("lit_distill.cli.study_measure.measure", measured)
    with pytest.raises(RunFailedError, match=r"^the run has diverged at its last step, .*lower the learning rate"):
        result_of(paths["last"], images, "cpu")


def test_digits_are_held_out_only_with_validation_images_of_their_own() -> None:
    shared = StudyImages({"class_path": DIGITS})
    with_validation = StudyImages({"class_path": DIGITS, "init_args": {"val_fraction": 0.2}})
    assert (shared.is_held_out, with_validation.is_held_out) == (False, True)
    assert sum(len(target) for _, target in with_validation.batches()) == 360
    assert shared.digest() != with_validation.digest()


def test_another_photo_changes_the_digest_of_its_split_alone(tmp_path) -> None:
    names = [
        f"{split}/{kind}/{i}.png" for split in ("train", "val", "test") for kind in ("cat", "dog") for i in range(2)
    ]
    make_photos(tmp_path, names)
    description = {"class_path": FOLDER, "init_args": {"root": str(tmp_path), "image_size": 16, "num_workers": 0}}
    before = StudyImages(description)
    digests = before.digest(), before.test_digest()
    make_photos(tmp_path, ["test/cat/2.png"], seed=3)
    after = StudyImages(description)
    assert after.digest() == digests[0]
    assert after.test_digest() != digests[1]


def test_a_class_that_a_split_lacks_is_named(tmp_path) -> None:
    make_photos(tmp_path, [*(f"cat/{i}.png" for i in range(6)), "dog/0.png"])
    description = {"class_path": FOLDER, "init_args": {"root": str(tmp_path), "image_size": 16}}
    with pytest.raises(ValueError, match="class 'dog' has no image in the split 'val'"):
        StudyImages(description)
    assert Path(tmp_path, "dog/0.png").exists()


def test_test_images_are_decoded_once_and_read_without_processes(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    splits = ("train", "val", "test")
    make_photos(tmp_path, [f"{split}/{kind}/{i}.png" for split in splits for kind in "ab" for i in range(2)])
    arguments = {"root": str(tmp_path), "image_size": 8, "num_workers": 2}
    images = StudyImages({"class_path": FOLDER, "init_args": arguments})
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        images.digest(), images.test_digest()
        assert [len(target) for _, target in images.batches()] == [4]
    decoded = [record.getMessage() for record in caplog.records if record.getMessage().startswith("decoded")]
    assert [line.split(" into")[0] for line in decoded] == ["decoded 4 test images"]
    assert images.data.num_workers == 0
