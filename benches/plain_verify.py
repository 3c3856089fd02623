"""What a user would write in an afternoon: a thousand documents, the rows with their ids, column by column. It is blind to
types (1 and 1.0 are equal), to unknown fields, and to rows without a document. The argument is the number of documents;
it prints as JSON how many it compared, in how many seconds, and the ids that differ. Measured beside the bridge; see
benches/verify.rs."""

import itertools
import json
import os
import sys
import time
from datetime import datetime, timedelta, timezone

import psycopg
import pymongo
from plain_copy import FIELDS, STATES
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

EPOCH = datetime.fromtimestamp(0, timezone.utc)


def meant(found):
    """What an object in jsonb stands for, which may be extended JSON."""
    if "$date" in found:
        return EPOCH + timedelta(milliseconds=found["$date"])
    for name, kind in (("$numberLong", int), ("$numberDouble", float)):
        if name in found:
            return kind(found[name])
    return found


def value(document, name, column):
    found = document.get(name, document.get(column))
    if name == "state":
        return STATES.get(found, found)
    if name.endswith("At") and isinstance(found, str):
        return datetime.fromisoformat(found)
    return found


def main(count):
    source = pymongo.MongoClient(os.environ["BRIDGE_MONGO_URL"], tz_aware=True)[os.environ["BRIDGE_MONGO_DATABASE"]]
    set_json_loads(lambda text: json.loads(text, object_hook=meant))
    columns = ", ".join(column for _, column in FIELDS)
    query = f"select id, {columns} from scheduler.runs where id = any(%s)"
    compared, differing, begun = 0, [], time.monotonic()
    with psycopg.connect(os.environ["BRIDGE_POSTGRES_URL"]) as target, target.cursor(row_factory=dict_row) as cursor:
        documents = source["runs"].find(limit=count)
        while batch := list(itertools.islice(documents, 1_000)):
            rows = {row["id"]: row for row in cursor.execute(query, [[document["_id"] for document in batch]])}
            for document in batch:
                expected = {column: value(document, name, column) for name, column in FIELDS}
                if rows.get(document["_id"]) != {"id": document["_id"], **expected}:
                    differing.append(document["_id"])
            compared += len(batch)
    print(json.dumps({"documents": compared, "seconds": time.monotonic() - begun, "differing": differing}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
