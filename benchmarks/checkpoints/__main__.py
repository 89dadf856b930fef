"""`python dev.py checkpoints`, and `python benchmarks/checkpoints` with any Python that has what ComfyUI needs."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS.parent)]

from checkpoints import command
from devkit.client import WorkflowFailed
from devkit.paths import Stop

try:
    command.main()
except (Stop, ValueError, WorkflowFailed) as error:
    sys.exit(f"checkpoints: {error}")
except KeyboardInterrupt:
    sys.exit("\ncheckpoints: stopped. Run the same command again to go on.")
