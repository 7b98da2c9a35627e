"""An encoder's process does not grow with the number of different batches that it has seen."""

import subprocess
import sys
from pathlib import Path

from tests.unit.models.encoder_checkpoints import write_checkpoint

# oneDNN keeps some megabytes for each number of rows that it has multiplied.
MAX_GROWTH = 192 << 20
SCRIPT = """
import random, sys
from pathlib import Path
from octavo_protocol.pooling import PoolingParams
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.pooling_engine import PoolingEngine

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

engine = PoolingEngine(EngineConfig(model=Path(sys.argv[1]), dtype="float32", device="cpu"))
rng = random.Random(0)
before = resident_bytes()
for step in range(250):
    for index in range(rng.randint(1, 16)):
        tokens = [5] * rng.randint(1, 64)
        engine.add_request(f"{step} {index}", tokens, PoolingParams(task="classify"))
    while engine.has_unfinished_requests():
        engine.step()
print(resident_bytes() - before)
"""


def test_batches_of_all_sizes_leave_little_behind(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "BertForSequenceClassification", num_labels=3)
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120
    )

    assert child.returncode == 0, child.stderr
    assert int(child.stdout) < MAX_GROWTH
