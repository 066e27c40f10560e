"""Prints every dependency at the lowest version that pyproject.toml allows, as constraints for pip.

python .ci/lowest_versions.py > lowest.txt
python -m venv lowest && lowest/bin/pip install -c lowest.txt -e ".[dev]" && lowest/bin/python -m pytest -W ignore
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in map(Requirement, project["dependencies"]):
    for bound in requirement.specifier:
        if bound.operator == ">=":
            print(f"{requirement.name}=={bound.version}")
