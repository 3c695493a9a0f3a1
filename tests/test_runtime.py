"""What a robot needs: exported files are answered without PyTorch, and what lacks it says what to install.

Always, in this environment, with the packages of the other extras hidden from a process. Where TRAILSEG_FRESH_VENV is
set, as in CI, also in a new environment with nothing but `pip install .[runtime]`, which needs a package index.
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_export import KINDS, exported

from trailseg import Predictor
from trailseg.config import Size
from trailseg.data.scenes import scene

OTHERS = [
    "torch", "lightning_fabric", "safetensors", "matplotlib", "jinja2", "rich", "onnx", "onnxscript", "av", "gradio",
]  # fmt: skip
"""Packages of all extras but `runtime`."""

HIDE = """
import sys
from importlib.machinery import PathFinder
hidden = sys.argv.pop(1).split(",")
class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""
PROGRAM = "from trailseg.cli import main\nmain()\n"
ANSWER = """
import json, sys
from trailseg import Predictor
predictor = Predictor(sys.argv[1])
answer = predictor(sys.argv[2], steps="auto", tolerance=float(sys.argv[3]))
modules = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([answer.steps, answer.ids.tolist(), answer.trail.shape, sorted(modules)]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run and its exported file."""
    return exported(tmp_path_factory, **KINDS["recalling loop"])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scene.jpg"
    Image.fromarray(scene(seed=9, index=0, size=Size(45, 70))[0]).save(path)
    return path


def without(packages: list[str], program: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A program in a process that has none of these packages."""
    command = [sys.executable, "-c", HIDE + program, ",".join(packages), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def assert_same_pictures(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir()) == ["predict.json", "scene.png", "scene_overlay.png"]
    for name in names[1:]:
        pixels, others = (np.asarray(Image.open(folder / name)) for folder in (one, other))
        assert pixels.shape[:2] == others.shape[:2] == (45, 70)
        assert (pixels != others).mean() <= 0.001


@pytest.mark.parametrize("package", [*OTHERS, "onnxruntime"])
def test_hidden_packages_are_hidden(package: str):
    done = without([package], f"import {package}")
    assert done.stderr.endswith(f"ModuleNotFoundError: No module named '{package}'\n")


def test_a_file_is_answered_without_the_other_packages(model: tuple[Path, Path], picture: Path, tmp_path: Path):
    done = without(OTHERS, PROGRAM, "predict", model[1], picture, f"out={tmp_path / 'without'}", "steps=4")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'without' / 'scene.png'}\n"
    whole = [sys.executable, "-m", "trailseg", "predict", model[0], picture, f"out={tmp_path / 'with'}", "steps=4"]
    subprocess.run(whole, check=True, capture_output=True)
    assert_same_pictures(tmp_path / "without", tmp_path / "with")


def test_predictor_answers_without_the_other_packages(model: tuple[Path, Path], picture: Path):
    done = without(OTHERS, ANSWER, model[1], picture, 0.1)
    assert done.stderr == ""
    steps, ids, shape, modules = json.loads(done.stdout)
    assert {"onnxruntime", "numpy", "PIL", "trailseg"} <= set(modules)
    assert not set(OTHERS) & set(modules)
    expected = Predictor(model[0], device="cpu")(picture, steps="auto", tolerance=0.1)
    assert steps == expected.steps
    assert shape == [steps, 45, 70]
    assert (np.array(ids) != expected.ids).mean() <= 0.001


def test_help_and_the_version_need_none_of_them():
    for words in (["--help"], ["predict", "--help"], ["train", "--help"]):
        done = without(OTHERS, PROGRAM, *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("trailseg: " if len(words) == 1 else f"usage: trailseg {words[0]} ")
    assert without([*OTHERS, "onnxruntime"], PROGRAM, "--version").stdout.startswith("trailseg 0")


@pytest.mark.parametrize(
    ("hidden", "words", "line"),
    [
        (
            OTHERS,
            "train pictures=1 epochs=1 size=16,16 out={new}",
            "trailseg train: needs torch: pip install '.[train]' in its repository",
        ),
        (OTHERS, "evaluate {run}", "trailseg evaluate: needs {first}: pip install '.[train]' in its repository"),
        (OTHERS, "networks", "trailseg networks: needs torch: pip install '.[train]' in its repository"),
        (
            OTHERS,
            "predict {run} {picture} out={new}",
            "trailseg predict: needs torch: pip install '.[train]' in its repository",
        ),
        (
            OTHERS,
            "export {run} out={new}.onnx",
            "trailseg export: needs torch: pip install '.[train]' in its repository",
        ),
        (
            ["onnxruntime"],
            "predict {file} {picture} out={new}",
            "trailseg predict: an exported file needs onnxruntime: pip install '.[runtime]' in its repository",
        ),
        *(
            (
                [package],
                "export {run} out={new}.onnx",
                "trailseg export: exporting needs onnx and onnxscript: pip install '.[export]' in its repository",
            )
            for package in ("onnx", "onnxscript")
        ),
        (
            ["av"],
            "predict {file} {video} out={new}",
            "trailseg predict: video needs av: pip install '.[video]' in its repository",
        ),
    ],
    ids=lambda value: value.partition(" ")[0] if isinstance(value, str) else ",".join(value)[:16],
)
def test_what_needs_another_package_says_in_a_line_what_to_install(
    hidden: list[str], words: str, line: str, model: tuple[Path, Path], picture: Path, tmp_path: Path
):
    video = tmp_path / "drive.mp4"
    video.write_bytes(b"of which nothing is read")
    places = {"run": model[0], "file": model[1], "picture": picture, "video": video, "new": tmp_path / "new"}
    done = without(hidden, PROGRAM, *words.format(**places).split())
    allowed = {line.format(first=first) + "\n" for first in ("torch", "safetensors")}  # whichever is imported first
    assert done.returncode == 2
    assert done.stderr in allowed
    assert not list(tmp_path.glob("new*"))


@pytest.mark.skipif("TRAILSEG_FRESH_VENV" not in os.environ, reason="set TRAILSEG_FRESH_VENV=1; it needs the network")
def test_a_new_environment_with_the_runtime_alone(model: tuple[Path, Path], picture: Path, tmp_path: Path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    root = Path(__file__).parent.parent
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{root}[runtime]"], check=True, cwd=tmp_path)
    for package in OTHERS:
        done = subprocess.run([python, "-c", f"import {package}"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 1
        assert f"No module named '{package}'" in done.stderr
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    names = {package["name"].lower() for package in json.loads(listed)}
    assert {"trailseg", "onnxruntime", "numpy", "pillow"} <= names
    program = python.with_name("trailseg")
    new = [program, "predict", model[1], picture, f"out={tmp_path / 'new'}", "steps=4"]
    done = subprocess.run(new, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    here = [sys.executable, "-m", "trailseg", "predict", model[1], picture, f"out={tmp_path / 'here'}", "steps=4"]
    subprocess.run(here, check=True, capture_output=True)
    assert_same_pictures(tmp_path / "new", tmp_path / "here")
    answer = subprocess.run([python, "-c", ANSWER, model[1], picture, "0.1"], capture_output=True, check=True)
    assert json.loads(answer.stdout)[0] == Predictor(model[0], device="cpu")(picture, steps="auto", tolerance=0.1).steps
    done = subprocess.run([program, "train", f"out={tmp_path / 'run'}"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "trailseg train: needs torch: pip install '.[train]' in its repository\n",
    )
