from typing import Any, Literal

import pytest

from lit_distill.checks import check_at_least, check_choice, check_fraction, check_inside, check_positive, did_you_mean

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (lambda v: check_at_least(1, x=v), [1, 2.5, None], [0, 0.99, -INF, INF, NAN]),
        (lambda v: check_positive(x=v), [1e-9, 3], [0, -1, INF, NAN]),
        (lambda v: check_inside(0, 1, x=v), [1e-9, 0.5, None], [0, 1, INF, NAN]),
        (lambda v: check_fraction(x=v), [0, 0.5, 1], [-0.1, 1.1, INF, NAN]),
        (lambda v: check_choice(Literal["a", "b", None], x=v), ["a", "b", None], ["c", "", 1]),
        (lambda v: check_choice({"a": 1}, x=v), ["a"], ["b"]),
    ],
)
def test_a_value_passes_or_is_named(check: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check(value)
    for value in bad:
        with pytest.raises(ValueError, match=r"^x must be .*, got "):
            check(value)


def test_the_nearest_names_are_offered() -> None:
    assert did_you_mean("resnet5", ["resnet50", "vit", "resnet18"], count=2) == "did you mean 'resnet50' or 'resnet18'?"
    assert did_you_mean("zzz", ["resnet50"]) == ""
    assert did_you_mean("zzz", ["resnet50"], cutoff=0.0) == "did you mean 'resnet50'?"
