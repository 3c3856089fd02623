//! Raw BSON, element by element: the bytes of every element are at hand, so that whatever a column cannot hold is kept
//! byte for byte, valid UTF-8 or not.
//!
//! The driver's own iterator parses every value twice on the way; this is the hot path of the backfill and of the
//! verification. Source: the BSON specification, version 1.1.

use bson::spec::ElementType;
use bson::{Bson, RawDocument, RawDocumentBuf};

/// One element of a document: type byte, name, NUL, value.
#[derive(Debug, Clone, Copy)]
pub struct RawElement<'a> {
    kind: ElementType,
    name: &'a [u8],
    bytes: &'a [u8],
}

/// An element whose name is a text.
#[derive(Debug, Clone, Copy)]
pub struct Element<'a> {
    raw: RawElement<'a>,
    name: &'a str,
}

/// Bytes that are no BSON, or a name that is not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no BSON element, or its name is not UTF-8")]
pub struct Malformed;

impl<'a> RawElement<'a> {
    /// The bytes of the field's name.
    pub fn name_bytes(&self) -> &'a [u8] {
        self.name
    }

    /// The BSON type.
    pub fn kind(&self) -> ElementType {
        self.kind
    }

    /// The whole element: type byte, name, NUL, value.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The value's bytes alone.
    pub fn value_bytes(&self) -> &'a [u8] {
        &self.bytes[self.name.len() + 2..]
    }

    /// The value's bytes when they are `N`: a number, a date, an ObjectId.
    pub fn fixed<const N: usize>(&self) -> Option<[u8; N]> {
        self.value_bytes().try_into().ok()
    }

    /// The bytes of a string, valid UTF-8 or not; nothing for other types.
    pub fn string_bytes(&self) -> Option<&'a [u8]> {
        let value = self.value_bytes();
        (self.kind == ElementType::String).then(|| &value[4..value.len() - 1])
    }

    /// The text of a string; nothing for other types, or when it is not UTF-8.
    pub fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.string_bytes()?).ok()
    }

    /// The document or the array; nothing for other types.
    pub fn document(&self) -> Option<&'a RawDocument> {
        let holds = matches!(self.kind, ElementType::EmbeddedDocument | ElementType::Array);
        holds.then(|| RawDocument::from_bytes(self.value_bytes()).ok()).flatten()
    }

    /// The bytes of the code and its scope; nothing for other types.
    pub fn code_with_scope(&self) -> Option<(&'a [u8], &'a RawDocument)> {
        let value = self.value_bytes();
        if self.kind != ElementType::JavaScriptCodeWithScope {
            return None;
        }
        let (code, scope) = value.get(4..)?.split_at_checked(4 + length(value, 4)?)?;
        Some((code, RawDocument::from_bytes(scope).ok()?))
    }

    /// The type byte and the value: what makes two values the same value.
    pub fn identity(&self) -> Vec<u8> {
        let mut identity = Vec::with_capacity(1 + self.value_bytes().len());
        identity.push(self.bytes[0]);
        identity.extend_from_slice(self.value_bytes());
        identity
    }

    /// The element that `rest` begins with.
    fn parse(rest: &'a [u8]) -> Option<Self> {
        let (kind, after) = rest.split_first()?;
        let kind = ElementType::from(*kind)?;
        let name = c_string(after)?;
        let value = &after[name.len() + 1..];
        let bytes = rest.get(..name.len() + 2 + size(kind, value)?)?;
        Some(Self { kind, name, bytes })
    }
}

impl<'a> std::ops::Deref for Element<'a> {
    type Target = RawElement<'a>;

    fn deref(&self) -> &Self::Target {
        &self.raw
    }
}

impl<'a> Element<'a> {
    /// The field's name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The driver's value; nothing when it cannot be parsed (a string that is not UTF-8).
    pub fn to_bson(&self) -> Option<Bson> {
        let mut alone = Builder::default();
        alone.bytes().extend_from_slice(self.bytes);
        let alone = alone.finish().ok()?;
        Bson::try_from(alone.get(self.name).ok()??).ok()
    }

    /// Whether the value has at most `levels` documents, arrays and scopes inside each other. The driver's conversions recurse with
    /// large frames: what is nested as deep as MongoDB allows would overflow a thread's stack.
    pub fn is_within(&self, levels: usize) -> bool {
        let inside = match self.kind {
            ElementType::EmbeddedDocument | ElementType::Array => self.document(),
            ElementType::JavaScriptCodeWithScope => self.code_with_scope().map(|(_, scope)| scope),
            _ => return true,
        };
        let within = |levels| {
            inside.is_some_and(|inside| elements(inside).all(|inner| inner.is_ok_and(|inner| inner.is_within(levels))))
        };
        levels.checked_sub(1).is_some_and(within)
    }
}

impl<'a> TryFrom<RawElement<'a>> for Element<'a> {
    type Error = Malformed;

    fn try_from(raw: RawElement<'a>) -> Result<Self, Malformed> {
        let name = std::str::from_utf8(raw.name).map_err(|_| Malformed)?;
        Ok(Self { raw, name })
    }
}

/// The elements of `document` in order. After an error there are no more.
pub fn elements(document: &RawDocument) -> Elements<'_> {
    Elements { raw: raw_elements(document) }
}

/// See [`elements`].
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    raw: RawElements<'a>,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let element = self.raw.next()?.and_then(Element::try_from);
        if element.is_err() {
            self.raw.rest = &[];
        }
        Some(element)
    }
}

/// The elements of `document` in order, whatever their names. After an error there are no more.
pub fn raw_elements(document: &RawDocument) -> RawElements<'_> {
    // Between the document's length and its NUL.
    let bytes = document.as_bytes();
    RawElements { rest: &bytes[4..bytes.len() - 1] }
}

/// See [`raw_elements`].
#[derive(Debug, Clone)]
pub struct RawElements<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for RawElements<'a> {
    type Item = Result<RawElement<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let element = RawElement::parse(self.rest);
        self.rest = element.map_or(&[], |element| &self.rest[element.bytes.len()..]);
        Some(element.ok_or(Malformed))
    }
}

/// The bytes before the first NUL.
fn c_string(bytes: &[u8]) -> Option<&[u8]> {
    bytes.iter().position(|byte| *byte == 0).map(|end| &bytes[..end])
}

/// The length that stands at `at`.
fn length(bytes: &[u8], at: usize) -> Option<usize> {
    let length = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(i32::from_le_bytes(length)).ok()
}

/// The size of the value of type `kind` that `bytes` begins with.
fn size(kind: ElementType, bytes: &[u8]) -> Option<usize> {
    let string = || length(bytes, 0).filter(|length| *length > 0).map(|length| 4 + length);
    match kind {
        ElementType::Double | ElementType::DateTime | ElementType::Timestamp | ElementType::Int64 => Some(8),
        ElementType::Int32 => Some(4),
        ElementType::Boolean => Some(1),
        ElementType::ObjectId => Some(12),
        ElementType::Decimal128 => Some(16),
        ElementType::Undefined | ElementType::Null | ElementType::MinKey | ElementType::MaxKey => Some(0),
        ElementType::String | ElementType::JavaScriptCode | ElementType::Symbol => string(),
        ElementType::DbPointer => string().map(|string| string + 12),
        ElementType::Binary => length(bytes, 0).map(|length| 5 + length),
        ElementType::EmbeddedDocument | ElementType::Array | ElementType::JavaScriptCodeWithScope => {
            length(bytes, 0).filter(|length| *length >= 5)
        }
        ElementType::RegularExpression => {
            let pattern = c_string(bytes)?.len() + 1;
            Some(pattern + c_string(&bytes[pattern..])?.len() + 1)
        }
    }
}

/// The first element of `document`, if it has a readable one.
pub fn first(document: &RawDocument) -> Option<Element<'_>> {
    elements(document).next().and_then(Result::ok)
}

/// The element named `name`.
pub fn find<'a>(document: &'a RawDocument, name: &str) -> Option<Element<'a>> {
    elements(document).map_while(Result::ok).find(|element| element.name() == name)
}

/// A document under construction, element after element.
#[derive(Debug)]
pub struct Builder {
    bytes: Vec<u8>,
}

impl Default for Builder {
    fn default() -> Self {
        Self::with_capacity(4)
    }
}

impl Builder {
    /// A builder of a document that will have about so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut builder = Self { bytes: Vec::with_capacity(bytes) };
        builder.bytes.extend_from_slice(&[0; 4]);
        builder
    }

    /// The bytes so far, to append whole elements to.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Appends one element from its parts.
    pub fn push(&mut self, kind: ElementType, name: &str, value: &[u8]) {
        push_head(&mut self.bytes, kind, name);
        self.bytes.extend_from_slice(value);
    }

    /// The finished document.
    pub fn finish(mut self) -> Result<RawDocumentBuf, bson::error::Error> {
        close(&mut self.bytes, 0);
        RawDocumentBuf::from_bytes(self.bytes)
    }
}

/// Appends an element's type byte, name and NUL.
pub fn push_head(out: &mut Vec<u8>, kind: ElementType, name: &str) {
    let head = open_element(out, name);
    out[head] = kind as u8;
}

/// Appends an element's head whose type byte is still to be written: at the place that is returned.
pub fn open_element(out: &mut Vec<u8>, name: &str) -> usize {
    let head = out.len();
    out.push(0);
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    head
}

/// Opens a nested document at the end of `out`; [`close`] takes what this returns.
pub fn open(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    start
}

/// Closes the document that starts at `start`: appends its NUL and fills in its length.
pub fn close(out: &mut Vec<u8>, start: usize) {
    out.push(0);
    // 2^31 bytes are refused by `Builder::finish`, which finds that the length does not fit.
    let length = i32::try_from(out.len() - start).unwrap_or(i32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// The bytes of a BSON string value: length, text, NUL.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    // No BSON string reaches 2^31 bytes: a document ends at 16 MiB.
    let length = i32::try_from(text.len() + 1).unwrap_or(i32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> RawDocumentBuf {
        let scope = Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope {
            code: "f()".to_owned(),
            scope: bson::doc! { "n": { "n": 1 } },
        });
        let regex = bson::Regex { pattern: "^a".try_into().unwrap(), options: "i".try_into().unwrap() };
        let binary = bson::Binary { subtype: bson::spec::BinarySubtype::UserDefined(0x80), bytes: vec![0, 1] };
        let values = [
            Bson::Double(0.5),
            "ä".into(),
            bson::doc! { "a": 1 }.into(),
            vec![1, 2].into(),
            binary.into(),
            Bson::Undefined,
            bson::oid::ObjectId::new().into(),
            true.into(),
            bson::DateTime::MAX.into(),
            Bson::Null,
            regex.into(),
            Bson::JavaScriptCode("g()".to_owned()),
            Bson::Symbol("s".to_owned()),
            scope,
            1.into(),
            bson::Timestamp { time: 1, increment: 2 }.into(),
            1_i64.into(),
            "1".parse::<bson::Decimal128>().unwrap().into(),
            Bson::MinKey,
            Bson::MaxKey,
        ];
        let named = values.into_iter().enumerate().map(|(index, value)| (format!("n{index}"), value));
        RawDocumentBuf::try_from(&named.collect::<bson::Document>()).unwrap()
    }

    #[test]
    fn the_elements_are_those_of_the_driver() {
        let document = one_of_each();
        let mut bytes = Vec::new();
        for (ours, theirs) in elements(&document).zip(document.iter_elements()) {
            let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
            assert_eq!((ours.name(), ours.kind()), (theirs.key().as_str(), theirs.element_type()));
            assert_eq!(ours.value_bytes().len(), theirs.size());
            assert_eq!(ours.to_bson(), theirs.value().ok().and_then(|value| Bson::try_from(value).ok()));
            bytes.extend_from_slice(ours.bytes());
        }
        assert_eq!(bytes, document.as_bytes()[4..document.as_bytes().len() - 1]);
    }

    #[test]
    fn bytes_that_are_cut_short_or_changed_never_panic_and_end_in_an_error_or_in_elements_that_fill_the_document() {
        let whole = one_of_each().into_bytes();
        for at in 4..whole.len() - 1 {
            let mut cut = whole[..at].to_vec();
            close(&mut cut, 0);
            assert!(is_read_to_its_end(&cut), "cut at {at}");
            for changed in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = changed;
                assert!(is_read_to_its_end(&bytes), "{changed} at {at}");
            }
        }
    }

    /// Whether the elements fill the document, or the last of them is an error.
    fn is_read_to_its_end(bytes: &[u8]) -> bool {
        let (mut length, mut failed) = (5, false);
        for element in elements(RawDocument::from_bytes(bytes).unwrap()) {
            assert!(!failed, "an element after an error");
            failed = element.is_err();
            length += element.map_or(0, |element| {
                let _used = (element.is_within(9), element.to_bson(), element.text(), element.identity());
                element.bytes().len()
            });
        }
        failed || length == bytes.len()
    }
}
