//! Which documents need no residue, said a second time, from the rules alone and without the mapping.

use std::collections::HashSet;

use scheduler_bridge::entity::{Entity, Kind, NAME_LIMIT};

use super::raw::{self, Value, kind};

/// The dates of `timestamptz` in milliseconds: 24 November 4714 BC to the end of the year 294276.
const DATES: std::ops::Range<i64> = -210_866_803_200_000..9_224_318_016_000_000;

/// Whether the columns alone must hold the document. Nothing where that hangs on the finer points of `jsonb`.
pub fn verdict(entity: &Entity, document: &[u8]) -> Option<bool> {
    let fields = raw::fields(document);
    let names: HashSet<_> = fields.iter().map(|(name, _)| name).collect();
    if names.len() < fields.len() {
        return Some(false);
    }
    let verdicts: Vec<_> =
        fields.iter().filter(|(name, _)| name != b"_id").map(|(name, value)| of(entity, name, value)).collect();
    match verdicts.contains(&Some(false)) {
        true => Some(false),
        false if verdicts.contains(&None) => None,
        false => Some(true),
    }
}

fn of(entity: &Entity, name: &[u8], value: &Value) -> Option<bool> {
    let Some(field) = entity.fields.iter().find(|field| field.name.as_bytes() == name) else { return Some(false) };
    match field.kind {
        Kind::Name => Some(is_text(value) && value.as_text().len() <= NAME_LIMIT),
        Kind::Text => Some(is_text(value)),
        Kind::Word(words) => Some(words.words.iter().any(|word| *value == Value::text(kind::STRING, word.as_bytes()))),
        Kind::Instant => Some(value.kind == kind::DATE && DATES.contains(&eight(value))),
        Kind::Int32 => Some(value.kind == kind::INT32),
        Kind::Int64 => Some(value.kind == kind::INT64),
        Kind::Bool => Some(value.kind == kind::BOOL),
        Kind::Json => json(value, 150),
    }
}

fn eight(value: &Value) -> i64 {
    i64::from_le_bytes(value.bytes.as_slice().try_into().expect("eight bytes"))
}

fn is_text(value: &Value) -> bool {
    value.kind == kind::STRING && is_clean(value.as_text())
}

fn is_clean(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok() && !text.contains(&0)
}

/// Whether a value of a `jsonb` column needs no residue; nothing when the rule does not say.
fn json(value: &Value, depth: usize) -> Option<bool> {
    match value.kind {
        kind::NULL | kind::BOOL | kind::INT32 | kind::INT64 | kind::DATE | kind::OBJECT_ID => Some(true),
        kind::MIN_KEY | kind::MAX_KEY | kind::UNDEFINED | kind::TIMESTAMP => Some(true),
        kind::DOUBLE => {
            let number = f64::from_le_bytes(value.bytes.as_slice().try_into().expect("eight bytes"));
            // A NaN's payload is lost to every JSON; its sign need not be.
            let plain = f64::from_bits(number.to_bits() & !(1 << 63)).to_bits() == f64::NAN.to_bits();
            if number.is_nan() && plain && number.is_sign_negative() { None } else { Some(!number.is_nan() || plain) }
        }
        kind::STRING => Some(is_clean(value.as_text())),
        kind::DOCUMENT | kind::ARRAY if depth == 0 => Some(false),
        kind::DOCUMENT | kind::ARRAY => nested(value, depth - 1),
        _ => None,
    }
}

fn nested(value: &Value, depth: usize) -> Option<bool> {
    let fields = value.fields();
    let names: HashSet<_> = fields.iter().map(|(name, _)| name).collect();
    let is_counted = || fields.iter().enumerate().all(|(index, (name, _))| *name == index.to_string().into_bytes());
    let is_named = || names.len() == fields.len() && names.iter().all(|name| is_clean(name) && !name.starts_with(b"$"));
    if !(if value.kind == kind::ARRAY { is_counted() } else { is_named() }) {
        return Some(false);
    }
    let verdicts: Vec<_> = fields.iter().map(|(_, value)| json(value, depth)).collect();
    match verdicts.contains(&Some(false)) {
        true => Some(false),
        false if verdicts.contains(&None) => None,
        false => Some(true),
    }
}
