//! Raw BSON, element by element: the bytes of every element are at hand, so that whatever a column cannot hold is kept
//! byte for byte, valid UTF-8 or not.

use bson::raw::{RawBsonRef, RawElement};
use bson::spec::ElementType;
use bson::{RawDocument, RawDocumentBuf};

/// One element of a document: type byte, name, NUL, value.
#[derive(Clone)]
pub struct Element<'a> {
    parsed: RawElement<'a>,
    bytes: &'a [u8],
}

impl<'a> Element<'a> {
    /// The field's name.
    pub fn name(&self) -> &'a str {
        self.parsed.key().as_str()
    }

    /// The BSON type.
    pub fn kind(&self) -> ElementType {
        self.parsed.element_type()
    }

    /// The parsed value; an error when its bytes are not valid (a string that is not UTF-8).
    pub fn value(&self) -> Result<RawBsonRef<'a>, bson::error::Error> {
        self.parsed.value()
    }

    /// The whole element: type byte, name, NUL, value.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The value's bytes alone.
    pub fn value_bytes(&self) -> &'a [u8] {
        &self.bytes[self.name().len() + 2..]
    }

    /// The bytes of a string, valid UTF-8 or not; nothing for other types.
    pub fn string_bytes(&self) -> Option<&'a [u8]> {
        let value = self.value_bytes();
        (self.kind() == ElementType::String).then(|| value.get(4..value.len() - 1)).flatten()
    }

    /// Whether the value has at most `levels` documents, arrays and scopes inside each other. The driver's conversions recurse with
    /// large frames: what is nested as deep as MongoDB allows would overflow a thread's stack.
    pub fn is_within(&self, levels: usize) -> bool {
        let inside = match self.kind() {
            ElementType::EmbeddedDocument | ElementType::Array => RawDocument::from_bytes(self.value_bytes()).ok(),
            ElementType::JavaScriptCodeWithScope => match self.value() {
                Ok(RawBsonRef::JavaScriptCodeWithScope(code)) => Some(code.scope),
                _ => None,
            },
            _ => return true,
        };
        let within = |levels| {
            inside.is_some_and(|inside| elements(inside).all(|inner| inner.is_ok_and(|inner| inner.is_within(levels))))
        };
        levels.checked_sub(1).is_some_and(within)
    }

    /// The type byte and the value: what makes two values the same value.
    pub fn identity(&self) -> Vec<u8> {
        let mut identity = Vec::with_capacity(1 + self.value_bytes().len());
        identity.push(self.bytes[0]);
        identity.extend_from_slice(self.value_bytes());
        identity
    }
}

/// The elements of `document` in order. After an error (a name that is not UTF-8, a broken length) there are no more.
pub fn elements(document: &RawDocument) -> impl Iterator<Item = Result<Element<'_>, bson::error::Error>> {
    // The length of a document is its first four bytes.
    let mut at = 4;
    document.iter_elements().map(move |parsed| {
        let parsed = parsed?;
        let end = at + 1 + parsed.key().len() + 1 + parsed.size();
        let bytes = &document.as_bytes()[at..end];
        at = end;
        Ok(Element { parsed, bytes })
    })
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
        Self { bytes: vec![0; 4] }
    }
}

impl Builder {
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
    out.push(kind as u8);
    out.extend_from_slice(name.as_bytes());
    out.push(0);
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
