import pathlib
import re
import shutil
import subprocess

import pytest

from experiments import configuration, documents, excerpts, store
from experiments.report.figures import Drawing

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def written():
    """Every file that is written, and its content; no picture is drawn, which takes nearly all the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawing, "_saved", (b"drawn", b"drawn"))
        found = dict(documents.documents(ROOT))
    _forget_pictures()
    return found


def _forget_pictures():
    excerpts._study.cache_clear()
    excerpts._report.cache_clear()


def test_the_documents_are_what_the_kept_rows_give_to_the_byte(written):
    assert {"README.md", "docs/results.md"} < set(written)
    for name in [name for name in written if name.endswith(".md")]:
        assert (ROOT / name).read_bytes() == written[name], f"{name} is not what its rows give: make report"


def test_the_pictures_of_a_study_are_what_its_kept_rows_give_to_the_byte():
    found = excerpts.Study(ROOT / "results" / "digits").figures
    shown = [path for path in (ROOT / "docs" / "results").glob("*.png") if path.name in found]
    assert {path.name.split("-")[1] for path in shown} == {"curve", "pairs"} and len(shown) == 6
    for path in shown:
        assert path.read_bytes() == found[path.name].drawing.png, f"{path} is not what its rows give: make report"


@pytest.mark.slow
def test_every_picture_is_what_the_kept_rows_give_to_the_byte():
    _forget_pictures()
    for name, content in documents.documents(ROOT):
        assert (ROOT / name).read_bytes() == content, f"{name} is not what its rows give: make report"


def test_every_picture_of_the_documents_is_written_or_drawn_by_its_own_command(written):
    kept = {f"docs/results/{path.name}" for path in (ROOT / "docs" / "results").glob("*.png")}
    assert kept - written.keys() == {"docs/results/plane.png", "docs/results/voronoi.png"}


def test_every_table_of_the_documents_is_a_file(written):
    kept = {f"docs/results/tables/{path.name}" for path in (ROOT / "docs" / "results" / "tables").iterdir()}
    assert kept == {name for name in written if name.endswith(".csv")}
    for name in kept:
        assert (ROOT / name).read_bytes() == written[name], f"{name} is not what its rows give: make report"
    pages = [content.decode().splitlines() for name, content in written.items() if name.endswith(".md")]
    headed = [lines[place:] for lines in pages for place, line in enumerate(lines) if re.match(r"\s*\| ?:?---", line)]
    assert len(kept) == len([lines for lines in headed if "![" not in lines[1]]) > 80


def test_nothing_that_the_documents_need_is_ignored():
    results = ROOT / "results"
    of_sweeps = list(results.glob("*/[0-9][0-9]-*/*.json*"))
    shown = list((results / "cifar10-three-norms" / "pictures").iterdir())
    kept = (*(results / "templates").rglob("*.*"), *results.glob("*/*.json*"), *of_sweeps, *shown)
    files = list(map(str, kept))
    assert len(files) >= 3 + 2 * 3 and of_sweeps and shown
    assert subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True).stdout == ""


@pytest.fixture
def study(tmp_path):
    """A copy of the rows of a study, in a folder of its name."""
    folder = tmp_path / "digits"
    shutil.copytree(ROOT / "results" / "digits", folder)
    return folder


def test_damaged_rows_are_not_printed(study):
    (rows,) = study.glob("rows-*.jsonl")
    rows.write_bytes(rows.read_bytes().replace(b'"robust": 1', b'"robust": 2', 1))
    with pytest.raises(ValueError, match=r"digits is not fit to be printed: rows-\S+ line \d+: damaged"):
        excerpts.Study(study)


def test_rows_of_another_configuration_are_not_printed(study):
    found, _ = store.read_rows(study)
    row = {name: value for name, value in found[0].items() if name != "checksum"}
    with store.open_store(study.parent / "other", {"another": 1}) as other:
        other.append({**row, "unit": "digits/0v1/other/0", "config_hash": other.config_hash})
    shutil.copy(study.parent / "other" / "rows-00000-of-00001.jsonl", study / "rows-00001-of-00002.jsonl")
    with pytest.raises(ValueError, match="line 1: row of another configuration"):
        excerpts.Study(study)


def test_methods_without_a_common_task_are_not_printed(study, tmp_path):
    found = {row["unit"]: row for row in store.read_rows(study)[0]}
    with store.open_store(tmp_path / "parts", configuration.require_config(study)["config"]) as rows:
        for unit in ("digits/0v1/1nn/0", "digits/0v2/standard/0"):
            rows.append({name: value for name, value in found[unit].items() if name != "checksum"})
    with pytest.raises(ValueError, match="has no task that all methods of its table were run on"):
        excerpts.Study(tmp_path / "parts")


def test_rows_of_other_data_are_not_printed(study):
    config = configuration.require_config(study)["config"]
    found, _ = store.read_rows(study)
    row = {name: value for name, value in found[0].items() if name != "checksum"}
    with store.open_store(study, config, shard=(1, 2)) as rows:
        rows.append({**row, "unit": "digits/0v1/other/0", "dataset_note": "other pixels"})
    with pytest.raises(ValueError, match="must have rows of one kind of data, got .*other pixels"):
        excerpts.Study(study)


@pytest.fixture
def page_of(study, tmp_path):
    """Write the documents of a repository that has one study and one template: their files and contents."""
    results = tmp_path / "results"
    (results / "templates").mkdir(parents=True)
    shutil.move(study, results)

    def write(template):
        (results / "templates" / "page.md").write_text(template)
        return dict(documents.documents(tmp_path))

    return write


@pytest.mark.usefixtures("undrawn")
def test_a_section_is_what_the_report_says_below_a_heading_up_to_the_next(page_of):
    files = page_of('{{ section("digits", "Pair by pair") }}')
    text = files.pop("docs/page.md").decode()
    assert "1NN and the best TRADES" in text and "How many pairs" not in text
    shown = re.findall(r"\((results/digits-\S+)png\)", text)
    pictures = {f"docs/{picture}{form}" for picture in shown for form in ("png", "svg")}
    table = "docs/results/tables/page-1nn-and-the-best-trades-network-of-each-pair.csv"
    assert shown and set(files) == pictures | {table}


@pytest.mark.usefixtures("undrawn")
def test_a_section_that_no_report_has_is_refused(page_of):
    with pytest.raises(ValueError, match="has nothing below a heading 'Pairs'"):
        page_of('{{ section("digits", "Pairs") }}')


def test_a_table_is_a_file_named_by_page_and_heading_and_has_its_cells_as_they_read(tmp_path):
    templates = tmp_path / "results" / "templates"
    templates.mkdir(parents=True)
    table = "  | of | value |\n  | --- | ---: |\n  | [`pca:1\\|2`](x.md) | **= 3, or 4** |\n"
    picture = "| |\n| --- |\n| ![seen](seen.png) |\n"
    (templates / "page.md").write_text(
        f"# Top\n\n{picture}\n## A table: [one](x.md)\n\n{table}\n```\n# no\n| no |\n```\n\n{table}"
    )
    files = dict(documents.documents(tmp_path))
    names = [f"docs/results/tables/page-a-table-one-x-md{end}.csv" for end in ("", "-2")]
    assert set(files) == {"docs/page.md", *names}
    assert {files[name] for name in names} == {b'of,value\npca:1|2,"= 3, or 4"\n'}
