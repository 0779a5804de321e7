"""The wheel: what is in it, what it says of itself, and that it can be used without its checkout."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import rankwise

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "rankwise"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source archive, as for a release."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    [archive] = folder.glob("*.tar.gz")
    [wheel] = folder.glob("*.whl")
    assert archive.name == f"rankwise-{rankwise.__version__}.tar.gz"
    return wheel


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Every file that is not Python is there too: the marker of types, templates."""
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    package = {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    assert "rankwise/py.typed" in package
    assert {name for name in names if ".dist-info/" not in name} == package


def test_its_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    told = f"rankwise-{rankwise.__version__}.dist-info"
    metadata = Parser().parsestr(archive.read(f"{told}/METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("rankwise", rankwise.__version__)
    assert metadata["License-Expression"] == "Apache-2.0" and f"{told}/licenses/LICENSE" in archive.namelist()
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert f"## {rankwise.__version__} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert metadata.get_payload().startswith("# rankwise")
    assert "rankwise = rankwise.cli:main" in archive.read(f"{told}/entry_points.txt").decode()


def test_it_runs_from_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)
    code = (
        "import rankwise, torch; from rankwise.cli import main; print(rankwise.__file__);"
        "print(rankwise.adapt(torch.nn.Sequential(torch.nn.Linear(4, 4)), rankwise.LoRA(rank=2)));"
        "raise SystemExit(main(['--version']))"
    )
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(target)) and "lora: 1 layers adapted" in run.stdout
    assert f"rankwise {rankwise.__version__}" in run.stdout
