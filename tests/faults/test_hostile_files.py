"""Files made to take over the machine or to fill it: nothing in them is carried out, and one line tells of each."""

import io
import os
import pickle
import random
import re
import shutil
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import pytest
import strikes
import torch
from children import call
from PIL import Image
from small import reconfigured, train

from trailseg import checkpoints
from trailseg.cli import run as command
from trailseg.onnx_model import seal
from trailseg.writing import png


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a run, its exported file and a picture."""
    folder = tmp_path_factory.mktemp("model")
    train(folder / "run", "iterative-v4", channels=4, steps=2)
    assert command(["export", str(folder / "run"), f"out={folder / 'model.onnx'}"]) == 0
    picture = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    (folder / "picture.png").write_bytes(png(picture))
    return folder


class Attack:
    """Its unpickling calls a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def as_checkpoint(content):
    """The run's checkpoint replaced by these bytes."""

    def lay(folder, marker):
        path = folder / "run" / "checkpoints" / "last.safetensors"
        path.write_bytes(content(marker) if callable(content) else content)
        return ["predict", folder / "run", folder / "picture.png", f"out={folder / 'out'}"]

    return lay


def as_model(name, content):
    """A file of that name, said to be a model."""

    def lay(folder, marker):
        (folder / name).write_bytes(content(folder, marker))
        return ["predict", folder / name, folder / "picture.png", f"out={folder / 'out'}"]

    return lay


def in_config(change, *, bound=False):
    """The run's configuration changed; if bound, its checkpoint says the same."""

    def lay(folder, marker):
        def changed(text):
            return change(text, marker)

        if bound:
            reconfigured(folder / "run", changed)
        else:
            file = folder / "run" / "config.yaml"
            file.write_text(changed(file.read_text()))
        return ["predict", folder / "run", folder / "picture.png", f"out={folder / 'out'}"]

    return lay


def as_yaml(words, content):
    """A YAML file that a command is given."""

    def lay(folder, marker):
        (folder / "it.yaml").write_text(content.replace("MARKER", str(marker)))
        return [str(word).replace("HERE", str(folder)) for word in words]

    return lay


def as_picture(content):
    def lay(folder, marker):
        (folder / "picture.png").write_bytes(content(marker))
        return ["predict", folder / "run", folder / "picture.png", f"out={folder / 'out'}"]

    return lay


def saved_by_torch(marker):
    buffer = io.BytesIO()
    torch.save({"network": Attack(marker)}, buffer)
    return buffer.getvalue()


def tar_of_pickle(marker):
    buffer, content = io.BytesIO(), pickle.dumps(Attack(marker))
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("../../storages")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zip_that_climbs(folder, marker):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"../../../..{marker}", "out of the folder")
        archive.writestr("archive/data.pkl", pickle.dumps(Attack(marker)))
    return buffer.getvalue()


def array_of_objects(marker):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Attack(marker)]), allow_pickle=True)
    return buffer.getvalue()


def reading_other_files(folder, marker):
    """An exported file whose checksum is right, and a weight of which lies in another file."""
    made = onnx.load_from_string((folder / "model.onnx").read_bytes())
    weight = next(tensor for tensor in made.graph.initializer if tensor.raw_data)
    (folder / "secret").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "secret"), ("offset", "0")):
        weight.external_data.add(key=key, value=value)
    return resealed(made)


def resealed(made):
    kept = [entry for entry in made.metadata_props if entry.key != "trailseg.sha256"]
    del made.metadata_props[:]
    made.metadata_props.extend(kept)
    return seal(made.SerializeToString())


def calling_unknown(folder, marker):
    made = onnx.load_from_string((folder / "model.onnx").read_bytes())
    made.graph.node[0].domain, made.graph.node[0].op_type = "evil", "System"
    made.opset_import.add(domain="evil", version=1)
    return resealed(made)


def header_of(size, told=None):
    return struct.pack("<Q", size if told is None else told) + b"{" + b" " * (size - 2) + b"}"


def many_tensors():
    """A header that lists a million empty tensors."""
    one = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(one % i for i in range(1_000_000)) + "}").encode()
    return struct.pack("<Q", len(header)) + header


def bomb(marker):
    """A PNG of a few bytes that says it has ten thousand million pixels."""
    content = bytearray(png(np.zeros((2, 2, 3), np.uint8)))
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    return bytes(content)


def exploit(text, marker):
    return text + f"evil: !!python/object/apply:os.system ['touch {marker}']\n"


def named(option, value):
    return lambda text, marker: re.sub(rf"\n  {option}: .*", f"\n  {option}: {value}", text)


HOSTILE = {
    "pickle as checkpoint": as_checkpoint(lambda marker: pickle.dumps(Attack(marker))),
    "torch.save as checkpoint": as_checkpoint(saved_by_torch),
    "tar of a pickle as checkpoint": as_checkpoint(tar_of_pickle),
    "NumPy objects as checkpoint": as_checkpoint(array_of_objects),
    "pickle as ONNX": as_model("it.onnx", lambda folder, marker: pickle.dumps(Attack(marker))),
    "torch.save as model": as_model("it.pt", lambda folder, marker: saved_by_torch(marker)),
    "zip that climbs out": as_model("it.zip", zip_that_climbs),
    "ONNX that reads other files": as_model("it.onnx", reading_other_files),
    "ONNX of an unknown operator": as_model("it.onnx", calling_unknown),
    "tag in a configuration": in_config(exploit),
    "import string as network": in_config(named("network", "evil.module:Network")),
    "class path as an option": in_config(named("lr", "{class_path: os.system, init_args: {command: 'touch x'}}")),
    "class path bound into the checkpoint": in_config(named("stem", "evil.Stem"), bound=True),
    "tag in a study": as_yaml(["study", "HERE/it.yaml"], "runs: !!python/object/apply:os.system ['touch MARKER']"),
    "tag in options": as_yaml(["train", "-c", "HERE/it.yaml"], "seed: !!python/object/new:os.system ['touch MARKER']"),
    "tag in a data set": as_yaml(
        ["data", "check", "data=folder", "root=HERE/it.yaml"], "classes: !!python/name:antigravity.fly ''"
    ),
    "aliases that stand for billions": as_yaml(
        ["study", "HERE/it.yaml"],
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
    ),
    "a hundred thousand levels": as_yaml(["study", "HERE/it.yaml"], "runs: " + "[" * 100_000),
    "a name that climbs out": as_yaml(["study", "HERE/it.yaml"], "runs: [{network: gated, name: ../../../evil}]"),
    "an address as root": as_yaml(["train", "data=camvid", "root=http://127.0.0.1:9/camvid"], ""),
    "an address as stem": as_yaml(
        ["train", "stem_from=http://127.0.0.1:9/run", "size=32,48", "pictures=2", "out=HERE/new"], ""
    ),
    "header of a hundred megabytes": as_checkpoint(header_of(100_000_000)),
    "header of exabytes": as_checkpoint(header_of(100, 1 << 62)),
    "header of a million tensors": as_checkpoint(many_tensors()),
    "network of terabytes": in_config(named("channels", 100_000), bound=True),
    "network of gigabytes": in_config(named("channels", 5_000), bound=True),
    "network of thousands of layers": in_config(
        lambda text, marker: named("steps", 256)(named("depth", 10)(named("network", "hourglass")(text, 0), 0), 0),
        bound=True,
    ),
    "picture of ten thousand million pixels": as_picture(bomb),
    "pickle as picture": as_picture(lambda marker: pickle.dumps(Attack(marker))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_told_in_one_line_and_nothing_is_carried_out(kind, model, tmp_path, tally):
    folder, marker = shutil.copytree(model, tmp_path / "given"), tmp_path / "marker"
    words = HOSTILE[kind](folder, marker)
    before = set(tmp_path.rglob("*"))
    ended = call(tmp_path / "output", *words, before=(strikes.watch, marker))
    assert not marker.exists(), marker.read_text()
    assert ended.code in (1, 2), ended
    assert len(ended.lines) == 1, ended.err
    assert ended.lines[0].startswith(f"trailseg {words[0]}")
    assert (kind == "ONNX that reads other files") == ("reads other files" in ended.err)  # ONNX Runtime did not see it
    assert ended.seconds < 2 + 1, "beside what the first process imports"
    assert 0 < ended.peak < 500e6
    assert {file for file in tmp_path.rglob("*") if file.parent.name != "output"} - before <= {tmp_path / "output"}
    tally("hostile files: nothing carried out, one line, under 2 s and 500 MB", 1, 1)


def test_the_watch_sees_what_it_should():
    """Else nothing above would mean anything."""
    marker = Path(os.environ["XDG_CACHE_HOME"]) / "marker"
    child = os.fork()
    if not child:
        strikes.watch(marker)
        pickle.loads(pickle.dumps(OrderedDict()))
        os.system("true")
        os._exit(0)
    os.waitpid(child, 0)
    assert {line.split()[0] for line in marker.read_text().splitlines()} == {"pickle.find_class", "os.system"}


def mutated(content, number, dice):
    """The content of a file, changed at one place: a way for each number modulo eight."""
    end = 4000 if dice.random() < 0.3 else len(content)  # headers more often
    place = dice.randrange(min(end, len(content)))
    before, after = content[:place], content[place:]
    return [
        before + bytes([after[0] ^ 1 << dice.randrange(8)]) + after[1:],
        before + bytes([dice.randrange(256)]) + after[1:],
        before,
        before + after[1:],
        before + bytes([dice.randrange(32, 127)]) + after,
        before + bytes(min(64, len(after))) + after[64:],
        before + after[:32] + after,
        before + re.sub(rb"[0-9]", str(dice.randrange(10)).encode(), after, count=1),
    ][number % 8]


@pytest.mark.parametrize("file", ["run/checkpoints/last.safetensors", "run/config.yaml", "model.onnx"])
def test_a_mutated_file_is_refused_or_harmless(file, model, tmp_path, tally, trials, capsys):
    """No traceback, and no other answer than that of the whole file."""
    folder = shutil.copytree(model, tmp_path / "given")
    path, name = folder / file, "model.onnx" if "onnx" in file else "run"
    whole, dice, good, of = path.read_bytes(), random.Random(file), 0, trials(60, 334)

    def answer(number):
        out = tmp_path / f"{number}"
        code = command(["predict", str(folder / name), str(folder / "picture.png"), f"out={out}"])
        found = [(out / f).read_bytes() for f in ("picture.png", "picture_overlay.png")] if code == 0 else None
        return code, found, capsys.readouterr().err

    code, wanted, told = answer("whole")
    assert code == 0, told
    for number in range(of):
        path.write_bytes(mutated(whole, number, dice))
        code, found, told = answer(number)
        if code == 0:
            assert found == wanted, number
        else:
            assert code in (1, 2), number
            assert told.count("\n") == 1, (number, told)
        good += 1
    tally("mutated checkpoints, configurations and exported files: no traceback, no other answer", good, of)


def test_a_checkpoint_holds_numbers_and_text_alone(model):
    _, facts = checkpoints.read(model / "run" / "checkpoints" / "last.safetensors")
    assert set(facts) == {"at", "config"}


def test_a_picture_of_another_kind_is_not_decoded(model, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "it.png", "GIF")
    assert command(["predict", str(model / "run"), str(tmp_path / "it.png"), f"out={tmp_path / 'out'}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
