//! BSON read and written by hand, so that the tests share no code with what they test, and can say what no library says:
//! strings that are not UTF-8, names that stand twice, arrays with odd names.

/// The BSON types that the tests name.
pub mod kind {
    pub const DOUBLE: u8 = 0x01;
    pub const STRING: u8 = 0x02;
    pub const DOCUMENT: u8 = 0x03;
    pub const ARRAY: u8 = 0x04;
    pub const BINARY: u8 = 0x05;
    pub const UNDEFINED: u8 = 0x06;
    pub const OBJECT_ID: u8 = 0x07;
    pub const BOOL: u8 = 0x08;
    pub const DATE: u8 = 0x09;
    pub const NULL: u8 = 0x0a;
    pub const REGEX: u8 = 0x0b;
    pub const POINTER: u8 = 0x0c;
    pub const CODE: u8 = 0x0d;
    pub const SYMBOL: u8 = 0x0e;
    pub const SCOPE: u8 = 0x0f;
    pub const INT32: u8 = 0x10;
    pub const TIMESTAMP: u8 = 0x11;
    pub const INT64: u8 = 0x12;
    pub const DECIMAL: u8 = 0x13;
    pub const MAX_KEY: u8 = 0x7f;
    pub const MIN_KEY: u8 = 0xff;
}

/// A value: its type and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub kind: u8,
    pub bytes: Vec<u8>,
}

/// A field or an element of an array: its name and its value.
pub type Field = (Vec<u8>, Value);

impl Value {
    pub fn new(kind: u8, bytes: impl Into<Vec<u8>>) -> Self {
        Self { kind, bytes: bytes.into() }
    }

    /// A string, code or symbol of these bytes.
    pub fn text(kind: u8, text: &[u8]) -> Self {
        let length = i32::try_from(text.len() + 1).expect("a short text");
        Self::new(kind, [&length.to_le_bytes(), text, &[0]].concat())
    }

    pub fn document(fields: &[Field]) -> Self {
        Self::new(kind::DOCUMENT, document(fields))
    }

    pub fn array(elements: &[Field]) -> Self {
        Self::new(kind::ARRAY, document(elements))
    }

    /// The bytes of a string.
    pub fn as_text(&self) -> &[u8] {
        &self.bytes[4..self.bytes.len() - 1]
    }

    /// The fields of a document or the elements of an array.
    pub fn fields(&self) -> Vec<Field> {
        fields(&self.bytes)
    }
}

/// A document for a reader, a field a line: name, type, bytes.
pub fn show(document: &[u8]) -> String {
    let line = |(name, value): Field| {
        format!("\n  {}: {:#04x} {}", name.escape_ascii(), value.kind, value.bytes.escape_ascii())
    };
    fields(document).into_iter().map(line).collect()
}

/// The document of these fields.
pub fn document(fields: &[Field]) -> Vec<u8> {
    let content: Vec<u8> = fields
        .iter()
        .flat_map(|(name, value)| [&[value.kind], name.as_slice(), &[0], value.bytes.as_slice()].concat())
        .collect();
    let length = i32::try_from(content.len() + 5).expect("a document of less than 2 GiB");
    [&length.to_le_bytes(), content.as_slice(), &[0]].concat()
}

/// The fields of a document.
pub fn fields(document: &[u8]) -> Vec<Field> {
    assert_eq!(length(document), document.len(), "a document's length is its first four bytes");
    let mut rest = &document[4..document.len() - 1];
    let mut fields = Vec::new();
    while let Some((kind, after)) = rest.split_first() {
        let (name, after) = after.split_at(until_nul(after));
        let (bytes, after) = after[1..].split_at(size(*kind, &after[1..]));
        fields.push((name.to_vec(), Value::new(*kind, bytes)));
        rest = after;
    }
    fields
}

fn until_nul(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte == 0).expect("a NUL")
}

fn length(bytes: &[u8]) -> usize {
    let length = i32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    usize::try_from(length).expect("a length")
}

/// How many of `bytes` a value of this type has.
fn size(kind: u8, bytes: &[u8]) -> usize {
    match kind {
        kind::UNDEFINED | kind::NULL | kind::MAX_KEY | kind::MIN_KEY => 0,
        kind::BOOL => 1,
        kind::INT32 => 4,
        kind::DOUBLE | kind::DATE | kind::TIMESTAMP | kind::INT64 => 8,
        kind::OBJECT_ID => 12,
        kind::DECIMAL => 16,
        kind::STRING | kind::CODE | kind::SYMBOL => 4 + length(bytes),
        kind::POINTER => 16 + length(bytes),
        kind::BINARY => 5 + length(bytes),
        kind::DOCUMENT | kind::ARRAY | kind::SCOPE => length(bytes),
        kind::REGEX => {
            let pattern = until_nul(bytes) + 1;
            pattern + until_nul(&bytes[pattern..]) + 1
        }
        _ => unreachable!("no BSON type is {kind:#x}"),
    }
}

/// A document such that two documents are equal up to the order of fields, at every depth, if and only if these are:
/// numbers by their bits, types exactly, fields of one name as often as they stand there. Arrays keep their order.
pub fn without_order(document: &[u8]) -> Vec<u8> {
    let mut fields: Vec<Field> = fields(document).into_iter().map(|(name, value)| (name, sorted(value))).collect();
    fields.sort_by(|(a, x), (b, y)| (a, x.kind, &x.bytes).cmp(&(b, y.kind, &y.bytes)));
    self::document(&fields)
}

fn sorted(value: Value) -> Value {
    match value.kind {
        kind::DOCUMENT => Value::new(kind::DOCUMENT, without_order(&value.bytes)),
        kind::ARRAY => {
            let elements: Vec<Field> = value.fields().into_iter().map(|(name, value)| (name, sorted(value))).collect();
            Value::array(&elements)
        }
        kind::SCOPE => {
            let (code, scope) = value.bytes.split_at(8 + length(&value.bytes[4..]));
            Value::new(kind::SCOPE, [code, &without_order(scope)].concat())
        }
        _ => value,
    }
}

#[test]
fn documents_that_differ_in_the_order_of_fields_are_equal_and_others_are_not() {
    let double = |bits: u64| Value::new(kind::DOUBLE, bits.to_le_bytes());
    let field = |name: &str, value: &Value| (name.as_bytes().to_vec(), value.clone());
    let (one, two) = (double(1), double(2));
    let pair = |a: &Field, b: &Field| without_order(&document(&[a.clone(), b.clone()]));
    let (a, b, again) = (field("a", &one), field("b", &two), field("a", &two));
    assert_eq!(pair(&a, &b), pair(&b, &a));
    assert_eq!(pair(&a, &again), pair(&again, &a));
    assert_ne!(pair(&a, &a), pair(&a, &again));
    assert_ne!(pair(&a, &b), pair(&field("a", &double(3)), &b));
    let nested = |fields: &[Field]| without_order(&document(&[field("n", &Value::document(fields))]));
    assert_eq!(nested(&[a.clone(), b.clone()]), nested(&[b.clone(), a.clone()]));
    let array = |fields: &[Field]| without_order(&document(&[field("n", &Value::array(fields))]));
    assert_ne!(array(&[a.clone(), b.clone()]), array(&[b, a]));
}
