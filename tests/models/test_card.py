from lit_distill.models.card import without_places


def test_a_card_has_no_places() -> None:
    config = {
        "data": {"class_path": "lit_distill.datamodules.ImageFolderDataModule", "init_args": {"root": "my_photos"}},
        "model": {"teacher": {"init_args": {"model": "teacher.ckpt"}}, "optimizer": {"lr": 0.1}},
        "trainer": {"logger": {"save_dir": "logs"}, "default_root_dir": None, "x": ["a/b", "c\\d", "~e", "f"]},
    }
    assert without_places(config) == {
        "data": {"class_path": "lit_distill.datamodules.ImageFolderDataModule", "init_args": {}},
        "model": {"teacher": {"init_args": {}}, "optimizer": {"lr": 0.1}},
        "trainer": {"logger": {}, "default_root_dir": None, "x": ["f"]},
    }
