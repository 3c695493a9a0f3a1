"""The vocabulary on the command line and in YAML files: every way to write an option, and every way to get it wrong."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from trailseg.cli import COMMANDS
from trailseg.config import (
    AppOptions,
    BenchmarkOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    Size,
    TrainOptions,
)
from trailseg.errors import FileError, OptionError
from trailseg.parsing import from_mapping, help_text, read_words, read_yaml, signature


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["epochs=3", "network=single"], {"epochs": "3", "network": "single"}),
        (["--epochs", "3", "--network=single"], {"epochs": "3", "network": "single"}),
        (["--val-every=2", "val_every=3"], {"val_every": "3"}),
        (["--freeze_stem", "seed=1"], {"freeze_stem": "true", "seed": "1"}),
        (["--freeze_stem", "false"], {"freeze_stem": "false"}),
        (["root=a=b", "out=two words"], {"root": "a=b", "out": "two words"}),
        (["--seed", "-1"], {"seed": "-1"}),
    ],
)
def test_every_way_to_write_an_option(words: list[str], expected: dict[str, str]):
    assert read_words(TrainOptions, words) == expected


def test_what_is_needed_may_go_without_its_name_in_any_place_but_out_never_does():
    expected = {"model": "r", "pictures": "./a=b.png", "out": "o"}
    assert read_words(PredictOptions, ["r", "./a=b.png", "out=o"]) == expected
    assert read_words(PredictOptions, ["--out", "o", "r", "pictures=./a=b.png"]) == expected
    assert read_words(PredictOptions, ["model=r", "out=o", "./a=b.png"]) == expected
    with pytest.raises(OptionError, match=r"'o' is one word too many"):
        read_words(PredictOptions, ["r", "p", "o"])
    with pytest.raises(OptionError, match=r"run is missing: say run=RUN"):
        read_words(ExportOptions, ["out=o"])


def test_a_model_may_go_without_its_name_only_where_there_is_a_word_for_the_pictures_too():
    for words in (["p"], ["pictures=p"]):
        assert read_words(PredictOptions, words) == {"pictures": "p"}
    expected = {"model": "r", "pictures": "p"}
    for words in (["r", "p"], ["p", "model=r"], ["--model", "r", "p"], ["pictures=p", "r"], ["r", "--pictures=p"]):
        assert read_words(PredictOptions, words) == expected
    assert (read_words(AppOptions, []), read_words(AppOptions, ["r"])) == ({}, {"model": "r"})
    with pytest.raises(OptionError, match=r"pictures is missing: say pictures=PICTURES"):
        read_words(PredictOptions, ["model=r"])


def test_the_command_line_wins_over_files_and_a_later_file_over_an_earlier(tmp_path: Path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("epochs: 1\nlr: 1e-3\nsize: [16, 24]\nprecision: 32\nroot: 7\n")
    second.write_text("epochs: 2\nseed: 5\n")
    words = ["seed=9", "-c", str(first), f"--config={second}"]
    options = from_mapping(TrainOptions, read_words(TrainOptions, words))
    assert (options.epochs, options.lr, options.size, options.seed) == (2, 0.001, Size(16, 24), 9)
    assert (options.precision, options.root) == ("32", "7")


@pytest.mark.parametrize("text", ["384,768", "384x768", "(384, 768)", "384 768", [384, 768]])
def test_every_way_to_write_a_size(text: Any):
    assert from_mapping(TrainOptions, {"size": text}).size == Size(384, 768)


def test_words_become_the_types_of_the_options():
    options = from_mapping(EvaluateOptions, {"run": "3", "steps": "5", "json": "true", "root": "[x]"})
    assert (options.run, options.steps, options.json, options.root) == ("3", (1, 5), True, "[x]")
    assert from_mapping(EvaluateOptions, {"run": "r", "steps": None}).steps is None
    assert from_mapping(EvaluateOptions, {"run": "r", "steps": "4..8"}).steps == (4, 8)
    predicted = {"model": "m", "pictures": "p", "out": "o"}
    steps = [from_mapping(PredictOptions, predicted | {"steps": word}).steps for word in ("auto", "7")]
    assert steps == ["auto", 7]


def test_words_without_a_name_make_a_list():
    words = ["single", "steps=4", "runs/v6", "model.onnx", "--json"]
    options = from_mapping(BenchmarkOptions, read_words(BenchmarkOptions, words))
    assert (options.networks, options.steps, options.json) == (["single", "runs/v6", "model.onnx"], 4, True)
    assert from_mapping(BenchmarkOptions, {"networks": "single,hourglass"}).networks == ["single", "hourglass"]
    assert from_mapping(BenchmarkOptions, {}).networks == []


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (EvaluateOptions, {"run": "r", "steps": "8..4"}, "steps=8..4: take steps from 1 to 256"),
        (EvaluateOptions, {"run": "r", "steps": "0"}, "steps=1..0: take steps from 1 to 256"),
        (EvaluateOptions, {"run": "r", "steps": "1..257"}, "steps=1..257: take steps from 1 to 256"),
        (EvaluateOptions, {"run": "r", "steps": "a..b"}, "steps=a..b: take a whole number, or a range such as 1..8"),
        (
            PredictOptions,
            {"model": "m", "pictures": "p", "out": "o", "steps": "x"},
            "steps=x: take a whole number or auto",
        ),
        (TrainOptions, {"steps": 257}, "steps=257: take at most 256"),
        (TrainOptions, {"steps": 3, "fewest_steps": 4}, "fewest_steps=4: take at most 3"),
        (TrainOptions, {"gamma": 1.5}, "gamma=1.5: take at most 1"),
        (BenchmarkOptions, {"repeats": 1}, "repeats=1: take at least 5"),
    ],
)
def test_a_number_of_steps_that_cannot_be_is_named(kind: type, values: dict[str, Any], message: str):
    with pytest.raises(OptionError) as caught:
        from_mapping(kind, values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "ten"}, "epochs=ten: take a whole number"),
        ({"epochs": "1.5"}, "epochs=1.5: take a whole number"),
        ({"epochs": "{a"}, "epochs={a: take a whole number"),
        ({"epochs": "!!python/object:os.system x"}, "epochs=!!python/object:os.system x: take a whole number"),
        ({"epochs": True}, "epochs=True: take a whole number"),
        ({"epochs": [1]}, "epochs=[1]: take a whole number"),
        ({"epochs": None}, "epochs needs a value"),
        ({"epochs": ""}, "epochs needs a value"),
        ({"epochs": "0"}, "epochs=0: take at least 1"),
        ({"seed": "-1"}, "seed=-1: take at least 0"),
        ({"seed": 10**30}, f"seed={10**30}: take at most 2147483647"),
        ({"depth": 30}, "depth=30: take at most 10"),
        ({"growth": -1}, "growth=-1.0: take at least 0.1"),
        ({"lr": "nan"}, "lr=nan: take a number"),
        ({"lr": 0}, "lr=0.0: take a learning rate above 0, such as 0.001"),
        ({"freeze_stem": "maybe"}, "freeze_stem=maybe: take true or false"),
        ({"standardize": "image"}, "standardize=image is not known: choose one of data, picture"),
        ({"freeze_stem": True}, "freeze_stem=true needs a trained stem: say stem_from=RUN"),
        ({"teacher": "run"}, "target=centre: what a teacher answers is a share of each class; say target=area"),
        ({"root": ["a"]}, "root=['a']: take text"),
        ({"precision": "16"}, "precision=16 is not known: did you mean 'bf16'? choose one of auto, 32, bf16"),
        ({"resume": "r", "out": "o"}, "out=o: a run goes on in its own folder, r; leave out= away"),
        *(
            ({"size": wrong}, f"size={wrong}: take height,width in pixels, each at least 1, such as 384,768")
            for wrong in ("0,0", "16", "16,24,32", "-16,24", "a,b", 16, {"a": 1}, [1.5, 2])
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_to_take(values: dict[str, Any], message: str):
    with pytest.raises(OptionError) as caught:
        from_mapping(TrainOptions, values, "where.yaml")
    assert str(caught.value) == f"where.yaml: {message}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["netwrok=single"], "option netwrok is not known: did you mean 'network'?"),
        (["--netwrok", "single"], "option netwrok is not known: did you mean 'network'?"),
        (["epochs2=3"], "option epochs2 is not known: did you mean 'epochs'?"),
        (["-x", "3"], "-x is not an option; write key=value or --key value"),
        (["single"], "'single' is one word too many"),
        (["epochs="], "epochs needs a value"),
        (["resume="], "resume needs a value"),
        (["--resume"], "--resume needs a value"),
        (["--resume", "--device", "cpu"], "--resume needs a value"),
        (["-c"], "-c needs a value"),
    ],
)
def test_a_wrong_word_is_named(words: list[str], message: str):
    with pytest.raises(OptionError) as caught:
        read_words(TrainOptions, words)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: [", "is not valid YAML"),
        (b"- a", "holds no mapping"),
        (b"", "holds no mapping"),
        (b"\xff\xfe", "is not valid YAML"),
        (b"epochs: !!python/object:os.system {}", "is not valid YAML"),
        (b"day: 2020-13-45", "is not valid YAML"),
        (b"[" * 21, "nests more than 20 levels deep"),
        (b"[" * 900, "nests more than 20 levels deep"),
        (b"[" * 5000, "nests more than 20 levels deep"),  # newer parsers refuse a thousand by themselves
        (b"a: &a [1]\nb: *a", "holds the alias *a"),
        (b"a: " + b"x" * 300_000, "is larger than 256 kB"),
        (None, "No such file"),
    ],
)
def test_a_wrong_yaml_file_is_named_in_one_line(tmp_path: Path, content: bytes | None, problem: str):
    path = tmp_path / "options.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert "\n" not in str(caught.value)


def test_a_misspelt_option_in_a_file_names_the_file(tmp_path: Path):
    path = tmp_path / "options.yaml"
    path.write_text("epohcs: 3\n1: 2")
    with pytest.raises(OptionError) as caught:
        read_words(TrainOptions, ["-c", str(path)])
    assert str(caught.value).startswith(f"{path}: option epohcs is not known: did you mean 'epochs'?")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option_with_its_default_and_a_line_of_its_own(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "1000")
    _, kind = COMMANDS[command]
    usage, empty, summary, _, *rows = help_text(command, kind).splitlines()
    assert usage == f"usage: trailseg {signature(command, kind)} [key=value ...] [-c file.yaml ...]"
    assert (empty, summary) == ("", kind.__doc__)
    shown = {left: text for left, _, text in (row.strip().partition(" ") for row in rows)}
    defaults = {f.name: "" if f.default in (None, MISSING) else f.default for f in fields(kind)}
    defaults |= {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}
    texts = {k: ",".join(map(str, v)) if isinstance(v, Size | list) else str(v) for k, v in defaults.items()}
    expected = [f"{k}={v.lower() if isinstance(defaults[k], bool) else v}" for k, v in texts.items()]
    assert sorted(shown) == sorted(expected)
    assert all(text.strip().endswith((".", ")")) and len(text.strip()) > 12 for text in shown.values())
    assert not [text for text in shown.values() if "  " in text.strip()]


def test_help_fits_the_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "70")
    assert max(map(len, help_text("train", TrainOptions).splitlines())) <= 70


def test_signatures_name_what_a_command_cannot_do_without():
    assert signature("predict", PredictOptions) == "predict [MODEL] PICTURES"
    assert signature("export", ExportOptions) == "export RUN out=OUT"
    assert signature("benchmark", BenchmarkOptions) == "benchmark [NETWORKS ...]"
    assert signature("train", TrainOptions) == "train"
