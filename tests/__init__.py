"""The tests never reach the network; the hub's client reads this once, when it is first imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
