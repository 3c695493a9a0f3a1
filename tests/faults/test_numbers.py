"""Exact counts, no answer from numbers that are not finite, and the same answer every time."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from children import call
from small import train
from torch import Tensor

from trailseg import Predictor
from trailseg.config import Size
from trailseg.data.scenes import scene
from trailseg.errors import FileError
from trailseg.inference import TorchModel
from trailseg.labels import IGNORE
from trailseg.metrics import confusion_matrix, measures
from trailseg.runs import Run


def masks(random: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of one shape, perhaps empty, in either type, with no, some or nothing but ignored pixels."""
    shape = tuple(random.integers(0, 12, random.integers(1, 4)))
    prediction, truth = (random.integers(0, classes, shape) for _ in range(2))
    truth = np.where(random.random(shape) < random.choice([0, 0.3, 1]), IGNORE, truth)
    return tuple(mask.astype(random.choice([np.uint8, np.int64])) for mask in (prediction, truth))


def test_confusion_and_measures_equal_a_plain_count(tally: Any):
    random, good = np.random.default_rng(0), 0
    for _ in range(2000):
        k = int(random.integers(1, 256))
        prediction, truth = masks(random, k)
        pairs = zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True)
        plain = Counter(pair for pair in pairs if pair[0] != IGNORE)
        matrix = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(truth), k)
        places = matrix.nonzero().tolist()
        assert (matrix.dtype, matrix.shape) == (torch.int64, (k, k))
        same = {(t, p): int(matrix[t, p]) for t, p in places} == plain
        good += same and measures(matrix.numpy(), range(k)) == plain_measures(plain, k)  # type: ignore[arg-type]
    tally("random confusion matrices equal to a plain count", good, 2000)


def plain_measures(plain: dict[tuple[int, int], int], k: int) -> dict[str, Any]:
    """`measures`, each quotient rounded once."""
    truth, prediction = Counter[int](), Counter[int]()
    for (t, p), n in plain.items():
        truth[t] += n
        prediction[p] += n
    iou: dict[int, float | None] = {}
    for c in range(k):
        agreed = plain.get((c, c), 0)
        union = truth[c] + prediction[c] - agreed
        iou[c] = float(Fraction(agreed, union)) if union else None
    agreed, pixels = sum(plain.get((c, c), 0) for c in range(k)), sum(plain.values())
    counted = [share for share in iou.values() if share is not None]
    return {
        "pixel_accuracy": float(Fraction(agreed, pixels)) if pixels else None,
        "miou": sum(counted) / len(counted) if counted else None,
        "classes_counted": len(counted),
        "iou": iou,
    }


def test_counts_beyond_double_precision_are_divided_exactly(tally: Any):
    random, good = np.random.default_rng(1), 0
    for _ in range(500):
        k = int(random.integers(1, 6))
        matrix = random.integers(0, 2**57, (k, k)) * random.integers(0, 2, (k, k))
        plain = {(t, p): int(matrix[t, p]) for t, p in np.argwhere(matrix).tolist()}
        good += measures(matrix, range(k)) == plain_measures(plain, k)  # type: ignore[arg-type]
    tally("measures of counts beyond 2^53 equal to exact fractions", good, 500)


def test_one_id_that_is_no_class_is_never_counted(tally: Any):
    random, good = np.random.default_rng(2), 0
    for number in range(1000):
        k = int(random.integers(1, 255))
        kind = random.choice([np.uint8, np.int64])
        maps = {name: random.integers(0, k, (5, 7)).astype(kind) for name in ("prediction", "truth")}
        maps["truth"][random.random((5, 7)) < 0.3] = IGNORE
        name = ["prediction", "truth"][number % 2]
        wrong = [k, int(random.integers(k, IGNORE)), *([-1, -(2**40), 256, 2**40] if kind == np.int64 else [])]
        wrong += [IGNORE] * (name == "prediction")  # which only the truth may hold
        maps[name].flat[random.integers(35)] = random.choice(wrong)
        with pytest.raises(ValueError, match=f"^{name} holds class ids outside 0..{k - 1}$"):
            confusion_matrix(*map(torch.from_numpy, maps.values()), k)  # type: ignore[misc]
        good += 1
    tally("masks with an id that is no class, refused", good, 1000)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("numbers") / "run", "iterative-v4", channels=4, size="16,24")


def test_no_answer_comes_from_logits_that_are_not_finite(run: Path, trials: Any, tally: Any):
    """One number is spoilt: of any step, picture, class and place, of one that is not the last as of the last."""
    model = TorchModel(Run.open(run), device="cpu", precision="32", checkpoint="last")
    random, good, tries, calls = np.random.default_rng(3), 0, trials(200, 2000), list[int]()

    def spoil(head: Any, given: Any, logits: Tensor) -> Tensor:
        calls.append(1)
        sound = torch.arange(logits.numel(), dtype=torch.float32).reshape(logits.shape) % 7
        if len(calls) == step:
            sound[tuple(random.integers(0, side) for side in sound.shape)] = value
        return sound

    model.network.head.register_forward_hook(spoil)
    images = np.zeros((2, 16, 24, 3), np.uint8)
    for _ in range(tries):
        step, value = int(random.integers(1, 5)), float(random.choice([np.nan, np.inf, -np.inf]))
        calls.clear()
        with pytest.raises(FileError, match="gives an answer that is not finite"):
            model.answer(images, to=Size(16, 24), steps=4, tolerance=0, trail=False)
        good += len(calls) == 4
    step = 5
    calls.clear()
    assert model.answer(images, to=Size(16, 24), steps=4, tolerance=0, trail=False).used.tolist() == [4, 4]
    tally("answers from one number that is not finite, refused", good, tries)


NETWORKS: list[dict[str, Any]] = [
    {"network": "iterative-v4"},
    {"network": "iterative-v6", "core": "dilated", "norm": "layer"},
    {"network": "res-hourglass", "stem": "s8", "finer": 2},
    {"network": "gated", "norm": "step", "core": "dilated"},
    {"network": "1-own-residual", "core": "resnet", "norm": "instance"},
]


@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: options["network"])
def test_pictures_together_get_the_answers_that_they_get_alone(options: dict[str, Any], tmp_path: Path, tally: Any):
    """As `Predictor.batch` states it: classes but for 1 pixel in 10,000, and probabilities to 0.0001."""
    predictor = Predictor(train(tmp_path / "run", **options), device="cpu")
    pixels = differ = 0
    pictures = [scene(seed=5, index=index, size=Size(40, 60))[0] for index in range(8)]
    for size in (Size(32, 48), Size(64, 96), Size(33, 51)):
        predictor.size = size
        for picture, together in zip(pictures, predictor.batch(pictures), strict=True):
            alone = predictor(picture)
            assert together.trail is not None
            np.testing.assert_array_equal(together.ids, together.trail[-1])
            differ += int((together.trail != alone.trail).sum())
            pixels += together.trail.size
            np.testing.assert_allclose(together.probability, alone.probability, atol=1e-4)
    assert differ <= pixels / 10_000
    tally("networks that answer eight pictures together as each alone", 1, 1)


def test_the_same_seed_in_two_processes_gives_the_same_weights_and_log(tmp_path: Path, tally: Any):
    given = "network=gated stem=x2 channels=4 depth=1 size=16,24 pictures=8 batch=2 epochs=2 device=cpu seed=3 ema=0.9"
    kept = []
    for name in ("one", "other"):
        out = tmp_path / name / "run"
        assert call(tmp_path / name, "train", *given.split(), "augment=robust", "norm=step", f"out={out}").code == 0
        tensors = safetensors.torch.load_file(out / "checkpoints" / "last.safetensors")
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        times = ("seconds", "pictures_per_second")
        kept.append((tensors, [{key: value for key, value in line.items() if key not in times} for line in lines]))
    (one, log), (other, other_log) = kept
    assert len(log) == 2
    assert log == other_log
    assert one.keys() == other.keys()
    equal = [name for name, tensor in one.items() if torch.equal(tensor, other[name])]
    assert len(equal) > 20
    tally("tensors of a checkpoint that two processes agree on to the bit", len(equal), len(one))
