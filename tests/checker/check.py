"""Compares the scheduler's collections in MongoDB with their rows in PostgreSQL, and shares no code with the bridge.

    check.py --json

Reads BRIDGE_MONGO_URL, BRIDGE_MONGO_DATABASE and BRIDGE_POSTGRES_URL. Prints one JSON object: `verdict` (`clean` or `mismatch`),
`collections` (`name`, `documents`, `rows`, `quarantined`) and `mismatches` (`collection`, `id` in canonical extended JSON, `kind`,
`reason`). A mismatch is `missing` (only in MongoDB), `extra` (only in PostgreSQL) or `content`. Exits 0 when clean, 1 when not.

It holds one collection in memory: it is for data sets of tests, not of operators.
"""

import argparse
import json
import os
import struct
import sys

import psycopg
import pymongo
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from psycopg import sql
from psycopg.adapt import Loader
from psycopg.pq import Format

import extended
import rules
from rawbson import Malformed, canonical_document, document_of, elements


class Micros(Loader):
    """timestamptz as PostgreSQL keeps it: Python's own type has neither its range nor its infinities."""

    format = Format.BINARY

    def load(self, data):
        return struct.unpack("!q", data)[0]


class Text(Loader):
    """jsonb as its text: numbers are read by the rules and not by a driver."""

    format = Format.BINARY

    def load(self, data):
        return bytes(data)[1:].decode()


def documents(database, collection):
    """The documents by identity (type byte and value of `_id`)."""
    options = CodecOptions(document_class=RawBSONDocument)
    batches = database.get_collection(collection, codec_options=options).find_raw_batches(batch_size=1000)
    found = {}
    for batch in batches:
        at = 0
        while at < len(batch):
            end = at + struct.unpack_from("<i", batch, at)[0]
            found[identity_of(batch[at:end])] = batch[at:end]
            at = end
    return found


def identity_of(document):
    kind, _, value = next(element for element in elements(document) if element[1] == b"_id")
    return bytes([kind]) + value


def column_types(connection, collection):
    query = """select column_name, data_type from information_schema.columns
        where table_schema = 'scheduler' and table_name = %s order by ordinal_position"""
    found = connection.execute(query, [collection]).fetchall()
    return {column: data_type for column, data_type in found if column not in rules.NOT_FIELDS}


def rows(connection, collection, types):
    columns = ["id", *types, "residue"]
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    query = sql.SQL("select {} from {}").format(names, sql.Identifier("scheduler", collection))
    with connection.cursor(binary=True) as cursor:
        for values in cursor.execute(query):
            yield dict(zip(columns, values))


def quarantine(connection, collection):
    query = "select id, document from bridge.quarantine where collection = %s"
    with connection.cursor(binary=True) as cursor:
        return cursor.execute(query, [collection]).fetchall()


class Comparison:
    """One collection: what each store has under each key."""

    def __init__(self, database, connection, collection):
        self.collection, self.connection = collection, connection
        self.documents = documents(database, collection)
        self.types = column_types(connection, collection)
        # The text of a key over the limit does not give the key back.
        self.long = {rules.sha_key(identity): identity for identity in self.documents}
        self.rows, self.quarantined, self.mismatches = {}, {}, []

    def run(self):
        for row in rows(self.connection, self.collection, self.types):
            self.file(self.rows, row["id"], self.fault_of_row(row))
        for text, document in quarantine(self.connection, self.collection):
            self.file(self.quarantined, text, self.fault_of_quarantined(text, document))
        for identity in self.documents.keys() | self.rows.keys() | self.quarantined.keys():
            self.compare(identity)
        return self

    def file(self, side, text, fault):
        # What is no key cannot be anybody's: it is known by its text.
        identity = self.identity(text)
        key = text if identity is None else identity
        side[key] = "two of them have one key" if key in side else fault

    def identity(self, text):
        return self.long.get(text) or rules.key_identity(self.collection, text)

    def fault_of_row(self, row):
        """What is wrong with a row whose document exists; nothing when all is well."""
        document = self.documents.get(self.identity(row["id"]))
        if document is None:
            return None
        try:
            rebuilt = document_of(rules.rebuild(self.collection, self.types, row))
            same = canonical_document(rebuilt) == canonical_document(document)
        except (rules.Unreadable, Malformed) as error:
            return f"the row stands for no document: {error}"
        return None if same else "the row stands for another document"

    def fault_of_quarantined(self, text, document):
        same = bytes(document) == self.documents.get(self.identity(text))
        return None if same else "the quarantined document is another one"

    def compare(self, key):
        is_row, is_quarantined = key in self.rows, key in self.quarantined
        if key not in self.documents:
            self.report(key, "extra", "there is no such document")
        elif is_row and is_quarantined:
            self.report(key, "content", "the document is a row and in the quarantine")
        elif not is_row and not is_quarantined:
            self.report(key, "missing", "there is neither a row nor a quarantined document")
        elif fault := self.rows.get(key) or self.quarantined.get(key):
            self.report(key, "content", fault)

    def report(self, key, kind, reason):
        mismatch = {"collection": self.collection, "id": json_id(key), "kind": kind, "reason": reason}
        self.mismatches.append(mismatch)

    def counts(self):
        counts = {"documents": len(self.documents), "rows": len(self.rows), "quarantined": len(self.quarantined)}
        return {"name": self.collection, **counts}


def json_id(key):
    if isinstance(key, str):
        return key
    try:
        return extended.to_json(key[0], key[1:])
    except (extended.Inexpressible, Malformed):
        return {"$bson": key.hex()}


def compare_all(database, connection):
    compared = [Comparison(database, connection, collection).run() for collection in rules.COLLECTIONS]
    mismatches = [mismatch for one in compared for mismatch in one.mismatches]
    verdict = "mismatch" if mismatches else "clean"
    return {"verdict": verdict, "collections": [one.counts() for one in compared], "mismatches": mismatches}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--json", action="store_true", help="print the whole result and not the verdict alone")
    arguments = parser.parse_args()
    sys.setrecursionlimit(20_000)  # documents nest deeper than Python's functions usually do
    client = pymongo.MongoClient(os.environ["BRIDGE_MONGO_URL"])
    database = client[os.environ.get("BRIDGE_MONGO_DATABASE", "stellaops_scheduler")]
    with psycopg.connect(os.environ["BRIDGE_POSTGRES_URL"]) as connection:
        connection.adapters.register_loader("timestamptz", Micros)
        connection.adapters.register_loader("jsonb", Text)
        result = compare_all(database, connection)
    client.close()
    print(json.dumps(result) if arguments.json else result["verdict"])
    return 0 if result["verdict"] == "clean" else 1


if __name__ == "__main__":
    sys.exit(main())
