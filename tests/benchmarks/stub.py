"""`python -m tests.benchmarks.stub WHAT FILE`: a stand-in for a benchmark, which imports nothing heavy."""

import json
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    what, path = sys.argv[1], Path(sys.argv[2])
    print("### a table\n\n| a |\n|---|\n| 1 |\nheadline step_log4_vs_eager 1.5")
    if what == "fails":
        raise SystemExit("it went wrong")
    if what == "garbles":
        path.write_text("{")
    if what == "sleeps":
        time.sleep(60)
    if what == "figures":
        path.write_text(json.dumps({"value": [1, 2]}))
    if what == "lines":
        done = len(path.read_text().splitlines()) if path.exists() else 0
        for number in range(done, 4):
            with path.open("a") as file:
                file.write(json.dumps({"run": number, "resumed at": done}) + "\n")
            if done == 0 and number == 1:
                time.sleep(60)  # the first time, it is killed here
