"""The written rules of how a document becomes a row, put down a second time.

Everything that the scheduler's program knows from its own tables (names, words, limits) is spelled out here anew, so that a
fault of those tables is not repeated but found.
"""

import hashlib
import re
import struct
from datetime import date

from bson.decimal128 import Decimal128

import extended
from extended import Inexpressible, is_expressible, to_json
from rawbson import (
    ARRAY, BOOLEAN, DATE, DECIMAL, DOCUMENT, DOUBLE, INT32, INT64, NULL, OBJECT_ID, STRING, TIMESTAMP, UNDEFINED,
    Malformed, canonical, elements, string_bytes, string_value,
)

COLLECTIONS = (
    "schedules", "triggers", "runs", "graph_jobs", "policy_jobs", "impact_snapshots", "workers", "execution_logs", "locks",
    "run_summaries", "audit",
)

# Collections whose plain keys are ObjectIds; those of all others are strings.
OBJECT_ID_KEYS = {"execution_logs"}

# Columns that belong to the row and not to the document.
NOT_FIELDS = {"id", "residue", "epoch", "clock"}

# A field that older writers called otherwise (besides the snake_case name of its column).
OLDER_NAMES = {("schedules", "cron_expression"): ["whenCron"]}

# Text outside any index, of any length; all other text is cut to NAME_LIMIT bytes.
LONG_TEXT = {
    ("schedules", "cron_expression"), ("triggers", "cron_expression"), ("runs", "error"), ("graph_jobs", "error"),
    ("policy_jobs", "last_error"), ("execution_logs", "message"), ("audit", "message"),
}

NAME_LIMIT, KEY_LIMIT, DEPTH_LIMIT = 384, 1400, 150


def words(today, **older):
    return {**{word: word for word in today.split()}, **older}


WORDS = {
    ("schedules", "mode"): words("analysis-only content-refresh"),
    ("triggers", "kind"): words("cron manual conselier excitor"),
    ("triggers", "misfire_policy"): words("fire-once skip"),
    ("runs", "state"): words(
        "planning queued running completed error cancelled",
        pending="queued", succeeded="completed", failed="error", canceled="cancelled",
    ),
    ("graph_jobs", "type"): words("build overlay"),
    ("graph_jobs", "status"): words(
        "pending queued running completed failed cancelled",
        succeeded="completed", error="failed", canceled="cancelled",
    ),
    ("policy_jobs", "mode"): words("full incremental simulate"),
    ("policy_jobs", "priority"): words("normal high emergency"),
    ("policy_jobs", "status"): words(
        "pending dispatching submitted completed failed cancelled",
        queued="pending", succeeded="completed", error="failed", canceled="cancelled",
    ),
    ("workers", "status"): words("active draining dead"),
}


def field_of(column):
    """camelCase of a snake_case column."""
    first, *others = column.split("_")
    return first + "".join(word.capitalize() for word in others)


def older_names(collection, column):
    own = [column] if column != field_of(column) else []
    return own + OLDER_NAMES.get((collection, column), [])


# Keys


def sha_key(identity):
    return extended.compact({"$sha256": hashlib.sha256(identity).hexdigest()})


def key_identity(collection, text):
    """Type byte and value of the `_id` that stands in column `id` as `text`; nothing for a one-way key or no key."""
    if not text.startswith("{"):
        if collection not in OBJECT_ID_KEYS:
            return bytes([STRING]) + string_value(text.encode())
        is_plain = re.fullmatch("[0-9a-f]{24}", text)
        return bytes([OBJECT_ID]) + bytes.fromhex(text) if is_plain else None
    try:
        fields = extended.json.loads(text)
        if set(fields) == {"$bson"}:
            exact = fields["$bson"]
            return bytes.fromhex(exact) if re.fullmatch("([0-9a-f]{2})+", exact) else None
        kind, value = extended.of_json(fields)
        return bytes([kind]) + value
    except (Inexpressible, ValueError, TypeError):
        return None


def key_text(collection, kind, value):
    """The text that stands in column `id` for an `_id`, and in text columns for what is no text."""
    identity = bytes([kind]) + bytes(value)
    text = plain_key(collection, kind, value)
    if text is None:
        text = marked_key(collection, kind, value, identity)
    return text if len(text.encode()) <= KEY_LIMIT else sha_key(identity)


def plain_key(collection, kind, value):
    if collection in OBJECT_ID_KEYS:
        return value.hex() if kind == OBJECT_ID else None
    if kind != STRING:
        return None
    try:
        text = extended.utf8(string_bytes(value))
    except Inexpressible:
        return None
    return None if text.startswith("{") or "\0" in text else text


def marked_key(collection, kind, value, identity):
    # A subnormal Double has no canonical form that every reader of it agrees on.
    is_subnormal = kind == DOUBLE and 0 < abs(struct.unpack("<d", value)[0]) < 2.2250738585072014e-308
    try:
        json = to_json(kind, value)
        if isinstance(json, dict) and not is_subnormal:
            text = extended.compact(json)
            if key_identity(collection, text) == identity:
                return text
    except (Inexpressible, Malformed):
        pass
    return extended.compact({"$bson": identity.hex()})


# What a column shows of a value that stands, exactly, in the residue


def shown(collection, column, data_type, kind, value):
    """The column's value for a BSON value: the nearest useful one, or nothing."""
    if data_type == "jsonb":
        return canonical(kind, value) if fits_jsonb(kind, value) else None
    if kind in (NULL, UNDEFINED):
        return None
    if (collection, column) in WORDS:
        return WORDS[collection, column].get(readable(value)) if kind == STRING else None
    if data_type == "text":
        return shown_text(kind, value, None if (collection, column) in LONG_TEXT else NAME_LIMIT)
    if data_type == "timestamp with time zone":
        return shown_instant(kind, value)
    if data_type == "boolean":
        return extended.boolean(value) if kind == BOOLEAN else None
    number = nearest_integer(kind, value)
    bits = {"integer": 32, "bigint": 64}[data_type]
    return None if number is None else clamp(number, bits)


def readable(value):
    try:
        return extended.utf8(string_bytes(value))
    except Inexpressible:
        return None


def shown_text(kind, value, limit):
    if kind != STRING:
        text = key_text(None, kind, value)
        fits = limit is None or len(text.encode()) <= limit
        return text if fits and "\\u0000" not in text else None
    held = string_bytes(value).decode("utf-8", "replace").replace("\0", "\ufffd").encode()
    if limit is not None and len(held) > limit:
        held = held[:limit].decode("utf-8", "ignore").encode()
    return held.decode()


def clamp(number, bits):
    return max(-(1 << bits - 1), min((1 << bits - 1) - 1, number))


def nearest_integer(kind, value):
    if kind in (INT32, INT64):
        return int.from_bytes(value, "little", signed=True)
    if kind == DOUBLE:
        return truncate(struct.unpack("<d", value)[0])
    if kind == DECIMAL:
        try:
            return truncate(float(str(Decimal128.from_bid(bytes(value)))))
        except (ValueError, ArithmeticError):
            return None
    if kind == STRING:
        text = readable(value)
        if text is not None and re.fullmatch(r"[+-]?[0-9]+", text, re.ASCII) and len(text) < 4000:
            return int(text) if clamp(int(text), 64) == int(text) else None
    return None


def truncate(number):
    if number != number:
        return None
    return clamp(int(number) if abs(number) < 1e300 else int(number > 0) * 2 - 1 << 1000, 64)


# Instants: microseconds since 2000, as `timestamptz` counts them.

EPOCH_MILLIS = 946_684_800_000
INFINITY, MINUS_INFINITY = (1 << 63) - 1, -(1 << 63)
FIRST, AFTER_LAST = -211_813_488_000_000_000, 9_223_371_331_200_000_000

ISO = re.compile(
    # A space between date and time needs an offset, so that the text is one of RFC 3339.
    r"(\d{4})-(\d\d)-(\d\d)(?:(?:[Tt]| (?=.*(?:[Zz]|[+-]..:..)\Z))(\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))?)?", re.ASCII
)


def is_finite(micros):
    return FIRST <= micros < AFTER_LAST


def instant_of_millis(millis):
    micros = (millis - EPOCH_MILLIS) * 1000
    if is_finite(micros):
        return micros
    return INFINITY if millis > 0 else MINUS_INFINITY


def instant_of_text(text):
    """The instant that an ISO-8601 text names, to the microsecond; UTC where it names no offset."""
    match = ISO.fullmatch(text)
    if not match:
        return None
    year, month, day = (int(group) for group in match.groups()[:3])
    days = days_since_2000(year, month, day)
    hour, minute, second = (int(group or 0) for group in match.groups()[3:6])
    offset_hours, offset_minutes = int(match[10] or 0), int(match[11] or 0)
    # A leap second, 60, is the first second of the next minute.
    if days is None or hour > 23 or minute > 59 or second > 60 or offset_hours > 23 or offset_minutes > 59:
        return None
    offset = (offset_hours * 60 + offset_minutes) * (-1 if match[9] == "-" else 1)
    micros = int((match[7] or "")[:6].ljust(6, "0"))
    return (((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1_000_000 + micros


def days_since_2000(year, month, day):
    # Python has no year 0; 400 years later every date falls on the same day of the cycle.
    shift = 400 if year == 0 else 0
    try:
        return (date(year + shift, month, day) - date(2000, 1, 1)).days - (146_097 if shift else 0)
    except ValueError:
        return None


def shown_instant(kind, value):
    if kind == DATE:
        return instant_of_millis(struct.unpack("<q", value)[0])
    if kind == TIMESTAMP:
        return instant_of_millis(struct.unpack("<II", value)[1] * 1000)
    if kind == STRING and (text := readable(value)) is not None:
        return instant_of_text(text)
    return None


# jsonb


def fits_jsonb(kind, value):
    fits = is_expressible(kind, value) and not has_nul(kind, value)
    return fits and depth(kind, value) <= DEPTH_LIMIT and not has_dollar(kind, value)


def has_dollar(kind, value):
    """Whether the name of a field starts as those of extended JSON do."""
    if kind not in (DOCUMENT, ARRAY):
        return False
    return any(name[:1] == b"$" or has_dollar(inner, part) for inner, name, part in elements(value))


def has_nul(kind, value):
    return "\\u0000" in extended.compact(to_json(kind, value)).replace("\\\\", "")


def depth(kind, value):
    if kind not in (DOCUMENT, ARRAY):
        return 0
    return 1 + max((depth(inner, part) for inner, _, part in elements(value)), default=0)


# Documents


class Unreadable(Exception):
    """A row that stands for no document."""


def column_value(data_type, value):
    """The (kind, value) that a column gives back by itself."""
    if data_type == "text":
        return STRING, string_value(value.encode())
    if data_type == "timestamp with time zone":
        if not is_finite(value) or value % 1000:
            raise Unreadable("an instant that is no BSON date")
        return DATE, struct.pack("<q", value // 1000 + EPOCH_MILLIS)
    if data_type == "integer":
        return INT32, struct.pack("<i", value)
    if data_type == "bigint":
        return INT64, struct.pack("<q", value)
    if data_type == "boolean":
        return BOOLEAN, bytes([value])
    try:
        return extended.of_text(value)
    except Inexpressible as error:
        raise Unreadable(f"jsonb: {error}") from None


def read_residue(residue):
    """The elements that the residue sets, and the names it covers."""
    if residue is None:
        return [], set()
    parts = {}
    try:
        for kind, name, value in elements(residue):
            if (name, kind) not in ((b"set", DOCUMENT), (b"unset", ARRAY)) or name in parts:
                raise Unreadable("a residue of another shape")
            parts[name] = elements(value)
        unset = {string_bytes(value) for _, _, value in parts.get(b"unset", [])}
    except Malformed as error:
        raise Unreadable(f"residue: {error}") from None
    if b"set" not in parts:
        raise Unreadable("a residue without set")
    return parts[b"set"], unset | {name for _, name, _ in parts[b"set"]}


def rebuild(collection, types, row):
    """The elements (kind, name, value) of the document that `row` (column to value) stands for.

    `types` names the type of each column. Raises Unreadable when no document has such a row.
    """
    identity = key_identity(collection, row["id"])
    if identity is None:
        raise Unreadable("an id that is no key")
    kept, covered = read_residue(row["residue"])
    document = [(identity[0], b"_id", identity[1:])]
    for column, data_type in types.items():
        name = field_of(column).encode()
        if row[column] is not None and name not in covered:
            kind, value = column_value(data_type, row[column])
            document.append((kind, name, value))
    if row["residue"] is not None:
        agree(collection, types, row, kept, document)
    return document + kept


def agree(collection, types, row, kept, document):
    """Raises Unreadable unless each column that the residue covers shows what the residue holds."""
    regular = {name for _, name, _ in document}
    for column, data_type in types.items():
        name = field_of(column).encode()
        if name in regular:
            continue
        older = {older.encode() for older in older_names(collection, column)}
        exact = [element for element in kept if element[1] == name] or [element for element in kept if element[1] in older]
        due = shown(collection, column, data_type, exact[0][0], exact[0][2]) if exact else None
        held = row[column]
        if data_type == "jsonb" and held is not None:
            held = canonical(*column_value(data_type, held))
        if held != due:
            raise Unreadable(f"column {column} does not show what the residue holds")
