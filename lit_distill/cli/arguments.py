"""The arguments of every command: its parser, its flags, and recipes by name."""

from argparse import ArgumentParser as PlainParser
from argparse import Namespace as PlainNamespace
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
import json
from pathlib import Path
import re

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from lit_distill.checks import did_you_mean
from lit_distill.cli.errors import one_line


def add_common_flags(parser: ArgumentParser) -> None:
    """Add the flags that every command has."""
    parser.add_argument(
        "--trust",
        type=list[str],
        default=[],
        help="Package whose classes a checkpoint or an export may name, such as --trust=my_package; once for each.",
    )
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")


def command_parser(command: str, description: str) -> ArgumentParser:
    """Return the parser of a command that is not one of Lightning's, with the common flags."""
    parser = ArgumentParser(
        prog=f"lit-distill {command}",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,  # a misspelt flag is no other one
        formatter_class=DefaultHelpFormatter,
    )
    add_common_flags(parser)
    return parser


def parse(parser: ArgumentParser, args: Sequence[str], command: ArgumentParser | None = None) -> Namespace:
    """Parse ``args``.

    Args:
        parser: The parser.
        args: What follows the program's name.
        command: The parser of the subcommand, if there is one: its options are offered for a misspelt one.

    Raises:
        ValueError: If an argument is wrong; its message is one line.
    """
    try:
        return parser.parse_args(list(args))
    except Exception as error:  # jsonargparse raises whatever the type of an argument raises
        # argparse has no public list of a parser's options.
        raise ValueError(one_line(error, (command or parser)._option_string_actions)) from error


def take(args: Iterable[str], *flags: str) -> tuple[PlainNamespace, list[str]]:
    """Split flags from the other arguments.

    Returns:
        For each flag the list of its values, as an attribute; and the other arguments in their order.

    Example:
        >>> values, others = take(["export", "--trust", "a", "--ckpt_path=x.ckpt", "--trust=b"], "--trust")
        >>> values.trust, others
        (['a', 'b'], ['export', '--ckpt_path=x.ckpt'])
    """
    parser = PlainParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in flags:
        parser.add_argument(flag, action="append", default=[])
    return parser.parse_known_args(list(args))


def substitute(
    pattern: str, replacement: str | Callable[[re.Match[str]], str], args: Iterable[str], count: int = 0
) -> list[str]:
    r"""Replace a pattern that may span several arguments: a NUL character stands before each of them.

    Example:
        >>> substitute(r"\0-n[=\0]", "\0--number=", ["-n", "3", "-n=4"])
        ['--number=3', '--number=4']
    """
    return re.sub(pattern, replacement, "\0".join(["", *args]), count=count).split("\0")[1:]


def one_trust(args: Iterable[str]) -> list[str]:
    """Join all ``--trust NAME`` into one.

    Example:
        >>> one_trust(["export", "--trust", "a", "--ckpt_path=x.ckpt", "--trust=b"])
        ['export', '--ckpt_path=x.ckpt', '--trust=["a", "b"]']
    """
    values, others = take(args, "--trust")
    names = re.findall(r"[\w.]+", " ".join(values.trust))
    return [*others, f"--trust={json.dumps(names)}"] if names else others


def with_recipes(args: Iterable[str]) -> list[str]:
    """Replace a ``--config NAME`` that is no file by the package's recipe of that name.

    Raises:
        ValueError: If there is neither such a file nor such a recipe; names the closest recipes.
    """
    option = r"(\0(?:-c|--config)[=\0])((?:\./|configs/)?[\w.-]+)(?=\0|\Z)"
    return substitute(option, lambda match: match[1] + _recipe(match[2]), args)


def with_class_names(args: Iterable[str]) -> list[str]:
    """Read a class name as one where names of networks are text: these have no capitals.

    Example:
        >>> with_class_names(["--model.teacher.model=DigitsCNN", "--model.teacher.model=resnet18"])
        ['--model.teacher.model={"class_path": "DigitsCNN"}', '--model.teacher.model=resnet18']
    """
    return substitute(r"(\0--model\.teacher\.model[=\0])([A-Z]\w*)(?=\0|\Z)", _class_unless_path, args)


def _class_unless_path(match: re.Match[str]) -> str:
    return match[0] if Path(match[2]).exists() else f'{match[1]}{{"class_path": "{match[2]}"}}'


def _recipe(name: str) -> str:
    recipes = {path.stem: path for path in Path(str(files("lit_distill.configs"))).glob("*.yaml")}
    if Path(name).is_file():
        return name
    if Path(name).stem not in recipes:
        hint = did_you_mean(Path(name).stem, recipes, count=2, cutoff=0.0)
        raise ValueError(f"no configuration file {name}, and no recipe of that name: {hint}")
    return str(recipes[Path(name).stem])
