"""Prints the README's install-and-run and install-and-test commands, one per line."""

import re
import sys
from pathlib import Path


def readme_commands(text: str) -> list[str]:
    """Returns the first two commands of the README's bash blocks that begin with `pip install`.

    Raises:
        ValueError: If there are fewer than two.
    """
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[:2]
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("pip install")]
    if len(commands) < 2:
        raise ValueError(f"README.md: its first two bash blocks need two lines `pip install ...`, found {commands}.")
    return commands[:2]


if __name__ == "__main__":
    print("\n".join(readme_commands(Path(sys.argv[1]).read_text())))
