"""A training that is killed, interrupted, refused or out of room ends as if nothing had happened, or says what did."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import strikes
from children import call, start

from trailseg import experiment
from trailseg.cli import run as command
from trailseg.config import TrainOptions
from trailseg.errors import FileError
from trailseg.parsing import from_mapping
from trailseg.runs import Run

TINY = ["network=iterative-v4", "stem=x2", "channels=4", "depth=1", "steps=2", "size=16,24", "epochs=3", "batch=3",
        "lr=0.01", "device=cpu"]  # fmt: skip
KINDS = {
    "plain": ["pictures=8"],
    "averaged": ["pictures=8", "norm=step", "ema=0.9", "augment=robust", "crop=8,12", "fewest_steps=1", "prefix=2"],
    "mapped": ["data=tas500", "memory=0", "augment=views", "norm=batch", "optimizer=muon"],
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The words of each kind of training, and the folder of the run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert command(["data", "make", f"dir={folder / 'tas'}", "train=8", "val=4", "test=0", "size=20,30"]) == 0
    whole = {}
    for kind, words in KINDS.items():
        words = ["train", *TINY, *words, *([f"root={folder / 'tas'}"] if kind == "mapped" else [])]
        ended = call(folder / f"{kind}.output", *words, f"out={folder / kind}")
        assert (ended.code, ended.err) == (0, "")
        whole[kind] = words, Run.open(folder / kind)
    return whole


def differences(run, whole):
    """What of a run is not, to the last bit, that of the run that nobody disturbed."""
    found = [w for w in ("last", "best") if run.checkpoint(w).read_bytes() != whole.checkpoint(w).read_bytes()]
    timeless = [
        [{k: v for k, v in record.items() if k not in ("seconds", "pictures_per_second")} for record in one.log()]
        for one in (run, whole)
    ]
    left_over = [f"{file}" for file in run.folder.rglob(".*")]
    return found + ["log"] * (timeless[0] != timeless[1]) + left_over


def words_to_go_on(words, out):
    return ["train", f"resume={out}"] if (out / "config.yaml").exists() else [*words, f"out={out}"]


def require_whole(run):
    """Every checkpoint under a final name is whole."""
    for which in ("last", "before", "best"):
        run.position(which)


def test_runs_killed_at_random_end_like_the_run_that_nobody_killed(runs, tmp_path, tally, trials):
    good, of, kills, dice = 0, trials(9, 200), 0, random.Random(6)
    for trial in range(of):
        words, whole = runs[list(KINDS)[trial % len(KINDS)]]
        out = tmp_path / f"{trial}"
        for _ in range(dice.randint(1, 4)):
            cache = strikes.own_cache, tmp_path / f"cache-{trial}"  # which is made anew, and killed at that too
            child = start(tmp_path / "output", *words_to_go_on(words, out), before=cache)
            time.sleep(dice.uniform(0.02, 0.7))
            child.process.kill()
            kills += child.wait().code == -signal.SIGKILL
        ended = call(tmp_path / "output", *words_to_go_on(words, out), before=cache)
        wrong = differences(Run.open(out), whole) if ended.code == 0 else [ended.err]
        good += not wrong
        assert not wrong, f"trial {trial}: {wrong}"
    assert kills >= of // 2, "most came too late to kill anything"
    tally("trainings killed (-9) at random moments that ended bit-identical when gone on with", good, of)


@pytest.mark.parametrize("how", [0, errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_fault_at_every_file_operation(how, runs, tmp_path, tally, trials):
    """Killed or refused there, a whole checkpoint is left, and the run that goes on ends as if nothing had been."""
    words, whole = runs["plain"]
    count, output = tmp_path / "count", tmp_path / "output"
    call(output, *words, f"out={tmp_path / 'counted'}", before=(strikes.operations, how, 0, count))
    operations = count.stat().st_size
    assert operations >= 30
    good, numbers = 0, range(1, operations + 1, trials(3 if how == 0 else 11, 1))
    for number in numbers:
        out = tmp_path / f"{number}"
        ended = call(output, *words, f"out={out}", before=(strikes.operations, how, number, count))
        if how:
            assert ended.code in (0, 1), ended.err  # 0 where there is another way, or nothing is lost
            assert len(ended.lines) == ended.code, ended.err
            assert ended.code == 0 or os.strerror(how) in ended.err
        else:
            assert ended.code == -signal.SIGKILL, ended.err
        if (out / "config.yaml").exists():
            require_whole(Run.open(out))
        again = call(output, *words_to_go_on(words, out))
        assert again.code == 0, again.err
        assert not (wrong := differences(Run.open(out), whole)), (number, wrong)
        good += 1
    what = f"refused ({errno.errorcode[how]})" if how else "killed (-9)"
    tally(
        f"file operations of a training {what}: a checkpoint left, one line, gone on bit-identical", good, len(numbers)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_in_every_step_it_stores_what_is_done_and_goes_on(kind, runs, tmp_path, tally, trials):
    """Even while a single operation takes half a minute."""
    words, whole = runs[kind]
    good = of = 0
    for step in range(1, 10, trials(4, 1)):  # three of each epoch
        number = (signal.SIGTERM, signal.SIGINT)[step % 2]
        out = tmp_path / f"{step}"
        ended = call(tmp_path / "output", *words, f"out={out}", before=(strikes.signal_in_step, step, number))
        assert ended.code == 128 + number
        assert ended.seconds < 2 + 1.5  # of which the beginning
        assert ended.err == f"trailseg train: interrupted; go on with `trailseg train resume={out}`\n"
        at = Run.open(out).position()
        assert (at.epoch, at.step) == divmod(step - 1, 3)
        again = call(tmp_path / "output", "train", f"resume={out}")
        assert again.code == 0, again.err
        good += not differences(Run.open(out), whole)
        of += 1
    tally("trainings stopped (SIGINT, SIGTERM) in a step: stored, told, gone on bit-identical", good, of)


def test_a_signal_at_any_other_moment(runs, tmp_path, tally, trials):
    good, of, dice = 0, trials(4, 40), random.Random(7)
    for trial in range(of):
        words, whole = runs["averaged"]
        out = tmp_path / f"{trial}"
        child = start(tmp_path / "output", *words, f"out={out}", before=(strikes.handle_another_signal,))
        time.sleep(dice.uniform(0.15, 0.6))
        child.send(signal.SIGUSR1)  # which its `before` handles, and which is none of trailseg's business
        number = dice.choice((signal.SIGTERM, signal.SIGINT))
        sent = time.perf_counter()
        child.send(number)
        ended = child.wait()
        assert time.perf_counter() - sent < 2
        assert ended.code in (0, 128 + number)
        assert "Traceback" not in ended.err
        assert len(ended.lines) == (ended.code > 0)
        again = call(tmp_path / "output", *words_to_go_on(words, out))
        good += again.code == 0 and not differences(Run.open(out), whole)
    tally("trainings stopped at random moments: within 2 s, no traceback, gone on bit-identical", good, of)


def test_a_study_that_is_stopped_goes_on_by_the_same_command(tmp_path, tally):
    rows = "[{network: iterative-v4}, {network: hourglass}]"
    options = ", ".join(word.replace("=", ": ") for word in TINY[1:] if "," not in word)
    (tmp_path / "it.yaml").write_text(f"runs: {rows}\ndefaults: {{{options}, size: [16, 24], pictures: 8}}\n")
    words = ["study", tmp_path / "it.yaml"]
    assert call(tmp_path / "output", *words, f"out={tmp_path / 'whole'}").code == 0
    stopped = (strikes.signal_in_step, 14, signal.SIGTERM)  # in the second row
    ended = call(tmp_path / "output", *words, f"out={tmp_path / 'cut'}", before=stopped)
    assert (ended.code, ended.err) == (143, "trailseg study: interrupted; give the same command again to go on\n")
    assert call(tmp_path / "output", *words, f"out={tmp_path / 'cut'}").code == 0
    for name in ("iterative-v4-seed0", "hourglass-seed0"):
        assert not differences(Run.open(tmp_path / "cut" / name), Run.open(tmp_path / "whole" / name))
    tally("studies stopped and gone on with by the same command, bit-identical", 1, 1)


def test_two_processes_that_are_stopped_go_on_as_two(tmp_path, tally):
    def begin(out, *more):
        given = [*TINY, "pictures=15", "epochs=12", "batch=4", "devices=2", f"out={out}"]
        return subprocess.Popen(
            [sys.executable, "-m", "trailseg", "train", *(more or given)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert begin(whole).wait(120) == 0
    stopped = begin(cut)
    while not (cut / "log.jsonl").exists() or not Run.open(cut).log():
        time.sleep(0.01)
    os.killpg(stopped.pid, signal.SIGINT)
    told = stopped.communicate(timeout=20)[1]
    assert (stopped.returncode, told) == (
        130,
        f"trailseg train: interrupted; go on with `trailseg train resume={cut}`\n",
    )
    assert 1 <= Run.open(cut).position().epoch < 12
    assert begin(cut, f"resume={cut}").wait(120) == 0
    assert not differences(Run.open(cut), Run.open(whole))
    tally("trainings of two processes stopped and gone on with bit-identical", 1, 1)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(runs, tmp_path, tally, trials):
    words, whole = runs["averaged"]
    good, of, dice = 0, trials(3, 30), random.Random(8)
    for trial in range(of):
        out = tmp_path / f"{trial}"
        call(tmp_path / "output", *words, f"out={out}", before=(strikes.signal_in_step, 8, signal.SIGTERM))
        last = out / "checkpoints" / "last.safetensors"
        content = bytearray(last.read_bytes())
        if trial % 3 == 0:
            content = content[: dice.randrange(len(content))]
        else:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        last.write_bytes(content)
        told = f"{last}: is damaged"
        evaluated = call(tmp_path / "output", "evaluate", out)
        assert evaluated.code == 1
        assert evaluated.err.startswith(f"trailseg evaluate: {told}")
        assert "checkpoint=before" in evaluated.err
        ended = call(tmp_path / "output", "train", f"resume={out}")
        assert told in ended.out.replace("\n", "")
        good += ended.code == 0 and not differences(Run.open(out), whole)
    tally("damaged last checkpoints named, the one before used, ended bit-identical", good, of)


def test_two_runs_in_one_folder(runs, tmp_path, tally):
    words, _ = runs["plain"]
    out = tmp_path / "run"
    first = start(tmp_path / "first", *words, "epochs=100000", f"out={out}")
    while not (out / "log.jsonl").exists() or not Run.open(out).log():
        time.sleep(0.01)
    second = call(tmp_path / "second", "train", f"resume={out}")
    third = call(tmp_path / "third", *words, "epochs=100000", f"out={out}")
    first.process.kill()
    first.wait()
    assert (second.code, len(second.lines)) == (1, 1)
    assert f"{out}: is being trained by process {first.pid} on " in second.err
    assert (third.code, len(third.lines)) == (1, 1)
    left = start(tmp_path / "second", "train", f"resume={out}")  # the lock of a dead process is taken over
    epochs = len(Run.open(out).log())
    limit = time.monotonic() + 20
    while len(Run.open(out).log()) <= epochs + 3 and left.process.exitcode is None and time.monotonic() < limit:
        time.sleep(0.01)
    left.send(signal.SIGTERM)
    ended = left.wait()
    assert ended.code == 143, ended.err
    tally("second trainings in one folder refused, the process named", 2, 2)


@pytest.mark.parametrize("how", ["gone", "a file"])
def test_a_folder_that_goes_away_in_mid_run(how, runs, tmp_path, tally, trials):
    """At whatever moment: nothing is made anew in its place."""
    words, _ = runs["plain"]
    good, of, dice = 0, trials(2, 15), random.Random(how)
    for trial in range(of):
        out, moved = tmp_path / f"{trial}", tmp_path / f"{trial}-moved"
        child = start(tmp_path / "output", *words, "epochs=100000", f"out={out}")
        while not (out / "log.jsonl").exists() or not Run.open(out).log():
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.1))
        out.rename(moved)
        if how == "a file":
            with suppress(OSError):
                out.write_text("")
        ended = child.wait(20)
        assert (ended.code, len(ended.lines)) == (1, 1), ended.err
        require_whole(Run.open(moved))
        good += 1
    tally("run folders that went away in mid-run: one line, the checkpoints whole", good, of)


def test_a_folder_that_goes_away_between_log_and_checkpoint(runs, tmp_path, tally):
    words, _ = runs["plain"]
    out, moved = tmp_path / "run", tmp_path / "moved"
    ended = call(tmp_path / "output", *words, f"out={out}", before=(strikes.go_away, 3, out, moved))
    assert (ended.code, len(ended.lines)) == (1, 1), ended.err
    require_whole(Run.open(moved))
    tally("run folders that went away in mid-run: one line, the checkpoints whole", 1, 1)


def test_what_is_not_finite_stops_the_run_and_names_the_pictures(runs, tmp_path, tally):
    words, whole = runs["averaged"]
    for step in range(1, 10):
        out = tmp_path / f"{step}"
        ended = call(tmp_path / "output", *words, f"out={out}", before=(strikes.poison, step))
        assert (ended.code, len(ended.lines)) == (1, 1)
        epoch, place = divmod(step - 1, 3)
        assert f"in epoch {epoch + 1}, step {place + 1}, with the pictures scene-" in ended.err
        for file in (out / "checkpoints").glob("*"):
            at = Run.open(out).position(file.stem)
            assert (at.epoch, at.step) <= (epoch, 0)
        if epoch:
            again = call(tmp_path / "output", "train", f"resume={out}")
            assert not differences(Run.open(out), whole), again.err
    tally("weights made infinite in each step: told within a step, never stored", 9, 9)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["seed=1"], "seed 0, not 1"),
        (["network=iterative-v2"], "network iterative-v4, not iterative-v2"),
        (["lr=0.02"], "lr 0.01, not 0.02"),
        (["labels=fine"], "labels None, not fine"),
        (["pictures=9"], "pictures 8, not 9"),
        (["data=tas500"], "data procedural, not tas500"),
    ],
)
def test_going_on_with_something_else_is_refused_with_the_difference(words, shown, runs, tally):
    given, whole = runs["plain"]
    before = {file: file.read_bytes() for file in whole.folder.rglob("*") if file.is_file()}
    root = f"root={runs['mapped'][1].options.root}"
    assert command(["train", f"resume={whole.folder}", *words, *([root] if "data" in words[0] else [])]) == 1
    options = from_mapping(TrainOptions, dict(word.split("=", 1) for word in [*given[1:], *words, root]))
    with pytest.raises(FileError, match=shown):
        experiment.check_same(whole, options)
    assert before == {file: file.read_bytes() for file in whole.folder.rglob("*") if file.is_file()}
    tally("going on with other seed, network, classes or data refused, the difference shown", 1, 1)


def test_another_machine_is_told(runs, tmp_path, tally):
    words, _ = runs["plain"]
    out = tmp_path / "run"
    call(tmp_path / "output", *words, f"out={out}", before=(strikes.signal_in_step, 2, signal.SIGTERM))
    config = (out / "config.yaml").read_text()
    assert "threads: 1\n" in config
    (out / "config.yaml").write_text(config.replace("threads: 1\n", "threads: 64\n"))
    ended = call(tmp_path / "output", "train", f"resume={out}")
    assert ended.code == 0
    assert "goes on with threads 1, not 64: the last bits may differ for that" in ended.out.replace("\n", " ")
    tally("another number of threads told when a run goes on", 1, 1)
