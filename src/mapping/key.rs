//! Keys: `_id` of any BSON type as one text, and back.
//!
//! Invariant: two different `_id`s have different texts, and the text gives back the `_id` byte for byte (only keys over
//! [`KEY_LIMIT`] are one-way; their documents are quarantined).

use bson::spec::ElementType;
use bson::{Bson, RawDocumentBuf};
use sha2::{Digest, Sha256};

use super::raw::{Builder, Element, first, push_string};
use crate::entity::{KEY_LIMIT, KeyType};

/// What is nested deeper is readable to nobody.
const READABLE_LEVELS: usize = 8;

/// The text that stands for an `_id` in column `id`.
///
/// *Plain* is an `_id` of the entity's own type, which stands as it is. Every other one is *marked*: a text that starts
/// with `{`, canonical extended JSON where that gives back the same bytes, else `{"$bson":"<type byte and value>"}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    text: String,
}

/// A text that stands for no `_id`.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not the text of a key")]
pub struct NotAKey {
    text: String,
}

impl Key {
    /// The key of the document whose `_id` is `id`.
    pub fn of(id: &Element<'_>, key: KeyType) -> Self {
        let text = plain(id, key).unwrap_or_else(|| marked(id, key));
        if text.len() <= KEY_LIMIT {
            return Self { text };
        }
        Self { text: one_way(&id.identity()) }
    }

    /// The key of a document whose `_id` cannot be found: known by the document's bytes, and one-way.
    pub fn of_bytes(document: &[u8]) -> Self {
        Self { text: one_way(document) }
    }

    /// The key that stands in column `id` as `text`.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }

    /// The text in column `id`, at most [`KEY_LIMIT`] bytes.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the key is of the entity's own type: such keys sort alike in both stores.
    pub fn is_plain(&self) -> bool {
        !self.text.starts_with('{')
    }

    /// Whether the key was too long to be kept as it is.
    pub fn is_over_limit(&self) -> bool {
        self.text.starts_with("{\"$sha256\":")
    }

    /// The document `{_id: …}` that this key stands for.
    pub fn document(&self, key: KeyType) -> Result<RawDocumentBuf, NotAKey> {
        let mut builder = Builder::default();
        self.push(key, &mut builder)?;
        builder.finish().map_err(|_| self.refuse())
    }

    /// Appends the element `_id` that this key stands for.
    pub fn push(&self, key: KeyType, out: &mut Builder) -> Result<(), NotAKey> {
        push_id(&self.text, key, out).ok_or_else(|| self.refuse())
    }

    fn refuse(&self) -> NotAKey {
        NotAKey { text: self.text.clone() }
    }
}

fn one_way(bytes: &[u8]) -> String {
    format!("{{\"$sha256\":\"{}\"}}", hex(&Sha256::digest(bytes)))
}

fn plain(id: &Element<'_>, key: KeyType) -> Option<String> {
    match key {
        KeyType::Text => {
            let text = id.text()?;
            (!text.starts_with('{') && !text.contains('\0')).then(|| text.to_owned())
        }
        KeyType::ObjectId => (id.kind() == ElementType::ObjectId).then(|| hex(id.value_bytes())),
    }
}

fn marked(id: &Element<'_>, key: KeyType) -> String {
    let exact = || format!("{{\"$bson\":\"{}\"}}", hex(&id.identity()));
    readable(id, key).unwrap_or_else(exact)
}

/// Canonical extended JSON, if it is an object and gives back the same bytes.
fn readable(id: &Element<'_>, key: KeyType) -> Option<String> {
    if !id.is_within(READABLE_LEVELS) {
        return None;
    }
    let json = id.to_bson()?.into_canonical_extjson();
    let text = json.is_object().then(|| json.to_string())?;
    let back = Key::from_text(text.as_str()).document(key).ok()?;
    (first(&back)?.identity() == id.identity()).then_some(text)
}

fn push_id(text: &str, key: KeyType, out: &mut Builder) -> Option<()> {
    if text.starts_with('{') {
        return push_marked(text, out);
    }
    match key {
        // Such an `_id` is marked.
        KeyType::Text if text.contains('\0') => return None,
        KeyType::Text => {
            let mut value = Vec::with_capacity(text.len() + 5);
            push_string(&mut value, text);
            out.push(ElementType::String, "_id", &value);
        }
        KeyType::ObjectId => {
            let value = unhex(text).filter(|value| value.len() == 12)?;
            out.push(ElementType::ObjectId, "_id", &value);
        }
    }
    Some(())
}

fn push_marked(text: &str, out: &mut Builder) -> Option<()> {
    let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    if json.contains_key("$sha256") {
        return None;
    }
    let identity = match json.get("$bson") {
        Some(exact) => unhex(exact.as_str()?)?,
        None => {
            let value = Bson::try_from(json).ok()?;
            let document = RawDocumentBuf::try_from(&bson::doc! { "": value }).ok()?;
            first(&document)?.identity()
        }
    };
    let (kind, value) = identity.split_first()?;
    out.push(ElementType::from(*kind)?, "_id", value);
    Some(())
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The bytes of lower-case hexadecimal digits; upper-case ones are refused, so that each value has one text.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?)).collect();
    if rest.is_empty() { bytes } else { None }
}

#[cfg(test)]
mod tests {
    use bson::spec::BinarySubtype;
    use bson::{Binary, Bson, Decimal128, doc, oid::ObjectId};

    use super::*;

    fn key_of(id: impl Into<Bson>, key: KeyType) -> Key {
        let document = RawDocumentBuf::try_from(&doc! { "_id": id.into() }).unwrap();
        let made = Key::of(&first(&document).unwrap(), key);
        if !made.is_over_limit() {
            assert_eq!(made.document(key).unwrap(), document, "{}", made.text());
        }
        made
    }

    #[test]
    fn an_id_of_the_entitys_own_type_stands_as_it_is() {
        let id = ObjectId::from_bytes([0xab; 12]);
        assert_eq!(key_of("run:7", KeyType::Text).text(), "run:7");
        assert_eq!(key_of("", KeyType::Text).text(), "");
        assert_eq!(key_of(id, KeyType::ObjectId).text(), "ab".repeat(12));
        assert!(key_of(id, KeyType::ObjectId).is_plain());
    }

    #[test]
    fn every_other_id_is_marked_and_readable_where_that_is_exact() {
        let text = |id: Bson| key_of(id, KeyType::Text).text().to_owned();
        assert_eq!(text(Bson::Int32(5)), r#"{"$numberInt":"5"}"#);
        assert_eq!(text(Bson::Int64(5)), r#"{"$numberLong":"5"}"#);
        assert_eq!(text(Bson::Double(5.0)), r#"{"$numberDouble":"5.0"}"#);
        assert_eq!(text(ObjectId::from_bytes([1; 12]).into()), format!(r#"{{"$oid":"{}"}}"#, "01".repeat(12)));
        assert_eq!(text(doc! { "b": 1, "a": "x" }.into()), r#"{"b":{"$numberInt":"1"},"a":"x"}"#);
        assert_eq!(text(Bson::Null), r#"{"$bson":"0a"}"#);
        assert_eq!(text(Bson::Boolean(true)), r#"{"$bson":"0801"}"#);
        assert_eq!(text(Bson::Double(f64::from_bits(0x7ff8_0000_0000_0001))), r#"{"$bson":"01010000000000f87f"}"#);
    }

    #[test]
    fn texts_that_look_like_marks_are_told_from_them() {
        let oid = r#"{"$oid":"010101010101010101010101"}"#;
        let as_text = key_of(oid, KeyType::Text);
        assert_ne!(as_text, key_of(ObjectId::from_bytes([1; 12]), KeyType::Text));
        assert!(as_text.text().starts_with(r#"{"$bson":"#));
        assert_ne!(key_of("ab".repeat(12), KeyType::ObjectId).text(), "ab".repeat(12));
        for name in ["$bson", "$sha256", "$oid", "$date"] {
            assert!(key_of(doc! { name: "0a" }, KeyType::Text).text().starts_with(r#"{"$bson":"#), "{name}");
        }
        assert!(key_of("nul\0", KeyType::Text).text().starts_with(r#"{"$bson":"#));
    }

    #[test]
    fn ids_of_every_type_come_back() {
        let binary = |subtype| Bson::Binary(Binary { subtype, bytes: vec![7; 16] });
        let subtypes =
            [BinarySubtype::Generic, BinarySubtype::UuidOld, BinarySubtype::Uuid, BinarySubtype::UserDefined(0x81)];
        let decimal = Bson::Decimal128("1.50".parse::<Decimal128>().unwrap());
        let others = [decimal, Bson::MinKey, Bson::MaxKey, Bson::Double(-0.0), Bson::DateTime(bson::DateTime::MIN)];
        for id in subtypes.map(binary).into_iter().chain(others) {
            assert!(!key_of(id.clone(), KeyType::Text).is_plain(), "{id}");
            assert!(!key_of(id.clone(), KeyType::ObjectId).is_plain(), "{id}");
        }
    }

    #[test]
    fn a_key_over_the_limit_is_one_way() {
        assert_eq!(key_of("k".repeat(KEY_LIMIT), KeyType::Text).text().len(), KEY_LIMIT);
        let over = key_of("k".repeat(KEY_LIMIT + 1), KeyType::Text);
        assert!(over.is_over_limit() && over.document(KeyType::Text).is_err());
        assert_ne!(over, key_of("k".repeat(KEY_LIMIT + 2), KeyType::Text));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["{", "{}x", r#"{"$bson":"0A"}"#, r#"{"$bson":"1"}"#, r#"{"$bson":""}"#, r#"{"$bson":1}"#] {
            assert!(Key::from_text(text).document(KeyType::Text).is_err(), "{text}");
        }
        assert!(Key::from_text("nul\0").document(KeyType::Text).is_err());
        assert!(Key::from_text("not hexadecimal").document(KeyType::ObjectId).is_err());
        assert!(Key::from_text("ab").document(KeyType::ObjectId).is_err());
    }

    #[test]
    fn hexadecimal_digits_are_lower_case_and_come_in_pairs() {
        assert_eq!(hex(&[0, 0x7f, 0xff]), "007fff");
        assert_eq!(unhex("007fff"), Some(vec![0, 0x7f, 0xff]));
        assert_eq!((unhex("7F"), unhex("7"), unhex("zz")), (None, None, None));
    }
}
