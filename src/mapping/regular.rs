//! A document as its newest writer would have written it: current names, spellings and types.
//!
//! Both stores hold documents exactly, with all that older writers did to them; the scheduler's logic wants one shape.
//! Since this reads the document and nothing else, it gives the same answer whichever store the document came from.

use bson::spec::ElementType;
use bson::{RawDocument, RawDocumentBuf};

use super::column::{self, Fit};
use super::encode::is_older_name;
use super::raw::{self, Builder, Element, elements};
use super::{Key, Mapping, tuple};
use crate::entity::{Field, KeyType, Kind};

impl Mapping {
    /// The regular form of `document`: `_id` as the text in column `id` (an ObjectId where that is the entity's own
    /// type), every field under its newest name and with its column's value where its own is not of the column's type,
    /// no nulls at the top, no unknown fields. Nothing when the bytes are no document.
    pub fn regular(&self, document: &RawDocument) -> Option<RawDocumentBuf> {
        let all: Vec<Element<'_>> = elements(document).collect::<Result<_, _>>().ok()?;
        let mut builder = Builder::default();
        self.push_regular_id(all.iter().find(|element| element.name() == "_id")?, &mut builder);
        for field in self.entity().fields {
            let named = all.iter().find(|element| element.name() == field.name);
            if let Some(element) = named.or_else(|| all.iter().find(|other| is_older_name(field, other.name()))) {
                push_regular(field, element, builder.bytes());
            }
        }
        builder.finish().ok()
    }

    fn push_regular_id(&self, id: &Element<'_>, builder: &mut Builder) {
        if id.kind() == ElementType::ObjectId && self.entity().key == KeyType::ObjectId {
            builder.push(ElementType::ObjectId, "_id", id.value_bytes());
            return;
        }
        let mut text = Vec::new();
        raw::push_string(&mut text, Key::of(id, self.entity().key).text());
        builder.push(ElementType::String, "_id", &text);
    }

    /// `original` with every top-level field that differs between `before` and `after` as it stands in `after`; all
    /// others stay as they are, byte for byte, unknown fields and older spellings included.
    pub fn merged(&self, original: &RawDocument, before: &RawDocument, after: &RawDocument) -> Option<RawDocumentBuf> {
        let same = |name: &str| {
            let value = |document| raw::find(document, name).map(|element| element.identity());
            value(before) == value(after)
        };
        let changed: Vec<&Field> = self.entity().fields.iter().filter(|field| !same(field.name)).collect();
        let is_changed = |name: &str| changed.iter().any(|field| field.name == name || is_older_name(field, name));
        let mut builder = Builder::default();
        for element in elements(original) {
            let element = element.ok()?;
            if !is_changed(element.name()) {
                builder.bytes().extend_from_slice(element.bytes());
            }
        }
        for element in changed.iter().filter_map(|field| raw::find(after, field.name)) {
            builder.bytes().extend_from_slice(element.bytes());
        }
        builder.finish().ok()
    }
}

fn push_regular(field: &Field, element: &Element<'_>, out: &mut Vec<u8>) {
    if element.kind() == ElementType::Null || element.kind() == ElementType::Undefined {
        return;
    }
    if is_of_its_type(field.kind, element) {
        raw::push_head(out, element.kind(), field.name);
        out.extend_from_slice(element.value_bytes());
        return;
    }
    let mut held = Vec::new();
    tuple::push_head(&mut held, 1);
    if column::write(field.kind, element, &mut held) == Fit::Nothing {
        return;
    }
    if let Some([Some(bytes)]) = tuple::columns(&held).as_deref() {
        let start = out.len();
        if column::read(field.kind, bytes, field.name, out).is_none() {
            out.truncate(start);
        }
    }
}

/// Whether the scheduler can use the value as it stands. A text is one whatever its length, and a jsonb field takes
/// any value, also where the column cannot hold it.
fn is_of_its_type(kind: Kind, element: &Element<'_>) -> bool {
    match kind {
        Kind::Json => true,
        Kind::Name | Kind::Text => element.text().is_some(),
        Kind::Word(vocabulary) => element.text().is_some_and(|text| vocabulary.words.contains(&text)),
        Kind::Instant => element.kind() == ElementType::DateTime,
        Kind::Int32 => element.kind() == ElementType::Int32,
        Kind::Int64 => element.kind() == ElementType::Int64,
        Kind::Bool => element.kind() == ElementType::Boolean,
    }
}

#[cfg(test)]
mod tests {
    use bson::{DateTime, RawBson, rawdoc};

    use super::*;
    use crate::entity;

    fn runs() -> Mapping {
        Mapping::new(entity::named("runs").unwrap())
    }

    #[test]
    fn an_old_document_reads_as_a_new_one() {
        let old = rawdoc! {
            "_id": 7, "tenant_id": "t", "state": "pending", "createdAt": "2025-01-01T00:00:00Z", "error": RawBson::Null,
            "stats": { "queued": 1.0 }, "unknown": 1,
        };
        let regular = rawdoc! {
            "_id": r#"{"$numberInt":"7"}"#, "tenantId": "t", "state": "queued", "stats": { "queued": 1.0 },
            "createdAt": DateTime::from_millis(1_735_689_600_000),
        };
        assert_eq!(runs().regular(&old), Some(regular));
    }

    #[test]
    fn a_text_stays_whole_though_its_column_cannot_hold_it() {
        let document = rawdoc! { "_id": "r", "tenantId": "t", "state": "error", "error": "a\0b" };
        assert_eq!(runs().regular(&document), Some(document));
    }

    #[test]
    fn a_change_keeps_what_it_does_not_touch() {
        let original =
            rawdoc! { "_id": "r", "unknown": 1, "tenantId": "t", "state": "pending", "createdAt": "long ago" };
        let before = runs().regular(&original).unwrap();
        let after = rawdoc! { "_id": "r", "tenantId": "t", "state": "running" };
        let merged = rawdoc! { "_id": "r", "unknown": 1, "tenantId": "t", "createdAt": "long ago", "state": "running" };
        assert_eq!(runs().merged(&original, &before, &after), Some(merged));
    }

    #[test]
    fn a_change_of_a_field_replaces_its_older_name() {
        let mapping = Mapping::new(entity::named("schedules").unwrap());
        let original = rawdoc! { "_id": "s", "tenantId": "t", "whenCron": "@daily" };
        let before = mapping.regular(&original).unwrap();
        let after = rawdoc! { "_id": "s", "tenantId": "t", "cronExpression": "@hourly" };
        assert_eq!(mapping.merged(&original, &before, &after), Some(after));
    }
}
