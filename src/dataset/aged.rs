//! Documents as older writers left them: the same content, told in another way.
//!
//! Whatever is done here, the document still has a tenant and a known state: it must become a row.

use std::borrow::Cow;

use bson::raw::{CStr, CString, RawBsonRef, cstr};
use bson::{RawBson, RawDocument, RawDocumentBuf, rawdoc};
use chrono::SubsecRound;

use super::random::Random;
use crate::entity::{Entity, Field, Kind, Presence};

/// What sets an older document apart.
#[derive(Clone, Copy, Default, PartialEq)]
enum Trait {
    /// ISO-8601 strings where dates are usual.
    #[default]
    IsoStrings,
    /// Words that are spelled in another way today.
    OlderWords,
    /// Field names of former days, and snake_case in place of camelCase.
    OlderNames,
    /// Fields that stand twice, in snake_case too.
    Copies,
    /// Optional fields that are null or `[]` where they are absent today.
    Nulls,
    /// Int64 and Double where Int32 is usual, Int32 where Int64 is.
    OtherNumbers,
    /// A field that nobody knows any more.
    Unknown,
}

const TRAITS: &[Trait] = &[
    Trait::IsoStrings,
    Trait::IsoStrings,
    Trait::OlderWords,
    Trait::OlderNames,
    Trait::Copies,
    Trait::Nulls,
    Trait::OtherNumbers,
    Trait::Unknown,
];

/// `document` with one trait of age; half of them lack `schemaVersion` besides.
pub(super) fn age(entity: &Entity, document: &RawDocument, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let (what, versioned) = (random.pick(TRAITS), random.chance(50));
    let mut aged = RawDocumentBuf::new();
    for element in document.iter() {
        let (name, value) = element?;
        let Some(field) = entity.fields.iter().find(|field| name == field.name) else {
            aged.append(name, value);
            continue;
        };
        if versioned || field.name != "schemaVersion" {
            write(&mut aged, (what, field), (name, value), random);
        }
    }
    if what == Trait::Nulls {
        fill(entity, document, &mut aged, random)?;
    }
    if what == Trait::Unknown {
        aged.append(cstr!("legacyShard"), rawdoc! { "host": "rs0-2", "moved": random.chance(50), "weight": 0.5 });
    }
    Ok(aged)
}

fn write(aged: &mut RawDocumentBuf, how: (Trait, &Field), pair: (&CStr, RawBsonRef<'_>), random: &mut Random) {
    let ((what, field), (name, value)) = (how, pair);
    let other = match (what, field.kind, value) {
        (Trait::IsoStrings, Kind::Instant, RawBsonRef::DateTime(moment)) => iso(moment, random).map(RawBson::String),
        (Trait::OlderWords, Kind::Word(words), RawBsonRef::String(word)) => {
            words.older.iter().find(|(_, now)| *now == word).map(|(older, _)| RawBson::String((*older).to_owned()))
        }
        (Trait::OtherNumbers, _, RawBsonRef::Int32(number)) if random.chance(50) => {
            Some(RawBson::Int64(i64::from(number)))
        }
        (Trait::OtherNumbers, _, RawBsonRef::Int32(number)) => Some(RawBson::Double(f64::from(number))),
        (Trait::OtherNumbers, _, RawBsonRef::Int64(number)) => i32::try_from(number).ok().map(RawBson::Int32),
        _ => None,
    };
    aged.append(older_name(what, field, name), other.as_ref().map_or(value, RawBson::as_raw_bson_ref));
    if what == Trait::Copies && field.column != field.name && random.chance(30) {
        let copy = CString::try_from(field.column);
        copy.into_iter().for_each(|column| aged.append(column, value));
    }
}

fn older_name<'a>(what: Trait, field: &Field, name: &'a CStr) -> Cow<'a, CStr> {
    let older = field.older.first().copied().unwrap_or(field.column);
    match CString::try_from(older) {
        Ok(older) if what == Trait::OlderNames => Cow::Owned(older),
        _ => Cow::Borrowed(name),
    }
}

/// Writes the optional fields that `document` does not have, as null or as an empty array.
fn fill(
    entity: &Entity,
    document: &RawDocument,
    aged: &mut RawDocumentBuf,
    random: &mut Random,
) -> bson::error::Result<()> {
    for field in entity.fields.iter().filter(|field| field.presence == Presence::Optional) {
        let name = CString::try_from(field.name)?;
        if document.get(field.name)?.is_some() || random.chance(30) {
            continue;
        }
        match field.kind {
            Kind::Json if random.chance(50) => aged.append(name, bson::RawArrayBuf::new()),
            _ => aged.append(name, RawBson::Null),
        }
    }
    Ok(())
}

/// The moment with 0 to 7 digits of a second and one of the two usual names of UTC; nothing outside chrono's range.
fn iso(moment: bson::DateTime, random: &mut Random) -> Option<String> {
    let digits = usize::try_from(random.below(8)).ok()?;
    let millis = moment.try_to_rfc3339_string().is_ok().then(|| moment.to_chrono())?;
    let seconds = millis.trunc_subsecs(0).format("%Y-%m-%dT%H:%M:%S");
    let ticks = format!("{:03}{:04}", millis.timestamp_subsec_millis(), random.below(10_000));
    let fraction = if digits == 0 { String::new() } else { format!(".{}", &ticks[..digits]) };
    Some(format!("{seconds}{fraction}{}", if random.chance(50) { "Z" } else { "+00:00" }))
}
