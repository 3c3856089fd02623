//! Equality of documents: bit for bit, up to the order of fields.
//!
//! It looks at BSON bytes alone and shares nothing with the mapping, so that a fault of the mapping shows.

use bson::raw::RawBsonRef;
use bson::spec::ElementType;
use bson::{Bson, RawDocument};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::mapping::raw::{RawElement, raw_elements};

/// Up to so many fields are looked for one after the other; more are sorted.
const FEW: usize = 32;

/// Whether two documents have the same fields with the same values.
pub fn equal(one: &RawDocument, other: &RawDocument) -> bool {
    Comparison::default().documents(one, other).unwrap_or(false)
}

/// A comparison under way. Its answers are nothing where the bytes are no BSON.
#[derive(Default)]
struct Comparison<'a> {
    /// The elements of the other document; behind them, those of the documents in it that are being compared. One list for
    /// all, since an allocation for each document would cost more than to compare it.
    others: Vec<RawElement<'a>>,
}

impl<'a> Comparison<'a> {
    fn documents(&mut self, one: &'a RawDocument, other: &'a RawDocument) -> Option<bool> {
        if one.as_bytes() == other.as_bytes() {
            return Some(true);
        }
        // Fields are as long wherever they stand.
        if one.as_bytes().len() != other.as_bytes().len() {
            return Some(false);
        }
        let start = self.others.len();
        for element in raw_elements(other) {
            self.others.push(element.ok()?);
        }
        let is_few = self.others.len() - start <= FEW;
        let equal = if is_few { self.few(one, start) } else { self.many(one, start) };
        self.others.truncate(start);
        equal
    }

    fn few(&mut self, one: &'a RawDocument, start: usize) -> Option<bool> {
        let (mut next, end) = (start, self.others.len());
        for element in raw_elements(one) {
            let element = element.ok()?;
            let Some(at) = (next..end).find(|at| self.others[*at].name_bytes() == element.name_bytes()) else {
                return Some(false);
            };
            if !self.values(&element, self.others[at])? {
                return Some(false);
            }
            // What is left keeps its order, so that a repeated name meets the one at its place.
            self.others.copy_within(next..at, next + 1);
            next += 1;
        }
        Some(next == end)
    }

    fn many(&mut self, one: &'a RawDocument, start: usize) -> Option<bool> {
        let mut ones = all(one)?;
        // Stable, so that repeated names keep their order.
        ones.sort_by_key(RawElement::name_bytes);
        self.others[start..].sort_by_key(RawElement::name_bytes);
        if ones.len() != self.others.len() - start {
            return Some(false);
        }
        for (index, one) in (start..).zip(&ones) {
            let other = self.others[index];
            if one.name_bytes() != other.name_bytes() || !self.values(one, other)? {
                return Some(false);
            }
        }
        Some(true)
    }

    fn arrays(&mut self, one: &'a RawDocument, other: &'a RawDocument) -> Option<bool> {
        let mut others = raw_elements(other);
        for one in raw_elements(one) {
            let (one, Some(other)) = (one.ok()?, others.next()) else { return Some(false) };
            let other = other.ok()?;
            if one.name_bytes() != other.name_bytes() || !self.values(&one, other)? {
                return Some(false);
            }
        }
        Some(others.next().is_none())
    }

    fn values(&mut self, one: &RawElement<'a>, other: RawElement<'a>) -> Option<bool> {
        if one.kind() != other.kind() {
            return Some(false);
        }
        if one.value_bytes() == other.value_bytes() {
            return Some(true);
        }
        match one.kind() {
            ElementType::EmbeddedDocument => self.documents(one.document()?, other.document()?),
            ElementType::Array => self.arrays(one.document()?, other.document()?),
            ElementType::JavaScriptCodeWithScope => {
                let ((one, scope), (other, other_scope)) = (one.code_with_scope()?, other.code_with_scope()?);
                if one == other { self.documents(scope, other_scope) } else { Some(false) }
            }
            _ => Some(false),
        }
    }
}

fn all(document: &RawDocument) -> Option<Vec<RawElement<'_>>> {
    raw_elements(document).collect::<Result<_, _>>().ok()
}

/// A digest of what [`equal`] looks at: documents have the same one exactly when they are equal.
pub fn print(document: &RawDocument) -> [u8; 32] {
    let mut hash = Sha256::new();
    match all(document) {
        Some(mut elements) => {
            elements.sort_by_key(RawElement::name_bytes);
            hash.update(b"document");
            elements.iter().for_each(|element| hash.update(element_print(element)));
        }
        None => hash.update(document.as_bytes()),
    }
    hash.finalize().into()
}

fn element_print(element: &RawElement<'_>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let name = element.name_bytes();
    hash.update([element.kind() as u8]);
    hash.update(u64::try_from(name.len()).unwrap_or(u64::MAX).to_be_bytes());
    hash.update(name);
    match print_inside(element) {
        Some(inside) => hash.update(inside),
        None => hash.update(element.value_bytes()),
    }
    hash.finalize().into()
}

fn print_inside(element: &RawElement<'_>) -> Option<[u8; 32]> {
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
    use crate::mapping::raw::{self, Builder};
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
        differ(&rawdoc! { "a": [1] }, &rawdoc! { "a": [1, 1] });
        differ(&rawdoc! { "a": 1, "b": 2 }, &rawdoc! { "a": 1, "c": 2 });
        differ(&rawdoc! { "a": f64::from_bits(0x7ff8_0000_0000_0001) }, &rawdoc! { "a": f64::NAN });
    }

    /// A document of these fields, behind `more` others; a name may stand twice.
    fn repeating(more: usize, fields: &[(&str, &str)]) -> RawDocumentBuf {
        let mut builder = Builder::default();
        let mut push = |name: &str, text: &str| {
            let mut value = Vec::new();
            raw::push_string(&mut value, text);
            builder.push(ElementType::String, name, &value);
        };
        (0..more).for_each(|index| push(&format!("n{index}"), ""));
        fields.iter().for_each(|(name, text)| push(name, text));
        builder.finish().unwrap()
    }

    #[test]
    fn a_repeated_name_meets_the_one_at_its_place_among_few_fields_and_among_many() {
        for more in [0, FEW] {
            let one = repeating(more, &[("a", "1"), ("b", "2"), ("a", "3")]);
            let other = repeating(more, &[("b", "2"), ("a", "1"), ("a", "3")]);
            assert!(equal(&one, &other));
            assert_eq!(print(&one), print(&other));
            differ(&one, &repeating(more, &[("b", "2"), ("a", "3"), ("a", "1")]));
            differ(&one, &repeating(more, &[("b", "2"), ("a", "1"), ("b", "3")]));
        }
    }

    #[test]
    fn the_text_names_fields_in_order_and_types() {
        assert_eq!(
            text(&rawdoc! { "b": 1, "a": 2_i64 }),
            "{\n  \"a\": {\n    \"$numberLong\": \"2\"\n  },\n  \"b\": {\n    \"$numberInt\": \"1\"\n  }\n}"
        );
    }
}
