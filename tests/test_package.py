"""The wheel: it holds the models, the bundles and the types, and works far away from the clone."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from activarium import data, gallery

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def call(*words: str | Path, at: Path, **environment: str) -> str:
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=at, capture_output=True, text=True, env=bare | environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    call("-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, at=out)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    call("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel, at=target)
    return target


def test_the_wheel_holds_what_is_needed(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"activarium/__init__.py", "activarium/py.typed", "activarium/data/__init__.py", "activarium/data/corpus/__init__.py"}
    wanted |= {f"activarium/data/{m}/{f}" for m in data.models() for f in ("config.json", "model.safetensors")}
    wanted |= {f"activarium/widgets/static/{e.path.stem.removeprefix('_')}.js" for e in gallery.WIDGETS}
    assert not wanted - names
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    strange = [
        n for n in archive.namelist() if "__pycache__" in n or "node_modules" in n or not n.startswith(("activarium/", "activarium-"))
    ]
    assert not strange
    assert wheel.stat().st_size < 40e6, "the bundled models may take 25 MB"


def test_the_installed_package_is_used_and_lists_its_models(installed: Path, tmp_path: Path) -> None:
    code = "import activarium, json; from activarium import data; print(json.dumps([activarium.__file__, data.models(), [str(r) for r in data.roots()]]))"
    place, models, roots = json.loads(call("-c", code, at=tmp_path, PYTHONPATH=str(installed)))
    assert Path(place).is_relative_to(installed)
    assert models == data.models()
    assert roots == [str(installed / "activarium" / "data")]


def test_generators_are_importable_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "from activarium.data import corpus, scenes; print(len(corpus.FAMILIES), scenes.__file__)"
    count, place = call("-c", code, at=tmp_path, PYTHONPATH=str(installed)).split()
    assert int(count) == 6
    assert Path(place).is_relative_to(installed)


def test_bundled_models_load_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert data.models(), "no bundled model is there yet"
    code = "import activarium as act\nfrom activarium import data\nfor name in data.models(): print(name, len(act.load(name).sites) > 10)"
    lines = call("-c", code, at=tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert [line.split() for line in lines] == [[name, "True"] for name in data.models()]


def test_the_command_line_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert "lazy_neurons" in call("-m", "activarium.cli", "list", at=tmp_path, PYTHONPATH=str(installed))


def test_version_is_said_once() -> None:
    import tomllib

    import activarium

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == activarium.__version__


def test_constraints_are_exact_and_local() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and "@" not in line and "/" not in line for line in lines)
    assert "torch==2.13.0" in lines


def test_extras_are_within_the_constraints() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {canonicalize_name(k): v for k, v in pins.items()}
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *[r for v in extras.values() for r in v]]:
        wanted = Requirement(line)
        if wanted.name != "activarium":
            assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), line
