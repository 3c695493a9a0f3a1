"""Inference from an exported file in ONNX Runtime, without PyTorch: what a robot needs."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from trailseg.config import Size
from trailseg.errors import FileError, OptionError, optional
from trailseg.model import Answers, Facts

PROVIDERS = {"auto": "CPUExecutionProvider", "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

MOST_LOGITS = 400_000_000
"""Numbers at the answer's size, of which onnxruntime keeps up to three copies of 4 bytes each."""


# A file ends in an entry of ONNX's metadata_props (field 14 of ModelProto), which holds the checksum of all before it.
_SEAL = b"\x72\x53\x0a\x0ftrailseg.sha256\x12\x40"


def seal(content: bytes) -> bytes:
    """A serialised ONNX model with its checksum, without which `OnnxModel` does not open it."""
    return content + _SEAL + sha256(content).hexdigest().encode()


def _unsealed(path: Path) -> bytes:
    """A file that holds all it needs, to the last bit; FileError otherwise, before ONNX Runtime sees any of it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(path, error.strerror or "cannot be read", "name another file, or mend this one") from None
    if content[-64 - len(_SEAL) : -64] != _SEAL:
        problem = "is not a file that `trailseg export` wrote, or not the whole of it"
        raise FileError(path, problem, "export a run: trailseg export RUN out=model.onnx")
    if seal(content[: -64 - len(_SEAL)]) != content:
        raise FileError(path, "is damaged (its checksum is another)", "restore it, or export the run again")
    if b"location" in content:  # the key by which a tensor of ONNX names the file that holds it
        raise FileError(path, "reads other files", "export the run again")
    return content


class OnnxModel:
    """A file that `trailseg export` wrote, as a `model.Model`; see onnx_graph.py for its inputs and outputs."""

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        """FileError where it is no such file; OptionError where onnxruntime, or the device in it, is missing."""
        self._file = _File(path, device)
        self.facts, self.fingerprint = self._file.facts, self._file.fingerprint
        if "steps" not in self._file.inputs:
            raise FileError(path, "is one of two parts of a network", f"name the folder that holds both, {path.parent}")

    def answer(
        self, images: np.ndarray, *, to: Size, steps: int, tolerance: float, trail: bool, state: Any = None
    ) -> Answers:
        """See `model.Model`."""
        _check_memory(len(images), to, self.facts, steps if trail else 1)
        given = {
            "image": images,
            "steps": np.array(steps),
            "size": np.array(to),
            "with_probability": np.array(True),
            "with_trail": np.array(trail),
        }
        if tolerance:
            if "tolerance" not in self._file.inputs:
                raise OptionError(f"steps=auto: {self.facts.name} was exported with all its steps; say how many")
            given["tolerance"] = np.array(tolerance, np.float32)
        if state is not None:
            given |= dict(zip(("hidden_before", "logits_before"), state, strict=True))
        names = ["ids", "probability", "used", "trail"] + ["hidden", "logits"] * self.facts.recalls
        ids, probability, used, every, *left = self._file.run(names, given)
        return Answers(ids, probability, used, every if trail else None, tuple(left) or None)


class OnnxParts:
    """The stem.onnx and step.onnx that `trailseg export parts=true` wrote, as a `model.Model`."""

    def __init__(self, folder: Path, *, device: str = "auto") -> None:
        """As for `OnnxModel`."""
        self._stem, self._step = (_File(folder / f"{name}.onnx", device) for name in ("stem", "step"))
        self.facts = self._stem.facts
        self.fingerprint = f"{self._stem.fingerprint}-{self._step.fingerprint}"

    def answer(
        self, images: np.ndarray, *, to: Size, steps: int, tolerance: float, trail: bool, state: Any = None
    ) -> Answers:
        """See `model.Model`."""
        _check_memory(len(images), to, self.facts, 1)
        asked = {"size": np.array(to), "with_probability": np.array(True)}
        names = ["ids", "probability", "hidden", "logits", "own"]
        seen = [name for name in ("context", "guide") if name in self._step.inputs]
        ids, probability, hidden, logits, own, *parts = self._stem.run(names + seen, {"image": images, **asked})
        rows, columns = -(-own // self.facts.scale)
        asked |= {"own": own, **dict(zip(seen, parts, strict=True))}

        def further(hidden: np.ndarray, logits: np.ndarray) -> list[np.ndarray]:
            names = ["ids", "probability", "hidden_next", "logits_next"]
            return self._step.run(names, {"hidden": hidden, "logits": logits, **asked})

        if state is not None:
            ids, probability, hidden, logits = further(*state)
        every, used, undone = [ids], np.ones(len(images), np.int64), np.full(len(images), True)
        for _ in range(1, steps):
            if not undone.any():
                break
            after = further(hidden, logits)
            classes = [maps[..., :rows, :columns].argmax(1) for maps in (logits, after[3])]
            changed = (classes[0] != classes[1]).mean((1, 2), dtype=np.float32)
            ids, probability, hidden, logits = (
                np.where(undone.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip(after, (ids, probability, hidden, logits), strict=True)
            )
            every.append(ids)
            used += undone
            undone &= changed >= tolerance
        left = (hidden, logits) if self.facts.recalls else None
        return Answers(ids, probability, used, np.stack(every) if trail else None, left)


def _check_memory(images: int, to: Size, facts: Facts, steps: int) -> None:
    """OptionError where the logits of so many steps, at the answer's size at once, are more than MOST_LOGITS."""
    if images * to.height * to.width * len(facts.classes) * steps > MOST_LOGITS:
        problem = f"{to.height} x {to.width} pixels in {len(facts.classes)} classes"
        problem += f" after each of {steps} steps" if steps > 1 else ""
        remedy = "scale it down, leave out the trail, or take the run"
        raise OptionError(f"picture: {problem} take too much memory in onnxruntime; {remedy}")


class _File:
    """A file that `trailseg export` wrote, opened in ONNX Runtime."""

    def __init__(self, path: Path, device: str) -> None:
        runtime = optional("onnxruntime", "an exported file needs onnxruntime", "runtime")
        provider = PROVIDERS.get(device)
        if provider not in runtime.get_available_providers():
            raise OptionError(f"device={device}: this onnxruntime has none; say device=cpu, or leave it out")
        if not path.is_file():
            raise FileError(path, "there is no such file", "name a file that `trailseg export` wrote")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # it would warn of each input that has a default
        content = _unsealed(path)
        try:
            self._session = runtime.InferenceSession(content, options, [provider])
            self.facts = Facts.from_texts(self._session.get_modelmeta().custom_metadata_map)
        except (KeyError, ValueError, TypeError):
            problem = "is an ONNX file that `trailseg export` did not write"
            raise FileError(path, problem, "export a run: trailseg export RUN out=model.onnx") from None
        except Exception as error:  # onnxruntime has an exception of its own for everything, none of them public
            reason = " ".join(str(error).split())[:200]
            raise FileError(path, f"cannot be read as an ONNX file ({reason})", "export the run again") from None
        self._path, self.fingerprint = path, sha256(content).hexdigest()[:16]
        self.inputs = {i.name for i in [*self._session.get_inputs(), *self._session.get_overridable_initializers()]}

    def run(self, names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names, with the probability among them.

        OptionError where what is given does not suit the file, FileError where it answers from logits that are not
        finite, of which it makes a probability that is none.
        """
        try:
            outputs = self._session.run(names, given)
        except Exception as error:  # as above
            raise _explained(error, given) from None
        if not np.isfinite(outputs[names.index("probability")]).all():
            raise FileError(self._path, "gives an answer that is not finite", "train anew with a smaller lr")
        return outputs


def _explained(error: Exception, given: dict[str, np.ndarray]) -> Exception:
    """What an exception of onnxruntime means to the user."""
    text = str(error)
    if "allocate" in text or "bad_alloc" in text:
        return MemoryError()
    if "Got invalid dimensions for input: image" in text:
        height, width = given["image"].shape[1:3]
        return OptionError(f"size={height},{width}: the norm of this network ties it to one size; leave size= away")
    if "hidden_before" in given or "hidden" in given:
        return OptionError("before: that answer is of pictures of another size or number; start without it")
    return error
