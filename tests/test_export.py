"""Exported files in ONNX Runtime against PyTorch, and every way in which an export or a file can be wrong.

An export takes seconds: each network is exported once in a test session, by `exported`.
"""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from small import only_line, train

from trailseg import Predictor, onnx_graph
from trailseg import export as exporting
from trailseg.cli import run
from trailseg.config import ExportOptions, Size
from trailseg.data.scenes import scene
from trailseg.errors import FileError, OptionError
from trailseg.export import Check, export
from trailseg.inference import TorchModel
from trailseg.labels import IGNORE
from trailseg.model import Answers
from trailseg.onnx_model import OnnxModel, OnnxParts, seal
from trailseg.runs import Run
from trailseg.writing import write_whole

SIZES = [Size(32, 48), Size(33, 51), Size(7, 90), Size(1, 1), Size(3, 2)]


def exported(
    factory: pytest.TempPathFactory, network: str, parts: bool = False, warm_start: bool = False, **options: object
) -> tuple[Path, Path]:
    """A run and what was exported of it, made when first asked for."""
    folder = factory.getbasetemp() / "-".join(["exported", network, *map(str, options.values())])
    out = folder / ("parts" if parts else "model.onnx")
    if not (folder / "run").exists():
        train(folder / "run", network, **options)
    if not out.exists():
        export(ExportOptions(run=str(folder / "run"), out=str(out), parts=parts, warm_start=warm_start))
    return folder / "run", out


GATED = {"network": "gated", "stem": "s8", "core": "dilated", "norm": "step", "finer": 2}

KINDS: dict[str, dict[str, Any]] = {
    "recalling loop": {"network": "iterative-v4", "warm_start": True},
    "gated loop, each picture by itself, guided": GATED | {"standardize": "picture", "guided": 2},
    "recalling gated loop": GATED | {"warm_start": True},
    "gated parts": GATED | {"parts": True},
    "guided gated parts": GATED | {"parts": True, "guided": 4},
    "loop of two cores": {"network": "iterative-v5"},
    "stack": {"network": "res-hourglass"},
    "stack bound to a size": {"network": "1-own", "norm": "layerHW"},
    "parts": {"network": "iterative-v4", "parts": True},
}


@pytest.fixture(scope="module")
def v4(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return exported(tmp_path_factory, **KINDS["recalling loop"])


@pytest.fixture(scope="module")
def v5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return exported(tmp_path_factory, **KINDS["loop of two cores"])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return exported(tmp_path_factory, **KINDS["stack"])


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchModel, Any]:
    """A network in PyTorch and in ONNX Runtime."""
    return models(*exported(tmp_path_factory, **KINDS[request.param]))


def models(folder: Path, file: Path) -> tuple[TorchModel, Any]:
    return torch_model(folder), OnnxParts(file) if file.is_dir() else OnnxModel(file)


def torch_model(folder: Path) -> TorchModel:
    return TorchModel(Run.open(folder), device="cpu", precision="32", checkpoint="last")


def images(size: Size, count: int = 2) -> np.ndarray:
    """Scenes, and noise where they would be too small; the last is plain."""
    random = np.random.default_rng(0)
    made = [
        scene(seed=9, index=index, size=size)[0] if min(size) > 16 else random.integers(0, 256, (*size, 3), np.uint8)
        for index in range(count)
    ]
    return np.stack([*made[:-1], made[-1] // 8 + 100]) if count > 1 else np.stack(made)


def ask(model: Any, given: np.ndarray, *, to: Size | None = None, steps: int = 3, **options: Any) -> Answers:
    asked = {"tolerance": 0.0, "trail": True} | options
    return model.answer(given, to=to or Size(*given.shape[1:3]), steps=steps, **asked)


def assert_same(ours: Answers, theirs: Answers) -> None:
    """Equal, but for what rounding does to a class of which another is as probable."""
    assert (ours.ids.dtype, ours.probability.dtype, ours.used.dtype) == (np.uint8, np.float32, np.int64)
    assert ours.ids.shape == theirs.ids.shape
    np.testing.assert_array_equal(ours.used, theirs.used)
    np.testing.assert_allclose(ours.probability, theirs.probability, atol=1e-4)
    assert (ours.ids != theirs.ids).mean() <= 0.001
    assert (ours.trail is None) == (theirs.trail is None)
    if ours.trail is not None and theirs.trail is not None:
        assert ours.trail.dtype == np.uint8
        assert ours.trail.shape == theirs.trail.shape
        assert (ours.trail != theirs.trail).mean() <= 0.001


def changes(trail: np.ndarray | None) -> np.ndarray:
    """The share of changed classes of each picture at each step after the first."""
    assert trail is not None
    return (trail[1:] != trail[:-1]).mean((2, 3))


# The same answers as PyTorch


def test_onnx_runtime_answers_like_pytorch(pair: tuple[TorchModel, Any]):
    theirs, ours = pair
    bound = theirs.network.bound_to is not None
    counts = [1, 2, 3, 7] if ours.facts.max_steps is None else [1, 2, 3]
    for number, size in enumerate(SIZES[:1] if bound else SIZES):
        given = images(size, count=1 + number % 3)
        for steps in counts:
            for to in (size, Size(2 * size.height + 1, size.width + 5)):
                assert_same(ask(ours, given, to=to, steps=steps), ask(theirs, given, to=to, steps=steps))
    whole = ask(theirs, images(SIZES[0]), steps=counts[-1])
    assert whole.trail is not None
    seen = slice(None) if theirs.network.guided == 1 else [count - 1 for count in counts]  # guided ones settle sooner
    assert changes(whole.trail[seen]).min() > 0.005, "steps that differ"
    assert len(np.unique(whole.ids)) > 2, "several classes"


def test_the_trail_is_left_out_unless_asked_for(pair: tuple[TorchModel, Any]):
    theirs, ours = pair
    given = images(SIZES[0])
    assert ask(ours, given, trail=False).trail is None
    assert_same(ask(ours, given, trail=False), ask(theirs, given, trail=False))


@pytest.mark.parametrize("kind", ["recalling loop", "loop of two cores", "parts"])
def test_each_picture_of_a_batch_stops_by_itself_as_in_pytorch(kind: str, tmp_path_factory: pytest.TempPathFactory):
    theirs, ours = models(*exported(tmp_path_factory, **KINDS[kind]))
    size = SIZES[1]
    given = np.concatenate([images(size, 3), 255 - images(size, 2)])
    with torch.no_grad():
        logits = theirs.network(torch.tensor(given).permute(0, 3, 1, 2) / 255, 8)
    classes = logits.argmax(2).movedim(1, 0).numpy()
    assert classes.shape == (8, 5, 17, 26)  # at the logits' scale
    shares = changes(classes).astype(np.float64)
    middles = [(a + b) / 2 for a, b in pairwise(np.unique(shares)) if b - a > 1e-4]

    def stops(tolerance: float) -> list[int]:
        return [next((t for t, share in enumerate(one, 2) if share < tolerance), 8) for one in shares.T]

    tolerance = max(middles, key=lambda tolerance: len(set(stops(tolerance))))
    expected = stops(tolerance)
    assert len(set(expected)) > 1, "pictures that need different numbers of steps"
    answer = ask(ours, given, steps=8, tolerance=tolerance)
    assert answer.used.tolist() == expected
    assert answer.trail is not None
    assert len(answer.trail) == max(expected)
    expected_answer = ask(theirs, given, steps=8, tolerance=tolerance)
    assert_same(answer, expected_answer)
    if ours.facts.recalls:  # the state is that of the step at which each stopped
        for mine, their in zip(answer.state, expected_answer.state, strict=True):
            np.testing.assert_allclose(mine, their.numpy(), atol=1e-3)
    for place, used in enumerate(expected):  # it repeats its answer, which is the one it gives alone
        assert (answer.trail[used - 1 :, place] == answer.ids[place]).all()
        alone = ask(ours, given[place : place + 1], steps=8, tolerance=tolerance)
        assert alone.used.tolist() == [used]
        assert (alone.ids[0] != answer.ids[place]).mean() <= 0.002
    assert ask(ours, given, steps=8, tolerance=1.0).used.tolist() == [2] * 5
    assert ask(ours, given, steps=1, tolerance=1.0).used.tolist() == [1] * 5


@pytest.mark.parametrize("kind", ["recalling loop", "parts"])
def test_a_warm_start_goes_on_from_a_state_like_pytorch(kind: str, tmp_path_factory: pytest.TempPathFactory):
    theirs, ours = models(*exported(tmp_path_factory, **KINDS[kind]))
    given, other = images(SIZES[1]), 255 - images(SIZES[1])
    whole = ask(ours, given, steps=5)
    first = ask(ours, given, steps=2)
    assert whole.trail is not None
    further = ask(ours, given, steps=3, state=first.state)
    assert further.used.tolist() == [3, 3]
    np.testing.assert_array_equal(further.trail, whole.trail[2:])
    their_state = ask(theirs, given, steps=2).state
    warm = ask(ours, other, steps=2, state=first.state)
    assert_same(warm, ask(theirs, other, steps=2, state=their_state))
    for mine, their in zip(warm.state, ask(theirs, other, steps=2, state=their_state).state, strict=True):
        np.testing.assert_allclose(mine, their.numpy(), atol=1e-3)
    assert (warm.ids != ask(ours, other, steps=2).ids).mean() > 0.01
    for wrong in (given[:1], images(SIZES[0])):
        with pytest.raises(OptionError, match="before: that answer is of pictures of another size or number"):
            ask(ours, wrong, state=first.state)


def test_a_file_without_a_state_cannot_start_warm_and_says_so(v5: tuple[Path, Path], tmp_path_factory: Any):
    assert ask(OnnxModel(v5[1]), images(SIZES[0])).state is None
    frames = list(images(SIZES[0]))
    with pytest.raises(OptionError, match=r"^warm_start: .*exported"):
        list(Predictor(v5[1]).video(frames, warm_start=True))
    warm = Predictor(exported(tmp_path_factory, **KINDS["recalling loop"])[1])
    assert len(list(warm.video(frames, warm_start=True))) == 2


# The file by itself, as another program uses it


def session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", ["recalling loop", "stack"])
def test_only_image_and_steps_must_be_given(kind: str, tmp_path_factory: pytest.TempPathFactory):
    folder, file = exported(tmp_path_factory, **KINDS[kind])
    runtime = session(file)
    assert [value.name for value in runtime.get_inputs()] == ["image", "steps"]
    loop = kind == "recalling loop"
    assert {value.name for value in runtime.get_overridable_initializers()} == {
        "size", "with_probability", "with_trail", *(("tolerance", "hidden_before", "logits_before") if loop else ())
    }  # fmt: skip
    given = images(SIZES[1], 3)
    names = [value.name for value in runtime.get_outputs()]
    assert names[:4] == ["ids", "used", "probability", "trail"]
    answers = dict(zip(names, runtime.run(names, {"image": given, "steps": np.array(2)}), strict=True))
    expected = ask(torch_model(folder), given, steps=2)
    assert answers["ids"].dtype == np.uint8
    assert answers["ids"].shape == given.shape[:3]
    assert (answers["ids"] != expected.ids).mean() <= 0.001
    assert answers["used"].tolist() == [2, 2, 2]
    assert answers["probability"].size == answers["trail"].size == 0
    given = {"image": given, "steps": np.array(2)}
    (narrow,) = runtime.run(["ids"], given | {"size": np.array([0, 20])})
    assert narrow.shape == (3, 33, 20)
    (shares,) = runtime.run(["probability"], given | {"with_probability": np.array(True)})
    np.testing.assert_allclose(shares, expected.probability, atol=1e-4)
    (trail,) = runtime.run(["trail"], given | {"with_trail": np.array(True)})
    assert (trail != expected.trail).mean() <= 0.001
    if loop:
        (used,) = runtime.run(["used"], given | {"tolerance": np.array(1, np.float32), "steps": np.array(9)})
        assert used.tolist() == [2, 2, 2]


def test_parts_are_the_stem_and_a_step_to_call_as_often_as_there_is_time(tmp_path_factory: pytest.TempPathFactory):
    folder, parts = exported(tmp_path_factory, **KINDS["parts"])
    assert sorted(file.name for file in parts.iterdir()) == ["stem.onnx", "step.onnx"]
    stem, step = session(parts / "stem.onnx"), session(parts / "step.onnx")
    assert [value.name for value in stem.get_inputs()] == ["image"]
    assert {value.name for value in step.get_inputs()} == {"context", "hidden", "logits", "own"}
    given = images(SIZES[1])
    trail = ask(torch_model(folder), given, steps=4).trail
    assert trail is not None
    ids, context, hidden, logits, own = stem.run(["ids", "context", "hidden", "logits", "own"], {"image": given})
    assert (ids != trail[0]).mean() <= 0.001
    assert own.tolist() == [33, 51]
    for later in trail[1:]:
        state = {"context": context, "hidden": hidden, "logits": logits, "own": own}
        ids, hidden, logits = step.run(["ids", "hidden_next", "logits_next"], state)
        assert (ids != later).mean() <= 0.001


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_whole_and_says_what_it_is(kind: str, tmp_path_factory: pytest.TempPathFactory):
    folder, out = exported(tmp_path_factory, **KINDS[kind])
    theirs, config = torch_model(folder).facts, Run.open(folder).config
    for file in sorted(out.iterdir()) if out.is_dir() else [out]:
        model = onnx.load(file, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert model.producer_name == "trailseg"
        assert all(tensor.data_location == TensorProto.DEFAULT for tensor in model.graph.initializer)
        weights = sum(np.prod(t.dims) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
        # Every weight once, though steps stand in two places; where norm=step was folded into them, once for each.
        assert weights <= config["network"]["parameters"] * (2 if "gated" in kind else 1) + 1000
        assert {node.op_type for node in model.graph.node} & {"Loop"} == ({"Loop"} if "loop" in kind else set())
        scale = 4 // Run.open(folder).options.guided if "gated" in kind else 2
        *facts, checksum = model.metadata_props
        assert checksum.key == "trailseg.sha256"
        texts = {entry.key: json.loads(entry.value) for entry in facts}
        assert texts["trailseg.classes"] == config["data"]["classes"]
        assert texts["trailseg.colours"] == config["data"]["colours"]
        assert (texts["trailseg.scale"], texts["trailseg.trained_steps"]) == (scale, 3)
        assert texts["trailseg.data"] == theirs.data
        assert texts["trailseg.max_steps"] == (3 if "stack" in kind else None)
        assert texts["trailseg.recalls"] == ("recalling" in kind or "parts" in kind)
    ours = models(folder, out)[1].facts
    told = {"max_steps", "recalls"}
    assert {n: v for n, v in vars(ours).items() if n not in told} == {
        n: v for n, v in vars(theirs).items() if n not in told
    }
    if not out.is_dir():
        assert [file.name for file in out.parent.glob("model.onnx*")] == ["model.onnx"]


# Logits that are not finite


def spoil(file: Path, part: str, value: float, out: Path) -> Path:
    """The same file with one weight of a part at that value."""
    model = onnx.load(file)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(part))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    out.write_bytes(seal(model.SerializeToString()))
    return out


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["recalling loop", "stack", "parts"])
def test_no_file_answers_from_logits_that_are_not_finite(
    kind: str, value: float, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    out = exported(tmp_path_factory, **KINDS[kind])[1]
    for file in [out / "stem.onnx", out / "step.onnx"] if out.is_dir() else [out]:
        spoil(file, "head.bias", value, tmp_path / file.name)
    model = OnnxParts(tmp_path) if out.is_dir() else OnnxModel(tmp_path / out.name)
    with pytest.raises(FileError, match=r"\.onnx: gives an answer that is not finite; train anew with a smaller lr"):
        ask(model, images(SIZES[1]))


@pytest.mark.parametrize("kind", ["recalling loop", "parts"])
def test_what_would_not_fit_in_memory_is_refused(
    kind: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    model, given = models(*exported(tmp_path_factory, **KINDS[kind]))[1], images(SIZES[1])
    logits = len(given) * np.prod(SIZES[1]) * len(model.facts.classes)
    monkeypatch.setattr("trailseg.onnx_model.MOST_LOGITS", logits)
    ask(model, given, steps=3, trail=False)
    if kind == "parts":  # which make the logits of one step at a time
        ask(model, given, steps=3)
    else:
        with pytest.raises(OptionError, match="classes after each of 3 steps take too much memory in onnxruntime"):
            ask(model, given, steps=3)
    monkeypatch.setattr("trailseg.onnx_model.MOST_LOGITS", logits - 1)
    with pytest.raises(OptionError, match="classes take too much memory in onnxruntime"):
        ask(model, given, steps=3, trail=False)


def test_every_step_counts_and_a_picture_whose_logits_are_not_finite_has_no_class(
    stack: tuple[Path, Path], tmp_path: Path
):
    """One class of the second of three pictures, after the second of three steps."""
    model = onnx.load(stack[1])
    last = next(node for node in model.graph.node if "every" in node.output)
    last.output[:] = ["every_sound"]
    values = np.zeros((3, 3, len(OnnxModel(stack[1]).facts.classes), 1, 1), np.float32)
    values[1, 1, 2] = -np.inf
    model.graph.initializer.append(numpy_helper.from_array(values, "spoilt"))
    place = list(model.graph.node).index(last) + 1
    model.graph.node.insert(place, helper.make_node("Add", ["every_sound", "spoilt"], ["every"]))
    onnx.save(model, tmp_path / "spoilt.onnx")
    names = ["ids", "probability", "trail"]
    for steps in (1, 2, 3):
        asked = {"image": images(SIZES[1], 3), "steps": np.array(steps)}
        asked |= {"with_probability": np.array(True), "with_trail": np.array(True)}
        theirs, ours = (session(file).run(names, asked) for file in (stack[1], tmp_path / "spoilt.onnx"))
        for their, our in zip(theirs, ours, strict=True):
            sound = [0, 2] if steps > 1 else [0, 1, 2]
            np.testing.assert_array_equal(our[..., sound, :, :], their[..., sound, :, :])
        assert all((array[..., 1, :, :] == IGNORE).all() == (steps > 1) for array in (ours[0], ours[2]))
        assert np.isnan(ours[1][1]).all() == (steps > 1)


# Predictor and `trailseg predict`


def test_a_predictor_of_a_file_answers_like_that_of_the_run(v4: tuple[Path, Path], stack: tuple[Path, Path]):
    pixels = images(Size(45, 70))[0]
    for folder, file in (v4, stack):
        theirs, ours = Predictor(folder, device="cpu"), Predictor(str(file), device="cpu")
        assert ours.size == (32, 48)
        for asked in ({}, {"steps": 2}, {"steps": "auto", "tolerance": 0.12} if folder == v4[0] else {"steps": 1}):
            mine, their = ours(pixels, **asked), theirs(pixels, **asked)
            assert mine.steps == their.steps
            assert mine.trail is not None
            assert mine.trail.shape == (mine.steps, 45, 70)
            assert (mine.trail != their.trail).mean() <= 0.001
            np.testing.assert_allclose(mine.probability, their.probability, atol=1e-4)
    with pytest.raises(OptionError, match="steps=4: res-hourglass takes at most 3 steps"):
        Predictor(stack[1])(pixels, steps=4)
    with pytest.raises(OptionError, match="steps=auto: res-hourglass was exported with all its steps; say how many"):
        Predictor(stack[1])(pixels, steps="auto")


def test_another_size_than_that_of_the_weights_is_told(tmp_path_factory: pytest.TempPathFactory):
    folder, file = exported(tmp_path_factory, **KINDS["stack bound to a size"])
    pixels = images(Size(45, 70))[0]
    mine, their = Predictor(file)(pixels), Predictor(folder, device="cpu")(pixels)
    assert (mine.ids != their.ids).mean() <= 0.001
    with pytest.raises(
        OptionError, match=r"^size=64,96: the norm of this network ties it to one size; leave size= away$"
    ):
        Predictor(file, size=Size(64, 96))(pixels)


def test_predict_writes_the_same_pictures_from_a_file_as_from_the_run(
    v4: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "in").mkdir()
    for index, pixels in enumerate(images(Size(45, 70), 3)):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{index}.png")
    for name, model in zip(("theirs", "ours"), v4, strict=True):
        assert run(["predict", str(model), str(tmp_path / "in"), f"out={tmp_path / name}", "steps=4", "batch=2"]) == 0
    assert capsys.readouterr().err == ""
    names = sorted(path.name for path in (tmp_path / "theirs").glob("*.png"))
    assert names == sorted(path.name for path in (tmp_path / "ours").glob("*.png"))
    assert len(names) == 6
    for name in names:
        theirs, ours = (np.asarray(Image.open(tmp_path / which / name)) for which in ("theirs", "ours"))
        assert theirs.shape == ours.shape
        assert (theirs != ours).mean() <= 0.001


# What is wrong with a file


def foreign() -> bytes:
    """An ONNX file that adds an image to itself."""
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "ids")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "image"], ["ids"])], "of another", sides[:1], sides[1:]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda whole: foreign(), "is not a file that `trailseg export` wrote, or not the whole of it; export a run"),
        (lambda whole: seal(foreign()), "is an ONNX file that `trailseg export` did not write; export a run"),
        (lambda whole: seal(b"this is text"), "cannot be read as an ONNX file"),
        (lambda whole: whole.replace(b"trailseg.scale", b"trailseg.scole"), "is damaged (its checksum is another)"),
        (lambda whole: b"this is text", "is not a file that `trailseg export` wrote"),
        (lambda whole: whole[: len(whole) // 2], "is not a file that `trailseg export` wrote"),
        (lambda whole: whole[:-1], "is not a file that `trailseg export` wrote"),
        (lambda whole: b"", "is not a file that `trailseg export` wrote"),
    ],
    ids=["foreign", "sealed foreign", "sealed text", "a letter", "text", "half", "without its last byte", "empty"],
)
def test_a_file_that_is_not_ours_is_one_line(
    damage: Any, problem: str, v4: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "model.onnx"
    file.write_bytes(damage(v4[1].read_bytes()))
    Image.fromarray(images(SIZES[0])[0]).save(tmp_path / "a.png")
    assert run(["predict", str(file), str(tmp_path / "a.png"), f"out={tmp_path / 'out'}"]) == 1
    assert only_line(capsys).startswith(f"trailseg predict: {file}: {problem}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        ("{file} {picture} out={new} precision=bf16", 2, "precision=bf16: an exported file computes in 32 bits"),
        ("{file} {picture} out={new} device=mps", 2, "device=mps: this onnxruntime has none; say device=cpu"),
        ("{file} {picture} out={new} steps=257", 2, "steps=257: take 1 to 256 steps"),
        ("{new}.onnx {picture} out={new}", 1, "{new}.onnx: there is no such file"),
        ("{picture} {picture} out={new}", 1, "{picture}: is not a file that `trailseg export` wrote"),
        ("{parts} {picture} out={new}", 1, "{parts}/step.onnx: there is no such file"),
    ],
)
def test_wrong_words_are_one_line(
    words: str, code: int, problem: str, v4: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "parts").mkdir()
    shutil.copy(v4[1], tmp_path / "parts" / "stem.onnx")
    places = {"file": v4[1], "picture": tmp_path / "a.png", "new": tmp_path / "new", "parts": tmp_path / "parts"}
    Image.fromarray(images(SIZES[0])[0]).save(places["picture"])
    assert run(["predict", *words.format(**places).split()]) == code
    assert only_line(capsys).startswith(f"trailseg predict: {problem.format(**places)}")
    assert not (tmp_path / "new").exists()


# What is wrong with an export


@pytest.fixture
def quick(v5: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of v5, whose export takes no time, because it was done before."""
    model = onnx.load(v5[1])
    model.ClearField("metadata_props")
    monkeypatch.setattr(onnx_graph, "whole", lambda network, **options: model)
    return v5[0]


def export_words(*words: object) -> int:
    return run(["export", *map(str, words)])


def test_an_export_is_checked_at_two_sizes_and_three_numbers_of_steps(
    quick: Path, v5: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "new" / "folder" / "model.onnx"
    assert export_words(quick, f"out={file}") == 0
    _, _, heads, *rows, _, wrote = capsys.readouterr().out.splitlines()
    assert heads.split() == ["picture", "steps", "classes", "probability"]
    cells = [row.split() for row in rows]
    assert [cell[:4] for cell in cells] == [[h, "x", w, n] for h, w in (("32", "48"), ("25", "61")) for n in "1236"]
    assert all(float(cell[4]) <= 0.1 and float(cell[6]) < 1e-4 for cell in cells)
    assert wrote == f"wrote {file}, {file.stat().st_size / 1e6:.2f} MB"
    assert list(file.parent.iterdir()) == [file]
    theirs = torch_model(quick)
    checks = list(exporting.check(theirs, OnnxModel(file)))
    given = np.stack([scene(seed=0, index=index, size=Size(25, 61))[0] for index in range(2)])
    to = Size(51, 123)
    one, other = (ask(model, given, to=to, steps=6) for model in (theirs, OnnxModel(v5[1])))
    largest = np.abs(one.probability - other.probability).max()
    assert checks[-1] == Check(Size(25, 61), 6, (one.ids != other.ids).mean(), pytest.approx(largest))


@pytest.mark.parametrize("part", ["head.bias", "stem.0", "cores.1"])
def test_an_export_that_answers_otherwise_is_removed(
    part: str, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def spoilt(network: Any, **options: Any) -> Any:
        model = whole(network, **options)
        tensor = next(tensor for tensor in model.graph.initializer if f".{part}" in f".{tensor.name}")
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] += 20
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return model

    whole = onnx_graph.whole
    monkeypatch.setattr(onnx_graph, "whole", spoilt)
    assert export_words(quick, f"out={tmp_path / 'model.onnx'}") == 1
    printed = only_line(capsys)
    assert printed.startswith(f"trailseg export: {tmp_path / 'model.onnx'}: differs from PyTorch on ")
    assert "and was removed" in printed
    assert list(tmp_path.iterdir()) == []


def test_the_limit_is_one_pixel_in_a_thousand(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def found(*shares: float) -> Any:
        return lambda *_: iter([Check(Size(8, 9), steps, share, 0.5) for steps, share in enumerate(shares, 1)])

    options = ExportOptions(run=str(quick), out=str(tmp_path / "model.onnx"))
    monkeypatch.setattr(exporting, "check", found(0, 0.002, 0.0011))
    with pytest.raises(
        FileError, match=r"differs from PyTorch on 0\.20 % of the pixels at 8 x 9 after 2 steps, and was"
    ):
        export(options)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(exporting, "check", found(0, 0.001))
    assert export(options).files == [tmp_path / "model.onnx"]


@pytest.mark.parametrize("cause", [KeyboardInterrupt, OptionError])
def test_an_export_that_is_stopped_leaves_nothing(
    cause: type, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: Any) -> None:
        raise cause

    monkeypatch.setattr(exporting, "check", stop)
    with pytest.raises(cause):
        export(ExportOptions(run=str(quick), out=str(tmp_path / "model.onnx")))
    assert list(tmp_path.iterdir()) == []


def test_of_two_parts_none_is_left_where_one_cannot_be_written(
    quick: Path, v5: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path, content: bytes) -> Path:
        if path.name == "step.onnx":
            raise FileError(path, "cannot be written", "make room")
        return write_whole(path, content)

    monkeypatch.setattr(onnx_graph, "parts", lambda network, **_: dict.fromkeys(["stem", "step"], onnx.load(v5[1])))
    monkeypatch.setattr(exporting, "write_whole", full)
    with pytest.raises(FileError, match="make room"):
        export(ExportOptions(run=str(quick), out=str(tmp_path / "parts"), parts=True))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        ("{v5} out={file}", 1, "{file}: is there already; say another out=, or remove it"),
        ("{v5} out={parts} parts=true", 1, "{parts}/step.onnx: is there already"),
        ("{v5} out={new}.pt", 2, "out={new}.pt: name a file that ends in .onnx, or say parts=true"),
        ("{v5} out={new}", 2, "out={new}: name a file that ends in .onnx"),
        ("{v5} out={new} parts=true warm_start=true", 2, "warm_start=true: step.onnx always starts from any state"),
        ("{v5} out={new}.onnx warm_start=true", 2, "warm_start=true: iterative-v5 does not look at the picture again"),
        ("{v5} out={new}.onnx checkpoint=first", 2, "checkpoint=first is not known"),
        ("{v5} out={file}/model.onnx", 1, "{file}/model.onnx: cannot be written ("),
        ("{stack} out={new} parts=true", 2, "parts=true: the steps of this network differ from each other"),
        ("{new} out={new}.onnx", 1, "{new}: there is no such run directory"),
        ("{file} out={new}.onnx", 1, "{file}: there is no such run directory"),
        ("{v5}", 2, "out is missing: say out=OUT"),
    ],
)
def test_a_wrong_export_is_one_line_and_leaves_everything_as_it_was(
    words: str, code: int, problem: str, quick: Path, stack: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    (tmp_path / "file.onnx").write_text("of mine")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "step.onnx").write_text("of mine")
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    names = {"file": tmp_path / "file.onnx", "parts": tmp_path / "parts", "new": tmp_path / "new"}
    places = names | {"v5": quick, "stack": stack[0]}
    assert export_words(*words.format(**places).split()) == code
    assert only_line(capsys).startswith(f"trailseg export: {problem.format(**places)}")
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before
