"""The report's files: complete, self-contained, honest about what is missing, and right whatever rows there are."""

from __future__ import annotations

import csv
import pathlib
import re
from typing import NamedTuple

import pytest

from experiments import report
from experiments.checks import order_violations
from experiments.report import binary_tasks, findings, labels, means, page, pairs, records
from experiments.report.records import Condition, Run
from tests.experiments.report_rows import METHODS, evaluation, realistic_rows, row


class Paths(NamedTuple):
    """The files of a report."""

    html: pathlib.Path
    markdown: pathlib.Path
    pairs_csv: pathlib.Path
    figures: tuple[pathlib.Path, ...]


def write(workdir, rows, problems=(), **told):
    """Write the report of binary tasks."""
    run = Run(rows, problems, contradictions=order_violations(rows), **told)
    folder = report.write_run("binary_tasks", workdir, run).page.parent
    figures = tuple(sorted(folder.glob("figures/*.png")))
    return Paths(folder / "report.html", folder / "report.md", folder / "pairs.csv", figures)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    rows = realistic_rows()
    return rows, write(tmp_path_factory.mktemp("full"), rows)


@pytest.mark.slow
def test_the_page_is_self_contained(full):
    text = full[1].html.read_text()
    named = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'>]*)", text)
    loaded = [address for address in named if not address.startswith("#")]
    assert len(loaded) == 10 and all(address.startswith("data:image/png;base64,") for address in loaded)
    for part in ("http://", "https://", "url(", "<link", "@import", "fetch("):
        assert part not in text
    assert re.findall(r"<script[^>]*>", text) == ["<script>"]
    assert text.count("data:image/png;base64,") == len(full[1].figures) == 10
    assert 'name="viewport"' in text


def test_the_page_shows_the_means_of_each_split_side_by_side(full):
    rows, paths = full
    results = records.index(rows)
    line = means.main_table(results, results.tasks)[0]
    text = paths.html.read_text()
    assert re.search(r"train images</th>.*test images</th>.*mean over both</th>", text)
    first = re.search(r"<tr><td>1NN</td>.*?</tr>", text)[0]
    shown = [float(value) for value in re.findall(r"(\d+\.\d)(?:</b>)? <small>", first)]
    expected = [
        line.cells[split][condition] for split in ("train", "test", "both") for condition in results.main_conditions
    ]
    assert shown == [round(100 * mean.value, 1) for mean in expected]


def test_every_section_is_in_the_contents_and_says_how_it_is_made(full):
    text = full[1].html.read_text()
    sections = re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', text)
    assert len(sections) >= 5 and re.findall(r'<a href="#([^"]+)">([^<]+)</a>', text) == sections
    anchors = re.findall(r'<h\d id="([^"]+)"', text)
    assert len(anchors) == len(set(anchors)) == len(re.findall(r"<h\d", text))
    made = [section for section in text.split("<h2")[1:] if re.search("<table|<figure", section)]
    assert len(made) >= 5
    assert all("<code>python -m experiments.report WORKDIR</code>" in section for section in made)


def test_the_command_stands_below_the_tables_and_figures_of_a_section():
    table, text = page.Table([], []), page.Text("")
    heads = [page.Heading("title", 1), page.Heading("one"), page.Heading("two"), page.Heading("part", 3)]
    command = page.Text("do it", "command")
    found = page.signed([heads[0], heads[1], table, text, heads[2], text, heads[3], page.Panels([], "")], "do it")
    assert found == [
        *(heads[0], heads[1], table, text, command, heads[2], text, heads[3], page.Panels([], ""), command)
    ]


@pytest.mark.usefixtures("undrawn")
def test_the_command_of_a_run_is_told(tmp_path):
    paths = write(tmp_path, realistic_rows(num_classes=2), settings={"command": "python <this> 'a_b'"})
    assert '<p class="command"><code>python &lt;this&gt; &#39;a_b&#39;</code></p>' in paths.html.read_text()
    assert "`python <this> 'a_b'`" in paths.markdown.read_text()


def test_the_pairs_are_listed_with_1nn_and_the_best_trades_network():
    counts = {
        "0v1": {"1nn": 50, "trades-linf": 60, "trades-l2": 40, "standard": 99},
        "0v2": {"1nn": 50, "trades-linf": 10, "trades-l2": 45},
        "0v3": {"1nn": 50},
    }
    rows = [
        row(task, method, [evaluation("test", "linf", 8 / 255, kind, 100, count)], classes=("cat", "dog"))
        for task, methods in counts.items()
        for method, count in methods.items()
        for kind in ("exact" if method == "1nn" else "attacked",)
    ]
    for method, kind, count in (("1nn", "exact", 80), ("trades-l2", "attacked", 30)):
        found = [evaluation("train", "l2", 1.74, kind, 100, count)]
        rows.append(row("0v1", method, found, classes=("cat", "dog"), seed=1))
    results = records.index(rows)
    _, table, _ = pairs.pair_table_blocks(results)
    assert table.groups == [("", 1), ("train images, l2 1.74", 3), ("test images, linf 8/255", 3)]
    assert table.sortable and table.rows == [
        ["0v1 cat / dog", "= 80.0", "≤ 30.0", "+50.0", "= 50.0", "≤ 60.0", "−10.0"],
        ["0v2 cat / dog", "–", "–", "–", "= 50.0", "≤ 45.0", "+5.0"],
    ]
    assert pairs.pair_table_blocks(records.index(rows[:1])) == []


def test_attacked_numbers_are_marked_as_upper_bounds_and_exact_ones_are_not(full):
    text = full[1].markdown.read_text()
    line = next(line for line in text.splitlines() if line.startswith("| TRADES-linf |"))
    cells = [cell.strip(" *") for cell in line.split("|")[2:-1]]
    assert len(cells) == 12
    assert [cell.startswith("≤") for cell in cells] == [False, True, True, True] * 3
    line = next(line for line in text.splitlines() if line.startswith("| 1NN |"))
    cells = [cell.strip(" *") for cell in line.split("|")[2:-1]]
    assert [cell.startswith("=") for cell in cells] == [False, True, True, True] * 3
    assert "attacked" in text and "upper bound" in text
    assert not re.search(r"is (more |less )?robust", text)


def test_markdown_images_exist_and_are_png(full):
    text = full[1].markdown.read_text()
    names = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert len(names) == 10
    for name in names:
        assert (full[1].markdown.parent / name).read_bytes().startswith(b"\x89PNG")


def test_markdown_tables_have_as_many_cells_in_each_line(full):
    blocks = re.findall(r"(?:^\|.*\n)+", full[1].markdown.read_text(), flags=re.MULTILINE)
    assert len(blocks) >= 6
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_the_csv_gives_back_every_evaluation(full):
    rows, paths = full
    with open(paths.pairs_csv, newline="") as file:
        lines = list(csv.DictReader(file))
    read = {
        (
            line["task"],
            line["method"],
            int(line["seed"]),
            line["split"],
            line["norm"] or None,
            float(line["epsilon"]) if line["epsilon"] else None,
            line["kind"],
            int(line["count"]),
            int(line["robust"]),
        )
        for line in lines
    }
    written = {
        (
            item["task"],
            item["method"],
            item["seed"],
            found["split"],
            found["norm"],
            found["epsilon"],
            found["kind"],
            found["count"],
            found["robust"],
        )
        for item in rows
        for found in item["evaluations"]
    }
    assert read == written and len(lines) == len(written)
    for line in lines:
        accuracy = int(line["robust"]) / int(line["count"])
        assert float(line["accuracy"]) == pytest.approx(accuracy, abs=1e-6)
        assert float(line["low95"]) - 1e-6 <= accuracy <= float(line["high95"]) + 1e-6


def test_how_it_was_made_is_told(full):
    text = full[1].markdown.read_text()
    for part in ("0123456789ab", "jax=0.10.2", "cpu", "small\\_cnn", "num\\_steps=20", "10000", "2767.5", "made up"):
        assert part in text, part


@pytest.mark.usefixtures("undrawn")
def test_settings_that_methods_share_are_written_once(tmp_path):
    rows = [
        row("0v1", method, [evaluation("test", "linf", 8 / 255, "attacked", 100, 50)], attack=attack, training=training)
        for method, attack, training in (
            ("1nn", {"num_steps": 40, "temperature": 0.1}, None),
            ("standard", {"num_steps": 40}, {"model": {"name": "mlp"}, "epochs": 7}),
        )
    ]
    text = write(tmp_path, rows).markdown.read_text()
    assert "| 1NN, standard | num\\_steps=40 |\n| 1NN | temperature=0.1 |\n" in text
    assert "| standard | model.name=mlp, epochs=7 |" in text


@pytest.mark.slow
def test_the_report_can_be_written_again_and_leaves_no_other_files(tmp_path):
    rows = realistic_rows(num_classes=2)
    first = write(tmp_path, rows)
    content_before = first.html.read_bytes()
    assert write(tmp_path, rows) == first
    assert first.html.read_bytes() == content_before
    assert sorted(path.name for path in first.html.parent.iterdir()) == [
        "figures",
        "pairs.csv",
        "report.html",
        "report.md",
    ]


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_run_says_so(tmp_path):
    rows = realistic_rows(num_classes=3)[:-1]
    text = write(tmp_path, rows, num_missing=211).markdown.read_text()
    assert "211 of 225 units" in text
    assert "not all run on the same tasks" in text and "the 2 tasks common to all" in text
    assert "all of its own tasks" in text


@pytest.mark.usefixtures("undrawn")
def test_no_common_task_compares_nothing(tmp_path):
    rows = [
        item
        for item in realistic_rows(num_classes=3)
        if (item["task"], item["method"]) in {("0v1", "1nn"), ("0v2", "standard")}
    ]
    text = write(tmp_path, rows).markdown.read_text()
    assert "none in common" in text and "What the numbers say" not in text


@pytest.mark.usefixtures("undrawn")
def test_problems_and_violations_are_loud(tmp_path):
    rows = [
        row(
            "0v1",
            "1nn",
            [
                evaluation("test", "linf", 8 / 255, kind, 100, robust)
                for kind, robust in (("exact", 61), ("attacked", 60))
            ],
        )
    ]
    paths = write(tmp_path, rows, ["rows-00000-of-00001.jsonl line 7: <damaged>"])
    text = paths.html.read_text()
    assert "line 7: &lt;damaged&gt;" in text and "<damaged>" not in text
    assert "exact 61 &gt; attacked 60" in text and text.index('class="alert"') < text.index("<table")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(realistic_rows(methods=("1nn",), num_classes=3), id="only 1nn"),
        pytest.param(realistic_rows(methods=("trades-linf", "standard"), num_classes=3), id="no 1nn"),
        pytest.param(realistic_rows(splits=("test",), num_classes=3), id="only test images"),
        pytest.param(realistic_rows(splits=("train",), num_classes=3), id="only train images"),
        pytest.param(realistic_rows(num_classes=2), id="one task"),
        pytest.param([row("all", "1nn", [evaluation("test", None, 0.0, "clean", 10, 9)], radii={})], id="only clean"),
        pytest.param(
            [
                row("3vrest", method, [evaluation("test", "l2", 1.74, "attacked", 10, 9)], radii={"l2": 1.74})
                for method in METHODS
            ],
            id="only one norm, not pairs",
        ),
        pytest.param(
            [row("0v1", "new-method", [evaluation("test", "l1", 9.0, "certified", 10, 9)], radii={"l1": 9.0})],
            id="only certified, a method and a norm of their own",
        ),
    ],
)
def test_whatever_rows_there_are_give_a_report(tmp_path, rows):
    paths = write(tmp_path, rows)
    page = re.sub(r"base64,[^\"]*", "", paths.html.read_text())
    text = page + paths.markdown.read_text() + binary_tasks.summary(Run(rows))
    assert not re.search(r"\bnan\b|None", text)
    assert records.index(rows).dataset in text


@pytest.mark.usefixtures("undrawn")
def test_a_single_task_has_intervals_over_its_images(tmp_path):
    evaluations = [evaluation("test", None, 0.0, "clean", 200, 160), evaluation("test", "linf", 0.2, "exact", 200, 3)]
    evaluations.append(evaluation("test", "linf", 8 / 255, "exact", 263, 81))
    text = write(tmp_path, [row("all", "1nn", evaluations)]).markdown.read_text()
    assert "| 1NN, seed 0, test images | linf 8/255 | = 30.8 | 263 | 25.5 to 36.6 |" in text
    assert "linf 0.2" not in text


def test_no_rows_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no finished units yet: there is nothing to report$"):
        write(tmp_path, [])
    with pytest.raises(ValueError, match="no finished units yet, but rows.jsonl line 1: damaged$"):
        report.write_run("binary_tasks", tmp_path, Run([], ["rows.jsonl line 1: damaged"]))


def test_the_terminal_table_fits_and_shows_every_cell():
    rows = realistic_rows()
    text = binary_tasks.summary(Run(rows))
    assert max(map(len, text.splitlines())) <= 100
    results = records.index(rows)
    for line in means.main_table(results, results.tasks):
        shown = next(found for found in text.splitlines() if found.startswith(binary_tasks.line_label(line) + " "))
        values = [float(value.lstrip("≤=")) for value in shown.split()[1:]]
        assert values == [round(100 * mean.value, 1) for cells in line.cells.values() for mean in cells.values()]


def test_the_terminal_table_wraps_when_there_are_many_norms():
    radii = {"linf": 0.1, "l2": 0.8, "l1": 5.0}
    evaluations = [
        evaluation(split, norm, epsilon, "attacked", 100, 99)
        for split in ("train", "test")
        for norm, epsilon in (*radii.items(), ("worst", None))
    ]
    evaluations += [evaluation(split, None, 0.0, "clean", 100, 100) for split in ("train", "test")]
    text = binary_tasks.summary(Run([row("0v1", "trades-linf", evaluations, radii=radii)]))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("100.0") == 3 and text.count("≤99.0") == 12


def _two_methods(first, second, split="test"):
    """Rows of 1NN and one network with these numbers of 100 images unbroken, a task each."""
    rows = []
    for number, counts in enumerate(zip(first, second, strict=True), start=1):
        rows += [
            row(f"0v{number}", method, [evaluation(split, "linf", 8 / 255, kind, 100, count)])
            for method, kind, count in zip(("1nn", "trades-linf"), ("exact", "attacked"), counts, strict=True)
        ]
    return rows


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ((90, 80, 70), (50, 41, 29), "ahead of TRADES-linf, +40.0 ± 0.6 points (= 80.0 % against ≤ 40.0 %)"),
        ((50, 41, 29), (90, 80, 70), "behind TRADES-linf, −40.0 ± 0.6 points (= 40.0 % against ≤ 80.0 %)"),
        ((50, 40, 30), (20, 70, 29), "level with TRADES-linf, +0.3 ± 17.3 points (= 40.0 % against ≤ 39.7 %)"),
        ((50,), (50,), "level with TRADES-linf, +0.0 points"),
    ],
)
def test_findings_favour_whom_the_numbers_favour(first, second, words):
    results = records.index(_two_methods(first, second))
    (sentence,) = findings.findings(results, results.common_tasks)
    assert sentence.startswith("Test images, linf 8/255: 1NN is " + words)


def test_findings_say_what_the_mean_over_both_hides():
    rows = []
    for number in (1, 2):
        for method, train, test in (("1nn", 99 - number, 10), ("trades-linf", 80, 50 + number)):
            rows.append(
                row(
                    f"0v{number}",
                    method,
                    [
                        evaluation("train", "linf", 8 / 255, "attacked", 100, train),
                        evaluation("test", "linf", 8 / 255, "attacked", 100, test),
                    ],
                )
            )
    results = records.index(rows)
    *_, hidden = findings.findings(results, results.common_tasks)
    assert "hides" in hidden and "behind TRADES-linf (−12.0" in hidden
    assert "on train images 1NN is ahead of it (+17.5" in hidden and "on test images behind it (−41.5" in hidden


def test_one_bounded_radius_leaves_the_rest_of_a_curve_exact():
    kinds = {0.25: ("exact",), 0.5: ("certified", "attacked"), 0.75: ("exact",), 1.0: ("exact",)}
    evaluations = [evaluation("test", "l2", at, kind, 100, 90 - 40 * at) for at in kinds for kind in kinds[at]]
    clean = evaluation("test", None, 0.0, "clean", 100, 95)
    results = records.index([row("0v1", "1nn", [clean, *evaluations], radii={"l2": 1.0})])
    (curve,) = pairs._curves(results, "test", "l2", results.tasks)
    assert [epsilon for epsilon, _ in curve.points] == [0, 0.25, 0.75, 1.0] and "exact" in curve.label


def test_the_best_rival_is_chosen_by_its_mean():
    rows = realistic_rows(num_classes=4)
    results = records.index(rows)
    linf, l2 = (Condition(norm, radius) for norm, radius in results.main_epsilons.items())
    assert findings.best_of(results, METHODS[1:], "test", linf, results.tasks) == "trades-linf"
    assert findings.best_of(results, METHODS[1:], "test", l2, results.tasks) == "trades-l2"


@pytest.mark.usefixtures("undrawn")
def test_the_ceiling_is_a_line_and_a_curve_but_no_rival():
    """It is above all others, and no method is said to be ahead of it or behind it."""
    rows = realistic_rows(num_classes=3, methods=("1nn", "standard"))
    told = [page.to_markdown(binary_tasks.blocks(Run(rows)), way="")]
    for one in [one for one in rows if one["method"] == "standard"]:
        items = [
            item | {"robust": item["count"], "kind": "ceiling"}
            for item in one["evaluations"]
            if item["norm"] != "worst"
        ]
        items = [item | ({} if item["norm"] else {"kind": "clean"}) for item in items]
        rows.append(row(one["task"], "ceiling", items, dataset=one["dataset"], classes=one["classes"], attack=None))
    told.append(page.to_markdown(binary_tasks.blocks(Run(rows)), way=""))
    sentences, others = ([line for line in text.splitlines() if line.startswith("- ")] for text in told)
    assert sentences == others and len(sentences) >= 4
    assert "| ceiling | 100.0 ± 0.0 | ≤ 100.0 ± 0.0 |" in told[1] and "no classifier can exceed" in told[1]
    results = records.index(rows)
    labels_of_curves = [curve.label for curve in pairs._curves(results, "test", "l2", results.tasks)]
    assert labels_of_curves[-1] == "highest possible"


def test_the_heat_map_compares_with_the_best_trades_network_of_each_pair():
    counts = {
        "0v1": {"1nn": 50, "trades-linf": 60, "trades-l2": 40, "standard": 99},
        "0v2": {"1nn": 50, "trades-linf": 10, "trades-l2": 45, "standard": 99},
        "0v3": {"1nn": 50},
    }
    rows = [
        row(task, method, [evaluation("test", "linf", 8 / 255, "attacked", 100, count)])
        for task, methods in counts.items()
        for method, count in methods.items()
    ]
    results = records.index(rows)
    condition = Condition("linf", 8 / 255)
    assert pairs.pair_differences(results, "test", condition) == pytest.approx({(0, 1): -0.1, (0, 2): 0.05})
    # Of -0.1 and 0.05 the standard error is 0.075; Student's t of one degree of freedom has 12.706 of them each way.
    ends = " to ".join(labels.signed_points(-0.025 + sign * 12.7062 * 0.075) for sign in (-1, 1))
    assert _tally(results) == ["test images, linf 8/255", "2", "1", "0", "1", "−2.5", ends]


def _tally(results):
    (table,) = [block for block in pairs.tally_blocks(results) if isinstance(block, page.Table)]
    (line,) = [line for line in table.rows if line[0] == "test images, linf 8/255"]
    return line


def test_one_pair_has_no_interval_and_no_pair_no_tally():
    results = records.index(_two_methods((50,), (50,)))
    assert _tally(results)[1:] == ["1", "0", "1", "0", "+0.0", labels.MISSING]
    results = records.index([row("all", "1nn", [evaluation("test", "linf", 8 / 255, "exact", 100, 50)])])
    assert pairs.tally_blocks(results) == []


def test_networks_that_are_hardly_better_than_chance_are_named():
    rows = [
        row(task, "trades-l2", [evaluation("train", None, 0.0, "clean", 100, count)])
        for task, count in (("0v1", 50), ("0v2", 59), ("0v3", 61))
    ]
    assert binary_tasks.collapsed_networks(rows) == ["TRADES-l2 on 0v1", "TRADES-l2 on 0v2"]


def test_what_each_attack_left_is_pooled_over_tasks():
    rows = []
    for task, first, second in (("0v1", 60, 50), ("0v2", 40, 30)):
        at_main = evaluation("test", "linf", 0.1, "attacked", 100, second) | {
            "left": {"clean": 90, "apgd-ce": first, "square": second}
        }
        elsewhere = evaluation("test", "linf", 0.2, "attacked", 100, 0) | {
            "left": {"clean": 90, "apgd-ce": 1, "square": 0}
        }
        clean = evaluation("test", None, 0.0, "clean", 100, 90)
        rows.append(row(task, "standard", [clean, at_main, elsewhere], radii={"linf": 0.1}))
    results = records.index(rows)
    heading, table, _ = binary_tasks.attack_blocks(results, rows)
    assert heading.text == "What each attack left" and table.header == ["", "clean", "apgd-ce", "square"]
    assert [line[1:] for line in table.rows] == [["90.0", "50.0", "40.0"]] and "test images" in table.rows[0][0]
    assert binary_tasks.attack_blocks(results, realistic_rows()) == []


def test_a_table_for_the_terminal_goes_on_below_where_it_is_too_wide():
    lines = [["", "a", "b", "c", "d"], ["one", "1", "2", "3", "4"]]
    assert page.text_table(lines) == ["     a b c d", "one  1 2 3 4"]
    titles, header, values = page.text_table(lines, ["low", "up"])
    assert titles.split() == ["low", "up"] and (header, values) == ("      a b  c d", "one   1 2  3 4")
    wide = [["", *("x" * 30 for _ in range(4))], ["one", *"1234"]]
    assert [line.split()[1:] for line in page.text_table(wide)[1::3]] == [["1", "2", "3"], ["4"]]
    assert [line.split()[-1] if line else "" for line in page.text_table(wide, ["low", "up"])] == [
        *("low", "x" * 30, "2", ""),  # a group stays whole
        *("up", "x" * 30, "4"),
    ]
