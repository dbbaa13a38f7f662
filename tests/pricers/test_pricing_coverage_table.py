"""The table of docs/pricers.md says what prices what: made here from the registries, and compared.

PYTHONPATH=.:tests python tests/pricers/test_pricing_coverage_table.py     # writes the table anew
"""

import doctest
import re
from pathlib import Path

import torch
from contract_examples import INSTRUMENT_EXAMPLES, MODEL_EXAMPLES

import pricers as pr

PAGE = Path(__file__).parents[2] / "docs" / "pricers.md"
LETTERS = {
    "Analytic": "A",
    "Fourier": "F",
    "FiniteDifference": "D",
    "MonteCarlo": "M",
    "LongstaffSchwartz": "L",
    "MultilevelMonteCarlo": "U",
}
MARKET = pr.Market(spot=100.0, rate=0.03)
MARKET_OF_TWO = pr.Market(spot=[100.0, 95.0], rate=0.03)
TWO_ASSETS = pr.BlackScholes(vol=[0.2, 0.25], correlation=torch.eye(2, dtype=torch.float64))


def letters(contracts, model, market):
    """Engines that price all these contracts, and in small letters those that price some."""
    answers = {
        letter: [
            contract.asset_refusal(model.n_assets) is None and pr.ENGINES[name].refusal(contract, model, market) is None
            for contract in contracts
        ]
        for name, letter in LETTERS.items()
    }
    return " ".join(
        letter if all(able) else letter.lower() for letter, able in answers.items() if any(able)
    ) or "-"  # fmt: skip


def table():
    """One row for each class of instruments, one column for each model."""
    models = {pr.MODELS[kind].__name__: (example.at_point(), MARKET) for kind, example in MODEL_EXAMPLES.items()}
    models["BlackScholes, several assets"] = (TWO_ASSETS, MARKET_OF_TWO)
    lines = [f"| | {' | '.join(models)} |", "|---" * (len(models) + 1) + "|"]
    for kind, example in INSTRUMENT_EXAMPLES.items():
        contracts = example.contracts()
        if kind == "bermudan":
            contracts = [*contracts, example.at_point(on="max")]
        cells = [letters(contracts, model, market) for model, market in models.values()]
        lines.append(f"| `{pr.INSTRUMENTS[kind].__name__}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(text):
    return re.sub(
        r"(<!-- coverage -->\n).*?(\n<!-- end of coverage -->)",
        lambda match: f"{match[1]}{table()}{match[2]}",
        text,
        flags=re.DOTALL,
    )


def test_every_engine_has_a_letter():
    assert set(LETTERS) == set(pr.ENGINES)
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name, letter in LETTERS.items() if f"{letter} = `{name}`" not in text] == []


def test_the_table_of_the_docs_is_what_the_engines_say():
    text = PAGE.read_text(encoding="utf-8")
    assert table() in text
    assert with_table(text) == text


def test_every_scheme_is_described():
    text = PAGE.read_text(encoding="utf-8").split("## Schemes")[1].split("\n## ")[0]
    missing = [
        (cls.__name__, scheme) for cls in pr.MODELS.values() for scheme in cls.schemes if f'"{scheme}"' not in text
    ]
    assert missing == []


def test_the_examples_of_the_page_run():
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted >= 10
    assert found.failed == 0


def test_the_lines_of_the_page_are_short():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
