//! Equality of documents: bit for bit, up to the order of fields.
//!
//! It looks at BSON bytes alone and shares nothing with the mapping, so that a fault of the mapping shows.

use bson::raw::RawBsonRef;
use bson::spec::ElementType;
use bson::{Bson, RawDocument};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::mapping::raw::{Element, elements};

/// Whether two documents have the same fields with the same values.
pub fn equal(one: &RawDocument, other: &RawDocument) -> bool {
    one.as_bytes() == other.as_bytes() || equal_in_any_order(one, other).unwrap_or(false)
}

fn equal_in_any_order(one: &RawDocument, other: &RawDocument) -> Option<bool> {
    let (mut ones, mut others) = (all(one)?, all(other)?);
    if ones.len() != others.len() {
        return Some(false);
    }
    if ones.iter().zip(&others).any(|(one, other)| one.name() != other.name()) {
        // Stable, so that repeated names keep their order.
        ones.sort_by_key(Element::name);
        others.sort_by_key(Element::name);
    }
    Some(ones.iter().zip(&others).all(|(one, other)| one.name() == other.name() && equal_values(one, other)))
}

fn all(document: &RawDocument) -> Option<Vec<Element<'_>>> {
    elements(document).collect::<Result<_, _>>().ok()
}

fn equal_values(one: &Element<'_>, other: &Element<'_>) -> bool {
    let same_kind = one.kind() == other.kind();
    same_kind && (one.value_bytes() == other.value_bytes() || equal_inside(one, other).unwrap_or(false))
}

fn equal_inside(one: &Element<'_>, other: &Element<'_>) -> Option<bool> {
    match one.kind() {
        ElementType::EmbeddedDocument => Some(equal(one.document()?, other.document()?)),
        ElementType::Array => equal_arrays(one.document()?, other.document()?),
        ElementType::JavaScriptCodeWithScope => {
            let ((one, scope), (other, other_scope)) = (one.code_with_scope()?, other.code_with_scope()?);
            Some(one == other && equal(scope, other_scope))
        }
        _ => Some(false),
    }
}

fn equal_arrays(one: &RawDocument, other: &RawDocument) -> Option<bool> {
    let (ones, others) = (all(one)?, all(other)?);
    let same = |(one, other): (&Element<'_>, &Element<'_>)| one.name() == other.name() && equal_values(one, other);
    Some(ones.len() == others.len() && ones.iter().zip(&others).all(same))
}

/// A digest of what [`equal`] looks at: documents have the same one exactly when they are equal.
pub fn print(document: &RawDocument) -> [u8; 32] {
    let mut hash = Sha256::new();
    match all(document) {
        Some(mut elements) => {
            elements.sort_by_key(Element::name);
            hash.update(b"document");
            elements.iter().for_each(|element| hash.update(element_print(element)));
        }
        None => hash.update(document.as_bytes()),
    }
    hash.finalize().into()
}

fn element_print(element: &Element<'_>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let name = element.name();
    hash.update([element.kind() as u8]);
    hash.update(u64::try_from(name.len()).unwrap_or(u64::MAX).to_be_bytes());
    hash.update(name);
    match print_inside(element) {
        Some(inside) => hash.update(inside),
        None => hash.update(element.value_bytes()),
    }
    hash.finalize().into()
}

fn print_inside(element: &Element<'_>) -> Option<[u8; 32]> {
    match element.kind() {
        ElementType::EmbeddedDocument => Some(print(element.document()?)),
        ElementType::Array => {
            let mut hash = Sha256::new_with_prefix("array");
            all(element.document()?)?.iter().for_each(|element| hash.update(element_print(element)));
            Some(hash.finalize().into())
        }
        ElementType::JavaScriptCodeWithScope => {
            let (code, scope) = element.code_with_scope()?;
            let mut hash = Sha256::new_with_prefix("code");
            hash.update(print(scope));
            hash.update(code);
            Some(hash.finalize().into())
        }
        _ => None,
    }
}

/// A document for people: canonical extended JSON, one field a line, fields by name. Bytes that are not UTF-8 are
/// shown as hexadecimal digits of the whole document.
pub fn text(document: &RawDocument) -> String {
    let value = Bson::try_from(RawBsonRef::Document(document)).map(|value| sorted(value.into_canonical_extjson()));
    let pretty = value.ok().and_then(|value| serde_json::to_string_pretty(&value).ok());
    pretty.unwrap_or_else(|| format!("bytes {}", crate::mapping::hex(document.as_bytes())))
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            fields.sort_by(|one, other| one.0.cmp(&other.0));
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        value => value,
    }
}

/// The `_id` of `{_id: …}` as canonical extended JSON; nothing when it cannot be said so.
pub fn id(document: &RawDocument) -> Option<Value> {
    let value = Bson::try_from(document.get("_id").ok()??).ok()?;
    Some(value.into_canonical_extjson())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{RawDocumentBuf, rawdoc};

    #[track_caller]
    fn differ(one: &RawDocumentBuf, other: &RawDocumentBuf) {
        assert!(!equal(one, other), "{one:?} {other:?}");
        assert!(!equal(other, one), "{one:?} {other:?}");
        assert_ne!(print(one), print(other), "{one:?} {other:?}");
    }

    #[test]
    fn the_order_of_fields_does_not_count_at_any_depth() {
        let one = rawdoc! { "a": 1, "b": { "x": [{ "p": 1, "q": 2 }], "y": 2 } };
        let other = rawdoc! { "b": { "y": 2, "x": [{ "q": 2, "p": 1 }] }, "a": 1 };
        assert!(equal(&one, &other));
        assert_eq!(print(&one), print(&other));
    }

    #[test]
    fn everything_else_counts() {
        differ(&rawdoc! { "a": 1 }, &rawdoc! { "a": 1_i64 });
        differ(&rawdoc! { "a": 0.0 }, &rawdoc! { "a": -0.0 });
        differ(&rawdoc! { "a": [1, 2] }, &rawdoc! { "a": [2, 1] });
        differ(&rawdoc! { "a": null }, &rawdoc! {});
        differ(&rawdoc! { "a": [] }, &rawdoc! { "a": null });
        differ(&rawdoc! { "a": { "b": 1 } }, &rawdoc! { "a": { "b": 1, "c": 1 } });
        differ(&rawdoc! { "a": "x" }, &rawdoc! { "b": "x" });
        differ(&rawdoc! { "a": f64::from_bits(0x7ff8_0000_0000_0001) }, &rawdoc! { "a": f64::NAN });
    }

    #[test]
    fn the_text_names_fields_in_order_and_types() {
        assert_eq!(
            text(&rawdoc! { "b": 1, "a": 2_i64 }),
            "{\n  \"a\": {\n    \"$numberLong\": \"2\"\n  },\n  \"b\": {\n    \"$numberInt\": \"1\"\n  }\n}"
        );
    }
}
