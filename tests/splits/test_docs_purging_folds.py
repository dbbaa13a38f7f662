"""The folds that docs/purging.md prints are the folds the splitters make."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "purging.md"


def test_examples_of_the_purging_page_print_what_it_says():
    # a closing fence right after the output would be read as part of it
    text = "\n".join("" if line.startswith("```") else line for line in PAGE.read_text().splitlines())
    page = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert len(page.examples) > 20
    failures: list[str] = []
    doctest.DocTestRunner(verbose=False).run(page, out=failures.append)
    assert not failures, "".join(failures)
