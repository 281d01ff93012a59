"""Reads W&B's local files: LevelDB's log format, in blocks of 32 KiB, of protobuf records."""

import json
from pathlib import Path

import wandb
from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = 7, 32768
LAST_PARTS = (1, 4)  # a whole record, or the end of one cut into parts


def read_records(path: Path) -> list[Record]:
    data, position, parts, records = path.read_bytes(), HEADER, b"", []
    assert data[:4] == b":W&B"
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # too little for another header
            position += BLOCK - position % BLOCK
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in LAST_PARTS:
            records.append(Record.FromString(parts))
            parts = b""
    return records


def read_offline_runs(folder: Path) -> dict[str, dict]:
    """Job type -> what the offline run of that command holds."""
    wandb.teardown()  # the service may write the last of a finished run only as it ends
    runs = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        records = read_records(path)
        [run] = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        updates = [item for r in records for item in (*r.config.update, *r.run.config.update)]
        items = [item for r in records for item in r.history.item]
        history = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
        runs[run.job_type] = {
            "id": run.run_id,
            "name": run.display_name,
            "project": run.project,
            "group": run.run_group,
            "config": {i.key or i.nested_key[0]: json.loads(i.value_json) for i in updates},
            "history": history,
            "artifacts": {r.artifact.type: r.artifact for r in records if r.HasField("artifact")}
            | {
                r.request.log_artifact.artifact.type: r.request.log_artifact.artifact
                for r in records
                if r.request.HasField("log_artifact")
            },
            "media": path.parent / "files",
        }
    return runs
