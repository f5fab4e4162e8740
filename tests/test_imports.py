"""The floors of the house: arrows of import only fall, scripts -> training.py -> src -> envs -> utils.py, no circle."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("utils", "envs", "src", "training", "scripts")


def modules(root):
    """Module name -> file, of the product."""
    files = [*(root / f"{name}.py" for name in ("utils", "training"))]
    files += [path for floor in ("envs", "src", "scripts") for path in (root / floor).rglob("*.py")]
    return {name_of(path.relative_to(root)): path for path in files if path.exists()}


def name_of(path):
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(path, known):
    """The modules of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member if member in known else node.module for member in members}
    return {name for name in found if name in known or name.split(".")[0] in FLOORS}


def graph(root):
    known = modules(root)
    return {name: imports(path, known) - {name} for name, path in known.items()}


def climbing(arrows):
    """Arrows from a floor to one above."""
    level = {name: FLOORS.index(name.split(".")[0]) for name in {*arrows, *(n for to in arrows.values() for n in to)}}
    return sorted(f"{name} -> {other}" for name, to in arrows.items() for other in to if level[other] > level[name])


def test_arrows_only_fall_and_close_no_circle():
    arrows = graph(ROOT)
    assert {"utils", "training", "src.train", "envs.ant", "scripts.plot"} <= arrows.keys()
    assert climbing(arrows) == []
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


def test_the_ground_floor_knows_nothing_of_ours():
    assert graph(ROOT)["utils"] == set()


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("utils.py", "import envs", ["utils -> envs"]),
        ("envs/a.py", "def late():\n    from src import b", ["envs.a -> src.b"]),
        ("src/b.py", "from training import main", ["src.b -> training"]),
        ("training.py", "import scripts.c", ["training -> scripts.c"]),
    ],
)
def test_an_arrow_that_climbs_is_found(tmp_path, file, text, expected):
    for name in ("utils.py", "envs/a.py", "src/b.py", "training.py", "scripts/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text if name == file else "import os\n")
    (tmp_path / "envs" / "__init__.py").touch()
    assert climbing(graph(tmp_path)) == expected


def test_a_circle_is_found(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("from src.b import x")
    (tmp_path / "src" / "b.py").write_text("from src import a")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph(tmp_path)).prepare()
