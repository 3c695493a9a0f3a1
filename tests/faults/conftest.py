"""What the trials share: how many there are, and the table of their counts, which `make faults` stores."""

import json
import os
from pathlib import Path

import pytest
from children import call

FULL = os.environ.get("TRAILSEG_FAULTS") == "full"
COUNTS = pytest.StashKey[dict[str, tuple[int, int]]]()


@pytest.fixture(scope="session", autouse=True)
def imported(tmp_path_factory):
    """The process from which the others are forked has imported everything."""
    assert call(tmp_path_factory.mktemp("first"), "--version").code == 0


@pytest.fixture(scope="session")
def trials():
    """trials(quick, full): how many trials to make of a kind; `make faults` makes them all."""
    return lambda quick, full: full if FULL else quick


@pytest.fixture
def tally(request):
    """tally(row, good, of): a row of the table, `good` of `of` trials that ended as they should; all of them must."""

    def add(row: str, good: int, of: int) -> None:
        before = request.config.stash.setdefault(COUNTS, {}).get(row, (0, 0))
        request.config.stash[COUNTS][row] = (before[0] + good, before[1] + of)
        assert good == of, f"{row}: {good} of {of}"

    return add


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    counts = config.stash.get(COUNTS, {})
    if not counts:
        return
    terminalreporter.section("faults")
    for row, (good, of) in counts.items():
        terminalreporter.line(f"{row:<90}{good:>6} of {of}")
    if FULL and exitstatus == 0 and not config.option.keyword and config.args == ["tests/faults"]:
        out = Path(__file__).parents[2] / "results" / "faults" / "faults.json"
        out.parent.mkdir(exist_ok=True)
        rows = [{"fault": row, "good": good, "of": of} for row, (good, of) in counts.items()]
        out.write_text(json.dumps(rows, indent=1) + "\n")
        terminalreporter.line(f"wrote {out}")
