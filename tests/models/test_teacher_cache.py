"""A cached teacher answers what the one behind it did, and asks that one for all else."""

import gc
from pathlib import Path
import weakref

import pytest
import torch
from torch import Tensor, nn

from lit_distill import FrozenTeacher
from lit_distill.batch import Batch
from lit_distill.models.answer_rows import AnswerRows
from lit_distill.models.answers import Answers
from lit_distill.models.output import TeacherOutput
from lit_distill.models.output_rows import OutputRows
from lit_distill.models.teacher_base import Teacher
from lit_distill.models.teacher_cache import Source, TeacherCache

ROWS, CLASSES = 20, 4


def source(folder: Path, top_k: int | None = None, keyed: bool = True, kind: str = "train") -> Source:
    rows = OutputRows(AnswerRows(CLASSES, top_k))
    return Source(Answers(folder, kind, {"teacher": "a"}, ROWS, rows.stride, shard_rows=8), rows, keyed)


def cache() -> TeacherCache:
    torch.manual_seed(1)
    return TeacherCache(FrozenTeacher(nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES))))


def image_of(view: Tensor, index: Tensor) -> Tensor:
    return torch.sin(torch.stack([view, index, view * index, view + 3 * index], dim=1).float()).abs().view(-1, 1, 2, 2)


def batch(view: int, index: Tensor) -> Batch:
    views = torch.full_like(index, view)
    return Batch(image_of(views, index), torch.zeros_like(index), index, views)


def filled(folder: Path, views: range = range(2), **kwargs: object) -> tuple[TeacherCache, Source]:
    teacher, train = cache(), source(folder, **kwargs)
    for view in views:
        train.begin([view], torch.device("cpu"))
        with teacher.reading(train):
            for index in torch.randperm(ROWS).split(6):
                teacher(batch(view, index))
    train.flush()
    train.merge(views)
    return teacher, train


@pytest.mark.parametrize("top_k", [None, 2])
def test_warm_answers_are_those_given_while_filling(tmp_path, top_k: int | None) -> None:
    teacher, train = cache(), source(tmp_path, top_k)
    train.begin([1], torch.device("cpu"))
    index = torch.randperm(ROWS)
    with teacher.reading(train):
        first = teacher(batch(1, index)).logits
    train.flush()
    train.merge([1])
    train.begin([1], torch.device("cpu"))
    assert train.is_warm
    wrong_image = batch(1, index)._replace(image=torch.zeros(ROWS, 1, 2, 2))  # nobody looks at it
    with teacher.reading(train):
        assert torch.equal(teacher(wrong_image).logits, first)
    if top_k is None:
        assert torch.equal(first, teacher.asked(batch(1, index)).logits.half().float())


def test_several_views_at_once_are_told_apart(tmp_path) -> None:
    teacher, train = filled(tmp_path, range(4))
    train.begin([2, 3], torch.device("cpu"))
    index, view = torch.tensor([5, 5, 7, 19, 0]), torch.tensor([2, 3, 3, 2, 3])
    asked = Batch(image_of(view, index), torch.zeros_like(index), index, view)
    with teacher.reading(train):
        assert torch.equal(teacher(asked).logits, teacher.asked(asked).logits.half().float())


@pytest.mark.parametrize("view", [0, 3])
def test_another_view_than_those_begun_is_an_error_and_no_other_row(tmp_path, view: int) -> None:
    teacher, train = filled(tmp_path, range(4))
    train.begin([1, 2], torch.device("cpu"))
    with teacher.reading(train), pytest.raises((IndexError, RuntimeError)):
        teacher(batch(view, torch.arange(ROWS)))


def test_without_keys_or_source_the_live_teacher_answers(tmp_path) -> None:
    teacher, train = filled(tmp_path)
    plain = batch(0, torch.arange(3))
    assert torch.equal(teacher(plain).logits, teacher.asked(plain).logits)
    train.begin([0], torch.device("cpu"))
    with teacher.reading(train):
        for part in (plain._replace(view=None), plain._replace(index=None)):
            assert torch.equal(teacher(part).logits, teacher.asked(plain).logits)
    assert teacher.source is None
    with teacher.evaluating(0):
        assert teacher.source is None
    teacher.evaluated[0] = source(tmp_path, keyed=False, kind="val")
    with teacher.evaluating(0):
        assert teacher.source is teacher.evaluated[0]


def test_its_weights_leave_memory_until_it_is_asked(tmp_path) -> None:
    teacher, train = filled(tmp_path)
    plain = batch(0, torch.arange(ROWS))
    before = teacher(plain).logits
    train.begin([0], torch.device("cpu"))
    teacher.put_away(tmp_path)
    assert sum(part.numel() for part in teacher.parameters()) == 0
    with teacher.reading(train):
        assert torch.equal(teacher(plain).logits, before.half().float())
        assert teacher.is_away
    assert torch.equal(teacher(plain).logits, before)
    assert not teacher.is_away


class Pair(Teacher):
    """Two teachers with convolutions, which run as folded copies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = (
            FrozenTeacher(
                nn.Sequential(nn.Conv2d(1, 9, 1), nn.BatchNorm2d(9), nn.Conv2d(9, CLASSES, 2), nn.Flatten()).eval()
            )
            for _ in range(2)
        )
        self.num_classes = CLASSES

    def forward(self, batch: Batch) -> TeacherOutput:
        return TeacherOutput(self.first(batch).logits + self.second(batch).logits)


def test_the_copies_that_run_it_fast_leave_memory_too(tmp_path) -> None:
    pair = Pair()
    teacher, plain = TeacherCache(pair), batch(0, torch.arange(ROWS))
    before = teacher(plain).logits
    copies = [weakref.ref(part.fast_network._copy.network) for part in (pair.first, pair.second)]
    assert all(copy() is not part.model for copy, part in zip(copies, (pair.first, pair.second), strict=True))
    teacher.put_away(tmp_path)
    gc.collect()  # a network traced by torch.fx holds itself
    assert [copy() for copy in copies] == [None, None]
    assert torch.equal(teacher(plain).logits, before)


class Features(Teacher):
    def forward(self, batch: Batch) -> TeacherOutput:
        return TeacherOutput(None, {"pooled": batch.image.flatten(1)})


def test_a_teacher_without_logits_is_refused(tmp_path) -> None:
    teacher, train = TeacherCache(Features()), source(tmp_path)
    train.begin([0], torch.device("cpu"))
    with (
        teacher.reading(train),
        pytest.raises(ValueError, match="the teacher has no logits, and nothing else is cached"),
    ):
        teacher(batch(0, torch.arange(3)))
    with pytest.raises(RuntimeError, match="there are no answers to read"):
        train.read(batch(0, torch.arange(3)))


def test_it_speaks_for_the_teacher_behind_it() -> None:
    teacher = cache()
    assert teacher.network is teacher.asked.model
    assert teacher.num_classes == CLASSES
    assert teacher.notes() == teacher.asked.notes()
    assert teacher.extra_repr().endswith(", cached")
    assert not teacher.train().training
