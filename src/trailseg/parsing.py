"""From `key=value`, `--key value` and `-c file.yaml` to an options dataclass, by way of jsonargparse."""

import itertools
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from jsonargparse import SUPPRESS, ArgumentError, ArgumentParser, set_parsing_settings
from jsonargparse.typing import register_type

from trailseg.config import FREE, Size, StepRange
from trailseg.errors import FileError, OptionError, require

T = TypeVar("T")

MOST_YAML = 256_000
"""Bytes of a YAML file: a class table of 254 classes takes a tenth of it."""

DEEPEST_YAML = 20
"""Levels of lists and mappings in each other."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where PyYAML was built with it


def _size(value: Any) -> Size:
    """'384,768', '384x768', '(384, 768)' or a list of two whole numbers."""
    parts = re.findall(r"[^\s,x()\[\]]+", value) if isinstance(value, str) else list(value)
    height, width = (int(str(part)) for part in parts)
    if min(height, width) < 1:
        raise ValueError("below one pixel")
    return Size(height, width)


def _step_range(value: Any) -> StepRange:
    """'8' (from 1 to 8) or '4..8'."""
    first, dots, last = str(value).partition("..")
    return StepRange(int(first), int(last)) if dots else StepRange(1, int(first))


register_type(Size, serializer=list, deserializer=_size)
register_type(StepRange, serializer=list, deserializer=_step_range)
set_parsing_settings(docstring_parse_attribute_docstrings=True)

_EXPECTED = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list[str]: "names, such as a,b",
    Size: "height,width in pixels, each at least 1, such as 384,768",
    StepRange: "a whole number, or a range such as 1..8",
}


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """The dataclass `kind` with those values, checked and converted; an OptionError begins with `where`, if given."""
    try:
        types = {field.name: _accepted(field.type) for field in fields(kind)}  # type: ignore[arg-type]
        for name, value in values.items():
            accepted = types[require_option(name, kind)]
            if value == "" or (value is None and NoneType not in accepted):
                raise OptionError(f"{name} needs a value")
            if value is not None and (choices := _choices(accepted)):
                require(name, str(value), choices)
        # A YAML file may write a word such as precision or root as a number.
        words = {name for name, accepted in types.items() if str in accepted or _choices(accepted)}
        texts = {k: str(v) for k, v in values.items() if k in words and isinstance(v, int | float)}
        try:
            lists = {k: v.split(",") for k, v in values.items() if list[str] in types[k] and isinstance(v, str)}
            found = _parser(kind).parse_object(dict(values) | texts | lists)  # type: ignore[arg-type]
            return kind(**vars(found))
        except ArgumentError as error:
            wrong = re.match(r'Parser key "(\w+)"', str(error))
            if wrong is None:
                raise
            raise OptionError(f"{wrong[1]}={values[wrong[1]]}: take {_expected(types[wrong[1]])}") from None
    except OptionError as error:
        raise OptionError(f"{where}: {error}" if where else str(error)) from None


def _accepted(kind: Any) -> tuple[Any, ...]:
    """The types of which a value of type `kind` may be: those of a union, or itself."""
    return get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)


def _choices(types: Iterable[Any]) -> tuple[str, ...]:
    """The words of which a value of one of these types must be one; none where it may be something else."""
    kinds = [kind for kind in types if kind is not NoneType]
    return get_args(kinds[0]) if len(kinds) == 1 and get_origin(kinds[0]) is Literal else ()


def _expected(types: Iterable[Any]) -> str:
    """What a value of one of these types looks like, in words."""
    words = (
        get_args(kind) if get_origin(kind) is Literal else [_EXPECTED[kind]] for kind in types if kind is not NoneType
    )
    return " or ".join(itertools.chain.from_iterable(words))


def read_words(kind: type, words: Sequence[str]) -> dict[str, Any]:
    """The options that a command line gives, not yet converted; OptionError on an unknown or missing one.

    Values of `-c file.yaml` come first, in order, and the command line wins over them. Options without a default may be
    given without their name, in their order, save `out`; so may those marked `config.FREE`, where there is a word for
    each. Words beyond them belong to an option that is a list.
    """
    types = {field.name: field.type for field in fields(kind)}
    from_files: dict[str, Any] = {}
    given: dict[str, str] = {}
    nameless: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if match := re.fullmatch(r"(?:-c|--config)(?:=(.*))?", word):
            from_files |= _read_options(Path(match[1] or _next(queue, word)), kind)
        elif match := re.fullmatch(r"(?:--)?([A-Za-z][\w-]*)=(.*)", word, re.DOTALL):
            given[require_option(match[1].replace("-", "_"), kind)] = match[2]
        elif word.startswith("--"):
            name = require_option(word[2:].replace("-", "_"), kind)
            alone = types[name] is bool and queue[:1] not in (["true"], ["false"])
            given[name] = "true" if alone else _next(queue, word)
        elif word.startswith("-") and len(word) > 1:
            raise OptionError(f"{word} is not an option; write key=value or --key value")
        else:
            nameless.append(word)
    free = [name for name in _free(kind) if name not in given]
    if len(nameless) < len(free):
        free = [name for name in free if name in _required(kind)]
    given |= zip(free, nameless, strict=False)
    if left := nameless[len(free) :]:
        many = [name for name, kind_ in types.items() if kind_ == list[str]]
        if not many:
            raise OptionError(f"'{left[0]}' is one word too many; write options as key=value")
        given[many[0]] = ",".join(filter(None, [given.get(many[0]), *left]))
    values = from_files | given
    for name in _required(kind):
        if name not in values:
            raise OptionError(f"{name} is missing: say {name}={name.upper()}; --help lists the options")
    if empty := [name for name, value in given.items() if not value]:
        raise OptionError(f"{empty[0]} needs a value")
    return values


def require_option(name: object, kind: type) -> str:
    """`name`, if the dataclass `kind` has it; otherwise an OptionError that names the nearest option."""
    return require("option", str(name), [field.name for field in fields(kind)], joint=" ")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; FileError where it cannot be read, is no mapping, or is more than options need.

    It makes numbers, text, lists and mappings, never an object that the file names.
    """
    try:
        if not path.is_file() and path.exists():
            raise FileError(path, "is no file", "name a YAML file of options")
        with path.open("rb") as file:
            content = file.read(MOST_YAML + 1)
        if len(content) > MOST_YAML:
            raise FileError(path, f"is larger than {MOST_YAML // 1000} kB", "name a YAML file of options")
        too_deep = FileError(path, f"nests more than {DEEPEST_YAML} levels deep", "name a YAML file of options")
        text, depth = content.decode(), 0
        for event in yaml.parse(text, _Loader):
            if isinstance(event, yaml.AliasEvent):  # a few lines of which could stand for billions
                raise FileError(path, f"holds the alias *{event.anchor}", "write out what it stands for")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                raise too_deep
        found = yaml.load(text, _Loader)
    except OSError as error:
        raise FileError(path, error.strerror or "cannot be read", "name a YAML file of options") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # a date of month 13 is a ValueError
        problem = " ".join(str(error).split())
        if "maximum nesting depth" in problem:  # the parser's own, which it may meet first, since it looks ahead
            raise too_deep from None
        raise FileError(path, f"is not valid YAML ({problem})", "correct it") from None
    if not isinstance(found, dict):
        raise FileError(path, "holds no mapping of options", "write lines of the form 'key: value'")
    return found


def signature(command: str, kind: type) -> str:
    """A command and what it takes without a name or needs: 'export RUN out=OUT', 'predict [MODEL] PICTURES'."""
    words = [name.upper() if name in _required(kind) else f"[{name.upper()}]" for name in _free(kind)]
    out = ["out=OUT"] * ("out" in _required(kind))
    many = [f"[{field.name.upper()} ...]" for field in fields(kind) if field.type == list[str]]
    return " ".join([command, *words, *out, *many])


def help_text(command: str, kind: type) -> str:
    """The options of a command, each with its default and one line of help."""
    rows = {}
    for action in _parser(kind)._actions[1:]:
        default = action.default
        if default == SUPPRESS:  # an option of jsonargparse's own
            continue
        shown = (
            ",".join(map(str, default)) if isinstance(default, Size | list) else str("" if default is None else default)
        )
        name = f"{action.dest}={shown.lower() if isinstance(default, bool) else shown}"
        rows[name] = " ".join(str(action.help).split())
    indent = max(map(len, rows)) + 4
    width = max(shutil.get_terminal_size((120, 24)).columns, indent + 30)
    lines = [
        textwrap.fill(f"  {name:<{indent - 2}}{text}", width, subsequent_indent=" " * indent)
        for name, text in rows.items()
    ]
    usage = f"usage: trailseg {signature(command, kind)} [key=value ...] [-c file.yaml ...]"
    return "\n".join([usage, "", str(kind.__doc__), "", *lines, ""])


@cache
def _parser(kind: type) -> ArgumentParser:
    """The parser whose options are the fields of the dataclass `kind`, with their docstrings as help."""
    made = ArgumentParser(exit_on_error=False)
    made.add_class_arguments(kind)
    return made


def _required(kind: type) -> list[str]:
    return [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]


def _free(kind: type) -> list[str]:
    """The options that may be given without their name."""
    marked = {field.name for field in fields(kind) if field.metadata.items() >= FREE.items()}
    return [field.name for field in fields(kind) if field.name in {*_required(kind), *marked} - {"out"}]


def _read_options(path: Path, kind: type) -> dict[str, Any]:
    """The options in a YAML file."""
    values = read_yaml(path)
    try:
        return {require_option(name, kind): value for name, value in values.items()}
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from None


def _next(queue: list[str], word: str) -> str:
    if not queue or queue[0].startswith("--"):
        raise OptionError(f"{word} needs a value")
    return queue.pop(0)
