"""`trailseg pack`, the model card, and the networks of the package, which answer where none is named."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from small import content, reconfigured, train
from test_runtime import OTHERS, without

from trailseg import Predictor, app, predictor
from trailseg.card import card, command, share
from trailseg.cli import run
from trailseg.config import MODEL, AppOptions, DataOptions, PredictOptions, Size, TrainOptions
from trailseg.data.readers import TERMS, open_data, select
from trailseg.data.scenes import scene
from trailseg.errors import FileError
from trailseg.packing import measures, placeless
from trailseg.parsing import from_mapping, help_text, read_words
from trailseg.predictor import WEIGHTS, find_model, packed
from trailseg.runs import Run

ROOT = Path(__file__).parent.parent
FILES = {
    "card.md", "config.yaml", "measures.json", "model.onnx", "checkpoints/last.safetensors"
}  # fmt: skip
MOST_BYTES = 16_000_000
"""Of one network of the package."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on train, its sister on train and val, and one that differs in more."""
    root = tmp_path_factory.mktemp("runs")
    train(root / "one", "iterative-v4", ema=0.5)
    train(root / "all", "iterative-v4", ema=0.5, train_on="train+val")
    train(root / "other", "iterative-v4", ema=0.5, lr=0.02)
    train(root / "longer", "iterative-v4", ema=0.5, epochs=3)
    train(root / "as long", "iterative-v4", ema=0.5, train_on="train+val", epochs=2)
    return root


@pytest.fixture(scope="module")
def weights(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one packed run."""
    folder = tmp_path_factory.mktemp("weights")
    assert run(["pack", str(runs / "all"), f"out={folder / MODEL}", f"measured_by={runs / 'one'}"]) == 0
    return folder


@pytest.fixture
def shipped(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packed run, as if it were the network of the package; the working directory holds photo.jpg."""
    monkeypatch.setattr(predictor, "WEIGHTS", weights)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo()).save("photo.jpg")
    return weights / MODEL


def photo() -> np.ndarray:
    return scene(seed=9, index=0, size=Size(40, 66))[0]


# What is packed


def test_a_packed_run_is_slim_and_answers_as_the_run_with_its_averaged_weights(runs: Path, weights: Path):
    folder = weights / MODEL
    assert set(content(folder)) == FILES
    with safe_open(folder / "checkpoints" / "last.safetensors", framework="pt") as file:
        assert all(name.startswith("network.") for name in file.keys())  # noqa: SIM118 - it is no mapping
    mine, theirs = Run.open(folder), Run.open(runs / "all")
    for name, value in theirs.network().state_dict().items():
        assert torch.equal(mine.network().state_dict()[name], value), name
    assert mine.options == theirs.options
    assert mine.position() == theirs.position()
    assert {**mine.config, "options": {}} == {**theirs.config, "options": {}}
    np.testing.assert_array_equal(
        Predictor(folder, device="cpu")(photo()).trail, Predictor(runs / "all", device="cpu")(photo()).trail
    )


@pytest.mark.parametrize(
    ("option", "places", "names", "told"),
    [
        (
            "start_from",
            "/home/me/runs/first,/home/me/second",
            ["first", "second"],
            ", from the mean of the weights of `first`, `second` on |",
        ),
        ("teacher", "/home/me/runs/first,/home/me/second", ["first", "second"], ", taught by `first`, `second` |"),
        ("stem_from", "/home/me/runs/first", ["first"], " |"),
    ],
)
def test_no_path_of_the_machine_is_packed(
    option: str, places: str, names: list[str], told: str, runs: Path, tmp_path: Path
):
    source = shutil.copytree(runs / "one", tmp_path / "source")
    given = {f"{option}: null": f"{option}: {places}", "root: null": "root: /home/me/data", ": centre": ": area"}
    for there, instead in given.items():
        reconfigured(source, lambda text, there=there, instead=instead: text.replace(there, instead))
    assert run(["pack", str(source), f"out={tmp_path / 'packed'}"]) == 0
    for name, data in content(tmp_path / "packed").items():
        assert not re.search(rb"/home/|/work/|" + str(tmp_path).encode(), data), name
    assert getattr(Run.open(tmp_path / "packed").options, option) == names
    assert f"epochs, seed 0{told}" in (tmp_path / "packed" / "card.md").read_text()


@pytest.mark.parametrize(
    ("option", "told"), [("start_from", "from the weights of `all` on"), ("teacher", "taught by `all`")]
)
def test_a_run_is_measured_by_one_that_began_with_or_learned_from_a_run_that_was_trained_alike(
    option: str, told: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, first in {"all": "all", "one": "one", "same": "all", "other": "other"}.items():
        on = "train+val" if name == "all" else "train"
        train(tmp_path / name, "iterative-v4", ema=0.5, train_on=on, target="area", **{option: str(runs / first)})
    for name, code in (("one", 0), ("same", 0), ("other", 1)):
        words = [f"out={tmp_path / 'packed' / name}", f"measured_by={tmp_path / name}"]
        assert run(["pack", str(tmp_path / "all"), *words]) == code, name
    problem = f"{runs / 'other'}: was trained otherwise than {runs / 'all'} (lr 0.01, not 0.02)"
    assert problem in capsys.readouterr().err
    text = (tmp_path / "packed" / "one" / "card.md").read_text()
    assert f"| training | 1 of 1 epochs, seed 0, {told} |" in text


def test_what_cannot_be_packed_is_told_in_a_line_and_nothing_is_left(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("begun", "classes", "cut"):
        shutil.copytree(runs / "one", tmp_path / name)
    begun = tmp_path / "begun" / "config.yaml"
    reconfigured(tmp_path / "begun", lambda text: text.replace("epochs: 1", "epochs: 2"))
    reconfigured(tmp_path / "classes", lambda text: text.replace("- terrain", "- ground"))
    (tmp_path / "cut" / "log.jsonl").write_text("")
    before = content(tmp_path)
    for words, problem in (
        ([runs / "one", f"out={tmp_path / 'begun'}"], f"{tmp_path / 'begun'}: is there already; say another out="),
        (
            [tmp_path / "begun", "out={new}"],
            "is not finished (iterative-v4, 1 of 2 epochs); say `trailseg train resume",
        ),
        ([tmp_path / "cut", "out={new}"], "log.jsonl: does not reach the last epoch"),
        (
            [runs / "all", "out={new}", f"measured_by={runs / 'other'}"],
            "(lr 0.01, not 0.02); name a run that differs in",
        ),
        (
            [runs / "all", "out={new}", f"measured_by={runs / 'one'},{runs / 'all'}"],
            "(train_on train, not train+val); name a run that differs in",
        ),
        (
            [runs / "all", "out={new}", f"measured_by={runs / 'longer'}"],
            "(epochs 1, not 3); name a run that differs in",
        ),
        ([runs / "all", "out={new}", f"measured_by={tmp_path / 'classes'}"], "has other classes than"),
        ([runs / "all", "out={new}", f"measured_by={tmp_path / 'none'}"], "there is no such run directory"),
        ([runs / "all", f"out={begun}/x"], "begun/config.yaml"),
    ):
        capsys.readouterr()
        assert run(["pack", *(str(word).format(new=tmp_path / "new") for word in words)]) == 1
        error = capsys.readouterr().err
        assert problem in error
        assert error.count("\n") == 1
        assert content(tmp_path) == before


def test_a_failing_export_leaves_nothing(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trailseg.export.ALLOWED", -1.0)
    assert run(["pack", str(runs / "one"), f"out={tmp_path / 'new'}"]) == 1
    assert list(tmp_path.iterdir()) == []


# The card


def test_the_card_gives_the_sisters_last_measures_and_says_whose_they_are(runs: Path, weights: Path):
    text = (weights / MODEL / "card.md").read_text()
    val = Run.open(runs / "one").log()[-1]["val"]
    assert "**Not these weights but those of `one`**, trained with the same options on `train` (4 pictures)" in text
    assert (
        "on `val` at full size: 1 pictures that were not trained on. These weights were trained on `train+val`, "
        in text
    )
    rows = {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in text.splitlines())}
    for step in val["steps"]:
        shares = [step["pixel_accuracy"], step["miou"]]
        assert rows[str(step["step"])][1:] == [f"{100 * share:.1f}" for share in shares]
    for name in val["steps"][0]["iou"]:
        ious = [step["iou"][name] for step in val["steps"]]
        assert rows[name] == ["–" if iou is None else f"{100 * iou:.1f}" for iou in ious]
    network = Run.open(runs / "all").config["network"]
    macs = [float(rows[str(step)][0]) for step in (1, 2, 3)]
    wanted = [(network["macs_stem"] + step * network["macs_step"]) / 1e9 for step in (1, 2, 3)]
    assert macs == pytest.approx(wanted, abs=6e-4)
    weak = {name for name, iou in val["steps"][-1]["iou"].items() if iou is not None and iou < 0.3}
    (line,) = re.findall(r"detects some classes poorly.*: (.*)\.", text)
    assert weak
    assert set(re.findall(r"([a-z ]+) \(", line.replace(", ", ","))) == weak


def test_the_card_gives_the_means_of_several_sisters_and_how_far_they_lie_apart(runs: Path, tmp_path: Path):
    train(tmp_path / "two", "iterative-v4", ema=0.5, seed=1)
    words = [f"out={tmp_path / 'new'}", f"measured_by={runs / 'one'},{tmp_path / 'two'}"]
    assert run(["pack", str(runs / "all"), *words]) == 0
    found = json.loads((tmp_path / "new" / "measures.json").read_text())
    assert (found["runs"], found["own"]) == (["one", "two"], False)
    vals = [Run.open(folder).log()[-1]["val"] for folder in (runs / "one", tmp_path / "two")]
    for step, *both in zip(found["val"]["steps"], *(val["steps"] for val in vals), strict=True):
        assert step["miou"] == pytest.approx(sum(one["miou"] for one in both) / 2)
        assert step["iou"]["terrain"] == pytest.approx(sum(one["iou"]["terrain"] for one in both) / 2)
    text = (tmp_path / "new" / "card.md").read_text()
    low, high = sorted(100 * val["steps"][-1]["miou"] for val in vals)
    assert low < high
    assert "**Not these weights but those of `one`, `two`**" in text
    assert f": their means, of last steps between {low:.1f} and {high:.1f} % mIoU, after epoch 1" in text


def test_the_card_of_pictures_that_were_trained_on_says_so(runs: Path, tmp_path: Path):
    warning = "**It was trained on these pictures: no estimate for new ones.**"
    cards = {}
    for name in ("one", "all"):
        assert run(["pack", str(runs / name), f"out={tmp_path / name}"]) == 0
        cards[name] = (tmp_path / name / "card.md").read_text()
    assert warning in cards["all"]
    assert warning not in cards["one"]
    assert "These weights, after epoch 1, on `val` at full size: 1 pictures that were not trained on.\n" in cards["one"]
    found = json.loads((tmp_path / "all" / "measures.json").read_text())
    assert found["val"]["steps"] == Run.open(runs / "all").log()[-1]["val"]["steps"]


def test_the_card_says_what_those_before_a_run_were_trained_on(runs: Path, tmp_path: Path):
    train(tmp_path / "taught", "iterative-v4", target="area", teacher=str(runs / "all"))  # on train alone
    train(tmp_path / "heir", "iterative-v4", start_from=str(tmp_path / "taught"))
    train(tmp_path / "sister", "iterative-v4", start_from=str(runs / "one"))
    for name in ("taught", "heir", "sister"):
        assert run(["pack", str(tmp_path / name), f"out={tmp_path / 'packed' / name}"]) == 0
        text = (tmp_path / "packed" / name / "card.md").read_text()
        assert ("**It was trained on these pictures" in text) == (name != "sister"), name
    train(tmp_path / "late", "iterative-v4", start_from=str(runs / "all"))
    words = [f"out={tmp_path / 'packed' / 'late'}", f"measured_by={tmp_path / 'sister'}"]
    assert run(["pack", str(tmp_path / "late"), *words]) == 0
    text = (tmp_path / "packed" / "late" / "card.md").read_text()
    assert "not trained on. These weights were trained on `train+val`, those pictures among them." in text


def test_the_card_names_terms_and_limits_of_the_data(weights: Path, tmp_path: Path):
    folder = shutil.copytree(weights / MODEL, tmp_path / "packed")
    for data, (name, licence) in TERMS.items():
        reconfigured(folder, lambda text, data=data: re.sub(r"\n  data: \w+", f"\n  data: {data}", text))
        text = card(folder)
        assert text.startswith(f"# iterative-v4, trained on {name}\n")
        assert f"| {licence} (that of the data) |" in text
        assert "**Not for safety-critical use**" in text
        assert ("Cambridge" in text) == ("seven seconds of one drive" in text) == (data == "camvid")


def test_the_cards_command_gives_the_options_of_the_run(runs: Path):
    trained = Run.open(runs / "all")
    words = command(trained.config["options"] | {"crop": [16, 24]}).replace("\\\n", " ").split()
    assert words[:2] == ["trailseg", "train"]
    options = from_mapping(TrainOptions, read_words(TrainOptions, words[2:]))
    assert trained.differences(options) == ["crop None, not Size(height=16, width=24)"]
    assert "root=FOLDER" in command(trained.config["options"] | {"data": "camvid"})
    spaced = {"start_from": ["runs/" + "as long " * 20, "b"]}
    words = shlex.split(command(trained.config["options"] | spaced).replace("\\\n", " "))
    assert from_mapping(TrainOptions, read_words(TrainOptions, words[2:])).start_from == spaced["start_from"]


def test_the_card_of_classes_that_mean_something_in_markdown(weights: Path, tmp_path: Path):
    folder = shutil.copytree(weights / MODEL, tmp_path / "packed")
    reconfigured(folder, lambda text: text.replace("- terrain", "- grass|weed"))
    measured = (folder / "measures.json").read_text()
    (folder / "measures.json").write_text(measured.replace('"terrain"', '"grass|weed"'))
    (line,) = (line for line in card(folder).splitlines() if "grass" in line and line.startswith("|"))
    assert line.startswith(r"| grass\|weed | ")


def test_splits_share_what_their_pictures_share(tmp_path: Path):
    camvid = {"train": ["A_1", "A_2", "B_1"], "val": ["A_3"], "test": ["C_1"]}
    for split, names in camvid.items():
        for kind in (split, f"{split}annot"):
            (tmp_path / "camvid" / kind).mkdir(parents=True)
            for name in names:
                Image.new("L", (4, 4)).save(tmp_path / "camvid" / kind / f"{name}.png")
    assert run(["data", "make", str(tmp_path / "tas"), "size=16,16", "train=2", "val=52", "test=1"]) == 0
    for data, root, splits in (
        ("camvid", "camvid", ["train", "val", "test", "only-A", "only-B", "without-A", "without-B", "train+val"]),
        ("tas500", "tas", ["train", "val", "test", "val-all", "train+test"]),
    ):
        source = open_data(DataOptions(data=data, root=str(tmp_path / root), pictures=1), size=(16, 16))
        paths = {split: {p.image for p in select(source, split)} for split in splits}  # type: ignore[union-attr]
        for one in splits:
            for other in splits:
                shared = bool(paths[one] & paths[other])
                if {one, other} != {"without-A", "without-B"}:  # which would share those of a third drive
                    assert share(one, other) == shared, (one, other)


# The network that answers where none is named


def test_predictor_needs_no_model(shipped: Path):
    np.testing.assert_array_equal(
        Predictor(device="cpu")(photo()).trail, Predictor(shipped, device="cpu")(photo()).trail
    )


def test_a_trained_network_at_a_path_comes_before_a_name_but_never_before_the_default(shipped: Path, runs: Path):
    assert packed() == [MODEL]
    assert find_model(MODEL) == find_model(None) == shipped
    Path(MODEL).mkdir()  # such as the folder of the data set
    assert find_model(MODEL) == find_model(None) == shipped
    Path(MODEL).rmdir()
    shutil.copytree(runs / "one", MODEL)
    assert find_model(MODEL) == Path(MODEL)
    assert find_model(None) == shipped
    with pytest.raises(FileError, match=rf"^camvit: there is no such run .*; the package has {MODEL}$"):
        find_model("camvit")


def test_the_options_name_the_default():
    for kind in (PredictOptions, AppOptions):
        assert f"(default: {MODEL})" in " ".join(help_text("x", kind).split())


def test_one_word_is_the_picture_and_no_answer_is_overwritten(shipped: Path, capsys: pytest.CaptureFixture[str]):
    expected = Predictor(shipped, device="cpu")(Path("photo.jpg")).ids
    for out in ("answers", "answers-2", "answers-3"):
        before = content(Path())
        assert run(["predict", "photo.jpg", "device=cpu"]) == 0
        assert capsys.readouterr().out == f"{out}/photo.png\n"
        np.testing.assert_array_equal(np.asarray(Image.open(f"{out}/photo.png")), expected)
        written = ("photo.png", "photo_overlay.png", "predict.json")
        assert set(content(Path())) - set(before) == {f"{out}/{name}" for name in written}
        assert content(Path()).items() >= before.items()


def test_a_model_can_be_said_by_its_name_or_as_the_first_of_two_words(shipped: Path, runs: Path):
    other = str(runs / "other")
    for out, words in {
        "first": [other, "photo.jpg"],
        "named": ["photo.jpg", f"model={other}"],
        "before": [f"model={other}", "photo.jpg"],
        "both": [f"--model={other}", "--pictures", "photo.jpg"],
        "word": ["pictures=photo.jpg", other],
    }.items():
        assert run(["predict", *words, f"out={out}", "device=cpu"]) == 0
    expected = Predictor(other, device="cpu")(Path("photo.jpg")).ids
    assert (expected != Predictor(shipped, device="cpu")(Path("photo.jpg")).ids).any()
    for out in ("first", "named", "before", "both", "word"):
        np.testing.assert_array_equal(np.asarray(Image.open(f"{out}/photo.png")), expected)


def test_the_page_needs_no_model(shipped: Path, runs: Path, monkeypatch: pytest.MonkeyPatch):
    served: list[Predictor] = []

    @contextmanager
    def serve(given: Predictor, *, port: int | None) -> Iterator[str]:
        served.append(given)
        raise KeyboardInterrupt
        yield ""

    monkeypatch.setattr(app, "serve", serve)
    for words in ([], [str(runs / "one")]):
        assert run(["app", *words, "device=cpu"]) == 0
    for given, folder in zip(served, (shipped, runs / "one"), strict=True):
        np.testing.assert_array_equal(given(photo()).ids, Predictor(folder, device="cpu")(photo()).ids)


PROGRAM = """
from pathlib import Path
from trailseg import predictor
predictor.WEIGHTS = Path(sys.argv.pop(1))
from trailseg.cli import main
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "onnxruntime"}), file=sys.stderr)
"""


def test_as_many_steps_of_training_in_fewer_epochs_of_more_pictures_are_the_same_training(runs: Path):
    found = measures(Run.open(runs / "as long"), [Run.open(runs / "longer")])
    assert (found["runs"], found["train"], found["epoch"]) == (["longer"], 4, 3)


@pytest.mark.parametrize("hidden", [OTHERS, ["torch"], ["safetensors"]], ids=lambda names: names[0])
def test_without_what_a_run_needs_the_exported_file_answers(hidden: list[str], shipped: Path):
    done = without(hidden, PROGRAM, shipped.parent, "predict", "photo.jpg")
    assert (done.returncode, done.stdout, done.stderr) == (0, "answers/photo.png\n", "onnxruntime\n")
    expected = Predictor(shipped, device="cpu")(Path("photo.jpg")).ids
    assert (np.asarray(Image.open("answers/photo.png")) != expected).mean() <= 0.001


def test_with_what_a_run_needs_the_run_answers(shipped: Path):
    done = without(["onnxruntime"], PROGRAM, shipped.parent, "predict", "photo.jpg")
    assert (done.returncode, done.stdout, done.stderr) == (0, "answers/photo.png\n", "torch\n")


def test_with_neither_a_line_says_what_to_install(shipped: Path):
    done = without([*OTHERS, "onnxruntime"], PROGRAM, shipped.parent, "predict", "photo.jpg")
    line = "trailseg predict: an exported file needs onnxruntime: pip install '.[runtime]' in its repository\n"
    assert (done.returncode, done.stderr.strip("\n") + "\n") == (2, line)
    assert not Path("answers").exists()


# The networks that are in the package


def test_the_package_holds_the_default_network():
    assert MODEL in packed()


@pytest.fixture(params=sorted(path.name for path in WEIGHTS.glob("*")))
def real(request: pytest.FixtureRequest) -> Path:
    return WEIGHTS / request.param


def test_a_network_of_the_package_is_small_and_whole(real: Path):
    files = content(real)
    assert set(files) == FILES
    assert sum(map(len, files.values())) <= MOST_BYTES
    assert Run.open(real).options.root is None
    assert Run.open(real).done


def test_the_card_of_a_network_of_the_package_is_up_to_date(real: Path):
    assert (real / "card.md").read_text() == card(real)


def test_the_measures_of_a_network_of_the_package_are_those_of_a_committed_log(
    real: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)  # where the places of the runs that they started from begin
    shipped, found = Run.open(real), json.loads((real / "measures.json").read_text())
    data = shipped.options.data
    trained = Run.open(f"results/{data}-b/{shipped.config['name']}-seed{shipped.options.seed}")
    sisters = [Run.open(f"results/{data}/{name}") for name in found["runs"]]
    assert shipped.config == placeless(trained)
    seeds = list(Path("results", data).glob(f"{sisters[0].config['name']}-seed*"))
    assert len(sisters) == len(seeds), "leaves out seeds"
    assert found == measures(trained, sisters)


def test_a_network_of_the_package_answers_alike_in_both_forms(real: Path):
    theirs, mine = (Predictor(path, device="cpu") for path in (real, real / "model.onnx"))
    assert (theirs(photo()).ids != mine(photo()).ids).mean() <= 0.001
    assert theirs.facts.classes == mine.facts.classes
