"""Where two configurations differ."""

from lit_distill.cli.changes import Change, changes, map_leaves


def test_every_leaf_that_differs_is_named_once() -> None:
    old = {"model": {"alpha": 0.5, "sizes": (1, 2), "gone": 1}, "same": {}}
    new = {"model": {"alpha": 0.3, "sizes": [1, 2], "added": 2}, "same": {}}
    assert list(changes(old, new)) == [
        Change("model.alpha", 0.3, 0.5),
        Change("model.gone", None, 1),
        Change("model.added", 2, None),
    ]


def test_another_class_is_one_change_whatever_its_arguments() -> None:
    old = {"model": {"optimizer": {"class_path": "SGD", "init_args": {"lr": 1, "momentum": 0.9}}}}
    new = {"model": {"optimizer": {"class_path": "AdamW", "init_args": {"lr": 2}}}}
    (change,) = changes(old, new)
    assert (change.flag, change.new, change.old) == ("model.optimizer", "AdamW", "SGD")


def test_an_argument_of_a_class_is_called_as_on_the_command_line() -> None:
    old, new = ({"data": {"class_path": "A", "init_args": {"root": root}}} for root in ("a", "b"))
    (change,) = changes(old, new)
    assert change.flag == "data.root"


def test_leaves_are_mapped_at_any_depth() -> None:
    assert map_leaves({"a": ["x", ("y", None)], "b": {}}, lambda leaf: f"<{leaf}>") == {
        "a": ["<x>", ["<y>", "<None>"]],
        "b": {},
    }
