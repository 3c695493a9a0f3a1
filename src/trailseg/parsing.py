"""From `key=value`, `--key value` and `-c file.yaml` to an options dataclass, by way of jsonargparse."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from jsonargparse.typing import register_type

from trailseg.config import Size
from trailseg.errors import FileError, OptionError, require

T = TypeVar("T")


def _size(value: Any) -> Size:
    """'384,768', '384x768', '(384, 768)' or a list of two whole numbers."""
    parts = re.findall(r"[^\s,x()\[\]]+", value) if isinstance(value, str) else list(value)
    if len(parts) != 2 or not all(re.fullmatch(r"\d+", str(part)) for part in parts):
        raise ValueError("a size is height,width in whole pixels, such as 384,768")
    return Size(int(parts[0]), int(parts[1]))


register_type(Size, serializer=list, deserializer=_size)
set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parser(kind: type[T], command: str) -> ArgumentParser:
    """The parser of one command, whose options are the fields of the dataclass `kind`, with their docstrings as help."""
    made = ArgumentParser(prog=f"trailseg {command}", exit_on_error=False, allow_abbrev=False)
    made.add_class_arguments(kind)
    return made


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """The dataclass `kind` with those values, checked and converted; an OptionError begins with `where`."""
    types = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    try:
        for key, value in values.items():
            if types[require_option(str(key), kind)] in (bool, int, float, str, Size) and value is None:
                raise OptionError(f"{key} needs a value")
        # A YAML file may write a word such as precision or root as a number.
        texts = {k: str(v) for k, v in values.items() if "str" in str(types[k]) and isinstance(v, int | float)}
        return kind(**vars(parser(kind, "").parse_object(dict(values) | texts)))
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from None
    except ArgumentError as error:
        raise OptionError(f"{where}: {_plain(error)}") from None


def from_words(kind: type[T], command: str, words: Sequence[str], positional: Sequence[str] = ()) -> T:
    """The dataclass `kind` from a command line; OptionError on an unknown, wrong or missing option."""
    values = read_words(kind, words, positional)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.default is MISSING and field.name not in values:
            usage = " ".join(["trailseg", command, *positional]).replace(field.name, field.name.upper())
            raise OptionError(f"{field.name.upper()} is missing; usage: {usage} key=value ...; --help lists the options")
    return from_mapping(kind, values, f"trailseg {command}")


def read_words(kind: type, words: Sequence[str], positional: Sequence[str] = ()) -> dict[str, Any]:
    """The options that a command line gives; the fields named in `positional` may be given without their name.

    Values of `-c file.yaml` come first, in order, and the command line wins over them.
    """
    types = {field.name: field.type for field in fields(kind)}
    from_files: dict[str, Any] = {}
    given: dict[str, str] = {}
    free, queue = list(positional), list(words)
    while queue:
        word = queue.pop(0)
        if match := re.fullmatch(r"(?:-c|--config)(?:=(.*))?", word):
            from_files |= read_yaml(Path(match[1] or _next(queue, word)))
        elif match := re.fullmatch(r"(?:--)?([A-Za-z][A-Za-z_-]*)=(.*)", word, re.DOTALL):
            given[require_option(match[1].replace("-", "_"), kind)] = match[2]
        elif word.startswith("--"):
            name = require_option(word[2:].replace("-", "_"), kind)
            given[name] = "true" if types[name] is bool else _next(queue, word)
        elif word.startswith("-") and len(word) > 1:
            raise OptionError(f"{word} is not an option; write key=value or --key value")
        elif free:
            given[free.pop(0)] = word
        else:
            raise OptionError(f"'{word}' is one word too many; write options as key=value")
    return from_files | {name: _scalar(text, types[name]) for name, text in given.items()}


def require_option(name: str, kind: type) -> str:
    """`name`, if the dataclass `kind` has it; otherwise an OptionError that names the nearest option."""
    known = [field.name for field in fields(kind)]
    if name not in known:
        try:
            require("option", name, known)
        except OptionError as error:
            raise OptionError(str(error).replace("option=", "option ", 1)) from None
    return name


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; FileError where it cannot be read or is no mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(path, error.strerror or "cannot be read", "name a YAML file of options") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileError(path, f"is not valid YAML ({' '.join(str(error).split())})", "correct it") from None
    if not isinstance(content, dict):
        raise FileError(path, "holds no mapping of options", "write lines of the form 'key: value'")
    return content


def help_text(kind: type, command: str) -> str:
    """The options of a command as text, one line each."""
    return str(parser(kind, command).format_help())


def _next(queue: list[str], word: str) -> str:
    if not queue:
        raise OptionError(f"{word} needs a value")
    return queue.pop(0)


def _scalar(text: str, kind: Any) -> Any:
    """A command line's word as YAML would read it, except where the option is text or a size."""
    return text if "str" in str(kind) or kind is Size else yaml.safe_load(text)


def _plain(error: Exception) -> str:
    """The parser's message in one line and in plain words."""
    text = re.sub(r'Parser key "(\w+)": ', r"\1: ", " ".join(str(error).split()))
    for kind, words in (("int", "whole number"), ("float", "number"), ("bool", "value of true or false")):
        text = text.replace(f"<class '{kind}'>", words)
    return text.replace("Not of type Size: ", "").replace("Expected", "expected").replace(". Got value:", ", got")
