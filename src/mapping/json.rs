//! BSON values as `jsonb`, and back.
//!
//! Ordinary values are ordinary JSON: an integer that fits Int32 is an Int32, a larger one an Int64, a fractional number
//! a Double. Every other value is canonical extended JSON. A value whose JSON would not give back the same BSON, or that
//! `jsonb` would refuse, is [`Ambiguous`]; its field goes to the residue.

mod read;

use std::io::Write as _;

use bson::spec::ElementType;
use bson::{Bson, RawDocument, RawDocumentBuf};

pub use self::read::{parse, read};
use super::raw::{self, Element, Malformed, elements};

/// Nesting beyond this goes to the residue, far from where PostgreSQL's parser would run out of stack.
const DEPTH_LIMIT: usize = 150;

/// Nesting of the scope of a piece of code beyond this goes to the residue.
const SCOPE_LIMIT: usize = 16;

/// The value has no JSON that gives it back.
#[derive(Debug, PartialEq, Eq)]
pub struct Ambiguous;

/// Appends the JSON of `element`'s value to `out`; on an error `out` holds a beginning to be cut off.
pub fn write(element: &Element<'_>, out: &mut Vec<u8>) -> Result<(), Ambiguous> {
    write_value(element, DEPTH_LIMIT, out)
}

fn write_value(element: &Element<'_>, depth: usize, out: &mut Vec<u8>) -> Result<(), Ambiguous> {
    match element.kind() {
        ElementType::Null => put(out, b"null"),
        ElementType::Boolean => match element.value_bytes() {
            [0] => put(out, b"false"),
            [1] => put(out, b"true"),
            _ => Err(Ambiguous),
        },
        ElementType::String => write_text(element.text().ok_or(Ambiguous)?, out),
        ElementType::Int32 => write_integer(i32::from_le_bytes(number(element)?).into(), out),
        ElementType::Int64 => write_int64(i64::from_le_bytes(number(element)?), out),
        ElementType::Double => write_double(f64::from_le_bytes(number(element)?), element, out),
        ElementType::DateTime => {
            put(out, br#"{"$date":{"$numberLong":""#)?;
            write_integer(i64::from_le_bytes(number(element)?), out)?;
            put(out, br#""}}"#)
        }
        ElementType::EmbeddedDocument => write_document(element.document().ok_or(Ambiguous)?, depth, out),
        ElementType::Array => write_array(element.document().ok_or(Ambiguous)?, depth, out),
        _ => write_extended(element, out),
    }
}

fn put(out: &mut Vec<u8>, json: &[u8]) -> Result<(), Ambiguous> {
    out.extend_from_slice(json);
    Ok(())
}

fn number<const N: usize>(element: &Element<'_>) -> Result<[u8; N], Ambiguous> {
    element.fixed().ok_or(Ambiguous)
}

fn write_int64(value: i64, out: &mut Vec<u8>) -> Result<(), Ambiguous> {
    match i32::try_from(value) {
        Ok(small) => print(out, format_args!(r#"{{"$numberLong":"{small}"}}"#)),
        Err(_) => write_integer(value, out),
    }
}

fn write_double(value: f64, element: &Element<'_>, out: &mut Vec<u8>) -> Result<(), Ambiguous> {
    if value.fract() != 0.0 && value.is_finite() {
        return print(out, format_args!("{value:?}"));
    }
    write_extended(element, out)
}

/// Without the machinery of `format_args!`: numbers and dates are most of what a document holds.
fn write_integer(value: i64, out: &mut Vec<u8>) -> Result<(), Ambiguous> {
    serde_json::to_writer(out, &value).map_err(|_| Ambiguous)
}

fn print(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) -> Result<(), Ambiguous> {
    out.write_fmt(text).map_err(|_| Ambiguous)
}

fn write_text(text: &str, out: &mut Vec<u8>) -> Result<(), Ambiguous> {
    if is_plain(text) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return Ok(());
    }
    if text.as_bytes().contains(&0) {
        return Err(Ambiguous); // jsonb has no NUL
    }
    serde_json::to_writer(out, text).map_err(|_| Ambiguous)
}

/// Whether nothing in a text needs an escape. It looks at every byte, which the compiler turns into few instructions.
fn is_plain(text: &str) -> bool {
    !text.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == b'"') | (byte == b'\\'))
}

fn write_document(document: &RawDocument, depth: usize, out: &mut Vec<u8>) -> Result<(), Ambiguous> {
    let inside = depth.checked_sub(1).ok_or(Ambiguous)?;
    let mut names = Names::default();
    out.push(b'{');
    for element in elements(document) {
        let element = element.map_err(|Malformed| Ambiguous)?;
        // A name that starts with `$` would be read back as extended JSON; of equal names jsonb keeps only the last.
        if element.name().starts_with('$') || !names.insert(element.name()) {
            return Err(Ambiguous);
        }
        separate(out, b'{');
        write_text(element.name(), out)?;
        out.push(b':');
        write_value(&element, inside, out)?;
    }
    out.push(b'}');
    Ok(())
}

fn write_array(array: &RawDocument, depth: usize, out: &mut Vec<u8>) -> Result<(), Ambiguous> {
    let inside = depth.checked_sub(1).ok_or(Ambiguous)?;
    out.push(b'[');
    for (index, element) in elements(array).enumerate() {
        let element = element.map_err(|Malformed| Ambiguous)?;
        // The server keeps whatever names a writer gave to an array's elements; JSON has none.
        if !is_index(element.name(), index) {
            return Err(Ambiguous);
        }
        separate(out, b'[');
        write_value(&element, inside, out)?;
    }
    out.push(b']');
    Ok(())
}

fn is_index(name: &str, index: usize) -> bool {
    // "01" parses as 1 but is not its name.
    name.parse() == Ok(index) && (name == "0" || !name.starts_with(['0', '+']))
}

fn separate(out: &mut Vec<u8>, opening: u8) {
    if out.last() != Some(&opening) {
        out.push(b',');
    }
}

/// Canonical extended JSON, if it gives back the same bytes.
fn write_extended(element: &Element<'_>, out: &mut Vec<u8>) -> Result<(), Ambiguous> {
    if !element.is_within(SCOPE_LIMIT) {
        return Err(Ambiguous);
    }
    let start = out.len();
    let json = element.to_bson().ok_or(Ambiguous)?.into_canonical_extjson();
    serde_json::to_writer(&mut *out, &json).map_err(|_| Ambiguous)?;
    let nul = out[start..].windows(6).any(|window| window == br"\u0000");
    let same = of_extended(json)? == (element.kind(), element.value_bytes().to_vec());
    if nul || !same { Err(Ambiguous) } else { Ok(()) }
}

/// The type and the value that canonical extended JSON stands for.
fn of_extended(json: serde_json::Value) -> Result<(ElementType, Vec<u8>), Ambiguous> {
    let value = Bson::try_from(json).map_err(|_| Ambiguous)?;
    let document = RawDocumentBuf::try_from(&bson::doc! { "": value }).map_err(|_| Ambiguous)?;
    let element = raw::first(&document).ok_or(Ambiguous)?;
    Ok((element.kind(), element.value_bytes().to_vec()))
}

/// Tells whether a name came before, without an allocation for the few names that most documents have.
#[derive(Default)]
struct Names<'a> {
    few: [Option<&'a str>; 12],
    count: usize,
    many: std::collections::HashSet<&'a str>,
}

impl<'a> Names<'a> {
    fn insert(&mut self, name: &'a str) -> bool {
        let few = &self.few[..self.count];
        if few.contains(&Some(name)) || self.many.contains(name) {
            return false;
        }
        match self.few.get_mut(self.count) {
            Some(free) => {
                *free = Some(name);
                self.count += 1;
                true
            }
            None => self.many.insert(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::{DateTime, Decimal128, Document, RawDocumentBuf, Regex, doc};

    use super::*;

    /// The JSON of a value, which must give it back.
    fn json_of(value: impl Into<Bson>) -> Result<String, Ambiguous> {
        let document = RawDocumentBuf::try_from(&doc! { "f": value.into() }).unwrap();
        json_of_first(&document)
    }

    fn json_of_first(document: &RawDocument) -> Result<String, Ambiguous> {
        let element = raw::first(document).unwrap();
        let (mut json, mut back) = (Vec::new(), Vec::new());
        write(&element, &mut json)?;
        read(&json, element.name(), &mut back).unwrap();
        assert_eq!(back, element.bytes());
        Ok(String::from_utf8(json).unwrap())
    }

    fn is(value: impl Into<Bson>, json: &str) {
        assert_eq!(json_of(value).as_deref(), Ok(json));
    }

    #[test]
    fn ordinary_values_are_ordinary_json() {
        is(Bson::Null, "null");
        is(true, "true");
        is("a \"word\" \u{1} 😀", r#""a \"word\" \u0001 😀""#);
        is(-7, "-7");
        is(2_147_483_648_i64, "2147483648");
        is(i64::MIN, "-9223372036854775808");
        is(0.1, "0.1");
        is(1e-300, "1e-300");
        is(vec![1, 2], "[1,2]");
        is(doc! { "a.b": { "": [] } }, r#"{"a.b":{"":[]}}"#);
    }

    #[test]
    fn numbers_that_json_would_take_for_others_say_their_type() {
        is(5_i64, r#"{"$numberLong":"5"}"#);
        is(5.0, r#"{"$numberDouble":"5.0"}"#);
        is(-0.0, r#"{"$numberDouble":"-0.0"}"#);
        is(f64::INFINITY, r#"{"$numberDouble":"Infinity"}"#);
        is("1.50".parse::<Decimal128>().unwrap(), r#"{"$numberDecimal":"1.50"}"#);
    }

    #[test]
    fn other_types_are_canonical_extended_json() {
        is(DateTime::from_millis(-1), r#"{"$date":{"$numberLong":"-1"}}"#);
        is(DateTime::MAX, r#"{"$date":{"$numberLong":"9223372036854775807"}}"#);
        is(Bson::MinKey, r#"{"$minKey":1}"#);
        is(Bson::Undefined, r#"{"$undefined":true}"#);
        is(Bson::Symbol("s".into()), r#"{"$symbol":"s"}"#);
        let regex = Regex { pattern: "^a".try_into().unwrap(), options: "im".try_into().unwrap() };
        is(regex, r#"{"$regularExpression":{"pattern":"^a","options":"im"}}"#);
    }

    #[test]
    fn what_json_cannot_give_back_is_ambiguous() {
        assert_eq!(json_of("nul\0"), Err(Ambiguous));
        assert_eq!(json_of(doc! { "$date": 1 }), Err(Ambiguous));
        assert_eq!(json_of(vec![doc! { "a": 1, "$x": 1 }]), Err(Ambiguous));
        assert_eq!(json_of(f64::from_bits(0x7ff8_0000_0000_0001)), Err(Ambiguous));
    }

    /// A document with one field, an array (type 4) or a document (type 3) whose elements are nulls with these names.
    fn nulls(kind: ElementType, names: &[&str]) -> RawDocumentBuf {
        let (mut inner, mut outer) = (raw::Builder::default(), raw::Builder::default());
        names.iter().for_each(|name| inner.push(ElementType::Null, name, &[]));
        outer.push(kind, "f", inner.finish().unwrap().as_bytes());
        outer.finish().unwrap()
    }

    #[test]
    fn names_that_json_has_not_are_ambiguous() {
        let twelve = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
        let again = |name| [twelve.as_slice(), &["m", "n", name]].concat();
        for (kind, names, ambiguous) in [
            (ElementType::Array, vec!["0", "1"], false),
            (ElementType::Array, vec!["0", "01"], true),
            (ElementType::Array, vec!["1", "0"], true),
            (ElementType::Array, vec!["+0"], true),
            (ElementType::EmbeddedDocument, vec!["a", "a"], true),
            (ElementType::EmbeddedDocument, again("o"), false),
            (ElementType::EmbeddedDocument, again("a"), true),
            (ElementType::EmbeddedDocument, again("n"), true),
        ] {
            assert_eq!(json_of_first(&nulls(kind, &names)).is_err(), ambiguous, "{names:?}");
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_ambiguous() {
        let nest = |depth| (0..depth).fold(Bson::Int32(1), |inner, _| Bson::Document(doc! { "n": inner }));
        assert!(json_of(nest(DEPTH_LIMIT)).is_ok());
        assert_eq!(json_of(nest(DEPTH_LIMIT + 1)), Err(Ambiguous));
    }

    #[test]
    fn a_scope_is_kept_and_a_deep_one_is_ambiguous() {
        let code = |scope: Document| bson::JavaScriptCodeWithScope { code: "f()".to_owned(), scope };
        is(code(doc! { "a": 1 }), r#"{"$code":"f()","$scope":{"a":{"$numberInt":"1"}}}"#);
        let deep = (0..SCOPE_LIMIT).fold(doc! {}, |inner, _| doc! { "n": inner });
        assert_eq!(json_of(code(deep)), Err(Ambiguous));
    }

    #[test]
    fn what_postgresql_prints_reads_as_what_was_written() {
        let back = |json: &str| {
            let mut builder = raw::Builder::default();
            read(json.as_bytes(), "f", builder.bytes()).unwrap();
            Document::try_from(builder.finish().unwrap()).unwrap()
        };
        assert_eq!(back(r#"{"b": [1, null], "aa": 0.00001}"#), doc! { "f": { "b": [1, Bson::Null], "aa": 1e-5 } });
        assert_eq!(back(r#"{"$date": {"$numberLong": "7"}}"#), doc! { "f": DateTime::from_millis(7) });
        for refused in
            [r#"{"$date": "yesterday"}"#, r#"{"$numberLong": "1", "a": 1}"#, "18446744073709551615", "{", "1 2", ""]
        {
            assert!(read(refused.as_bytes(), "f", &mut Vec::new()).is_err(), "{refused}");
        }
    }
}
