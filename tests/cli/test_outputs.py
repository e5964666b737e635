"""Outputs are never in the data."""

from pathlib import Path

import pytest
from toys import make_photos

from lit_distill.cli import main
from lit_distill.cli.outputs import beside

FIT = [
    *("fit", "--data=ImageFolderDataModule", "--data.root=.", "--data.image_size=16", "--data.batch_size=4"),
    *("--model.student=DistillableViT", "--model.student.patch_size=8", "--model.student.dim=16"),
    *("--model.student.depth=1", "--model.student.heads=1", "--model.student.mlp_dim=16"),
    *("--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    *("--trainer.enable_model_summary=false", "--data.num_workers=0"),
]


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        ([], "lightning_logs"),
        (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"], "logs/lightning_logs"),
        (["--trainer.logger=false", "--checkpoint.dirpath=kept"], "kept"),
    ],
)
def test_a_run_from_within_the_photos_writes_beside_them(flags, where: str, tmp_path, monkeypatch, capfd) -> None:
    make_photos(tmp_path / "photos", [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(6)])
    monkeypatch.chdir(tmp_path / "photos")
    main([*FIT, *flags])
    assert list((tmp_path / where).rglob("last.ckpt"))
    assert {path.name for path in Path().iterdir()} == {"cat", "dog", ".lit_distill"}
    assert f"note: outputs go to {tmp_path / Path(where).parts[0]}" in capfd.readouterr().err or not flags


def test_a_place_in_the_data_is_the_same_beside_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "photos/cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert beside("logs", "photos") == Path("logs")
    assert beside("photos/logs", "photos") == beside(tmp_path / "photos/logs", "photos/") == tmp_path / "logs"
    assert beside("photos", "photos") == tmp_path
    assert beside("logs", None) == beside("logs", "an_archive.zip") == Path("logs")
    monkeypatch.chdir(tmp_path / "photos/cat")
    assert beside("distilled/photos", "..") == tmp_path / "distilled/photos"
    assert beside(".", "..") == tmp_path
    assert beside("../logs", "..") == tmp_path / "logs"
