"""Canonical extended JSON v2 of raw BSON values, and back. Source: the MongoDB specification "extended-json"."""

import base64
import json
import math
import re
import struct
import uuid
from decimal import Decimal

from bson.decimal128 import Decimal128

from rawbson import (
    ARRAY, BINARY, BOOLEAN, CODE, DATE, DB_POINTER, DECIMAL, DOCUMENT, DOUBLE, INT32, INT64, MAX_KEY, MIN_KEY, NULL,
    OBJECT_ID, REGEX, SCOPED_CODE, STRING, SYMBOL, TIMESTAMP, UNDEFINED, Malformed, document_of, elements, int32,
    scoped_code, string_bytes, string_value,
)

INTEGER = re.compile(r"-?(0|[1-9][0-9]*)\Z")


class Inexpressible(Exception):
    """A value that has no canonical extended JSON, or a text that is none."""


def utf8(data):
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError:
        raise Inexpressible("bytes that are not UTF-8") from None


def number_double(value):
    number = struct.unpack("<d", value)[0]
    if math.isnan(number):
        return "-NaN" if value[-1] & 0x80 else "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    text = format(Decimal(repr(number)), "f")
    return text if "." in text else text + ".0"


def binary(value):
    subtype, data = value[4], value[5:]
    if subtype == 2:
        if len(data) < 4 or int32(data) != len(data) - 4:
            raise Inexpressible("an old binary whose two lengths disagree")
        data = data[4:]
    return {"$binary": {"base64": base64.b64encode(data).decode("ascii"), "subType": f"{subtype:02x}"}}


def object_id(value):
    return {"$oid": value.hex()}


def regex(value):
    pattern, options, _ = value.split(b"\0")
    if bytes(sorted(options)) != options:
        raise Inexpressible("the options of a regular expression out of order")
    return {"$regularExpression": {"pattern": utf8(pattern), "options": utf8(options)}}


def db_pointer(value):
    return {"$dbPointer": {"$ref": utf8(string_bytes(value[:-12])), "$id": object_id(value[-12:])}}


def boolean(value):
    if value not in (b"\0", b"\1"):
        raise Inexpressible("a boolean that is neither")
    return value == b"\1"


def document(value):
    fields = [(utf8(name), to_json(kind, part)) for kind, name, part in elements(value)]
    names = [name for name, _ in fields]
    if len(set(names)) != len(names):
        raise Inexpressible("a name twice")
    return dict(fields)


def code_with_scope(value):
    code, scope = scoped_code(value)
    return {"$code": utf8(string_bytes(code)), "$scope": document(scope)}


def timestamp(value):
    increment, seconds = struct.unpack("<II", value)
    return {"$timestamp": {"t": seconds, "i": increment}}


WRITERS = {
    DOUBLE: lambda value: {"$numberDouble": number_double(value)},
    STRING: lambda value: utf8(string_bytes(value)),
    DOCUMENT: document,
    ARRAY: lambda value: [to_json(kind, part) for kind, _, part in elements(value)],
    BINARY: binary,
    UNDEFINED: lambda value: {"$undefined": True},
    OBJECT_ID: object_id,
    BOOLEAN: boolean,
    DATE: lambda value: {"$date": {"$numberLong": str(struct.unpack("<q", value)[0])}},
    NULL: lambda value: None,
    REGEX: regex,
    DB_POINTER: db_pointer,
    CODE: lambda value: {"$code": utf8(string_bytes(value))},
    SYMBOL: lambda value: {"$symbol": utf8(string_bytes(value))},
    SCOPED_CODE: code_with_scope,
    INT32: lambda value: {"$numberInt": str(int32(value))},
    TIMESTAMP: timestamp,
    INT64: lambda value: {"$numberLong": str(struct.unpack("<q", value)[0])},
    DECIMAL: lambda value: {"$numberDecimal": str(Decimal128.from_bid(bytes(value)))},
    MAX_KEY: lambda value: {"$maxKey": 1},
    MIN_KEY: lambda value: {"$minKey": 1},
}


def to_json(kind, value):
    """The canonical extended JSON of a value, whether it gives the value back or not."""
    return WRITERS[kind](value)


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def only(fields, *names):
    if set(fields) != set(names):
        raise Inexpressible(f"{sorted(fields)} is no extended JSON")
    return [fields[name] for name in names]


def integer(text, bits):
    if not isinstance(text, str) or not INTEGER.match(text) or not -(1 << bits - 1) <= int(text) < 1 << bits - 1:
        raise Inexpressible(f"{text!r} is no Int{bits}")
    return int(text)


def of_binary(fields):
    text, subtype = only(only(fields, "$binary")[0], "base64", "subType")
    data, subtype = base64.b64decode(text, validate=True), int(subtype, 16)
    if subtype == 2:
        data = struct.pack("<i", len(data)) + data
    return BINARY, struct.pack("<iB", len(data), subtype) + data


def of_uuid(fields):
    # Nothing is written so, but every parser of extended JSON must read it.
    return BINARY, struct.pack("<iB", 16, 4) + uuid.UUID(only(fields, "$uuid")[0]).bytes


def of_code(fields):
    if "$scope" not in fields:
        return CODE, string_value(only(fields, "$code")[0].encode())
    code, scope = only(fields, "$code", "$scope")
    body = string_value(code.encode()) + of_json(scope)[1]
    return SCOPED_CODE, struct.pack("<i", len(body) + 4) + body


def of_regex(fields):
    pattern, options = only(only(fields, "$regularExpression")[0], "pattern", "options")
    return REGEX, pattern.encode() + b"\0" + options.encode() + b"\0"


def of_db_pointer(fields):
    reference, key = only(only(fields, "$dbPointer")[0], "$ref", "$id")
    return DB_POINTER, string_value(reference.encode()) + of_object_id(key)[1]


def of_object_id(fields):
    value = bytes.fromhex(only(fields, "$oid")[0])
    if len(value) != 12:
        raise Inexpressible("an ObjectId of another length")
    return OBJECT_ID, value


def of_timestamp(fields):
    seconds, increment = only(only(fields, "$timestamp")[0], "t", "i")
    return TIMESTAMP, struct.pack("<II", increment, seconds)


def of_date(fields):
    millis = only(only(fields, "$date")[0], "$numberLong")[0]
    return DATE, struct.pack("<q", integer(millis, 64))


READERS = {
    "$numberInt": lambda fields: (INT32, struct.pack("<i", integer(only(fields, "$numberInt")[0], 32))),
    "$numberLong": lambda fields: (INT64, struct.pack("<q", integer(only(fields, "$numberLong")[0], 64))),
    "$numberDouble": lambda fields: (DOUBLE, struct.pack("<d", float(only(fields, "$numberDouble")[0]))),
    "$numberDecimal": lambda fields: (DECIMAL, Decimal128(only(fields, "$numberDecimal")[0]).bid),
    "$symbol": lambda fields: (SYMBOL, string_value(only(fields, "$symbol")[0].encode())),
    "$undefined": lambda fields: (UNDEFINED, b""),
    "$minKey": lambda fields: (MIN_KEY, b""),
    "$maxKey": lambda fields: (MAX_KEY, b""),
    "$binary": of_binary,
    "$uuid": of_uuid,
    "$code": of_code,
    "$scope": of_code,
    "$regularExpression": of_regex,
    "$dbPointer": of_db_pointer,
    "$oid": of_object_id,
    "$timestamp": of_timestamp,
    "$date": of_date,
}


def of_object(fields):
    # Other names with a `$` are fields: in a scope, in the text of a key.
    marked = next((name for name in fields if name in READERS), None)
    if marked is None:
        return DOCUMENT, document_of([part(name, inner) for name, inner in fields.items()])
    try:
        return READERS[marked](fields)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, struct.error) as error:
        raise Inexpressible(f"{marked} does not stand for a value: {error}") from None


def part(name, value):
    """The element of a document that a field of a JSON object stands for."""
    if "\0" in name:
        raise Inexpressible("a NUL in a name")
    kind, data = of_json(value)
    return kind, name.encode(), data


def of_json(value):
    """The (kind, value) that a JSON value stands for, where integers are Int32 or Int64 by their size."""
    if value is None:
        return NULL, b""
    if isinstance(value, bool):
        return BOOLEAN, bytes([value])
    if isinstance(value, int):
        if -(1 << 31) <= value < 1 << 31:
            return INT32, struct.pack("<i", value)
        return INT64, struct.pack("<q", integer(str(value), 64))
    if isinstance(value, float):
        return DOUBLE, struct.pack("<d", value)
    if isinstance(value, str):
        return STRING, string_value(value.encode())
    if isinstance(value, list):
        return ARRAY, document_of([part(str(index), inner) for index, inner in enumerate(value)])
    return of_object(value)


def of_text(text):
    """The (kind, value) of a JSON text. A number with a point or an exponent is a Double."""
    try:
        return of_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise Inexpressible(f"no JSON: {error}") from None


def is_expressible(kind, value):
    """Whether the value's extended JSON gives it back."""
    try:
        return of_json(to_json(kind, value)) == (kind, bytes(value))
    except (Inexpressible, Malformed):
        return False
