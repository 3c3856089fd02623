//! One value, one column: what a column of each [`Kind`] takes from a BSON value, and what it gives back.

use bson::spec::ElementType;
use bson::{Bson, Decimal128, RawDocumentBuf, doc};

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
            fill_scalar(kind, element, out).unwrap_or(Fit::Nothing)
        }
    }
}

fn fill_json(element: &Element<'_>, out: &mut Vec<u8>) -> Fit {
    out.push(JSONB_VERSION);
    json::write(element, out).map_or(Fit::Nothing, |()| Fit::Exact)
}

/// Nothing, too, when the bytes are no value of their type.
fn fill_scalar(kind: Kind, element: &Element<'_>, out: &mut Vec<u8>) -> Option<Fit> {
    let fit = match (kind, element.kind()) {
        (Kind::Bool, ElementType::Boolean) => match element.value_bytes() {
            value @ [0 | 1] => put(out, value, Fit::Exact),
            _ => Fit::Nothing,
        },
        (Kind::Int32, ElementType::Int32) => put(out, &i32::from_le_bytes(element.fixed()?).to_be_bytes(), Fit::Exact),
        (Kind::Int64, ElementType::Int64) => put(out, &i64::from_le_bytes(element.fixed()?).to_be_bytes(), Fit::Exact),
        (Kind::Int32, _) => {
            let nearest = integer(element)?.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
            put(out, &i32::try_from(nearest).unwrap_or_default().to_be_bytes(), Fit::Nearest)
        }
        (Kind::Int64, _) => put(out, &integer(element)?.to_be_bytes(), Fit::Nearest),
        (Kind::Instant, _) => {
            let (instant, fit) = instant(element)?;
            put(out, &instant.to_bytes(), fit)
        }
        (Kind::Word(vocabulary), ElementType::String) => {
            let spelling = element.text()?;
            let word = vocabulary.word(spelling)?;
            put(out, word.as_bytes(), exact_if(word == spelling))
        }
        _ => Fit::Nothing,
    };
    Some(fit)
}

fn instant(element: &Element<'_>) -> Option<(Instant, Fit)> {
    match element.kind() {
        ElementType::DateTime => {
            let instant = Instant::of_millis(i64::from_le_bytes(element.fixed()?));
            Some((instant, exact_if(instant.is_finite())))
        }
        ElementType::String => Some((Instant::of_text(element.text()?)?, Fit::Nearest)),
        ElementType::Timestamp => {
            // The increment comes first, then the seconds.
            let seconds = u64::from_le_bytes(element.fixed()?) >> 32;
            Some((Instant::of_millis(i64::try_from(seconds).ok()? * 1_000), Fit::Nearest))
        }
        _ => None,
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
fn integer(element: &Element<'_>) -> Option<i64> {
    match element.kind() {
        ElementType::Int32 => Some(i32::from_le_bytes(element.fixed()?).into()),
        ElementType::Int64 => Some(i64::from_le_bytes(element.fixed()?)),
        ElementType::Double => nearest(f64::from_le_bytes(element.fixed()?)),
        ElementType::Decimal128 => Decimal128::from_bytes(element.fixed()?).to_string().parse().ok().and_then(nearest),
        ElementType::String => element.text()?.parse().ok(),
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

/// The bytes of the column of `kind` that holds `value` as well as it can; nothing when that is SQL null.
pub fn of_value(kind: Kind, value: &Bson) -> Option<Vec<u8>> {
    let document = RawDocumentBuf::try_from(&doc! { "": value.clone() }).ok()?;
    let mut held = Vec::new();
    tuple::push_head(&mut held, 1);
    write(kind, &raw::first(&document)?, &mut held);
    tuple::columns(&held)?.first().copied().flatten().map(<[u8]>::to_vec)
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
        Kind::Bool if matches!(bytes, [0 | 1]) => push(out, ElementType::Boolean, name, bytes),
        Kind::Bool => return None,
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
    let text = element
        .to_bson()
        .map_or_else(|| "bytes that are not UTF-8".to_owned(), |value| value.into_relaxed_extjson().to_string());
    if text.len() <= 80 { text } else { format!("{}…", &text[..text.floor_char_boundary(80)]) }
}

#[cfg(test)]
mod tests {
    use bson::{Bson, DateTime, RawDocumentBuf, doc};

    use super::*;
    use crate::entity::Vocabulary;

    const WORDS: Vocabulary = Vocabulary { words: &["queued"], older: &[("pending", "queued")] };

    /// What the column holds of a value, and how well. An exact column must give the value back.
    fn column(kind: Kind, value: impl Into<Bson>) -> (Option<Vec<u8>>, Fit) {
        let document = RawDocumentBuf::try_from(&doc! { "f": value.into() }).unwrap();
        let element = raw::first(&document).unwrap();
        let mut tuple = Vec::new();
        tuple::push_head(&mut tuple, 1);
        let fit = write(kind, &element, &mut tuple);
        let held = tuple::columns(&tuple).unwrap()[0].map(<[u8]>::to_vec);
        if fit == Fit::Exact {
            let mut back = Vec::new();
            read(kind, held.as_ref().unwrap(), "f", &mut back).unwrap();
            assert_eq!(back, element.bytes());
        }
        (held, fit)
    }

    fn holds(bytes: impl AsRef<[u8]>, fit: Fit) -> (Option<Vec<u8>>, Fit) {
        (Some(bytes.as_ref().to_vec()), fit)
    }

    #[test]
    fn a_column_takes_its_own_type_exactly() {
        assert_eq!(column(Kind::Name, "n"), holds("n", Fit::Exact));
        assert_eq!(column(Kind::Word(&WORDS), "queued"), holds("queued", Fit::Exact));
        assert_eq!(column(Kind::Int32, -1), holds((-1_i32).to_be_bytes(), Fit::Exact));
        assert_eq!(column(Kind::Int64, 5_i64), holds(5_i64.to_be_bytes(), Fit::Exact));
        assert_eq!(column(Kind::Bool, true), holds([1], Fit::Exact));
        assert_eq!(
            column(Kind::Instant, DateTime::from_millis(946_684_800_001)),
            holds(1_000_i64.to_be_bytes(), Fit::Exact)
        );
        assert_eq!(column(Kind::Json, vec![1]), holds(b"\x01[1]", Fit::Exact));
    }

    #[test]
    fn a_number_of_another_type_fills_an_integer_with_the_nearest() {
        let int32 = |value: i32| holds(value.to_be_bytes(), Fit::Nearest);
        assert_eq!(column(Kind::Int32, 5_i64), int32(5));
        assert_eq!(column(Kind::Int32, i64::MIN), int32(i32::MIN));
        assert_eq!(column(Kind::Int32, 2.9), int32(2));
        assert_eq!(column(Kind::Int32, f64::INFINITY), int32(i32::MAX));
        assert_eq!(column(Kind::Int32, "1.5e1".parse::<Decimal128>().unwrap()), int32(15));
        assert_eq!(column(Kind::Int32, "12"), int32(12));
        assert_eq!(column(Kind::Int64, 5), holds(5_i64.to_be_bytes(), Fit::Nearest));
        assert_eq!(column(Kind::Int64, f64::NAN), (None, Fit::Nothing));
        assert_eq!(column(Kind::Int64, "twelve"), (None, Fit::Nothing));
    }

    #[test]
    fn a_text_that_the_column_cannot_hold_fills_it_as_far_as_it_goes() {
        assert_eq!(column(Kind::Text, "a\0b"), holds("a\u{fffd}b", Fit::Nearest));
        let long = "ä".repeat(NAME_LIMIT);
        assert_eq!(column(Kind::Name, &long), holds("ä".repeat(NAME_LIMIT / 2), Fit::Nearest));
        assert_eq!(column(Kind::Text, &long), holds(&long, Fit::Exact));
        assert_eq!(column(Kind::Word(&WORDS), "pending"), holds("queued", Fit::Nearest));
        assert_eq!(column(Kind::Word(&WORDS), "lost"), (None, Fit::Nothing));
    }

    #[test]
    fn a_text_column_shows_another_value_as_its_key_and_nothing_of_null() {
        assert_eq!(column(Kind::Name, 5), holds(r#"{"$numberInt":"5"}"#, Fit::Nearest));
        assert_eq!(column(Kind::Name, Bson::Null), (None, Fit::Nothing));
        assert_eq!(column(Kind::Instant, Bson::Null), (None, Fit::Nothing));
        assert_eq!(column(Kind::Bool, 1), (None, Fit::Nothing));
        assert_eq!(column(Kind::Json, Bson::Null), holds(b"\x01null", Fit::Exact));
        assert_eq!(column(Kind::Json, "\0"), (None, Fit::Nothing));
    }

    #[test]
    fn jsonb_is_compared_by_value() {
        let column = |json: &str| [&[JSONB_VERSION], json.as_bytes()].concat();
        assert!(is_same_json(&column(r#"{"a":1e-5,"bb":[]}"#), &column(r#"{"bb": [], "a": 0.00001}"#)));
        assert!(!is_same_json(&column("1"), &column("2")));
        assert!(!is_same_json(b"", b""));
    }

    #[test]
    fn bytes_that_no_mapping_writes_are_refused() {
        for (kind, bytes) in
            [(Kind::Int32, b"123".as_slice()), (Kind::Text, b"\xff"), (Kind::Json, b"\x02{}"), (Kind::Bool, b"")]
        {
            assert!(read(kind, bytes, "f", &mut Vec::new()).is_none(), "{kind:?}");
        }
    }

    #[test]
    fn a_value_in_a_reason_is_short() {
        let shown = |value: Bson| show(&raw::first(&RawDocumentBuf::try_from(&doc! { "f": value }).unwrap()).unwrap());
        assert_eq!(shown("x".into()), r#""x""#);
        assert_eq!(shown(doc! {}.into()), "a value of type EmbeddedDocument");
        assert_eq!(shown("ä".repeat(100).into()).chars().count(), 41);
    }
}
