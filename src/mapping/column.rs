//! One value, one column: what a column of each [`Kind`] takes from a BSON value, and what it gives back.

use bson::Bson;
use bson::raw::RawBsonRef;
use bson::spec::ElementType;

use super::instant::Instant;
use super::raw::{self, Element};
use super::{json, key, tuple};
use crate::entity::{Kind, NAME_LIMIT};

/// The binary form of `jsonb` is this version and the text (`jsonb_recv` in PostgreSQL's `jsonb.c`).
const JSONB_VERSION: u8 = 1;

/// How well a column holds a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The column alone gives the value back.
    Exact,
    /// The column holds the nearest useful value, for queries.
    Nearest,
    /// The column is SQL null.
    Nothing,
}

/// Appends the column of `kind` that holds `element`'s value.
pub fn write(kind: Kind, element: &Element<'_>, out: &mut Vec<u8>) -> Fit {
    let start = tuple::open(out);
    let fit = fill(kind, element, out);
    if fit == Fit::Nothing {
        out.truncate(start - 4);
        tuple::push_null(out);
    } else {
        tuple::close(out, start);
    }
    fit
}

fn fill(kind: Kind, element: &Element<'_>, out: &mut Vec<u8>) -> Fit {
    match kind {
        Kind::Name => fill_text(element, NAME_LIMIT, out),
        Kind::Text => fill_text(element, usize::MAX, out),
        Kind::Json => fill_json(element, out),
        Kind::Word(_) | Kind::Instant | Kind::Int32 | Kind::Int64 | Kind::Bool => {
            element.value().map_or(Fit::Nothing, |value| fill_scalar(kind, value, out))
        }
    }
}

fn fill_json(element: &Element<'_>, out: &mut Vec<u8>) -> Fit {
    out.push(JSONB_VERSION);
    json::write(element, out).map_or(Fit::Nothing, |()| Fit::Exact)
}

fn fill_scalar(kind: Kind, value: RawBsonRef<'_>, out: &mut Vec<u8>) -> Fit {
    match (kind, value) {
        (Kind::Bool, RawBsonRef::Boolean(value)) => put(out, &[u8::from(value)], Fit::Exact),
        (Kind::Int32, RawBsonRef::Int32(value)) => put(out, &value.to_be_bytes(), Fit::Exact),
        (Kind::Int64, RawBsonRef::Int64(value)) => put(out, &value.to_be_bytes(), Fit::Exact),
        (Kind::Int32, value) => integer(value).map_or(Fit::Nothing, |value| {
            let nearest = value.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
            put(out, &i32::try_from(nearest).unwrap_or_default().to_be_bytes(), Fit::Nearest)
        }),
        (Kind::Int64, value) => {
            integer(value).map_or(Fit::Nothing, |value| put(out, &value.to_be_bytes(), Fit::Nearest))
        }
        (Kind::Instant, value) => fill_instant(value, out),
        (Kind::Word(vocabulary), RawBsonRef::String(spelling)) => {
            vocabulary.word(spelling).map_or(Fit::Nothing, |word| put(out, word.as_bytes(), exact_if(word == spelling)))
        }
        _ => Fit::Nothing,
    }
}

fn fill_instant(value: RawBsonRef<'_>, out: &mut Vec<u8>) -> Fit {
    match value {
        RawBsonRef::DateTime(date) => {
            let instant = Instant::of_millis(date.timestamp_millis());
            put(out, &instant.to_bytes(), exact_if(instant.is_finite()))
        }
        RawBsonRef::String(text) => {
            Instant::of_text(text).map_or(Fit::Nothing, |instant| put(out, &instant.to_bytes(), Fit::Nearest))
        }
        RawBsonRef::Timestamp(time) => {
            let instant = Instant::of_millis(i64::from(time.time) * 1_000);
            put(out, &instant.to_bytes(), Fit::Nearest)
        }
        _ => Fit::Nothing,
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8], fit: Fit) -> Fit {
    out.extend_from_slice(bytes);
    fit
}

fn exact_if(exact: bool) -> Fit {
    if exact { Fit::Exact } else { Fit::Nearest }
}

/// The nearest integer of any BSON number, and of a text that is one.
fn integer(value: RawBsonRef<'_>) -> Option<i64> {
    match value {
        RawBsonRef::Int32(value) => Some(i64::from(value)),
        RawBsonRef::Int64(value) => Some(value),
        RawBsonRef::Double(value) => nearest(value),
        RawBsonRef::Decimal128(value) => value.to_string().parse().ok().and_then(nearest),
        RawBsonRef::String(text) => text.parse().ok(),
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the cast saturates, which is the nearest integer meant here")]
fn nearest(value: f64) -> Option<i64> {
    (!value.is_nan()).then_some(value as i64)
}

fn fill_text(element: &Element<'_>, limit: usize, out: &mut Vec<u8>) -> Fit {
    if let Some(bytes) = element.string_bytes() {
        let is_exact = bytes.len() <= limit && !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok();
        return if is_exact { put(out, bytes, Fit::Exact) } else { fill_nearest_text(bytes, limit, out) };
    }
    match text_of_other(element) {
        Some(text) if text.len() <= limit && !text.contains(r"\u0000") => put(out, text.as_bytes(), Fit::Nearest),
        _ => Fit::Nothing,
    }
}

/// What a text column shows of a text that it cannot hold.
fn fill_nearest_text(bytes: &[u8], limit: usize, out: &mut Vec<u8>) -> Fit {
    let held = String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}");
    put(out, &held.as_bytes()[..held.floor_char_boundary(limit)], Fit::Nearest)
}

/// What a text column shows of a value that is no text: what [`key::Key`] makes of an `_id` of that type, so that
/// references to such keys can still be joined.
fn text_of_other(element: &Element<'_>) -> Option<String> {
    if matches!(element.kind(), ElementType::Null | ElementType::Undefined) {
        return None;
    }
    Some(key::Key::of(element, crate::entity::KeyType::Text).text().to_owned())
}

/// Appends the element `name` that a column of `kind` with these bytes gives back; nothing when no mapping writes
/// such a column.
pub fn read(kind: Kind, bytes: &[u8], name: &str, out: &mut Vec<u8>) -> Option<()> {
    match kind {
        Kind::Name | Kind::Text | Kind::Word(_) => {
            raw::push_head(out, ElementType::String, name);
            raw::push_string(out, std::str::from_utf8(bytes).ok()?);
        }
        Kind::Instant => {
            let millis = Instant::from_bytes(bytes.try_into().ok()?).millis()?;
            push(out, ElementType::DateTime, name, &millis.to_le_bytes());
        }
        Kind::Int32 => {
            push(out, ElementType::Int32, name, &i32::from_be_bytes(bytes.try_into().ok()?).to_le_bytes());
        }
        Kind::Int64 => {
            push(out, ElementType::Int64, name, &i64::from_be_bytes(bytes.try_into().ok()?).to_le_bytes());
        }
        Kind::Bool => push(out, ElementType::Boolean, name, bytes),
        Kind::Json => json::read(bytes.strip_prefix(&[JSONB_VERSION])?, name, out).ok()?,
    }
    Some(())
}

/// Whether two `jsonb` columns hold the same value.
pub fn is_same_json(a: &[u8], b: &[u8]) -> bool {
    let value = |column: &[u8]| json::parse(column.strip_prefix(&[JSONB_VERSION])?);
    value(a).is_some_and(|a| value(b) == Some(a))
}

fn push(out: &mut Vec<u8>, kind: ElementType, name: &str, value: &[u8]) {
    raw::push_head(out, kind, name);
    out.extend_from_slice(value);
}

/// A short rendering of a value for the reason of a refusal.
pub fn show(element: &Element<'_>) -> String {
    if !element.is_within(0) {
        return format!("a value of type {:?}", element.kind());
    }
    let value = element.value().ok().and_then(|value| Bson::try_from(value).ok());
    let text =
        value.map_or_else(|| "bytes that are not UTF-8".to_owned(), |value| value.into_relaxed_extjson().to_string());
    if text.len() <= 80 { text } else { format!("{}…", &text[..text.floor_char_boundary(80)]) }
}
