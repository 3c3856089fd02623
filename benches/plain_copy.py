"""What a user would write: a driver's loop over the documents into COPY. It keeps one column a field and loses what
JSON cannot say. Measured beside the bridge; see benches/backfill.rs."""

import json
import os

import psycopg
import pymongo

FIELDS = [
    ("schemaVersion", "schema_version"), ("tenantId", "tenant_id"), ("scheduleId", "schedule_id"),
    ("trigger", "trigger"), ("state", "state"), ("stats", "stats"), ("reason", "reason"), ("createdAt", "created_at"),
    ("startedAt", "started_at"), ("finishedAt", "finished_at"), ("error", "error"), ("deltas", "deltas"),
    ("retryOf", "retry_of"), ("updatedAt", "updated_at"),
]
STATES = {"pending": "queued", "succeeded": "completed", "failed": "error", "canceled": "cancelled"}


def value(document, name, column):
    found = document.get(name, document.get(column))
    if name == "state":
        return STATES.get(found, found)
    return json.dumps(found, default=str) if isinstance(found, (dict, list)) else found


def main():
    source = pymongo.MongoClient(os.environ["BRIDGE_MONGO_URL"])[os.environ["BRIDGE_MONGO_DATABASE"]]
    columns = ", ".join(column for _, column in FIELDS)
    with psycopg.connect(os.environ["BRIDGE_POSTGRES_URL"]) as target, target.cursor() as cursor:
        with cursor.copy(f"copy scheduler.runs (id, {columns}, epoch, clock) from stdin") as copy:
            for document in source["runs"].find():
                row = [value(document, name, column) for name, column in FIELDS]
                copy.write_row([document["_id"], *row, 1, 1])


if __name__ == "__main__":
    main()
