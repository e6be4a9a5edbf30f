"""A mark such as [adnet D7] names a heading, an item or a defect of a page in models/spec."""

import re
import subprocess

from tests.conftest import ROOT

MARK = re.compile(r"\[([a-z]+) ([A-Z]|[A-Z]?\d+(?:\.\d+)*)\]")
PAGES = {page.stem: page for page in (ROOT / "models/spec").glob("*.md") if page.stem != "README"}
UNNAMED = re.compile(
    r"\bspec[ /](?:[a-z_.]+ )?(?:section |defect )?[A-Z]?\d|\b[DGQRV]\d{1,2}\b"
    rf"|(?:\bdefect|\((?:{'|'.join(PAGES)})) [A-Z]?\d"
)
LISTED = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.pyx", "*.hpp", "*.md"]
FILES = {ROOT / line for line in subprocess.check_output(LISTED, cwd=ROOT, encoding="utf-8").split()}
TEXTS = {str(file.relative_to(ROOT)): file.read_text("utf-8") for file in FILES - {ROOT / __file__} if file.is_file()}


def targets(page: str) -> list[str]:
    """Numbers of headings, items of numbered lists (section.item), and ids that begin a table's row or an item."""
    found, section = [], ""
    for line in page.splitlines():
        if heading := re.match(r"#+ ([A-Z]?\d[\d.]*?|[A-Z])\.? ", line):
            section = heading[1]
            found.append(section)
        elif item := re.match(r"(\d+)\. ", line):
            found.append(f"{section}.{item[1]}")
        elif defect := re.match(r"(?:\| |\* \*\*)([A-Z]\d+)\b", line):
            found.append(defect[1])
    return found


TARGETS = {name: targets(page.read_text("utf-8")) for name, page in PAGES.items()}


def unresolved(text: str) -> list[str]:
    return [mark[0] for mark in MARK.finditer(text) if mark[2] not in TARGETS.get(mark[1], ())]


def test_every_mark_leads_somewhere():
    assert {name: lost for name, text in TEXTS.items() if (lost := unresolved(text))} == {}
    assert sum(len(MARK.findall(text)) for text in TEXTS.values()) > 150


def test_every_mark_names_its_page():
    """Only a page of models/spec itself may say D7 and mean its own."""
    others = {name: text for name, text in TEXTS.items() if ROOT / name not in PAGES.values()}
    assert {name: found for name, text in others.items() if (found := UNNAMED.findall(MARK.sub("", text)))} == {}


def test_every_target_is_one():
    assert all(len(set(found)) == len(found) > 10 for found in TARGETS.values())


def test_wrong_marks_are_seen():
    wrong = ["[adnet D99]", "[adnett D7]", "[visa 99.1]"]
    assert unresolved(f"as [adnet D7] and [alpnet 9.5], not {wrong}") == wrong
    assert all(
        UNNAMED.search(text)
        for text in ("(spec 2.4)", "spec alpnet 3.3", "spec/rpt.md A5", "defect D10", "(R9)", "(visa 3)")
    )
