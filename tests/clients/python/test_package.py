"""The client as others get it: a wheel of its own, and a README whose examples run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "clients" / "python"
EXAMPLES = re.findall(r"```python\n(.*?)```", (SOURCE / "README.md").read_text("utf-8"), re.DOTALL)


def test_the_wheel_holds_the_package_and_needs_nothing_of_ours(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    shutil.copytree(SOURCE, tmp_path / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(tmp_path / "source")], check=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
        (metadata,) = (packed.read(name).decode() for name in packed.namelist() if name.endswith("/METADATA"))
    assert names == {f"hope_client/{path.name}" for path in (SOURCE / "hope_client").iterdir() if path.is_file()}
    assert "hope_client/py.typed" in names
    assert re.findall(r"^Requires-Dist: (\w+)", metadata, re.MULTILINE) == ["httpx2", "websockets"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_run(example: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    here = example.replace("http://127.0.0.1:8000", url).replace("HopeClient()", f'HopeClient("{url}")')
    assert url in here
    exec(compile(here, "README.md", "exec"), {})
    assert capsys.readouterr().err == ""
