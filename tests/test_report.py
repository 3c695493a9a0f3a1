"""Reports: the figures against ones worked by hand, and a page that stands alone."""

import csv
import json
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml

from trailseg import runs
from trailseg.errors import FileError
from trailseg.networks.table import ROWS
from trailseg.report import Report, write_report
from trailseg.report.claims import claims
from trailseg.report.formats import summary
from trailseg.report.logs import Network, Run, read_runs
from trailseg.report.plots import PLOTS, spread
from trailseg.report.published import read_published
from trailseg.report.table import Row, Stat, Table, build_tables
from trailseg.study import plan

PERFECT = [[60, 0], [0, 40]]
FIRST = [[40, 20], [10, 30]]  # IoU 4/7 and 1/2
GOOD = [[60, 0], [10, 30]]  # IoU 6/7 and 3/4, accuracy 0.9
FAIR = [[60, 0], [20, 20]]  # IoU 3/4 and 1/2, accuracy 0.8
M_FIRST, M_GOOD, M_FAIR = (4 / 7 + 1 / 2) / 2, (6 / 7 + 3 / 4) / 2, (3 / 4 + 1 / 2) / 2


def entry(epoch: int, confusion: list[Any] | None, split: str = "val") -> str:
    stem = {"steps": [{"step": i + 1, "miou": 0.25 * (i + 1)} for i in range(len(confusion or []))]}
    val = {"split": split, "images": 4, "ignored_pixels": 7, "at_stem_scale": stem, "confusion": confusion}
    return json.dumps({"epoch": epoch, "loss": 2 / epoch, "seconds": 1.0, "val": val if confusion else None}) + "\n"


def make_run(
    folder: Path, name: str, log: str, seed: int = 0, classes: tuple[str, ...] = ("a", "b"), **more: Any
) -> Path:
    network = {"context": "none", "residual": True, "parameters": 5012345, "macs_stem": 10**9, "macs_step": 5 * 10**8}
    config = {
        "name": name,
        "options": {"network": name, "epochs": 3, "seed": seed, "size": [8, 16], "out": str(folder)} | more,
        "network": {"cores": "S" if "hourglass" in name else 1} | network,
        "data": {
            "name": "toy",
            "classes": [*classes],
            "colours": [[1, 2, 3] for _ in classes],
            "train": 9,
            "val": 4,
            "fingerprint": "sha256:a",
        },
        "versions": {"trailseg": "0.1.0"},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "log.jsonl").write_text(log)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("study")
    perfect = entry(1, [PERFECT, PERFECT]) + entry(2, None)  # the best epoch, which must not count
    make_run(folder / "0", "another", entry(3, [FIRST, FAIR]))
    make_run(folder / "1", "hourglass", entry(3, [GOOD, FIRST]))
    make_run(folder / "2", "iterative-v6", perfect + entry(3, [FIRST, GOOD]), seed=0)
    make_run(folder / "3", "iterative-v6", perfect + entry(3, [FIRST, FAIR]) + '{"epoch": 4, "lo', seed=1)
    make_run(folder / "deep" / "4", "single", entry(1, None) + entry(2, [FIRST]))
    make_run(folder / "5", "mine", entry(1, None))
    (folder / "study.yaml").write_text("title: Toy")
    return folder, write_report(folder)


def lines(report: Report) -> dict[str, dict[str, str]]:
    return {line["network"]: line for line in csv.DictReader(report.csv.open())}


def tables(folder: Path) -> list[Table]:
    return build_tables(read_runs(folder))


def test_rows_come_in_the_order_of_the_study(study):
    assert list(lines(study[1])) == ["always a", "iterative-v6", "hourglass", "single", "another"]


def test_seeds_are_averaged_with_their_sample_deviation(study):
    row = lines(study[1])["iterative-v6"]
    sd = (M_GOOD - M_FAIR) / 2**0.5
    expected = {
        "pixel_accuracy": (0.85, 0.1 / 2**0.5),
        "miou_step_1": (M_FIRST, 0),
        "miou_step_2": ((M_GOOD + M_FAIR) / 2, sd),
        "growth": ((M_GOOD + M_FAIR) / 2 - M_FIRST, sd),
        "miou_stem_scale": (0.5, 0),
    }
    for measure, values in expected.items():
        assert (float(row[f"{measure}_mean"]), float(row[f"{measure}_sd"])) == pytest.approx(values), measure
    assert (row["seeds"], row["macs_per_picture"], row["epochs_done"]) == ("0 1", "2000000000", "3")


def test_one_seed_has_no_deviation_and_one_step_no_growth(study):
    row = lines(study[1])["single"]
    assert (row["miou_step_1_sd"], row["miou_step_2_mean"], row["growth_mean"]) == ("", "", "")
    assert float(row["miou_step_1_mean"]) == pytest.approx(M_FIRST)


def test_markdown_shows_the_same_figures_in_percent(study):
    text = study[1].markdown.read_text()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[0:1] == "|"]
    numbers = {line[0]: line[1:] for line in cells}
    assert numbers["always a"][7:] == ["60.0", "30.0", "30.0", "–", "–"]
    assert numbers["iterative-v6"] == [
        *("1", "none", "yes", "5.01", "2.00", "3/3", "0, 1"),
        *("85.0 ± 7.1", "53.6 ± 0.0", "71.4 ± 12.6", "+17.9 ± 12.6", "50.0 ± 0.0"),
    ]
    assert numbers["hourglass"][7:] == ["70.0", "80.4", "53.6", "-26.8", "50.0"]


def test_what_is_incomplete_is_said(study):
    for path in (study[1].markdown, study[1].page):
        text = path.read_text()
        assert "single, seed 0: 2 of 3 epochs done, measured after epoch 2." in text
        assert "Unfinished: mine, seed 0: 1 of 3 epochs, not yet validated." in text
        assert "iterative-v6: its runs differ" not in text


def test_summary_names_the_best_and_how_many_improve(study):
    text = summary(study[1].tables[0])
    assert "Of 4 networks, iterative-v6 is the most accurate: 71.4 ± 12.6 % mIoU" in text
    assert "always a would score 30.0 %" in text
    assert "2 of the 3 networks with several steps improve" in text
    assert "Rows with one seed have no known spread" in text


@pytest.mark.parametrize(
    ("best", "other", "words"),
    [
        ((GOOD, FAIR), (FAIR, FIRST), "The seeds do not tell it from b:"),  # a lead of 13.4 points in a spread of 14.1
        ((GOOD, FAIR), (FIRST, FIRST), "Its lead over every other row is above"),  # 17.9 in 12.6
        ((GOOD,), (FIRST, FIRST), "Rows with one seed have no known spread"),
        ((GOOD, FAIR), (FIRST,), "Rows with one seed have no known spread"),
    ],
)
def test_summary_says_whether_the_seeds_tell_the_first_two_apart(tmp_path, best, other, words):
    for name, results in (("a", best), ("b", other)):
        for seed, result in enumerate(results):
            make_run(tmp_path / f"{name}{seed}", name, entry(3, [result]), seed=seed)
    assert words in summary(tables(tmp_path)[0])


def test_plots_are_written_and_show_the_figures(study):
    folder, report = study
    assert {path.stem for path in report.plots} == set(PLOTS)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.plots)
    drawn = [list(line.get_ydata()) for line in PLOTS["refinement"][0](report.tables[0]).axes[0].lines]
    assert drawn[0] == pytest.approx([100 * M_FIRST, 50 * (M_GOOD + M_FAIR)])
    assert not list(folder.rglob("*.part"))


class Tags(HTMLParser):
    """The tags of a page and its words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


def test_page_stands_alone(study):
    page = study[1].page.read_text()
    tags = Tags(page).tags
    assert sum(tag == "img" for tag, _ in tags) == len(PLOTS)
    assert [attrs for tag, attrs in tags if tag == "script"] == [{}]
    addresses = [
        attrs[name] or "" for _, attrs in tags for name in ("src", "href", "srcset", "action") if name in attrs
    ]
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not any(word in page for word in ("http://", "https://", "url(", "@import", "<link"))


def test_hostile_names_stay_words(tmp_path):
    name, one = "<b>$\\frac|x</b>", '"><script src=x></script> and a name far too long to write beside a plot'
    make_run(tmp_path / "run", name, entry(3, [FIRST, GOOD]), classes=(one, "b"))
    (tmp_path / "study.yaml").write_text("title: <img src=x onerror=alert(1)>")
    report = write_report(tmp_path)
    page = Tags(report.page.read_text())
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]
    assert not [tag for tag, attrs in page.tags if tag == "b" or "onerror" in attrs]
    assert all(word in page.words for word in (name, f"always {one}", "<img src=x onerror=alert(1)>"))
    row = next(line for line in report.markdown.read_text().splitlines() if line.startswith("| \\<b\\>"))
    assert row.count(" | ") == 12
    assert "\\|x" in row


def test_examples_are_shown_once_they_exist(tmp_path):
    run = make_run(tmp_path / "run", "single", entry(3, [FIRST]))
    (run / "plots").mkdir()
    (run / "plots" / "pictures.png").write_bytes(b"picture")
    report = write_report(run)
    assert "data:image/png;base64,cGljdHVyZQ==" in report.page.read_text()
    assert report.page == run / "report.html"
    assert f"trailseg report {run}" in report.page.read_text()


def test_different_truths_are_never_in_one_table(tmp_path):
    make_run(tmp_path / "1", "single", entry(3, [FIRST]))
    make_run(tmp_path / "2", "single", entry(3, [[[50, 0], [10, 30]]]), seed=1)
    report = write_report(tmp_path)
    assert [len(table.rows[0].runs) for table in report.tables] == [1, 1]
    assert (tmp_path / "plots" / "loss-2.png") in report.plots
    for path in (report.markdown, report.page):
        assert "trained or measured on 2 different sets" in path.read_text()
    make_run(tmp_path / "3", "single", entry(3, [FIRST]), seed=2, classes=("a", "c"))
    assert len(tables(tmp_path)) == 3


def test_runs_of_other_sizes_share_a_table_and_those_of_other_pictures_do_not(tmp_path):
    make_run(tmp_path / "1", "single", entry(3, [FIRST]))
    large = make_run(tmp_path / "2", "mine", entry(3, [GOOD]), size=[16, 32])
    config = (large / "config.yaml").read_text()
    (large / "config.yaml").write_text(config.replace("sha256:a", "sha256:b"))
    assert [[row.name for row in table.rows] for table in tables(tmp_path)] == [["single", "mine"]]
    (large / "config.yaml").write_text(config.replace("sha256:a", "sha256:b").replace("- 16\n  - 32", "- 8\n  - 16"))
    assert len(tables(tmp_path)) == 2
    (large / "config.yaml").write_text(config.replace("  seed: 0\n", "  seed: 0\n  train_on: train+val\n"))
    assert len(tables(tmp_path)) == 2


def test_runs_of_a_row_that_differ_in_more_than_the_seed_are_noted(tmp_path):
    make_run(tmp_path / "1", "single", entry(3, [FIRST]), lr=0.1)
    make_run(tmp_path / "2", "single", entry(3, [GOOD]), lr=0.2)
    make_run(tmp_path / "3", "mine", entry(3, [FIRST]), fuse_start="random")
    make_run(tmp_path / "4", "mine", entry(3, [GOOD]), seed=1)  # older than that option
    for seed, start in enumerate(["runs/3", ["elsewhere/4"], ["1"]]):  # two seeds of mine, and another network
        make_run(tmp_path / f"heir{seed}", f"heir{seed // 2}", entry(3, [FIRST]), seed=seed, start_from=start)
    make_run(tmp_path / "5", "heir1", entry(3, [FIRST]), seed=5, start_from=["4"])
    notes = tables(tmp_path)[0].notes
    assert [("more than the seed (lr)" in note, "same seed" in note) for note in notes[:2]] == [
        (True, False),
        (False, True),
    ]
    assert [note.partition(",")[0] for note in notes[2:]] == [
        "heir1: its runs differ in more than the seed (start_from)"
    ]


def test_rows_of_one_name_and_different_steps_stay_apart(tmp_path):
    make_run(tmp_path / "1", "mine", entry(3, [FIRST]))
    make_run(tmp_path / "2", "mine", entry(3, [FIRST, GOOD]))
    assert [row.name for row in tables(tmp_path)[0].rows] == ["mine, steps=1", "mine, steps=2"]


def test_a_class_that_some_seeds_invent_has_no_overlap(tmp_path):
    make_run(tmp_path / "1", "single", entry(3, [[[8, 0], [0, 0]]]))
    make_run(tmp_path / "2", "single", entry(3, [[[6, 2], [0, 0]]]), seed=1)
    row = tables(tmp_path)[0].rows[0]
    assert row.iou == pytest.approx((0.875, 0))
    assert row.miou[0].mean == pytest.approx((1 + 0.375) / 2)


def test_a_class_absent_everywhere_is_left_out(tmp_path):
    make_run(tmp_path / "1", "single", entry(3, [[[8, 0], [0, 0]]]))
    row = tables(tmp_path)[0].rows[0]
    assert row.miou[0].mean == 1
    assert row.iou[0] == 1
    assert np.isnan(row.iou[1])
    assert write_report(tmp_path).page.is_file()


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        (None, "is not a folder"),
        ("", "none of its 1 runs has a validated epoch"),
        (entry(1, None), "none of its 1 runs has a validated epoch"),
        (entry(1, [[[0, 0], [0, 0]]]), "none of its 1 runs has a validated epoch"),
        ('{"epoch": 1, "lo\n' + entry(2, [FIRST]), "is damaged"),
        (entry(1, [[[1]]]), "has a confusion of shape (1, 1, 1) for 2 classes"),
        (entry(1, [FIRST]).replace('"loss"', '"lost"'), "is not the log of a run (KeyError: 'loss')"),
    ],
)
def test_what_cannot_be_reported_is_one_clear_error(tmp_path, log, problem):
    if log is not None:
        make_run(tmp_path / "study" / "1", "single", log)
    with pytest.raises(FileError) as failure:
        write_report(tmp_path / "study")
    assert problem in failure.value.problem
    assert str(failure.value.path).startswith(str(tmp_path / "study"))


@pytest.mark.parametrize("config", ["- a list", "name: x", "a: [", ""])
def test_broken_configurations_are_named(tmp_path, config):
    run = make_run(tmp_path / "1", "single", entry(1, [FIRST]))
    (run / "config.yaml").write_text(config)
    with pytest.raises(
        FileError, match=r"config\.yaml: (is no configuration of a run|holds no mapping|is not valid YAML)"
    ):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        ("options", {"data": "x"}),
        ("data", {"before": {"x": "train"}}),
        ("data", {"before": {"camvid": 1}}),
        ("data", {"before": 1}),
    ],
)
def test_a_configuration_of_unknown_data_is_named(tmp_path, change):
    folder = make_run(tmp_path / "1", "single", entry(1, [FIRST]))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert runs.Run.open(folder).config == config
    config[change[0]] |= change[1]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(FileError, match="is no configuration of a run"):
        _ = runs.Run.open(folder).config


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(FileError, match="holds no run"):
        write_report(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    make_run(tmp_path / "1", "single", entry(3, [FIRST]))
    (tmp_path / "table.md").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FileError, match="No space left"):
        write_report(tmp_path)
    assert (tmp_path / "table.md").read_text() == "old"
    assert not list(tmp_path.rglob("*.part"))


OTHERS: list[Any] = [
    {"name": "ENet|2016", "parameters": 360000, "miou": 51.3, "on": "test", "source": "Paszke [1]"},
    {"name": "$wide$", "parameters": 9.4e6, "miou": 66.94, "on": "test, trained on train + val", "source": "Jégou"},
]


def with_published(folder: Path, published: Any) -> Path:
    make_run(folder / "run", "gated", entry(3, [FIRST, GOOD]))
    make_run(folder / "one", "single", entry(3, [FAIR]))
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({"runs": [{"network": "gated"}], "published": published}))
    return file


def test_published_figures_stand_beside_the_rows_and_never_among_them(tmp_path):
    with_published(tmp_path, OTHERS)
    report = write_report(tmp_path)
    assert report.markdown.read_text().endswith(
        "| network | parameters (M) | mIoU % | measured on | source |\n"
        "| --- | ---: | ---: | --- | --- |\n"
        "| ENet\\|2016 | 0.36 | 51.3 | test | Paszke \\[1\\] |\n"
        "| $wide$ | 9.40 | 66.9 | test, trained on train + val | Jégou |\n"
    )
    page = Tags(report.page.read_text())
    assert [attrs for tag, attrs in page.tags if tag == "table" and attrs.get("class") == "published"]
    for word in (
        "ENet|2016",
        "0.36",
        "Paszke [1]",
        "test, trained on train + val",
        "Nothing of this was measured here",
    ):
        assert word in page.words
    assert list(lines(report)) == ["always a", "single", "gated"]
    assert "Of 2 networks, gated is" in summary(report.tables[0])


def test_the_plot_marks_published_figures_as_such(tmp_path):
    with_published(tmp_path, OTHERS)
    figure = PLOTS["accuracy_against_parameters"][0](write_report(tmp_path).tables[0])
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert [tuple(line.get_xydata()[0]) for line in hollow if line.get_xydata().size] == [(0.36, 51.3), (9.4, 66.94)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *("iterative, on val", "single, on val", "published, on the test pictures")
    ]
    assert {"ENet|2016", "$wide$", "gated"} <= {text.get_text() for text in figure.axes[0].texts}


@pytest.mark.parametrize(("plot", "sizes"), [("accuracy_against_parameters", [7, 3]), ("refinement", [5, 3])])
def test_a_plot_names_no_row_that_another_goes_on_from(plot, sizes, tmp_path):
    make_run(tmp_path / "first-seed0", "first", entry(3, [FIRST]))
    make_run(tmp_path / "second-seed0", "second", entry(3, [GOOD]), start_from=["runs/first-seed0"])
    (axes,) = PLOTS[plot][0](write_report(tmp_path).tables[0]).axes
    assert [text.get_text() for text in axes.texts] == ["second"]
    assert sorted(line.get_markersize() for line in axes.lines if len(line.get_xdata()))[::-1][:2] == sizes


def test_without_published_figures_nothing_speaks_of_them(study):
    _, report = study
    assert not any("ublished" in path.read_text() for path in (report.markdown, report.page))
    figure = PLOTS["accuracy_against_parameters"][0](report.tables[0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["iterative", "hourglass", "single"]


def test_a_bare_on_and_a_quoted_one_are_the_same_key(tmp_path):
    text = "published: [{name: a, parameters: 3.6e+5, miou: 51, ON: test, source: b}]"
    read = [read_published(yaml.safe_load(text.replace("ON", key)), tmp_path) for key in ("on", '"on"')]
    assert read[0] == read[1]
    assert (read[0][0].on, read[0][0].parameters) == ("test", 360000)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"parameters": "0.36e6"}, "has parameters: 0.36e6, which is no such number"),  # what YAML 1.1 makes of it
        ({"parameters": True}, "has parameters: True, which is no such number"),
        ({"parameters": 0}, "has parameters: 0, which"),
        ({"parameters": float("inf")}, "has parameters: inf, which"),
        ({"miou": float("nan")}, "has miou: nan, which"),
        ({"miou": 100.5}, "has miou: 100.5, which"),
        ({"source": " "}, "has source:  , which is no such text"),
        ({"name": 7}, "has name: 7, which is no such text"),
        ({"on": None}, "has on: None, which is no such text"),
        ({"source": ...}, "has no source"),
        ({"year": 2016}, "has the key year"),
    ],
)
def test_a_wrong_published_figure_is_refused_before_the_training_and_in_the_report(tmp_path, changes, problem):
    wrong = deepcopy(OTHERS)
    wrong[1] = {name: value for name, value in (wrong[1] | changes).items() if value is not ...}
    file = with_published(tmp_path, wrong)
    for refused in (lambda: write_report(tmp_path), lambda: plan(file, tmp_path / "out", {})):
        with pytest.raises(FileError) as failure:
            refused()
        assert failure.value.path == file
        assert failure.value.problem.startswith(f"published figure 2 {problem}")
        assert "parameters: 360000" in failure.value.remedy


@pytest.mark.parametrize("published", ["ENet", {"ENet": 51.3}, ["ENet"], None])
def test_published_figures_are_a_list_of_mappings(tmp_path, published):
    with pytest.raises(FileError, match="no list of mappings; list mappings of name, parameters, miou, on, source"):
        plan(with_published(tmp_path, published), tmp_path / "out", {})


def columns(report: Report) -> list[list[str]]:
    """The header and the first cells of every line of the tables."""
    found = [line.strip("| ").split(" | ") for line in report.markdown.read_text().splitlines() if line[:2] == "| "]
    return [cells[:3] for cells in found if cells[0] != "---"]


def test_rows_trained_or_measured_on_different_splits_say_on_which(tmp_path):
    make_run(tmp_path / "1", "gated", entry(3, [FIRST]))  # of before there was train_on
    make_run(tmp_path / "2", "single", entry(3, [GOOD], "only-0001TP"), train_on="without-0001TP")
    report = write_report(tmp_path)
    assert columns(report)[3:] == [
        *(["network", "trained on", "measured on"], ["always a", "–", "val"], ["gated", "train", "val"]),
        *(["network", "trained on", "measured on"], ["always a", "–", "only-0001TP"]),
        ["single", "without-0001TP", "only-0001TP"],
    ]
    assert '<th scope="col">measured on</th>' in report.page.read_text()


def test_networks_measured_on_several_splits_are_held_side_by_side(tmp_path):
    make_run(tmp_path / "1", "gated", entry(3, [FIRST]))
    make_run(tmp_path / "2", "gated", entry(3, [GOOD], "only-0001TP"), train_on="without-0001TP")
    make_run(tmp_path / "3", "single", entry(3, [FAIR]))
    found = columns(write_report(tmp_path))[:3]
    first, good, fair = (f"{100 * miou:.1f}" for miou in (M_FIRST, M_GOOD, M_FAIR))
    assert found == [["network", "val", "only-0001TP"], ["single", fair, "–"], ["gated", first, good]]
    text = (tmp_path / "table.md").read_text()
    assert f"| gated | {first} | {good} | {50 * (M_FIRST + M_GOOD):.1f} |" in text
    assert f"| single | {fair} | – | – |" in text


def test_rows_of_one_split_have_no_column_for_it(tmp_path):
    make_run(tmp_path / "1", "gated", entry(3, [FIRST], "test"), train_on="train+val")
    make_run(tmp_path / "2", "single", entry(3, [GOOD], "test"), train_on="train+val")
    report = write_report(tmp_path)
    assert columns(report)[0] == ["network", "cores", "context"]
    assert "toy, test: 4 pictures" in report.markdown.read_text()


def test_pictures_that_were_trained_on_are_noted(tmp_path):
    config = make_run(tmp_path / "1", "single", entry(3, [FIRST])) / "config.yaml"
    config.write_text(config.read_text().replace("  train: 9\n", "  train: 9\n  val_seen_in_training: 3\n"))
    assert tables(tmp_path)[0].notes == ("single was trained on 3 of the 4 pictures that it was measured on.",)


def test_pictures_that_runs_before_were_trained_on_are_noted(tmp_path):
    for number, before in enumerate([{}, {"camvid": "train+val"}, {"camvid": "train", "tas500": "val"}]):
        run = make_run(tmp_path / str(number), f"single-{number}", entry(1, None) + entry(3, [FIRST]))
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"] |= {"name": "camvid", "before": before}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    (table,) = tables(tmp_path)
    (note,) = table.notes
    assert note == (
        "single-1 was measured on pictures that runs which it began with or learned from had been trained on "
        "(train+val)."
    )


def test_the_gated_rows_come_after_the_study_in_the_families_of_their_values(tmp_path):
    for name in ("gated-single", "gated-stack", "another", "gated", "single"):
        log = entry(3, [FIRST] if "single" in name else [FIRST, GOOD])
        config = make_run(tmp_path / name, name, log) / "config.yaml"
        facts = ROWS.get(name, ROWS["gated"])
        text = yaml.safe_load(config.read_text())
        text["network"] |= {"cores": facts.cores, "context": facts.context, "residual": facts.residual}
        config.write_text(yaml.safe_dump(text))
    table = write_report(tmp_path).tables[0]
    assert [(row.name, row.family) for row in table.rows] == [
        *(("single", "single"), ("gated", "iterative"), ("gated-stack", "hourglass"), ("gated-single", "single")),
        ("another", "iterative"),
    ]


def test_the_names_of_two_networks_of_one_step_do_not_cover_each_other(tmp_path):
    make_run(tmp_path / "0", "gated", entry(3, [FIRST, FAIR, GOOD]))
    for name in ("single", "gated-single"):
        make_run(tmp_path / name, name, entry(3, [FIRST]))
    figure = PLOTS["refinement"][0](tables(tmp_path)[0])
    figure.draw_without_rendering()
    one, other = (text.get_window_extent() for text in figure.axes[0].texts if "single" in text.get_text())
    assert not one.overlaps(other)


def test_a_panel_each_shows_the_losses_of_a_network_before_those_of_all_others(study):
    table = study[1].tables[0]
    figure = PLOTS["loss"][0](table)
    assert [axes.get_title() for axes in figure.axes if axes.axison] == [row.name for row in table.rows]
    everyone = sorted([list(x) for x in run.losses] for row in table.rows for run in row.runs)
    for axes, row in zip(figure.axes, table.rows, strict=False):
        front = max(line.zorder for line in axes.lines)
        own = [line.get_xydata().tolist() for line in axes.lines if line.zorder == front]
        assert own == [[list(x) for x in run.losses] for run in row.runs]
        assert sorted(line.get_xydata().tolist() for line in axes.lines) == everyone


def test_only_networks_measured_more_than_once_are_shown_while_they_train(study, tmp_path):
    figure = PLOTS["miou_per_step"][0](study[1].tables[0])
    assert [axes.get_title() for axes in figure.axes if axes.axison] == ["iterative-v6"]  # after epochs 1 and 3
    for name in ("one", "two"):
        make_run(tmp_path / name, name, entry(3, [FIRST]))
    assert {plot.stem for plot in write_report(tmp_path).plots} == {*PLOTS} - {"miou_per_step"}


def test_labels_are_spread_as_little_as_possible():
    places = spread([0, 0.1, 0.2, 9], 1)
    assert places == pytest.approx([-0.9, 0.1, 1.1, 9])


def test_claims_say_what_the_figures_say(tmp_path):
    mious = {
        "hourglass": (0.4, 0.5),
        "res-hourglass": (0.45, 0.44),
        "hourglass-iter": (0.4, 0.48),
        "iterative-v2": (0.2, 0.3),
        "iterative-v4": (0.3, 0.4),
    }
    rows = [claimed(name, *steps) for name, steps in mious.items()]
    residual, steps, parameters, baseline = claims([*rows, claimed("single", 0.45, 0.45)])
    # The residual brings (+10 - 6) / 2; a shared context with one core and a stack without differ in two axes.
    assert "does not hold in these figures" in residual
    assert "residual one is better in 1, by +2.0 points" in residual
    assert "iterative-v4 over iterative-v2 +10.0, res-hourglass over hourglass -6.0" in residual
    assert "copying the context -2.0, a core for each step +18.0." in residual
    assert "In 4 of 5 networks every step is better" in steps
    assert "-1.0 to +10.0 points, +7.4 on average" in steps
    assert "at 2 steps the ratio is 3.0" in parameters
    assert "iterative-v4 with 1.00M, has 40.0 % mIoU" in parameters
    assert "hourglass with 3.00M, has 50.0 % (-10.0 points" in parameters
    assert "single has 45.0 % mIoU; 2 of 5 networks end above that (hourglass +5.0," in baseline


def claimed(name, first, last):
    row = ROWS[name]
    network = Network(row.cores, row.context, row.residual, 3_000_000 if row.cores == "S" else 1_000_000, 1, 1)
    run = cast("Run", SimpleNamespace(network=network))
    steps = tuple(Stat(value, None) for value in (first, last))
    growth = Stat(last - first, None) if name != "single" else None
    return Row(name, (run,), Stat(0.9, None), steps, growth, None, ())
