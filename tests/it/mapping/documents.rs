//! Strategies for documents: like those of an entity, but with everything in them that BSON can say.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use scheduler_bridge::entity::{Entity, Field, KEY_LIMIT, KeyType, Kind, NAME_LIMIT, Presence};

use super::raw::{self, Value, kind};

/// What strings are made of.
const PIECES: &[&str] = &[
    "a",
    "Zürich",
    "\"",
    "\\",
    "\\u0000",
    "\u{1}",
    "\u{1f}",
    "\u{7f}",
    "\u{2028}",
    "😀",
    "{",
    "}",
    "$",
    "'",
    "''",
    "\r\n",
    "\u{fffd}",
    "\u{feff}",
    "\u{10ffff}",
    "0",
    "NaN",
    "null",
    "\t",
    "/",
    "%s",
    "{\"$oid\":",
    "\u{1b}[31m",
    "e\u{301}",
];

/// Bytes that are not UTF-8: broken off, a lone surrogate, an overlong NUL.
const BROKEN: &[&[u8]] = &[b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf0\x9f\x98"];

/// Names that are no field's.
const NAMES: &[&str] = &[
    "",
    "a",
    "b",
    "$date",
    "$oid",
    "$numberLong",
    "$x",
    "$",
    "$bson",
    "$sha256",
    "a.b",
    ".",
    "_id",
    "set",
    "unset",
    "ключ",
    "a b",
    "\"",
    "\\u0000",
    "\u{1}",
    "0",
    "residue",
    "id",
    "epoch",
    "__proto__",
];

/// Names of an array's elements where a writer did not count.
const INDEXES: &[&str] = &["0", "1", "00", "+1", "2", "", "x", "-0"];

const TIMES: &[&str] = &[
    "2025-10-26T12:00:00Z",
    "2025-10-26T12:00:00.1234567+00:00",
    "2025-10-26T14:00:00.5+02:00",
    "2025-10-26",
    "2025-02-30T00:00:00Z",
    "+12025-10-26T12:00:00Z",
    "0000-01-01T00:00:00Z",
    "2016-12-31T23:59:60Z",
    "infinity",
    "12",
    "-7",
    "2147483648",
    "9223372036854775808",
    "1e3",
];

const DOUBLES: &[f64] = &[
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.1,
    1.5,
    1e-300,
    5e-324,
    2.225_073_858_507_201e-308,
    1e22,
    1e300,
    f64::MAX,
    f64::MIN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::EPSILON,
    9_007_199_254_740_993.0,
    2_147_483_648.0,
    0.300_000_000_000_000_04,
    4_503_599_627_370_495.5,
    1e-5,
    123_456_789.012_345_67,
];

const INTEGERS: &[i64] = &[
    0,
    1,
    -1,
    42,
    2_147_483_647,
    2_147_483_648,
    -2_147_483_648,
    -2_147_483_649,
    9_007_199_254_740_993,
    i64::MAX,
    i64::MIN,
    1_761_436_800_123,
    253_402_300_800_000,
    -62_135_596_800_001,
    -210_866_803_200_000,
    -210_866_803_200_001,
    9_224_318_015_999_999,
    9_224_318_016_000_000,
    9_223_372_036_854_775,
    9_223_372_036_854_776,
];

/// Documents for `entity`, as bytes. Most of them can become rows.
pub fn documents(entity: &'static Entity) -> BoxedStrategy<Vec<u8>> {
    let fields: Vec<_> = entity.fields.iter().map(|field| field_of(field, entity)).collect();
    let extra = (name_for(entity), value()).boxed();
    let extras = prop_oneof![8 => Just(Vec::new()), 2 => vec(extra, 1..4)];
    let content = (fields, extras)
        .prop_map(|(fields, extras)| -> Vec<raw::Field> { fields.into_iter().flatten().chain(extras).collect() });
    let ordered = prop_oneof![content.clone(), content.prop_shuffle()];
    let place = prop_oneof![30 => Just(Some(0_usize)), 1 => Just(Some(1)), 1 => Just(None)];
    (id(entity.key), ordered, place)
        .prop_map(|(id, mut fields, place)| {
            if let Some(place) = place {
                fields.insert(place.min(fields.len()), (b"_id".to_vec(), id));
            }
            raw::document(&fields)
        })
        .boxed()
}

/// A field of the entity, under its name or an older one, once or twice, or not at all.
fn field_of(field: &'static Field, entity: &'static Entity) -> BoxedStrategy<Vec<raw::Field>> {
    let name = field.name.as_bytes();
    let older: Vec<&str> = [field.column].into_iter().chain(field.older.iter().copied()).collect();
    let one = |name: Vec<u8>, value: Value| vec![(name, value)];
    let usual = usual(field.kind).prop_map(move |value| one(name.to_vec(), value));
    let odd = value().prop_map(move |value| one(name.to_vec(), value));
    let renamed = (select(older), prop_oneof![self::usual(field.kind), value()])
        .prop_map(move |(older, value)| one(older.as_bytes().to_vec(), value));
    let twice = (select(vec![field.name, field.column]), self::usual(field.kind), value())
        .prop_map(move |(again, first, second)| vec![(name.to_vec(), first), (again.as_bytes().to_vec(), second)]);
    if field.presence == Presence::Required {
        // One bad field refuses the whole document; the fewer, the more rows there are to compare.
        return prop_oneof![120 => usual, 1 => odd, 4 => renamed, 2 => twice, 1 => Just(Vec::new())].boxed();
    }
    let others = u32::try_from(entity.fields.len()).expect("a few fields");
    prop_oneof![20 * others => usual, 6 * others => Just(Vec::new()), 12 => odd, 6 => renamed, 6 => twice].boxed()
}

/// A value as the entity's own writers store it.
fn usual(kind: Kind) -> BoxedStrategy<Value> {
    match kind {
        Kind::Name => prop_oneof![20 => text(), 1 => noise(NAME_LIMIT - 1..NAME_LIMIT + 2)].prop_map(string).boxed(),
        Kind::Text => prop_oneof![20 => text(), 1 => noise(3_000..3_100)].prop_map(string).boxed(),
        Kind::Word(words) => {
            let spellings: Vec<&str> =
                words.words.iter().copied().chain(words.older.iter().map(|(older, _)| *older)).collect();
            select(spellings).prop_map(|word| string(word.as_bytes().to_vec())).boxed()
        }
        Kind::Instant => prop_oneof![
            20 => (0..2_000_000_000_000_i64).prop_map(|millis| eight(kind::DATE, millis)),
            1 => select(INTEGERS).prop_map(|millis| eight(kind::DATE, millis)),
            1 => select(TIMES).prop_map(|time| string(time.as_bytes().to_vec())),
        ]
        .boxed(),
        Kind::Int32 => any::<i32>().prop_map(|value| Value::new(kind::INT32, value.to_le_bytes())).boxed(),
        Kind::Int64 => integer().prop_map(|value| eight(kind::INT64, value)).boxed(),
        Kind::Bool => any::<bool>().prop_map(|value| Value::new(kind::BOOL, [u8::from(value)])).boxed(),
        Kind::Json => prop_oneof![8 => plain(), 3 => value()].boxed(),
    }
}

/// What is ordinary JSON.
fn plain() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        text().prop_map(string),
        any::<i32>().prop_map(|value| Value::new(kind::INT32, value.to_le_bytes())),
        any::<bool>().prop_map(|value| Value::new(kind::BOOL, [u8::from(value)])),
        Just(Value::new(kind::NULL, [])),
        (0..2_000_000_000_000_i64).prop_map(|millis| eight(kind::DATE, millis)),
    ];
    let name = select(vec!["a", "bb", "c.d", "", "ключ", "e"]).prop_map(|name| name.as_bytes().to_vec());
    leaf.prop_recursive(3, 12, 4, move |inner| {
        prop_oneof![
            vec((name.clone(), inner.clone()), 0..4).prop_map(|mut fields| {
                fields.sort_by(|(a, _), (b, _)| a.cmp(b));
                fields.dedup_by(|(a, _), (b, _)| a == b);
                Value::document(&fields)
            }),
            vec(inner, 0..4).prop_map(counted),
        ]
    })
    .boxed()
}

/// Any value at all.
fn value() -> BoxedStrategy<Value> {
    let tree = scalar().prop_recursive(3, 16, 4, |inner| {
        let fields = vec((name(), inner.clone()), 0..4);
        prop_oneof![
            4 => fields.clone().prop_map(|fields| Value::document(&fields)),
            3 => vec(inner.clone(), 0..4).prop_map(counted),
            1 => vec((select(INDEXES), inner), 0..3).prop_map(|elements| {
                let named = |(name, value): (&str, Value)| (name.as_bytes().to_vec(), value);
                Value::array(&elements.into_iter().map(named).collect::<Vec<_>>())
            }),
            1 => (any_text(), fields).prop_map(|(code, fields)| with_scope(&code, &fields)),
        ]
    });
    let depths = select(vec![10_usize, 100, 148, 149, 150, 151, 178]);
    prop_oneof![40 => tree, 1 => (scalar(), depths, any::<bool>()).prop_map(|(leaf, depth, arrays)| nest(leaf, depth, arrays))]
        .boxed()
}

fn nest(leaf: Value, depth: usize, arrays: bool) -> Value {
    (0..depth).fold(leaf, |inner, level| match level % 2 == 0 && arrays {
        true => counted(vec![inner]),
        false => Value::document(&[(b"n".to_vec(), inner)]),
    })
}

/// A value of any type without values inside.
fn scalar() -> BoxedStrategy<Value> {
    let number = prop_oneof![
        any::<u64>().prop_map(|bits| Value::new(kind::DOUBLE, bits.to_le_bytes())),
        select(DOUBLES).prop_map(|value| Value::new(kind::DOUBLE, value.to_le_bytes())),
        (0..1_u64 << 52).prop_map(|payload| Value::new(kind::DOUBLE, (0x7ff0 << 48 | payload).to_le_bytes())),
        any::<i16>().prop_map(|value| Value::new(kind::DOUBLE, (f64::from(value) / 100.0).to_le_bytes())),
        any::<i32>().prop_map(|value| Value::new(kind::INT32, value.to_le_bytes())),
        integer().prop_map(|value| eight(kind::INT64, value)),
        any::<[u8; 16]>().prop_map(|bytes| Value::new(kind::DECIMAL, bytes)),
        (any::<i64>(), select(vec![0x3040_u16, 0xb040, 0x3000, 0x303e, 0x7800, 0xf800, 0x7c00, 0x5ffe, 0x0000]))
            .prop_map(|(digits, head)| {
                let high = u64::from(head) << 48;
                Value::new(kind::DECIMAL, [digits.to_le_bytes(), high.to_le_bytes()].concat())
            }),
    ];
    let words = prop_oneof![
        4 => any_text().prop_map(string),
        1 => select(TIMES).prop_map(|time| string(time.as_bytes().to_vec())),
        1 => (select(vec![kind::CODE, kind::SYMBOL]), any_text()).prop_map(|(kind, text)| Value::text(kind, &text)),
    ];
    prop_oneof![6 => number, 5 => words, 4 => moment_or_marker(), 2 => binary(), 2 => pattern_or_pointer()].boxed()
}

fn moment_or_marker() -> BoxedStrategy<Value> {
    let empty = select(vec![kind::UNDEFINED, kind::NULL, kind::NULL, kind::MIN_KEY, kind::MAX_KEY]);
    prop_oneof![
        integer().prop_map(|millis| eight(kind::DATE, millis)),
        any::<i64>().prop_map(|time| eight(kind::TIMESTAMP, time)),
        any::<bool>().prop_map(|value| Value::new(kind::BOOL, [u8::from(value)])),
        any::<[u8; 12]>().prop_map(|bytes| Value::new(kind::OBJECT_ID, bytes)),
        empty.prop_map(|kind| Value::new(kind, [])),
    ]
    .boxed()
}

/// Binary of every subtype; those of subtype 2 begin with a length of their own, mostly the right one.
fn binary() -> BoxedStrategy<Value> {
    let subtype = prop_oneof![select(vec![0_u8, 1, 2, 2, 3, 4, 4, 5, 6, 0x80]), any::<u8>()];
    let payload = prop_oneof![vec(any::<u8>(), 16..17), vec(any::<u8>(), 0..20)];
    (subtype, payload, 0..4)
        .prop_map(|(subtype, mut payload, broken)| {
            if subtype == 2 && broken > 0 {
                let length = i32::try_from(payload.len()).expect("a short payload");
                payload.splice(0..0, length.to_le_bytes());
            }
            let length = i32::try_from(payload.len()).expect("a short payload");
            Value::new(kind::BINARY, [&length.to_le_bytes(), [subtype].as_slice(), &payload].concat())
        })
        .boxed()
}

fn pattern_or_pointer() -> BoxedStrategy<Value> {
    let options = select(vec!["", "i", "imsx", "xi", "ii", "z"]);
    // The driver cannot step over a regular expression that is not UTF-8; such a document is refused, so it is rare.
    let pattern = prop_oneof![20 => text(), 1 => broken()].prop_map(without_nul);
    let regex = (pattern, options).prop_map(|(pattern, options)| {
        Value::new(kind::REGEX, [pattern.as_slice(), &[0], options.as_bytes(), &[0]].concat())
    });
    let pointer = (any_text(), any::<[u8; 12]>()).prop_map(|(name, id)| {
        Value::new(kind::POINTER, [Value::text(kind::STRING, &name).bytes, id.to_vec()].concat())
    });
    prop_oneof![regex, pointer].boxed()
}

fn with_scope(code: &[u8], fields: &[raw::Field]) -> Value {
    let content = [Value::text(kind::STRING, code).bytes, raw::document(fields)].concat();
    let length = i32::try_from(content.len() + 4).expect("a short scope");
    Value::new(kind::SCOPE, [length.to_le_bytes().to_vec(), content].concat())
}

/// `_id`s: mostly of the entity's own type, and all others that MongoDB takes.
fn id(key: KeyType) -> BoxedStrategy<Value> {
    let own = match key {
        KeyType::Text => any::<u64>().prop_map(|id| string(format!("r-{id:016x}").into_bytes())).boxed(),
        KeyType::ObjectId => any::<[u8; 12]>().prop_map(|id| Value::new(kind::OBJECT_ID, id)).boxed(),
    };
    let digits = any::<[u8; 12]>()
        .prop_map(|id| string(id.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes()));
    let marks = &["{", "{}", "{\"$oid\":\"0102030405060708090a0b0c\"}", "{\"$bson\":\"0a\"}", "{\"$sha256\":\"00\"}"];
    let limit = prop_oneof![KEY_LIMIT - 2..KEY_LIMIT + 3, KEY_LIMIT / 2 - 30..KEY_LIMIT / 2, Just(5_000)];
    let odd = prop_oneof![
        3 => any_text().prop_map(string),
        1 => select(marks).prop_map(|mark| string(mark.as_bytes().to_vec())),
        2 => (limit, any::<u64>(), any::<bool>()).prop_map(|(length, seed, marked)| {
            let mut text = noise_of(seed, length);
            if marked {
                text[0] = b'{';
            }
            string(text)
        }),
        1 => digits,
        8 => value(),
        2 => any::<[u8; 12]>().prop_map(|id| Value::new(kind::OBJECT_ID, id)),
    ];
    prop_oneof![2 => own, 1 => odd].prop_filter("no _id is an array", |id| id.kind != kind::ARRAY).boxed()
}

fn name_for(entity: &'static Entity) -> BoxedStrategy<Vec<u8>> {
    let known: Vec<&str> = entity
        .fields
        .iter()
        .flat_map(|field| [field.name, field.column].into_iter().chain(field.older.iter().copied()))
        .collect();
    let known = select(known).prop_map(|name| name.as_bytes().to_vec());
    prop_oneof![20 => known, 40 => name_in_utf8(), 1 => broken().prop_map(without_nul)].boxed()
}

fn name() -> BoxedStrategy<Vec<u8>> {
    prop_oneof![30 => name_in_utf8(), 1 => broken().prop_map(without_nul)].boxed()
}

fn name_in_utf8() -> BoxedStrategy<Vec<u8>> {
    let odd = select(NAMES).prop_map(|name| name.as_bytes().to_vec());
    prop_oneof![odd, "[a-z]{1,5}".prop_map(String::into_bytes), text()].boxed()
}

/// Text that PostgreSQL can hold.
fn text() -> BoxedStrategy<Vec<u8>> {
    vec(select(PIECES), 0..6).prop_map(|pieces| pieces.concat().into_bytes()).boxed()
}

/// Text of any bytes.
fn any_text() -> BoxedStrategy<Vec<u8>> {
    let nul = (text(), text()).prop_map(|(head, tail)| [head, vec![0], tail].concat());
    prop_oneof![8 => text(), 1 => nul, 1 => broken()].boxed()
}

fn broken() -> BoxedStrategy<Vec<u8>> {
    (text(), select(BROKEN), text()).prop_map(|(head, broken, tail)| [&head, broken, &tail].concat()).boxed()
}

fn without_nul(text: Vec<u8>) -> Vec<u8> {
    text.into_iter().filter(|byte| *byte != 0).collect()
}

/// Text that does not get shorter when PostgreSQL compresses it, so that an index must take all of it.
fn noise(length: std::ops::Range<usize>) -> BoxedStrategy<Vec<u8>> {
    (any::<u64>(), length).prop_map(|(seed, length)| noise_of(seed, length)).boxed()
}

fn noise_of(seed: u64, length: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        DIGITS[usize::try_from(state >> 58).expect("six bits")]
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn integer() -> BoxedStrategy<i64> {
    prop_oneof![select(INTEGERS), any::<i64>(), any::<i32>().prop_map(i64::from)].boxed()
}

fn string(text: Vec<u8>) -> Value {
    Value::text(kind::STRING, &text)
}

fn eight(kind: u8, value: i64) -> Value {
    Value::new(kind, value.to_le_bytes())
}

/// An array whose elements are named as they should be.
fn counted(elements: Vec<Value>) -> Value {
    let named = |(index, value): (usize, Value)| (index.to_string().into_bytes(), value);
    Value::array(&elements.into_iter().enumerate().map(named).collect::<Vec<_>>())
}
