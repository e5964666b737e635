"""Rank the labels of a training set by what a run has remembered of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from lightning.pytorch import LightningDataModule
import torch
from torch import Tensor
from torch.utils.data import Subset

from lit_distill.callbacks.label_history import HistoryState, LabelHistory
from lit_distill.callbacks.memory import MemoryState, SoftLabelMemory
from lit_distill.datamodules.images import Files
from lit_distill.datamodules.indexed import identities_of
from lit_distill.datamodules.stacked import StackedImages, stack
from lit_distill.identity import match_rows
from lit_distill.models.card import ABOUT

_CHUNK = 1 << 22  # probabilities that are read at once
_EVER = 2**31 - 1  # an epoch after all others


class Remembered(NamedTuple):
    """What a run has remembered of its training set of N rows.

    Attributes:
        memory: The latest soft labels.
        history: The sums over the epochs.
        latest: Those of the latest epoch that is over, alone.
        labels: The class of each row in the run, ``(N,)``, -1 where it is not known.
        identities: What identifies each row, or None.
        class_names: Of the run, or nothing.
        notes: What the user is to know about it.
        are_averages: Whether the soft labels are moving averages that begin at the given label, as those of
            self-adaptive training are. They still rank the labels, but most wrong labels stay the likeliest class of
            theirs for many epochs, so the count of confident learning is far too small.
    """

    memory: SoftLabelMemory
    history: LabelHistory
    latest: LabelHistory
    labels: Tensor
    identities: Tensor | None
    class_names: list[str]
    notes: list[str]
    are_averages: bool = False

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], path: Path) -> "Remembered":
        """Return what a checkpoint has.

        Raises:
            ValueError: If it has no soft labels of classes, or too few of each row.
        """
        states = ((key, state) for key, state in checkpoint.get("callbacks", {}).items() if isinstance(state, dict))
        remembering = (item for item in states if {"rows", "epochs", "num_classes"} <= item[1].keys())
        callback, state = next(remembering, ("", None))
        if state is None:
            raise ValueError(
                f"{path} has no remembered soft labels: train with --retrospection.interval=5, which remembers them "
                "(distill does from 10 epochs on), and audit that run"
            )
        memory = SoftLabelMemory.from_state_dict(cast(MemoryState, state))
        names = [str(name) for name in (checkpoint.get(ABOUT) or {}).get("class_names") or ()]
        if "targets" not in state:
            raise ValueError(
                f"{path} has no labels beside its soft labels, as an older version wrote it: resume it for an epoch "
                "that remembers, and audit the checkpoint of that"
            )
        if memory.top_k == 1 < memory.num_classes:
            raise ValueError(
                f"{path} remembers one class of each soft label (top_k=1), which says nothing of a label that is "
                "another: train with top_k of 2 or more"
            )
        labels = torch.where(state["targets"] < memory.num_classes, state["targets"].long(), -1)
        history, notes = _history_of(state, memory, labels)
        if not history.counts.any():
            if (labels >= 0).any():
                raise ValueError(f"{path} cannot be audited: no epoch that remembers is over yet: train on")
            raise ValueError(
                f"{path} cannot be audited: its targets are no classes but probabilities, of which none is the label"
            )
        if memory.top_k < memory.num_classes:
            notes.append(
                f"the run remembers {memory.top_k} of {memory.num_classes} classes: a label outside of them counts "
                "with an even share of what they leave"
            )
        epoch_under_way = state.get("epoch", 0)
        over = [epoch for epoch in state["epochs"].unique().tolist() if epoch not in (0, epoch_under_way)]
        latest = _summed(memory, labels, over[-1:], state)
        are_averages = str(callback).startswith("SelfAdaptiveTraining")
        return cls(memory, history, latest, labels, state.get("identities"), names, notes, are_averages)


def _history_of(state: Mapping[str, Any], memory: SoftLabelMemory, labels: Tensor) -> tuple[LabelHistory, list[str]]:
    if "label_sums" in state:
        return LabelHistory.from_state_dict(cast(HistoryState, state)), []
    epochs = [epoch for epoch in state["epochs"].unique().tolist() if epoch > 0]
    return _summed(memory, labels, epochs, state), [
        "the checkpoint is of an older version, without sums over the epochs: ranked by the last two soft labels alone"
    ]


def _summed(memory: SoftLabelMemory, labels: Tensor, epochs: Sequence[int], state: Mapping[str, Any]) -> LabelHistory:
    history = LabelHistory(memory.num_samples)
    for epoch in epochs:
        history.add(memory, labels, epoch, state.get("temperature", 1.0))
    return history


class TrainingData(NamedTuple):
    """A training set of M rows, as its data module has it now.

    Attributes:
        dataset: Its samples; None if it is not at hand, and all else is what the run knows.
        num_rows: M.
        files: Name of each row's file, or nothing.
        labels: Class of each row, ``(M,)``, or None.
        class_names: What its classes are called, or nothing.
        identities: What identifies each row, or None.
    """

    dataset: Any
    num_rows: int
    files: Sequence[str]
    labels: Tensor | None
    class_names: list[str]
    identities: Tensor | None

    @classmethod
    def of(cls, data: LightningDataModule | None, num_rows: int) -> "TrainingData":
        """Return the training set of a data module, which is set up here; without one, ``num_rows`` unknown rows."""
        if data is None:
            return cls(None, num_rows, [], None, [], None)
        data.prepare_data()
        data.setup("fit")
        dataset = getattr(data, "train_set", None) or data.train_dataloader().dataset
        labels, files = _labels_of(dataset), getattr(dataset, "files", None)
        names = getattr(data, "class_names", None) or ()
        return cls(
            dataset,
            len(dataset),
            list(files) if isinstance(files, Files) else [],
            labels,
            [str(name) for name in names],
            identities_of(dataset),
        )


def _labels_of(dataset: Any) -> Tensor | None:
    if isinstance(dataset, Subset):
        whole = _labels_of(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    targets = getattr(dataset, "targets", None)
    if targets is None:
        stacked = stack(dataset)
        targets = stacked.targets if isinstance(stacked, StackedImages) else None
    return None if targets is None else torch.as_tensor(targets, dtype=torch.int64)


class Ranking(NamedTuple):
    """The labels of a training set, those first that are most probably wrong.

    Attributes:
        rows: Row of the training set of each label, ``(n,)``.
        given: Its class, ``(n,)``.
        suggested: The class that the latest soft label gives the most to beside it, ``(n,)``.
        probability: Mean remembered probability of the label, ``(n,)``.
        margin: Area under the margin, ``(n,)``.
        confident: Share of the epochs that were confident of another class, ``(n,)``.
        epochs: How many epochs that is, ``(n,)``.
        wrong: How many of the labels are wrong, as confident learning counts them: the lower and the upper one of its
            counts on the latest epoch and on all of them. Late, a network has learned some wrong labels by heart;
            early, it does not know the right ones. None if the soft labels are averages, which it cannot count on.
        left_out: Why rows are not ranked, and how many.
    """

    rows: Tensor
    given: Tensor
    suggested: Tensor
    probability: Tensor
    margin: Tensor
    confident: Tensor
    epochs: Tensor
    wrong: tuple[int, int] | None
    left_out: dict[str, int]

    @classmethod
    def of(cls, remembered: Remembered, data: TrainingData) -> "Ranking":
        """Rank the labels of the rows that are still what they were in the run.

        Raises:
            ValueError: If none of them is, or rows cannot be told from each other.
        """
        source, left_out = _sources(remembered, data)
        memory, history = remembered.memory, remembered.history.rearranged(source)
        labels = remembered.labels[source.clamp(min=0)].clamp(min=0)
        counted = history.counts > 0
        left_out["never remembered"] = int(((source >= 0) & ~counted).sum())
        left_out = {reason: number for reason, number in left_out.items() if number}
        if not counted.any():
            reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
            raise ValueError(f"no label is left to rank: {reasons}")
        counts = [round(sums.wrong_labels(labels)) for sums in (history, remembered.latest.rearranged(source))]
        rows = counted.nonzero().flatten()
        for score in (history.margin, history.probability):  # by probability; where that is equal, by margin
            rows = rows[score[rows].argsort(stable=True)]
        parts = torch.split(rows, max(1, _CHUNK // memory.num_classes))
        return cls(
            rows,
            labels[rows],
            torch.cat([_suggested(memory, source[part], labels[part]) for part in parts]),
            history.probability[rows],
            history.margin[rows],
            history.confident_share[rows],
            history.counts[rows],
            None if remembered.are_averages else (min(counts), max(counts)),
            left_out,
        )

    def table(self, class_names: Sequence[str], files: Sequence[str]) -> tuple[list[str], Iterator[list[object]]]:
        """Return the head and the rows of the table, best suspects first."""
        columns = (self.rows, self.given, self.suggested, self.probability, self.margin, self.confident, self.epochs)
        lines = enumerate(zip(*(column.tolist() for column in columns), strict=True), start=1)
        scores = ["probability", "margin", "confident", "epochs"]
        return ["rank", "index", *(["file"] if files else []), "given", "suggested", *scores], (
            [
                *(rank, row, *([files[row]] if files else [])),
                *(class_names[given], class_names[suggested]),
                *(f"{probability:.6f}", f"{margin:.4f}", f"{confident:.4f}", epochs),
            ]
            for rank, (row, given, suggested, probability, margin, confident, epochs) in lines
        )


def _suggested(memory: SoftLabelMemory, rows: Tensor, labels: Tensor) -> Tensor:
    soft_labels, _ = memory.read(rows, _EVER)
    return soft_labels.scatter(1, labels[:, None], -1).argmax(dim=1)


def _sources(remembered: Remembered, data: TrainingData) -> tuple[Tensor, dict[str, int]]:
    """Return the row that each sample had in the run, -1 for one that is not to be ranked, and how many these are."""
    before = remembered.memory.num_samples
    are_identified = remembered.identities is not None and data.identities is not None
    if are_identified:
        source = match_rows(cast(Tensor, remembered.identities), cast(Tensor, data.identities))
    elif data.num_rows == before:
        source = torch.arange(before)
    else:
        raise ValueError(
            f"the run remembers {before} samples and the training set has {data.num_rows}, which nothing identifies, "
            "as the names and contents of files would: audit with the data of the run"
        )
    there = source >= 0
    changed = there & _has_changed(remembered, data, source)
    source = torch.where(changed, -1, source)
    # Half of the labels differ by chance alone, where there is nothing else to tell two data sets apart.
    if not there.any() or (not are_identified and changed.sum() > before / 2):
        same = int((source >= 0).sum())
        raise ValueError(
            f"the run has remembered another data set: of the {data.num_rows} training samples, {same} "
            f"are among its {before} with the same label; give the data of the run, with --data.root"
        )
    left_out = {
        "new since the run": int((~there).sum()),
        "gone since the run": before - int(there.sum()),
        "labelled anew since the run": int(changed.sum()),
    }
    return source, left_out


def _has_changed(remembered: Remembered, data: TrainingData, source: Tensor) -> Tensor:
    """Tell which rows have another label than in the run, by its name, ``(M,)`` bool."""
    if data.labels is None:
        return torch.zeros_like(source, dtype=torch.bool)
    now = data.labels
    if remembered.class_names and data.class_names:
        numbers = {name: number for number, name in enumerate(remembered.class_names)}
        now = torch.tensor([numbers.get(name, -2) for name in data.class_names])[now]
    then = remembered.labels[source.clamp(min=0)]
    return (then >= 0) & (then != now)
