"""The file of a study: which losses, seeds, data and teachers, and what each of its runs is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import copy
from importlib.resources import files
import json
from pathlib import Path
import re
from typing import Any, NamedTuple

import yaml

from lit_distill.checks import check_whole, did_you_mean, listed
from lit_distill.cli.arguments import with_recipes
from lit_distill.cli.changes import as_list

Description = dict[str, Any]

_LWR = "lit_distill.callbacks.LearningWithRetrospection"
_MEMORY = ("PS-KD", "SAT")  # they replace the criterion's value, as LWR does
_OF_STUDY = ("extends", "base", "epochs", "seeds", "rows", "baseline", "choose", "set", "teachers")
_OF_BASELINE = {"baseline", "choose"}
_OF_TEACHER = ("base", "epochs", "seed", "set")
# What a row may not choose, since all rows have the same budget, and what a run's folder depends on.
_FIXED = re.compile(r"trainer\.(max_\w+|min_\w+|limit_\w+|logger|overfit_batches|fast_dev_run)|seed_everything")
# What nobody may choose but the study's ``epochs``: the table would name another budget than the runs had.
_BUDGET = re.compile(r"trainer\.(max|min)_(epochs|steps)")
_FLAG = re.compile(r"(model|data|trainer|retrospection|teacher_cache|checkpoint)\.[\w.]+\+?|num_threads")


class Run(NamedTuple):
    """What one run is made of: its configuration for ``fit --config``, flags of ``fit``, and who teaches."""

    config: Description
    flags: list[str]
    teacher: str | None = None


class Teacher(NamedTuple):
    """A teacher that the study trains first, if a row asks it."""

    run: Run
    epochs: int
    seed: int


class Plan(NamedTuple):
    """A study: its rows, each to run once a seed, and the teachers, by name."""

    epochs: int
    seeds: list[int]
    rows: dict[str, Run]
    teachers: dict[str, Teacher]
    baseline: list[str]
    """One row, or several of which the best on the validation images is the baseline."""
    chooses_first: bool = False
    """Whether the first seed alone chooses the baseline; the other candidates then train with no other seed."""


def _module(name: str, **arguments: object) -> Description:
    return {"class_path": name, "init_args": arguments}


def _taught(alpha: float, name: str, **arguments: object) -> Description:
    return {"alpha": alpha, "distillation": _module(f"lit_distill.{name}", **arguments)}


def _callback(name: str, **arguments: object) -> Description:
    return _module(f"lit_distill.callbacks.{name}", **arguments)


# Each loss by its short name: what it changes in the model, given the epochs.
_LOSSES: dict[str, Description] = {
    "cross-entropy": {},
    "label smoothing": {"criterion": _module("torch.nn.CrossEntropyLoss", label_smoothing=0.1)},
    "PS-KD": {},
    "SAT": {},
    "hard": _taught(0.5, "HardDistillation"),
    "soft": _taught(0.9, "SoftDistillation", temperature=4.0),
    "DKD": _taught(0.5, "DKD"),
    "DIST": _taught(0.5, "DIST"),
    # The authors weigh the cross-entropy .1 beside 9 of theirs, which the module has.
    "logit standardisation": _taught(10 / 11, "StandardizedDistillation"),
}
_CALLBACKS: dict[str, Callable[[int], Description]] = {
    "PS-KD": lambda epochs: _callback("ProgressiveSelfDistillation"),
    "SAT": lambda epochs: _callback("SelfAdaptiveTraining", start=round(0.3 * epochs)),  # the authors': 60 of 200
}
LOSSES = (*_LOSSES, "LWR")


def find_study(name: str) -> Path:
    """Return the file of a study, or the package's study of that name.

    Raises:
        ValueError: If there is neither; names the closest study.
    """
    if Path(name).is_file():
        return Path(name)
    studies = {path.stem: path for path in Path(str(files("lit_distill.configs"))).glob("studies/*.yaml")}
    if name not in studies:
        hint = did_you_mean(name, studies) or f"there are {', '.join(sorted(studies))}"
        raise ValueError(f"no file {name}, and no study of that name: {hint}")
    return studies[name]


def read_plan(path: Path, changed: Mapping[str, object], flags: Sequence[str] = ()) -> Plan:
    """Read a study. One that ``extends`` another file has all that is in that one, unless it says otherwise.

    Args:
        path: The YAML file.
        changed: What replaces its ``epochs`` and ``seeds``, if it is not None.
        flags: Flags of ``fit`` for all runs, those of the teachers too.

    Raises:
        ValueError: If it has an unknown key or loss, a value of another kind than expected, two equal rows or seeds, or
            if something else than its epochs sets the budget of a run.
    """
    for flag in flags:
        if _BUDGET.match(flag.removeprefix("--")):
            raise ValueError(f"{flag} changes the budget of the runs, which the study's epochs set: use --epochs")
    study = _extended(path, [path.resolve()])
    study |= {key: value for key, value in changed.items() if value is not None}
    _check_keys(study, _OF_STUDY, f"{path}", required=("base", "epochs", "seeds", "rows"))
    epochs, seeds = study["epochs"], study["seeds"]
    check_whole(1, epochs=epochs)
    if not isinstance(seeds, list):
        check_whole(1, seeds=seeds)
        seeds = list(range(seeds))
    elif not seeds:
        raise ValueError("seeds has none: give a list of whole numbers, or how many")
    for seed in seeds:
        check_whole(0, seeds=seed)
    if len({*seeds}) < len(seeds):
        raise ValueError(f"seeds has one twice, which adds no run: {seeds}")
    teachers = {}
    for name, teacher in _mapping(study.get("teachers"), "teachers").items():
        _check_keys(teacher, _OF_TEACHER, f"teacher {name!r}", required=("base", "epochs"))
        check_whole(1, **{f"epochs of teacher {name!r}": teacher["epochs"]})
        check_whole(0, **{f"seed of teacher {name!r}": teacher.get("seed", 0)})
        config, of_trainer = _base(teacher["base"], path)
        run = Run(config, [*of_trainer, *_flags(teacher.get("set"), f"set of teacher {name!r}"), *flags])
        teachers[name] = Teacher(run, teacher["epochs"], teacher.get("seed", 0))
    config, of_trainer = _base(study["base"], path)
    common = [*of_trainer, *_flags(study.get("set"), "set"), *flags]
    rows = {
        name: _row(name, chosen, config, common, epochs, list(teachers))
        for name, chosen in _named(study["rows"], path).items()
    }
    if study.keys() >= _OF_BASELINE:
        raise ValueError("there are baseline and choose: name the baseline, or the rows to choose it from")
    key = "choose" if "choose" in study else "baseline"
    baseline = [str(name) for name in as_list(study.get(key, next(iter(rows))))]
    _check_once(baseline, key)
    if not baseline:
        raise ValueError(f"{key} has no row: name one, or several to choose the baseline from")
    for name in baseline:
        if name not in rows:
            raise ValueError(f"{key}: {name!r} is no row: {did_you_mean(name, rows, cutoff=0.0)}")
    check_unequal({name: run._asdict() | {"flags": sorted(run.flags)} for name, run in rows.items()})
    asked = {run.teacher for run in rows.values()}
    teachers = {name: teacher for name, teacher in teachers.items() if name in asked}
    return Plan(epochs, seeds, rows, teachers, baseline, "choose" in study)


def check_unequal(rows: Mapping[str, object]) -> None:
    """Raise ``ValueError`` if two rows are the same.

    Example:
        >>> check_unequal({"soft": {"alpha": 0.9}, "soft, again": {"alpha": 0.9}})
        Traceback (most recent call last):
        ValueError: rows 'soft' and 'soft, again' are the same run: change or remove one
    """
    first: dict[str, str] = {}
    for name, row in rows.items():
        other = first.setdefault(json.dumps(row, sort_keys=True, default=str), name)
        if other != name:
            raise ValueError(f"rows {other!r} and {name!r} are the same run: change or remove one")


def with_seed(run: Run, seed: int) -> Run:
    """Return the run with a seed, which also replaces ``{seed}`` in its flags."""
    flags = [flag.replace("{seed}", str(seed)) for flag in run.flags]
    return run._replace(config={"seed_everything": seed, "num_threads": 1, **run.config}, flags=flags)


def _extended(path: Path, extending: Sequence[Path]) -> Description:
    """Return a study with what it has from the file that it extends, which may extend another."""
    study = _load(path)
    if "extends" not in study:
        return study
    beside = path.parent / str(study["extends"])
    extended_path = (beside if beside.is_file() else find_study(str(study["extends"]))).resolve()
    if extended_path in extending:
        raise ValueError(f"{path} extends {extended_path}, which extends it")
    extended = _extended(extended_path, [*extending, extended_path])
    if _OF_BASELINE & study.keys():
        extended = {key: value for key, value in extended.items() if key not in _OF_BASELINE}
    return _merged(extended, study)


def _merged(old: Description, new: Description) -> Description:
    """Return a study that extends another one, whose rows it replaces."""
    inner = {
        key: _merged(old[key], value)
        for key, value in new.items()
        if key != "rows" and isinstance(value, dict) and isinstance(old.get(key), dict)
    }
    return {**old, **new, **inner}


def _named(rows: object, path: Path) -> dict[str, Description]:
    """Return the rows by name; a list has short names of losses alone."""
    if isinstance(rows, list):
        if any(isinstance(row, Mapping) for row in rows):
            example = "rows: {warm: {loss: soft, model.distillation.temperature: 8}}"
            raise ValueError(f"{path}: rows with options are no list but names with options, such as {example}")
        names = [str(name) for name in rows]
        _check_once(names, "rows")
        rows = dict.fromkeys(names)
    named = {name: _mapping(chosen, f"row {name!r}") for name, chosen in _mapping(rows, "rows").items()}
    if not named:
        raise ValueError(f"{path}: there are no rows")
    return named


def _row(
    name: str, chosen: Description, base: Description, common: Sequence[str], epochs: int, teachers: Sequence[str]
) -> Run:
    options = {key: value for key, value in chosen.items() if key not in ("loss", "teacher")}
    flags = _flags(options, f"row {name!r}", _FIXED)
    loss, with_lwr = _loss(str(chosen.get("loss", name)), name)
    config = copy.deepcopy(base)
    model: Description = config.setdefault("model", {})
    model |= {"criterion": _module("torch.nn.CrossEntropyLoss"), "distillation": None}
    model |= copy.deepcopy(_LOSSES[loss])
    teacher = chosen.get("teacher")
    if model["distillation"] is None:
        model["teacher"] = teacher = None
    elif teachers:
        teacher = str(teacher or teachers[0])
        if teacher not in teachers:
            raise ValueError(f"row {name!r} has no such teacher: {did_you_mean(teacher, teachers, cutoff=0.0)}")
        module = model.get("teacher") or "lit_distill.FrozenTeacher"
        module = _module(module) if isinstance(module, str) else module
        arguments = {**(module.get("init_args") or {}), "model": f"<teacher {teacher}>"}
        model["teacher"] = {**module, "init_args": arguments}
    elif not model.get("teacher"):
        raise ValueError(f"row {name!r} needs a teacher: name one in teachers, or in the base as model.teacher")
    config["retrospection"] = _module(_LWR, interval=5 if epochs >= 10 else 1) if with_lwr else None
    callbacks = [f"--trainer.callbacks+={json.dumps(_CALLBACKS[loss](epochs))}"] if loss in _CALLBACKS else []
    return Run(config, [*common, *callbacks, *flags], teacher)


def _loss(text: str, row: str) -> tuple[str, bool]:
    """Return the loss of a row and whether LWR is on: ``"soft + LWR"`` is soft, with it."""
    names = {_plain(name): name for name in LOSSES}
    parts = [part.strip() for part in text.split("+")]
    for part in parts:
        if _plain(part) not in names:
            hint = did_you_mean(_plain(part), names)
            closest = [names[plain] for plain in names if f"'{plain}'" in hint]
            hint = f"did you mean {closest[0]!r}?" if closest else f"expected {listed(LOSSES)}"
            hint += " (a row of any other name says its loss, such as loss: soft)" if text == row else ""
            raise ValueError(f"row {row!r} has an unknown loss {part!r}: {hint}")
    losses = [names[_plain(part)] for part in parts]
    with_lwr = "LWR" in losses
    others = [loss for loss in losses if loss != "LWR"] or ["cross-entropy"]
    if len(others) > 1 or len(losses) > 2 or (with_lwr and losses.count("LWR") > 1):
        raise ValueError(f"row {row!r}: expected one loss, and perhaps + LWR, got {text!r}")
    if with_lwr and others[0] in _MEMORY:
        raise ValueError(f"row {row!r}: {others[0]} and LWR both replace the criterion by remembered labels: take one")
    return others[0], with_lwr


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower().replace("iz", "is"))


def _flags(chosen: object, place: str, refused: re.Pattern[str] = _BUDGET) -> list[str]:
    """Return flags of ``fit``, given their names without dashes and their values; their order changes no run."""
    flags = []
    for key, value in sorted(_mapping(chosen, place).items()):  # a class comes before its arguments
        if refused.match(key):
            raise ValueError(f"{place} sets {key}: all rows have the same budget, which the study sets: use epochs")
        if not _FLAG.fullmatch(key):
            beginnings = ["loss", "teacher", "model.", "data.", "trainer.", "retrospection.", "teacher_cache."]
            hint = did_you_mean(key, beginnings) or "expected loss, teacher, or an option of fit such as model.alpha"
            raise ValueError(f"{place} has an unknown key {key!r}: {hint}")
        flags.append(f"--{key}={value if isinstance(value, str) else json.dumps(value, default=str)}")
    return flags


def _base(source: object, path: Path) -> tuple[Description, list[str]]:
    """Return a configuration to begin with, and its trainer's options as flags: a stage sets the trainer."""
    if isinstance(source, str):
        beside = path.parent / source
        source = _load(beside if beside.is_file() else Path(with_recipes(["--config", source])[1]))
    if not isinstance(source, Mapping):
        raise ValueError(f"{path}: base must be a recipe, a file or a configuration, got {source!r}")
    config = copy.deepcopy(dict(source))
    config["model"] = _mapping(config.get("model"), "model of base")
    trainer = _mapping(config.pop("trainer", None), "trainer of base")
    for key in ("seed_everything", "num_threads", "retrospection"):
        config.pop(key, None)
    # A run's own config.yaml has all options, those that are left open too.
    kept = {
        f"trainer.{key}": value
        for key, value in trainer.items()
        if key not in ("max_epochs", "logger") and not (_BUDGET.match(f"trainer.{key}") and value in (None, -1))
    }
    return config, _flags(kept, "base")


def _mapping(content: object, place: str) -> Description:
    """Return a mapping by the text of its names, which YAML may read as numbers; an empty one for nothing."""
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{place} must be a mapping of names to values, got {content!r}")
    names = [str(name) for name in content]
    _check_once(names, place)
    return dict(zip(names, content.values(), strict=True))


def _check_once(names: Sequence[str], place: str) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{place}: {twice[0]!r} is there twice: remove one")


def _check_keys(content: object, known: Iterable[str], place: str, required: Iterable[str]) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{place}: expected {', '.join(known)}, got {content!r}")
    for key in content:
        if key not in known:
            raise ValueError(f"{place} has an unknown key {key!r}: {did_you_mean(str(key), known, cutoff=0.0)}")
    missing = [key for key in required if content.get(key) is None]
    if missing:
        raise ValueError(f"{place} has no {missing[0]}: add it")


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key that stands twice, of which YAML would keep the last."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what ``<<`` names, of which PyYAML may leave a key twice."""
        super().flatten_mapping(node)
        node.value = [*{(key.tag, str(key.value)): (key, value) for key, value in node.value}.values()]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if not key.tag.endswith(":merge")]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is there twice (line {node.start_mark.line + 1} on): remove one")
        return super().construct_mapping(node, deep)


def _load(path: Path) -> Description:
    try:
        with path.open() as file:  # whose name the errors of YAML say
            content: object = yaml.load(file, _Loader)  # noqa: S506  # a safe loader
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no study: expected {', '.join(_OF_STUDY)}")
    return content
