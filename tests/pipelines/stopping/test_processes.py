"""Child processes at the end of a command."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import multiprocessing, subprocess, sys
from torchppo.pipelines.stopping.processes import kill_children
if __name__ == "__main__":
    lock = multiprocessing.get_context("spawn").Lock()  # starts the resource tracker
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    kill_children()
    print(child.pid)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_children_are_killed_and_the_resource_tracker_is_not(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""  # the tracker would print an error if its semaphore were released by a new one
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
