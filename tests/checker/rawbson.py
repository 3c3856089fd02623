"""BSON as bytes: a walker that loses nothing, and equality bit for bit up to the order of fields.

Nothing here decodes a value further than it must: a string that is not UTF-8, a NaN with a payload or a date in the year
200,000,000 are bytes like all others. Source of the format: bsonspec.org, version 1.1.
"""

import struct

DOUBLE, STRING, DOCUMENT, ARRAY, BINARY, UNDEFINED, OBJECT_ID, BOOLEAN, DATE, NULL, REGEX, DB_POINTER, CODE, SYMBOL, \
    SCOPED_CODE, INT32, TIMESTAMP, INT64, DECIMAL = range(0x01, 0x14)
MAX_KEY, MIN_KEY = 0x7F, 0xFF

FIXED = {
    DOUBLE: 8, UNDEFINED: 0, OBJECT_ID: 12, BOOLEAN: 1, DATE: 8, NULL: 0, INT32: 4, TIMESTAMP: 8, INT64: 8, DECIMAL: 16,
    MAX_KEY: 0, MIN_KEY: 0,
}


class Malformed(Exception):
    """Bytes that are not BSON."""


def int32(data, at=0):
    try:
        return struct.unpack_from("<i", data, at)[0]
    except struct.error:
        raise Malformed("a length is cut off") from None


def cstring_end(data, at):
    end = data.find(b"\0", at)
    if end < 0:
        raise Malformed("a name does not end")
    return end + 1


def value_end(kind, data, at):
    """Where the value of this kind that starts at `at` ends."""
    if kind in FIXED:
        end = at + FIXED[kind]
    elif kind in (STRING, CODE, SYMBOL):
        end = at + 4 + int32(data, at)
    elif kind in (DOCUMENT, ARRAY, SCOPED_CODE):
        end = at + int32(data, at)
    elif kind == BINARY:
        end = at + 5 + int32(data, at)
    elif kind == DB_POINTER:
        end = at + 4 + int32(data, at) + 12
    elif kind == REGEX:
        end = cstring_end(data, cstring_end(data, at))
    else:
        raise Malformed(f"type {kind:#x} does not exist")
    if end < at or end > len(data) - 1:
        raise Malformed("a value runs over the end of its document")
    return end


def elements(document):
    """The elements (kind, name, value) of a document or an array, all three as they stand in it."""
    if len(document) < 5 or int32(document) != len(document) or document[-1] != 0:
        raise Malformed("a document has another length than it says")
    found, at = [], 4
    while at < len(document) - 1:
        kind, start = document[at], cstring_end(document, at + 1)
        end = value_end(kind, document, start)
        found.append((kind, document[at + 1:start - 1], document[start:end]))
        at = end
    return found


def document_of(parts):
    """The document with these elements (kind, name, value)."""
    body = b"".join(bytes([kind]) + name + b"\0" + value for kind, name, value in parts)
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def string_value(text):
    return struct.pack("<i", len(text) + 1) + text + b"\0"


def string_bytes(value):
    """The bytes of a string, a symbol or a code without length and NUL."""
    if int32(value) != len(value) - 4 or value[-1:] != b"\0" or len(value) < 5:
        raise Malformed("a string has another length than it says")
    return value[4:-1]


def scoped_code(value):
    """The code (a string value) and the scope (a document)."""
    end = 8 + int32(value, 4)
    return value[4:end], value[end:]


def canonical(kind, value):
    """Equal for two values if and only if they are the same up to the order of fields."""
    if kind == DOCUMENT:
        return kind, canonical_document(value)
    if kind == ARRAY:
        return kind, tuple((name, canonical(inner, part)) for inner, name, part in elements(value))
    if kind == SCOPED_CODE:
        code, scope = scoped_code(value)
        return kind, code, canonical_document(scope)
    return kind, bytes(value)


def canonical_document(document):
    # Sorted by the name alone: the order of fields with one name is content.
    fields = sorted(elements(document), key=lambda element: element[1])
    return tuple((name, canonical(kind, value)) for kind, name, value in fields)
