"""The rules of ARCHITECTURE.md, proved on the syntax trees of the library; its import table is the one read here."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = sorted(path for package in ("qfml", "pricers") for path in (ROOT / package).rglob("*.py"))
SOURCES = sorted([*LIBRARY, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
MAX_LINES = 600
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def import_table(text: str) -> dict[str, dict[str, int]]:
    """Package -> top-level module -> level, from the fenced block under `## Import order`."""
    section = text.split("## Import order")[1]
    (block,) = re.findall(r"```text\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    lines = re.split(r"^(\w+):", block, flags=re.MULTILINE)[1:]
    return {
        package: {name.strip(): level for level, part in enumerate(row.split("<")) for name in part.split("|")}
        for package, row in zip(lines[::2], lines[1::2], strict=True)
    }


TABLE = import_table((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))


def dotted(node: ast.AST) -> str:
    """`a.b.c` of nested attributes, or "" where the root is no name."""
    if isinstance(node, ast.Attribute):
        root = dotted(node.value)
        return f"{root}.{node.attr}" if root else ""
    return node.id if isinstance(node, ast.Name) else ""


def own_imports(tree: ast.AST, module: str) -> Iterator[tuple[str, int]]:
    """Every own module that is imported, anywhere in the file, as a dotted name with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: `module` is the package for an __init__, else the file
                parents = module.split(".")[: -node.level] if node.level else []
                base = ".".join([*parents, *([base] if base else [])])
            # `from qfml import data` names a module, `from qfml.data import TimeDataset` does not matter further
            names = [f"{base}.{alias.name}" for alias in node.names] if base in TABLE else [base]
        else:
            continue
        for name in names:
            if name.split(".")[0] in TABLE:
                yield name, node.lineno


def import_faults(tree: ast.AST, path: Path) -> list[str]:
    """What `path` (relative to the root) imports against the table."""
    parts = path.with_suffix("").parts
    package, top = parts[0], parts[1]
    if top == "__init__":
        found = own_imports(tree, f"{package}.__init__")
        return [f"line {line}: imports {name}" for name, line in found if (package, name[:4]) == ("pricers", "qfml")]
    levels = TABLE[package]
    if top not in levels:
        return [f"`{top}` has no place in the import table of ARCHITECTURE.md"]
    faults = []
    for name, line in own_imports(tree, ".".join(parts)):
        target_package, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if target_package != package:
            allowed = package == "qfml"
        elif target not in levels:
            allowed = top == "cli"  # the root, or a name re-exported by it
        else:
            allowed = target == top or levels[target] < levels[top]
        if (top, target) == ("splits", "data"):
            allowed = False
        if not allowed:
            faults.append(f"line {line}: imports {name}")
    return faults


SEEDING = re.compile(
    r"torch(\.cuda|\.random|\.mps)?\.(manual_seed|manual_seed_all|seed|seed_all|set_rng_state)"
    r"|torch\.(set_default_dtype|set_default_device|set_default_tensor_type|default_generator\.\w+)"
    r"|(np|numpy)\.random\.(?!default_rng$|Generator$|SeedSequence$|BitGenerator$|PCG64|Philox|SFC64|RandomState$)\w+"
    r"|random\.(?!Random$)\w+"
)
PICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
IN_PLACE_DRAWS = {f"{name}_" for name in ("normal", "uniform", "bernoulli", "random", "exponential", "cauchy")}
PRESCRIBED = {"get_n_splits", "get_params", "get_metadata_routing", "get_feature_names_out"}  # by scikit-learn


def call_fault(node: ast.Call, forked: bool) -> str | None:
    """Why the library may not make this call; `forked` inside a `with torch.random.fork_rng(...)` block."""
    name = dotted(node.func)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in ("eval", "exec", "compile", "__import__"):
        return f"{name}(): nothing is executed from text"
    if name == "torch.load":
        safe = keywords.get("weights_only")
        if not (isinstance(safe, ast.Constant) and safe.value is True):
            return "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and "allow_pickle" in keywords:
        return "numpy.load with allow_pickle"
    if SEEDING.fullmatch(name) and not forked:
        return f"{name}(): global random state or default"
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    drawn = (name.startswith("torch.") and name.removeprefix("torch.") in DRAWS) or method in IN_PLACE_DRAWS
    if drawn and "generator" not in keywords and not forked:
        return f"{name or method}(): draws without generator="
    return None


def rule_faults(tree: ast.AST) -> list[str]:
    """Calls, imports and names that the rules forbid in library code."""
    faults: list[str] = []

    def visit(node: ast.AST, forked: bool) -> None:
        if isinstance(node, (ast.With, ast.AsyncWith)):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            forked = forked or any(dotted(call.func).endswith("fork_rng") for call in calls)
        if isinstance(node, ast.Call):
            fault = call_fault(node, forked)
            if fault:
                faults.append(f"line {node.lineno}: {fault}")
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [module] if module else [alias.name for alias in node.names]
            faults.extend(f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in PICKLERS)
        elif isinstance(node, ast.FunctionDef):
            named_as_act = re.match(r"_?(get|compute)_", node.name) and node.name not in PRESCRIBED
            if named_as_act:
                faults.append(f"line {node.lineno}: {node.name}: name the result, not the act of computing it")
        for child in ast.iter_child_nodes(node):
            visit(child, forked)

    visit(tree, False)
    return faults


def third_party(tree: ast.AST) -> set[str]:
    """Top-level names of what is imported from elsewhere, anywhere in the file."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names - set(TABLE) - set(sys.stdlib_module_names)


def distributions(requirements: list[str]) -> set[str]:
    """Names of distributions, without versions and extras."""
    return {re.split(r"[\s\[<>=!~;]", requirement)[0].lower() for requirement in requirements}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", LIBRARY, ids=label)
def test_modules_import_only_from_earlier_levels(path):
    assert import_faults(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT)) == []


@pytest.mark.parametrize("path", LIBRARY, ids=label)
def test_library_code_keeps_the_house_rules(path):
    assert rule_faults(ast.parse(path.read_text(encoding="utf-8"))) == []
    assert path.stem not in ("utils", "util", "helpers", "helper", "manager", "common", "misc")


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_files_stay_short(path):
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_LINES, f"{n_lines} lines: split it along its subjects"


def test_every_third_party_import_is_declared():
    imported = set().union(*(third_party(ast.parse(path.read_text(encoding="utf-8"))) for path in LIBRARY))
    declared = distributions(PROJECT["dependencies"]).union(
        *map(distributions, PROJECT["optional-dependencies"].values())
    )
    names = {"yaml": "pyyaml", "sklearn": "scikit-learn", "pydantic_core": "pydantic"}
    assert {name for name in imported if names.get(name, name) not in declared} == set()


def test_a_missing_extra_names_one_that_brings_the_module():
    calls = [node for path in LIBRARY for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    named = [
        (node.args[0].value, node.args[1].value)
        for node in calls
        if isinstance(node, ast.Call)
        and dotted(node.func).endswith("MissingExtraError")
        and all(isinstance(argument, ast.Constant) for argument in node.args)
    ]
    assert ("skfolio", "samples") in named
    extras = {extra: distributions(requirements) for extra, requirements in PROJECT["optional-dependencies"].items()}
    assert [(module, extra) for module, extra in named if module not in extras.get(extra, set())] == []


def test_every_part_of_the_library_stands_in_the_layout():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    layout = text.split("## Layout")[1].split("\n## ")[0]
    parts = {f"qfml/{path.name}/" for path in (ROOT / "qfml").iterdir() if (path / "__init__.py").is_file()}
    parts |= {f"qfml/{path.name}" for path in (ROOT / "qfml").glob("*.py") if not path.name.startswith("__")}
    assert {part for part in parts if f"`{part}`" not in layout} == set()


# --- the checks themselves: each rule, broken once ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("qfml/config.py", "import qfml.data"),
        ("qfml/config.py", "from qfml.data.dataset import TimeDataset"),
        ("qfml/data/labels.py", "from qfml.networks import MLP"),  # a neighbour
        ("qfml/data/labels.py", "def f():\n    from qfml import engine"),  # hidden in a function
        ("qfml/data/labels.py", "from ..engine import Trainer"),
        ("qfml/engine/trainer.py", "from .. import run"),
        ("qfml/engine/trainer.py", "from qfml import Trainer"),  # a re-export of the root
        ("qfml/engine/trainer.py", "import qfml"),
        ("qfml/splits/base.py", "from qfml.data import TimeDataset"),
        ("qfml/unheard_of.py", ""),
        ("pricers/estimate.py", "from qfml.errors import DataError"),
        ("pricers/estimate.py", "import pricers.models"),
        ("pricers/__init__.py", "import qfml"),
    ],
)
def test_the_check_finds_a_forbidden_import(path, code):
    assert len(import_faults(ast.parse(code), Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("qfml/data/labels.py", "from qfml.errors import DataError\nfrom qfml import config\nfrom . import features"),
        ("qfml/data/labels.py", "from .features import add_features\nfrom qfml.data.weights import x"),
        ("qfml/engine/trainer.py", "from pricers import Estimate\nimport qfml.losses"),
        ("qfml/run.py", "from qfml.report.page import render"),
        ("qfml/cli.py", "import qfml\nfrom qfml import resume"),
        ("qfml/__init__.py", "from qfml.run import run\nimport pricers"),
        ("pricers/models/heston.py", "from pricers.estimate import Estimate\nfrom ..market import Market"),
    ],
)
def test_the_check_lets_an_allowed_import_pass(path, code):
    assert import_faults(ast.parse(code), Path(path)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import dump",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "torch.manual_seed(0)",
        "torch.cuda.manual_seed_all(0)",
        "torch.set_default_dtype(torch.float64)",
        "np.random.seed(0)",
        "numpy.random.normal(size=3)",
        "random.shuffle(x)",
        "torch.randn(3)",
        "torch.randperm(n, device=device)",
        "x.normal_()",
        "def get_rows(): ...",
        "def _compute_loss(): ...",
        "with torch.random.fork_rng():\n    pass\ntorch.manual_seed(0)",
    ],
)
def test_the_check_finds_a_broken_rule(code):
    assert len(rule_faults(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path, weights_only=True)",
        "model.eval()",
        "torch.compile(step)",
        "re.compile(text)",
        "np.random.default_rng(seed).normal(size=3)",
        "np.random.Generator(np.random.Philox(key=seed))",
        "torch.randn(3, generator=generator)",
        "generator.manual_seed(seed)",
        "with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(seed)\n    net = make()",
        "frame.get_column('close')",
    ],
)
def test_the_check_lets_an_allowed_call_pass(code):
    assert rule_faults(ast.parse(code)) == []


def test_the_table_is_read_as_it_is_written():
    assert TABLE["qfml"]["errors"] == 0
    assert TABLE["qfml"]["data"] == TABLE["qfml"]["metrics"] < TABLE["qfml"]["splits"] < TABLE["qfml"]["engine"]
    assert max(TABLE["qfml"], key=TABLE["qfml"].__getitem__) == "cli"
    assert max(TABLE["pricers"], key=TABLE["pricers"].__getitem__) == "greeks"
