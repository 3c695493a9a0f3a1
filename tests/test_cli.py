"""The command line end to end: from scenes on disk to a report, and one line on every kind of bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from small import content, only_line, reconfigured

import trailseg.experiment
from trailseg.cli import COMMANDS, run
from trailseg.config import DataOptions
from trailseg.data.readers import open_data
from trailseg.errors import FileError
from trailseg.labels import IGNORE
from trailseg.networks.table import NAMED

TINY = ["channels=4", "depth=1", "stem=x2", "size=16,24", "batch=4"]
PROGRAM = [sys.executable, "-m", "trailseg"]


@pytest.fixture(scope="module")
def tas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in TAS500's layout; 50 of them are val, 2 test."""
    root = tmp_path_factory.mktemp("tas")
    assert run(["data", "make", str(root), "size=32,48", "train=6", "val=52", "test=1"]) == 0
    return root


@pytest.fixture(scope="module")
def trained(tas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "v6"
    assert run(["train", "data=tas500", f"root={tas}", *TINY, "epochs=2", f"out={out}"]) == 0
    return out


# What works


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["data"]])
def test_help_and_a_wrong_command_answer_without_torch(words: list[str]):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "trailseg", *words], capture_output=True, text=True
    )
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "jsonargparse" in modules  # the list of modules was read rightly
    assert not modules & {"torch", "lightning_fabric", "matplotlib", "PIL", "rich"}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    for words in ([], ["--help"], ["help"], ["data", "--help"]):
        assert run(words) == 0
        lines = capsys.readouterr().out.splitlines()
        for command, (_, kind) in COMMANDS.items():
            assert [line for line in lines if line.startswith(f"  {command} ") and line.endswith(str(kind.__doc__))]
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"trailseg {trailseg.__version__}\n"


def test_networks_as_json_and_as_a_table(capsys: pytest.CaptureFixture[str]):
    assert run(["networks", "--json", *TINY[:-1]]) == 0
    table = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {*NAMED, "single"} <= set(table)
    for row in table.values():
        assert list(row) == [
            "name", "cores", "context", "residual", "gated", "feedback", "parameters", "macs_stem", "macs_step"
        ]  # fmt: skip
        assert row["cores"] in (1, 2, "S")
        assert row["context"] in ("none", "shared", "own")
        assert min(row["parameters"], row["macs_stem"], row["macs_step"]) > 0
    assert table["iterative-v5"]["parameters"] > table["iterative-v6"]["parameters"]  # two cores, one core
    assert run(["networks", "network=hourglass"]) == 0
    *_, heads, row = capsys.readouterr().out.splitlines()
    assert heads.split()[:6] == ["network", "cores", "context", "residual", "gated", "feedback"]
    assert row.split()[:6] == ["hourglass", "S", "none", "no", "no", "logits"]


def test_data_check_and_stats(tas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["data", "check", "data=tas500", f"root={tas}"]) == 0
    assert capsys.readouterr().out == f"0 faults in {tas}\n"
    plot = tmp_path / "stats.png"
    assert run(["data", "stats", "data=tas500", f"root={tas}", "split=test", f"out={plot}"]) == 0
    cells = [line.split() for line in capsys.readouterr().out.splitlines()[3:-2]]
    assert sum(int(pixels) for *_, pixels, _, _ in cells) == 2 * 32 * 48
    assert Image.open(plot).format == "PNG"


def test_evaluate_as_json_holds_the_documented_keys(trained: Path, tas: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["evaluate", str(trained), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert list(measured) == ["split", "images", "pixels", "ignored_pixels", "steps", "at_stem_scale"]
    assert (measured["split"], measured["images"], measured["pixels"]) == ("val", 50, 50 * 32 * 48)
    assert set(measured["at_stem_scale"]) == {"pixels", "ignored_pixels", "steps"}
    assert measured["at_stem_scale"]["pixels"] == 50 * 8 * 12
    config = yaml.safe_load((trained / "config.yaml").read_text())
    for steps in (measured["steps"], measured["at_stem_scale"]["steps"]):
        assert [step["step"] for step in steps] == [1, 2, 3]
        for step in steps:
            assert set(step) == {"step", "pixel_accuracy", "miou", "classes_counted", "iou"}
            assert list(step["iou"]) == config["data"]["classes"]
            counted = [value for value in step["iou"].values() if value is not None]
            assert len(counted) == step["classes_counted"]
            assert step["miou"] == pytest.approx(sum(counted) / len(counted))
    logged = json.loads((trained / "log.jsonl").read_text().splitlines()[-1])["val"]["steps"]
    for key in ("pixel_accuracy", "miou"):
        assert [step[key] for step in measured["steps"]] == pytest.approx([step[key] for step in logged], abs=1e-4)


def test_evaluate_another_split_with_more_steps_as_a_table(trained: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["evaluate", str(trained), "split=test", "steps=5"]) == 0
    title, _, heads, *rows = capsys.readouterr().out.splitlines()
    assert title == f"{trained}, test: 2 pictures, full size, in %"
    assert heads.startswith("step  pixel accuracy  mIoU  mIoU at stem  terrain")
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4", "5"]


def test_predict_writes_the_ids_that_evaluate_counts(
    trained: Path, tas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    val = open_data(DataOptions(data="tas500", root=str(tas), pictures=1), size=(16, 24)).split("val")
    for picture in val:
        shutil.copy(picture.image, pictures)  # type: ignore[attr-defined]
    Image.new("RGB", (31, 21), (90, 140, 200)).save(pictures / "größe=1.jpg")
    out = tmp_path / "out"
    assert run(["predict", str(trained), str(pictures), f"out={out}"]) == 0
    assert len(list(out.glob("*.png"))) == 2 * 51
    assert Image.open(out / "größe=1.png").size == Image.open(out / "größe=1_overlay.png").size == (31, 21)
    capsys.readouterr()
    assert run(["evaluate", str(trained), "--json"]) == 0
    right = scored = 0
    colours = np.array(yaml.safe_load((trained / "config.yaml").read_text())["data"]["colours"])
    for picture in val:
        ids = Image.open(out / f"{picture.name}.png")
        assert (ids.format, ids.mode, ids.size) == ("PNG", "L", (48, 32))
        image, truth = picture.read()
        right += int((np.array(ids) == truth).sum())
        scored += int((truth != IGNORE).sum())
        overlay = np.array(Image.open(out / f"{picture.name}_overlay.png"))
        np.testing.assert_array_equal(overlay, (image + colours[np.array(ids)]) // 2)
    accuracy = json.loads(capsys.readouterr().out)["steps"][-1]["pixel_accuracy"]
    assert right / scored == pytest.approx(accuracy, abs=1e-4)


def test_predict_of_fewer_steps_is_another_answer(trained: Path, tas: Path, tmp_path: Path):
    picture = next((tas / "tas500v1.1" / "val").iterdir())
    for steps in (1, 3):
        assert run(["predict", str(trained), str(picture), f"out={tmp_path}/{steps}", f"steps={steps}"]) == 0
    first, last = (np.array(Image.open(tmp_path / str(s) / picture.name)) for s in (1, 3))
    assert (first != last).any()


def test_a_cut_run_is_told_how_to_go_on_and_ends_as_if_uncut(
    trained: Path, tas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def cut(*_: Any) -> None:
        raise FileError(out, "is cut", f"say resume={out}")

    out = tmp_path / "cut"
    words = ["train", "data=tas500", f"root={tas}", *TINY, "epochs=2", f"out={out}"]
    with monkeypatch.context() as patch:
        patch.setattr(trailseg.experiment.EpochProgress, "__call__", cut)  # the first epoch has just been saved
        assert run(words) == 1
    assert only_line(capsys) == f"trailseg train: {out}: is cut; say resume={out}\n"
    assert len((out / "log.jsonl").read_text().splitlines()) == 1
    assert run(words) == 1  # the same command again would begin anew
    assert f"say resume={out}" in only_line(capsys)
    assert run(["train", f"resume={out}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}: iterative-v6, 2 of 2 epochs"
    for file in ("last", "best"):
        name = f"checkpoints/{file}.safetensors"
        assert (out / name).read_bytes() == (trained / name).read_bytes()
    before = content(out / "checkpoints")
    assert run(["train", "--resume", str(out), "device=cpu"]) == 0  # a finished run stays as it is
    assert content(out / "checkpoints") == before


def test_the_time_that_is_left_is_told_by_the_last_epochs(capsys: pytest.CaptureFixture[str]):
    progress = trailseg.experiment.EpochProgress(Console(), "v6", done=0, epochs=100)
    for epoch in range(1, 21):  # the machine slept in the fifth
        progress(
            {"epoch": epoch, "loss": 1, "val": None, "seconds": 9000 if epoch == 5 else 3, "pictures_per_second": 9}
        )
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "v6  epoch 20/100  loss 1.0000  9.0 pictures/s  0:04:00 left"


def test_a_training_stopped_from_the_keyboard_leaves_one_line_and_a_run_to_go_on_with(tmp_path: Path):
    words = ["train", *TINY, "pictures=4", "epochs=100000", f"out={tmp_path}/long"]
    # In the background of a shell SIGINT is ignored, and so would it be in the child.
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    with subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        next(line for line in process.stdout if "epoch 2/100000" in line)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        error = process.stderr.read()
    assert process.returncode == 130
    assert error == f"trailseg train: interrupted; go on with `trailseg train resume={tmp_path}/long`\n"
    assert (tmp_path / "long" / "checkpoints" / "last.safetensors").exists()


def test_a_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([*PROGRAM, "--help"], stdout=write, stderr=subprocess.PIPE, env=env)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_study_is_trained_once_and_reported_as_often_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, out = tmp_path / "study.yaml", tmp_path / "out"
    defaults = {"channels": 4, "depth": 1, "stem": "x2", "size": [16, 24], "pictures": 8, "epochs": 5}
    file.write_text(yaml.safe_dump({"defaults": defaults, "runs": [{"network": "single"}, {"network": "hourglass"}]}))
    words = ["study", str(file), f"out={out}", "epochs=1"]
    assert run(words) == 0
    first = capsys.readouterr().out
    assert first.count("epoch 1/1") == 2
    assert f"wrote {out / 'table.md'}" in first
    runs = {folder: content(folder) for folder in (out / "single-seed0", out / "hourglass-seed0")}
    assert all("checkpoints/last.safetensors" in files for files in runs.values())
    assert run(words) == 0
    again = capsys.readouterr().out
    assert again.count("is done") == 2
    assert "epoch 1/1" not in again
    assert {folder: content(folder) for folder in runs} == runs
    table = (out / "table.md").read_text()
    (out / "table.md").unlink()
    (out / "report.html").unlink()
    assert run(["report", str(out)]) == 0
    assert (out / "table.md").read_text().partition("\n")[2] == table.partition("\n")[2]  # the title is the folder's
    assert "hourglass" in (out / "report.html").read_text()
    capsys.readouterr()
    assert run([*words, "lr=0.5"]) == 1
    assert "holds a run with other options (lr 0.001, not 0.5)" in only_line(capsys)
    assert run([*words, "resume=x"]) == 2
    assert {folder: content(folder) for folder in runs} == runs


# What does not


def test_a_bad_picture_is_named_and_the_others_are_done(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    (pictures / "folder.png").mkdir()
    for name in ("a", "c"):
        Image.new("RGB", (20, 10), (90, 140, 200)).save(pictures / f"{name}.png")
    (pictures / "b.png").write_text("this is text")
    assert run(["predict", str(trained), str(pictures), f"out={out}"]) == 1
    assert only_line(capsys).startswith(f"trailseg predict: {pictures / 'b.png'}: ")
    assert sorted(content(out)) == ["a.png", "a_overlay.png", "c.png", "c_overlay.png", "predict.json"]


@pytest.mark.parametrize(
    ("names", "target", "fragment"),
    [
        (["a.png", "b.jpg"], "pictures", "is there already"),
        (["a.png", "a.jpg"], "out", "as would"),
        (["a.png", "a_overlay.png"], "out", "as would"),
        (["a.png"], "pictures/a.png", "cannot be written"),
    ],
)
def test_predict_overwrites_nothing(
    names: list[str], target: str, fragment: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "pictures").mkdir()
    for name in names:
        Image.new("RGB", (20, 10)).save(tmp_path / "pictures" / name)
    before = content(tmp_path)
    assert run(["predict", str(trained), str(tmp_path / "pictures"), f"out={tmp_path / target}"]) == 1
    assert fragment in only_line(capsys)
    assert content(tmp_path) == before


BAD = [
    ("netwroks", 2, "command netwroks is not known: did you mean 'networks'?"),
    ("data", 2, "command data is not known: did you mean 'data make'?"),
    ("data chekc", 2, "command data chekc is not known: did you mean 'data check'?"),
    ("networks network=singel", 2, "network=singel is not known: did you mean 'single'?"),
    ("networks stem=x3", 2, "stem=x3 is not known"),
    ("networks core=unet", 2, "core=unet is not known: did you mean 'resunet'?"),
    ("networks norm=grp", 2, "norm=grp is not known: did you mean 'group'?"),
    ("networks classes=0", 2, "classes=0: take at least 1"),
    ("networks channels=2147483647 depth=10 growth=10", 1, "not enough memory"),
    ("data make", 2, "dir is missing: say dir=DIR"),
    ("data make {tas}", 1, "tas500v1.1: is already there and not empty"),
    ("data make {file}/x size=16,16", 1, "Not a directory"),
    ("data make {new} size=8,8", 2, "size=8,8: take at least 16 pixels each way"),
    ("data check data=tas50", 2, "data=tas50 is not known: did you mean 'tas500'?"),
    ("data check data=tas500", 2, "say root=FOLDER"),
    ("data check data=tas500 root={new}", 1, "there is no such folder"),
    ("data check data=camvid root={empty}", 1, "is empty"),
    ("data check data=camvid root={empty} labels=fine", 2, "labels=fine: data=camvid has one label set"),
    ("data stats labels=corse", 2, "labels=corse is not known: did you mean 'coarse'?"),
    ("data stats data=tas500 root={tas} split=tset", 2, "split=tset is not known: did you mean 'test'?"),
    ("data stats out={file}", 1, "is there already; say another out="),
    ("train network=iterativ-v6 pictures=4 {tiny} out={new}", 2, "did you mean 'iterative-v6'?"),
    ("train netwrok=single out={new}", 2, "option netwrok is not known: did you mean 'network'?"),
    ("train epochs=ten out={new}", 2, "epochs=ten: take a whole number"),
    ("train size=0,0 out={new}", 2, "size=0,0: take height,width in pixels"),
    ("train {tiny} pictures=4 val_on=vall out={new}", 2, "val_on=vall is not known: did you mean 'val'?"),
    ("train stem_from={run},{run} out={new}", 2, "stem_from: take the stem of one run"),
    ("train augment=drvie out={new}", 2, "augment=drvie is not known: did you mean 'drive'?"),
    ("train precision=16 out={new}", 2, "precision=16 is not known: did you mean 'bf16'?"),
    ("train device=gpu out={new}", 2, "device=gpu is not known: did you mean 'cpu'?"),
    ("train device=mps out={new}", 2, "device=mps: there is none here; say device=cpu"),
    ("train pictures=1 size=99999999,99999999 out={new}", 1, "not enough memory; take a smaller size"),
    ("train data=tas500 root={new} out={new}2", 1, "there is no such folder"),
    ("train data=tas500 root={empty} out={new}", 1, "is empty"),
    ("train -c {new}.yaml", 1, "No such file or directory"),
    ("train -c {file} out={new}", 1, "holds no mapping of options"),
    ("train out={run} pictures=4", 1, "already holds a run (iterative-v6, 2 of 2 epochs); say resume="),
    ("train out={tas} pictures=4", 1, "is not an empty folder; say another out="),
    ("train out={file} pictures=4", 1, "is not an empty folder; say another out="),
    ("train out={file}/x pictures=4 {tiny}", 1, "Not a directory"),
    ("train resume={new}", 1, "there is no such run directory"),
    ("train resume={tas}", 1, "holds no run: it has no config.yaml"),
    ("train resume={run} out={new}", 2, "leave out= away"),
    ("train resume={run} lr=0.5", 1, "lr 0.001, not 0.5"),
    ("train stem_from={run} {tiny} stem=x4 pictures=4 out={new}", 1, "its weights are for stem=x2, not stem=x4"),
    ("train start_from={run} {tiny} channels=9 depth=2 out={new}", 1, "; say channels=4 depth=1"),
    ("train start_from={new} pictures=4 out={new}2", 1, "nor a network of that name in the package"),
    ("train start_from={run} stem_from={run} out={new}", 2, "start_from= brings a stem with it; leave one out"),
    ("evaluate", 2, "run is missing: say run=RUN"),
    ("evaluate {new}", 1, "there is no such run directory"),
    ("evaluate {file}", 1, "there is no such run directory"),
    ("evaluate {run} steps=0", 2, "steps=1..0: take steps from 1"),
    ("evaluate {run} batch=0", 2, "batch=0: take at least 1"),
    ("evaluate {run} split=tset", 2, "split=tset is not known: did you mean 'test'?"),
    ("evaluate {run} checkpoint=lst", 2, "checkpoint=lst is not known: did you mean 'last'?"),
    ("evaluate {run} root={new}", 1, "there is no such folder"),
    ("evaluate {run} {run}", 2, "is one word too many"),
    ("predict {run} {new} out={new}2", 1, "there is no such file or folder"),
    ("predict {run} {empty} out={new}", 1, "holds no picture"),
    ("predict", 2, "pictures is missing: say pictures=PICTURES"),
    ("predict {run} {empty}", 1, "holds no picture"),
    ("predict {file} model={new}", 1, "nor a network of that name in the package"),
    ("export {run}", 2, "out is missing: say out=OUT"),
    ("pack {run}", 2, "out is missing: say out=OUT"),
    ("pack {run} out={file}", 1, "is there already; say another out="),
    ("study", 2, "file is missing: say file=FILE"),
    ("study {new}.yaml", 1, "No such file or directory"),
    ("study {file}", 1, "holds no mapping"),
    ("report {new}", 1, "is not a folder"),
    ("report {tas}", 1, "holds no run"),
]


@pytest.mark.parametrize(("line", "code", "fragment"), BAD, ids=[line for line, _, _ in BAD])
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(
    line: str, code: int, fragment: str, trained: Path, tas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("of mine")
    before = content(tmp_path), content(trained)
    places = {"new": tmp_path / "new", "empty": tmp_path / "empty", "file": tmp_path / "file"}
    words = line.format(tas=tas, run=trained, tiny=" ".join(TINY), **places).split()
    assert run(words) == code
    printed = only_line(capsys)
    assert printed.startswith("trailseg")
    assert fragment in printed
    assert "Traceback" not in printed
    assert (content(tmp_path), content(trained)) == before


def test_steps_beyond_an_hourglass(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = f"{tmp_path}/run"
    assert run(["train", "network=hourglass", *TINY, "pictures=4", "epochs=1", f"out={out}"]) == 0
    capsys.readouterr()
    assert run(["evaluate", out, "steps=4"]) == 2
    assert "steps=4: these weights were made for at most 3" in only_line(capsys)


def test_a_checkpoint_of_another_network(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_folder = shutil.copytree(trained, tmp_path / "run")
    config = (run_folder / "config.yaml").read_text()
    (run_folder / "config.yaml").write_text(config.replace("channels: 4", "channels: 8"))
    for words in (["evaluate", str(run_folder)], ["train", f"resume={run_folder}"]):
        assert run(words) == 1
        assert "config.yaml: is not what" in (line := only_line(capsys))
        assert "last.safetensors was trained with (channels 8, not 4)" in line
    reconfigured(run_folder, lambda text: text)
    for words in (["evaluate", str(run_folder)], ["train", f"resume={run_folder}"]):
        assert run(words) == 1
        assert f"{run_folder / 'checkpoints' / 'last.safetensors'}: is of another network: " in only_line(capsys)


@pytest.mark.parametrize(
    ("file", "damage", "fragment"),
    [
        ("checkpoints/last.safetensors", lambda b: b[:500], "is damaged"),
        ("checkpoints/last.safetensors", lambda b: b"", "is damaged"),
        ("checkpoints/last.safetensors", None, "there is no such checkpoint"),
        ("config.yaml", lambda b: b"a: [", "is not valid YAML"),
        ("config.yaml", lambda b: b"hello", "holds no mapping"),
        ("config.yaml", lambda b: b.replace(b"epochs: 2", b"epochs: ten"), "epochs=ten: take a whole number"),
        ("config.yaml", lambda b: b.replace(b"channels: 4", b"chanels: 4"), "option chanels is not known"),
    ],
)
def test_a_damaged_run_is_named_with_its_file(
    file: str, damage: Any, fragment: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run_folder = shutil.copytree(trained, tmp_path / "run")
    if damage is None:
        (run_folder / file).unlink()
    else:
        (run_folder / file).write_bytes(damage((run_folder / file).read_bytes()))
    assert run(["evaluate", str(run_folder)]) == 1
    printed = only_line(capsys)
    assert f"{run_folder / file}: " in printed
    assert fragment in printed


def spoil_png(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def resize(path: Path) -> None:
    Image.open(path).resize((16, 16), Image.Resampling.NEAREST).save(path)


def unknown_id(path: Path) -> None:
    pixels = np.array(Image.open(path))
    pixels[0, 0] = 77
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("folder", "fault", "fragment"),
    [
        ("train_labels_ids", Path.unlink, ""),
        ("train_labels_ids", resize, "16 x 16"),
        ("train_labels_ids", unknown_id, "id 77 outside the classes"),
        ("train", spoil_png, "replace"),
        ("train", lambda path: path.write_text("text"), "replace"),
    ],
    ids=["no label", "another size", "unknown id", "truncated", "text"],
)
def test_a_faulty_data_set_is_named_by_check_and_by_train(
    folder: str, fault: Any, fragment: str, tas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = shutil.copytree(tas, tmp_path / "tas")
    victim = sorted((root / "tas500v1.1" / folder).iterdir())[2]
    fault(victim)
    assert run(["data", "check", "data=tas500", f"root={root}"]) == 1
    *faults, summary = capsys.readouterr().out.splitlines()
    assert summary == f"{len(faults)} fault{'s' * (len(faults) != 1)} in {root}"
    assert any(victim.stem in line and fragment in line for line in faults)
    assert run(["train", "data=tas500", f"root={root}", *TINY, f"out={tmp_path}/run"]) == 1
    printed = only_line(capsys)
    assert victim.stem in printed
    assert fragment in printed
    assert not (tmp_path / "run").exists()
