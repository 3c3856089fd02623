//! `jsonb` as BSON values: the text is read straight into the element that it becomes.

use bson::spec::ElementType;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

use super::{Ambiguous, of_extended};
use crate::mapping::raw;

/// Appends the element `name` whose value has the JSON text `json`.
pub fn read(json: &[u8], name: &str, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    // Looked at once as a whole, which costs a part of what it costs text by text.
    let json = std::str::from_utf8(json).map_err(serde_json::Error::custom)?;
    let mut deserializer = serde_json::Deserializer::from_str(json);
    deserializer.disable_recursion_limit();
    let head = raw::open_element(out, name);
    ValueSeed { out, head }.deserialize(&mut deserializer)?;
    deserializer.end()
}

/// The JSON text as a tree, however deep it is.
pub fn parse(json: &[u8]) -> Option<serde_json::Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    deserializer.disable_recursion_limit();
    let value = serde::Deserialize::deserialize(&mut deserializer).ok()?;
    deserializer.end().ok().map(|()| value)
}

/// Reads one JSON value straight into the BSON element whose type byte is to stand at `head`; its name is written.
struct ValueSeed<'a> {
    out: &'a mut Vec<u8>,
    head: usize,
}

impl ValueSeed<'_> {
    fn push(self, kind: ElementType, value: &[u8]) {
        self.out[self.head] = kind as u8;
        self.out.extend_from_slice(value);
    }

    /// Appends the value of extended JSON whose first name has been read. Dates and long integers, the most frequent,
    /// go without a tree in between.
    fn push_marked<'de, A: MapAccess<'de>>(self, first: Mark, mut map: A) -> Result<(), A::Error> {
        let (kind, value) = match first {
            Mark::Date => (ElementType::DateTime, map.next_value::<Long<'_>>()?.number),
            Mark::Long => (ElementType::Int64, map.next_value()?),
            Mark::Other(first) => {
                let json = extended(first, map)?;
                let (kind, value) = of_extended(json).map_err(|Ambiguous| not_extended())?;
                self.push(kind, &value);
                return Ok(());
            }
        };
        let value: i64 = value.parse().map_err(|_| not_extended())?;
        if map.next_key::<&str>()?.is_some() {
            return Err(not_extended());
        }
        self.push(kind, &value.to_le_bytes());
        Ok(())
    }
}

/// The first name of an object that is extended JSON.
enum Mark {
    Date,
    Long,
    Other(String),
}

impl Mark {
    fn of(name: &str) -> Self {
        match name {
            "$date" => Self::Date,
            "$numberLong" => Self::Long,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// What stands inside `$date`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Long<'a> {
    #[serde(rename = "$numberLong")]
    number: &'a str,
}

fn not_extended<E: Error>() -> E {
    E::custom("not extended JSON")
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.push(ElementType::Null, &[]);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.push(ElementType::Boolean, &[u8::from(value)]);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        match i32::try_from(value) {
            Ok(value) => self.push(ElementType::Int32, &value.to_le_bytes()),
            Err(_) => self.push(ElementType::Int64, &value.to_le_bytes()),
        }
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        let value = i64::try_from(value).map_err(|_| E::custom("an integer beyond Int64 is written by no mapping"))?;
        self.visit_i64(value)
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.push(ElementType::Double, &value.to_le_bytes());
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.out[self.head] = ElementType::String as u8;
        raw::push_string(self.out, text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        self.out[self.head] = ElementType::Array as u8;
        let start = raw::open(self.out);
        let mut index = 0_u32;
        let end = loop {
            let end = self.out.len();
            let head = open_indexed(self.out, index).map_err(A::Error::custom)?;
            if array.next_element_seed(ValueSeed { out: self.out, head })?.is_none() {
                break end;
            }
            index += 1;
        };
        self.out.truncate(end);
        raw::close(self.out, start);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let start = raw::open(self.out);
        let mut next = map.next_key_seed(NameSeed { out: self.out, is_first: true })?;
        while let Some(name) = next {
            match name {
                Name::Field { head } => map.next_value_seed(ValueSeed { out: self.out, head })?,
                Name::Mark(mark) => {
                    self.out.truncate(start);
                    return self.push_marked(mark, map);
                }
            }
            next = map.next_key_seed(NameSeed { out: self.out, is_first: false })?;
        }
        self.out[self.head] = ElementType::EmbeddedDocument as u8;
        raw::close(self.out, start);
        Ok(())
    }
}

/// Opens an array's element, whose name is its place.
fn open_indexed(out: &mut Vec<u8>, index: u32) -> Result<usize, serde_json::Error> {
    let head = out.len();
    out.push(0);
    serde_json::to_writer(&mut *out, &index)?;
    out.push(0);
    Ok(head)
}

/// What a name in an object is.
enum Name {
    /// That of a field: an element that is opened.
    Field { head: usize },
    /// The first of extended JSON.
    Mark(Mark),
}

/// Reads a name, and opens its element.
struct NameSeed<'a> {
    out: &'a mut Vec<u8>,
    is_first: bool,
}

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = Name;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = Name;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        if self.is_first && name.starts_with('$') {
            return Ok(Name::Mark(Mark::of(name)));
        }
        Ok(Name::Field { head: raw::open_element(self.out, name) })
    }
}

/// The object that starts with the name `first`, which only extended JSON has.
fn extended<'de, A: MapAccess<'de>>(first: String, mut map: A) -> Result<serde_json::Value, A::Error> {
    let mut object = serde_json::Map::new();
    object.insert(first, map.next_value()?);
    while let Some((name, value)) = map.next_entry()? {
        object.insert(name, value);
    }
    Ok(serde_json::Value::Object(object))
}
