//! Hides the values of a report, for readers who must not see the data.
//!
//! Ids, the names of collections and fields, types and sizes stay, and so does whether two values are equal.

use bson::spec::ElementType;
use bson::{RawDocument, RawDocumentBuf};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::report::{Report, Sides, Surroundings};
use crate::mapping::hex;
use crate::mapping::raw::{self, Element, elements};

/// How values are hidden: behind a digest under a key that is made anew each time, so that nobody can look a value up.
pub struct Redaction {
    key: [[u8; 16]; 2],
}

impl Default for Redaction {
    fn default() -> Self {
        Self { key: [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()] }
    }
}

impl Redaction {
    /// Hides the values of documents, and the reasons, which may quote them.
    pub fn hide(&self, report: &mut Report, surroundings: &mut Surroundings) {
        let redacted = |reason: &str| self.told("Reason", Some(reason.len()), "", reason.as_bytes());
        for mismatch in &mut report.mismatches {
            mismatch.reason = mismatch.reason.as_deref().map(redacted);
            mismatch.sides = mismatch.sides.take().map(|Sides { source, target }| {
                let [source, target] = [source, target].map(|side| side.and_then(|side| self.document(&side)));
                Sides { source, target }
            });
        }
        for entry in &mut surroundings.quarantine {
            entry.reason = redacted(&entry.reason);
        }
    }

    /// The document with every value but `_id` and nulls replaced by its type, its size and a digest, which is the same
    /// for equal values in fields of one name. What cannot be read is replaced as a whole.
    pub fn document(&self, document: &RawDocument) -> Option<RawDocumentBuf> {
        let mut redacted = raw::Builder::default();
        if self.push_all(document, Within::Document, redacted.bytes()).is_none() {
            let bytes = document.as_bytes();
            redacted = raw::Builder::default();
            push_text(redacted.bytes(), "unreadable", &self.told("Document", Some(bytes.len()), "", bytes));
        }
        redacted.finish().ok()
    }

    /// Nothing when something cannot be read.
    fn push_all(&self, document: &RawDocument, within: Within<'_>, out: &mut Vec<u8>) -> Option<()> {
        for element in elements(document) {
            let element = element.ok()?;
            let (kind, name) = (element.kind(), element.name());
            match (kind, within) {
                (ElementType::Null, _) => out.extend_from_slice(element.bytes()),
                (_, Within::Document) if name == "_id" => out.extend_from_slice(element.bytes()),
                (ElementType::EmbeddedDocument, _) => self.push_nested(&element, Within::Field, out)?,
                (ElementType::Array, _) => self.push_nested(&element, Within::Array(within.field(name)), out)?,
                _ => push_text(out, name, &self.value(&element, within.field(name))),
            }
        }
        Some(())
    }

    fn push_nested(&self, element: &Element<'_>, within: Within<'_>, out: &mut Vec<u8>) -> Option<()> {
        raw::push_head(out, element.kind(), element.name());
        let start = raw::open(out);
        self.push_all(element.document()?, within, out)?;
        raw::close(out, start);
        Some(())
    }

    fn value(&self, element: &Element<'_>, field: &str) -> String {
        let (kind, bytes) = (element.kind(), element.value_bytes());
        let size = match kind {
            // Besides: a length and one byte more.
            ElementType::String | ElementType::Symbol | ElementType::JavaScriptCode | ElementType::Binary => {
                Some(bytes.len() - 5)
            }
            ElementType::RegularExpression | ElementType::DbPointer | ElementType::JavaScriptCodeWithScope => {
                Some(bytes.len())
            }
            _ => None,
        };
        self.told(&format!("{kind:?}"), size, field, bytes)
    }

    /// What stands in the place of a value.
    fn told(&self, kind: &str, size: Option<usize>, field: &str, bytes: &[u8]) -> String {
        let [one, two] = &self.key;
        // Names hold no NUL.
        let parts: [&[u8]; 7] = [one, two, kind.as_bytes(), &[0], field.as_bytes(), &[0], bytes];
        let digest = hex(&Sha256::digest(parts.concat())[..4]);
        let size = size.map(|size| format!(", {size} bytes")).unwrap_or_default();
        format!("‹{kind}{size}, #{digest}›")
    }
}

/// Where a value stands.
#[derive(Clone, Copy)]
enum Within<'a> {
    /// In a document itself.
    Document,
    /// In a document in a field.
    Field,
    /// In the array of the field of this name.
    Array(&'a str),
}

impl<'a> Within<'a> {
    /// The name of the field that a value belongs to.
    fn field(self, name: &'a str) -> &'a str {
        match self {
            Self::Array(field) => field,
            Self::Document | Self::Field => name,
        }
    }
}

fn push_text(out: &mut Vec<u8>, name: &str, text: &str) {
    raw::push_head(out, ElementType::String, name);
    raw::push_string(out, text);
}

#[cfg(test)]
mod tests {
    use bson::{Bson, bson, doc, rawdoc};

    use super::*;
    use crate::verify::{canonical, page, sample};

    /// The same document redacted, as the driver's.
    fn redacted(redaction: &Redaction, document: bson::Document) -> bson::Document {
        let document = RawDocumentBuf::try_from(&document).unwrap();
        bson::Document::try_from(redaction.document(&document).unwrap()).unwrap()
    }

    /// The type and size, without the digest.
    fn shown(value: &Bson) -> &str {
        value.as_str().unwrap().rsplit_once(", #").unwrap().0
    }

    #[test]
    fn structure_names_types_sizes_ids_and_nulls_stay() {
        let document = doc! {
            "_id": { "tenant": "acme" }, "text": "secret", "none": null, "flag": true, "count": 7_i64,
            "nested": { "_id": "inner", "list": ["a", { "b": 1.5 }] },
        };
        let redacted = redacted(&Redaction::default(), document);
        assert_eq!(redacted.keys().collect::<Vec<_>>(), ["_id", "text", "none", "flag", "count", "nested"]);
        assert_eq!(redacted.get("_id"), Some(&bson!({ "tenant": "acme" })));
        assert_eq!(redacted.get("none"), Some(&Bson::Null));
        assert_eq!(shown(&redacted["text"]), "‹String, 6 bytes");
        assert_eq!(shown(&redacted["flag"]), "‹Boolean");
        assert_eq!(shown(&redacted["count"]), "‹Int64");
        let nested = redacted.get_document("nested").unwrap();
        assert_eq!(shown(&nested["_id"]), "‹String, 5 bytes");
        let list = nested.get_array("list").unwrap();
        assert_eq!(shown(&list[0]), "‹String, 1 bytes");
        assert_eq!(shown(&list[1].as_document().unwrap()["b"]), "‹Double");
    }

    #[test]
    fn equal_values_are_equal_and_others_are_not() {
        let redaction = Redaction::default();
        let one = redacted(&redaction, doc! { "a": "x", "list": ["p", "q"], "n": 1 });
        let other = redacted(&redaction, doc! { "a": "x", "list": ["q", "p"], "n": 1_i64 });
        assert_eq!(one["a"], other["a"]);
        let (ones, others) = (one.get_array("list").unwrap(), other.get_array("list").unwrap());
        assert_eq!((&ones[0], &ones[1]), (&others[1], &others[0]));
        assert_ne!(ones[0], ones[1]);
        assert_ne!(one["n"], other["n"]);
    }

    #[test]
    fn a_digest_tells_nothing_under_another_key_or_name() {
        let document = doc! { "flag": true, "other": true };
        let one = redacted(&Redaction::default(), document.clone());
        assert_ne!(one["flag"], redacted(&Redaction::default(), document)["flag"]);
        assert_ne!(one["flag"], one["other"]);
    }

    #[test]
    fn a_document_that_cannot_be_read_is_hidden_whole() {
        // {"<0xff>": 1}: a name that is not UTF-8.
        let bytes = vec![12, 0, 0, 0, 0x10, 0xff, 0, 1, 0, 0, 0, 0];
        let redacted = Redaction::default().document(&RawDocumentBuf::from_bytes(bytes).unwrap()).unwrap();
        assert!(canonical::text(&redacted).contains("\"unreadable\": \"‹Document, 12 bytes, #"));
    }

    #[test]
    fn no_value_is_in_the_page_or_the_json() {
        let values = ["anemone", "birch", "clover", "dahlia", "123456789", "876543210", "elder", "fern"];
        let side =
            |text: &str, inner: &str, n: i32| Some(rawdoc! { "_id": "run-7", "n": n, "s": [inner], "text": text });
        let (mut report, mut surroundings) = sample::report();
        let (source, target) = (side(values[0], values[2], 123_456_789), side(values[1], values[3], 876_543_210));
        report.mismatches[0].sides = sample::sides(source, target);
        report.mismatches[2].reason = Some(values[6].to_owned());
        surroundings.quarantine[0].reason = format!("state is {:?}", values[7]);
        let texts = |report: &Report, surroundings: &Surroundings| {
            let json = [serde_json::to_string(report).unwrap(), serde_json::to_string(surroundings).unwrap()];
            page(report, surroundings) + &json.concat()
        };
        let open = texts(&report, &surroundings);
        Redaction::default().hide(&mut report, &mut surroundings);
        let hidden = texts(&report, &surroundings);
        for value in values {
            assert!(open.contains(value) && !hidden.contains(value), "{value}");
        }
        // Both sides still differ where they did, and the key is still known.
        let diff = report.mismatches[0].sides.as_ref().unwrap().diff();
        let changed = |sign: char| diff.lines().skip(2).filter(|line| line.starts_with(sign)).count();
        assert_eq!((changed('-'), changed('+')), (3, 3), "{diff}");
        assert!(hidden.contains("run-7") && hidden.contains("run-901"));
    }
}
