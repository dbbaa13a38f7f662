"""Data four times as large as the bound stream within the bound: peak resident memory, measured from outside."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BOUND = 24 * 2**20  # bytes above what the process holds before it reads
N_FEATURES, ROWS_PER_GROUP, GROUPS_PER_SHARD, N_SHARDS = 32, 8192, 32, 3

SCRIPT = """
import sys, threading, psutil, torch, pyarrow.parquet as pq
from qfml.data.streaming import StreamingTimeDataset

torch.set_num_threads(1)
process, stop, peak = psutil.Process(), threading.Event(), [0]

def watch():
    while not stop.wait(0.002):
        peak[0] = max(peak[0], process.memory_info().rss)

folder, n_features = sys.argv[1], int(sys.argv[2])
features = [f"x{i}" for i in range(n_features)]
options = dict(features=features, batch_size=1024, seed=0, buffer_rows=40_000)
next(iter(StreamingTimeDataset(folder + "/part-0.parquet", **options | {"buffer_rows": 1})))  # libraries are warm
before = process.memory_info().rss
threading.Thread(target=watch, daemon=True).start()
stream, rows = StreamingTimeDataset(folder, **options), 0
for x, y, time in stream:
    rows += len(x)
streamed = peak[0] - before
held = [pq.read_table(f"{folder}/part-{i}.parquet") for i in range(int(sys.argv[3]))]  # the measurement sees memory
peak[0] = max(peak[0], process.memory_info().rss)
stop.set()
print(rows, streamed, peak[0] - before)
"""


@pytest.mark.slow
def test_peak_memory_stays_under_a_quarter_of_the_data(tmp_path):
    rng = np.random.default_rng(0)
    n_rows = 0
    names = [f"x{i}" for i in range(N_FEATURES)]
    schema = pa.schema([("time", pa.int64()), ("label", pa.float32()), *((name, pa.float32()) for name in names)])
    for shard in range(N_SHARDS):
        with pq.ParquetWriter(
            tmp_path / f"part-{shard}.parquet", schema, compression="none", use_dictionary=False
        ) as writer:
            for _ in range(GROUPS_PER_SHARD):
                columns = rng.random((N_FEATURES + 1, ROWS_PER_GROUP), dtype=np.float32)
                writer.write_table(pa.table([np.arange(ROWS_PER_GROUP) + n_rows, *columns], schema=schema))
                n_rows += ROWS_PER_GROUP
    size = n_rows * N_FEATURES * 4
    assert size >= 4 * BOUND
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(N_FEATURES), str(N_SHARDS)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    rows, streamed, held = map(int, finished.stdout.split())
    assert rows == n_rows
    assert streamed < BOUND, f"{streamed / 2**20:.0f} MiB"
    assert held > size  # what reading everything would have shown
