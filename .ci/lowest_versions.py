"""Prints every dependency at the lowest version that pyproject.toml allows, as constraints for pip.

python .ci/lowest_versions.py > lowest.txt
python -m venv lowest && lowest/bin/pip install -c lowest.txt -e ".[dev]" && lowest/bin/python -m pytest -W ignore
"""

import re
import sys
import tomllib
from pathlib import Path

REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,]+\])?(?:>=(?P<lowest>[\w.]+).*)?")


def lowest_versions(project: dict[str, object]) -> list[str]:
    """Returns one `name==version` for each entry of `dependencies` that has a lower bound.

    Args:
        project: The table `project` of pyproject.toml.

    Raises:
        ValueError: If an entry of `dependencies` can't be read.
    """
    found = []
    for requirement in project["dependencies"]:
        match = REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise ValueError(f"dependencies: {requirement!r} is not of the form name>=version,<version.")
        if match["lowest"]:
            found.append(f"{match['name']}=={match['lowest']}")
    return found


if __name__ == "__main__":
    path = Path(__file__).parents[1] / "pyproject.toml"
    sys.stdout.write("\n".join(lowest_versions(tomllib.loads(path.read_text())["project"])) + "\n")
