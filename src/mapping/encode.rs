//! From a raw document to the tuple of its row, in one pass and without a tree in between.

use bson::RawDocument;
use bson::spec::ElementType;

use super::column::{self, Fit};
use super::key::Key;
use super::raw::{self, Builder, Element, Malformed, elements};
use super::{Mapping, tuple};
use crate::entity::{Entity, Field, KEY_LIMIT, Kind, NAME_LIMIT, Presence};
use crate::stamp::Stamp;

/// A document that became a row.
#[derive(Debug)]
pub struct Encoded {
    /// What stands in column `id`.
    pub key: Key,
    /// The fields in its residue; a regular document has none.
    pub irregular: Vec<String>,
}

/// A document that cannot become a row, and why.
#[derive(Debug)]
pub struct Refusal {
    /// Its key.
    pub key: Key,
    /// What is wrong with it, for the operator.
    pub reason: String,
}

/// The fields of one document, found.
struct Found<'a> {
    id: Element<'a>,
    /// The first element of each of the entity's fields.
    fields: Vec<Option<Element<'a>>>,
    /// All other elements: unknown fields, older names, repeated fields.
    others: Vec<Element<'a>>,
}

impl Mapping {
    /// Appends the tuple of `document`'s row to `out`, as [`Mapping::columns`] names its columns. A refused document
    /// leaves `out` as it was.
    pub fn encode(&self, document: &RawDocument, stamp: Stamp, out: &mut Vec<u8>) -> Result<Encoded, Refusal> {
        let start = out.len();
        let encoded = self.find(document).and_then(|found| write(self.entity(), &found, stamp, out));
        if encoded.is_err() {
            out.truncate(start);
        }
        encoded
    }

    /// The key of `document`.
    pub fn key(&self, document: &RawDocument) -> Key {
        // The server puts `_id` first and refuses documents without one; what cannot even be walked has no key of its
        // own and is known by its bytes.
        match raw::find(document, "_id") {
            Some(id) => Key::of(&id, self.entity().key),
            None => Key::of_bytes(document.as_bytes()),
        }
    }

    fn find<'a>(&self, document: &'a RawDocument) -> Result<Found<'a>, Refusal> {
        let refuse = |reason: &str| Refusal { key: self.key(document), reason: reason.to_owned() };
        let mut id = None;
        let mut fields = vec![None; self.entity().fields.len()];
        let mut others = Vec::new();
        let mut expected = 0;
        for element in elements(document) {
            let element = element.map_err(|Malformed| refuse("the name of a field is not UTF-8"))?;
            let slot = self.slot(element.name(), expected);
            match slot {
                Some(slot) if fields[slot].is_none() => {
                    expected = slot + 1;
                    fields[slot] = Some(element);
                }
                None if element.name() == "_id" && id.is_none() => id = Some(element),
                _ => others.push(element),
            }
        }
        let id = id.ok_or_else(|| refuse("_id is missing"))?;
        Ok(Found { id, fields, others })
    }

    /// The place of the field `name` in the field table; writers mostly keep the order of the table, so `expected`
    /// is tried first.
    fn slot(&self, name: &str, expected: usize) -> Option<usize> {
        let fields = self.entity().fields;
        if fields.get(expected).is_some_and(|field| field.name == name) {
            return Some(expected);
        }
        fields.iter().position(|field| field.name == name)
    }
}

fn write(entity: &Entity, found: &Found<'_>, stamp: Stamp, out: &mut Vec<u8>) -> Result<Encoded, Refusal> {
    let key = Key::of(&found.id, entity.key);
    if key.is_over_limit() {
        return Err(Refusal { key, reason: format!("_id is longer than {KEY_LIMIT} bytes") });
    }
    let mut residue = Residue::default();
    tuple::push_head(out, entity.fields.len() + 4);
    tuple::push(out, key.text().as_bytes());
    for (field, element) in entity.fields.iter().zip(&found.fields) {
        if let Err(reason) = write_field(field, element.as_ref(), &found.others, &mut residue, out) {
            return Err(Refusal { key, reason });
        }
    }
    found.others.iter().for_each(|element| residue.set(element));
    let irregular = residue.push_to(out);
    tuple::push(out, &stamp.epoch.to_be_bytes());
    tuple::push(out, &stamp.clock.to_be_bytes());
    Ok(Encoded { key, irregular })
}

fn write_field(
    field: &Field,
    element: Option<&Element<'_>>,
    others: &[Element<'_>],
    residue: &mut Residue,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let start = out.len();
    let value = element.or_else(|| others.iter().find(|other| is_older_name(field, other.name())));
    let Some(value) = value else {
        tuple::push_null(out);
        return require(field, None);
    };
    let fit = column::write(field.kind, value, out);
    if field.presence == Presence::Required && !fills_required(fit, field.kind, value) {
        out.truncate(start);
        return require(field, Some(value));
    }
    match element {
        Some(element) if fit != Fit::Exact || others.iter().any(|other| other.name() == field.name) => {
            residue.set(element);
        }
        None if fit != Fit::Nothing => residue.unset(field.name),
        _ => {}
    }
    Ok(())
}

pub(super) fn is_older_name(field: &Field, name: &str) -> bool {
    (name == field.column && name != field.name) || field.older.contains(&name)
}

/// A required name must not be cut short: two tenants would become one.
fn fills_required(fit: Fit, kind: Kind, value: &Element<'_>) -> bool {
    let cut = matches!(kind, Kind::Name) && value.string_bytes().is_some_and(|text| text.len() > NAME_LIMIT);
    fit != Fit::Nothing && !cut
}

fn require(field: &Field, value: Option<&Element<'_>>) -> Result<(), String> {
    let name = field.name;
    match (field.presence, value) {
        (Presence::Optional, _) => Ok(()),
        (_, None) => Err(format!("{name} is missing")),
        (_, Some(value)) => Err(match (value.kind(), field.kind) {
            (ElementType::Null, _) => format!("{name} is null"),
            (ElementType::Undefined, _) => format!("{name} is undefined"),
            (_, Kind::Word(vocabulary)) => {
                format!("{name} is not one of {}: {}", vocabulary.words.join(", "), column::show(value))
            }
            (_, Kind::Name) => format!("{name} is longer than {NAME_LIMIT} bytes"),
            (_, kind) => format!("{name} is no {}: {}", kind.data_type(), column::show(value)),
        }),
    }
}

/// What the columns cannot give back: `{"set": {field: value, …}, "unset": [field, …]}`.
#[derive(Default)]
struct Residue {
    set: Option<Builder>,
    names: Vec<String>,
    unset: Vec<&'static str>,
}

impl Residue {
    /// Keeps `element` as it is.
    fn set(&mut self, element: &Element<'_>) {
        self.set.get_or_insert_default().bytes().extend_from_slice(element.bytes());
        self.names.push(element.name().to_owned());
    }

    /// Notes that the document has no field `name` though its column is filled.
    fn unset(&mut self, name: &'static str) {
        self.unset.push(name);
    }

    /// Appends the column; returns the names of the fields it keeps.
    fn push_to(self, out: &mut Vec<u8>) -> Vec<String> {
        // What is unset came from an element that is set, so no residue without a set.
        let Some(mut set) = self.set else {
            tuple::push_null(out);
            return self.names;
        };
        raw::close(set.bytes(), 0);
        let start = tuple::open(out);
        raw::open(out);
        raw::push_head(out, ElementType::EmbeddedDocument, super::SET);
        out.extend_from_slice(set.bytes());
        if !self.unset.is_empty() {
            push_names(super::UNSET, &self.unset, out);
        }
        raw::close(out, start);
        tuple::close(out, start);
        self.names
    }
}

fn push_names(name: &str, names: &[&str], out: &mut Vec<u8>) {
    raw::push_head(out, ElementType::Array, name);
    let start = raw::open(out);
    for (index, name) in names.iter().enumerate() {
        raw::push_head(out, ElementType::String, &index.to_string());
        raw::push_string(out, name);
    }
    raw::close(out, start);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity;

    /// A document with values inside each other, `depth` of them.
    fn nested(depth: usize) -> Vec<u8> {
        (0..depth).fold(vec![5, 0, 0, 0, 0], |inner, _| {
            let mut outer = Builder::default();
            outer.push(ElementType::EmbeddedDocument, "n", &inner);
            outer.finish().unwrap().into_bytes()
        })
    }

    /// A run whose field `name` is nested as deep as MongoDB allows.
    fn deep_run(name: &str) -> bson::RawDocumentBuf {
        let mut run = Builder::default();
        for other in ["_id", "tenantId", "state"].into_iter().filter(|other| *other != name) {
            raw::push_head(run.bytes(), ElementType::String, other);
            raw::push_string(run.bytes(), "queued");
        }
        run.push(ElementType::EmbeddedDocument, name, &nested(178));
        run.finish().unwrap()
    }

    fn encode_and_rebuild(name: &str) {
        let mapping = Mapping::new(entity::named("runs").unwrap());
        let (mut out, stamp) = (Vec::new(), Stamp { epoch: 0, clock: 0 });
        match mapping.encode(&deep_run(name), stamp, &mut out) {
            Ok(_) => assert!(mapping.rebuild(&tuple::columns(&out).unwrap()).is_ok()),
            Err(refusal) => assert!(["_id", "state"].contains(&name) && out.is_empty(), "{name}: {}", refusal.reason),
        }
    }

    #[test]
    fn a_document_as_deep_as_mongodb_allows_fits_the_stack_of_a_thread() {
        for name in ["_id", "stats", "error", "tenantId", "state", "unknown"] {
            let small = std::thread::Builder::new().stack_size(1 << 20);
            small.spawn(move || encode_and_rebuild(name)).unwrap().join().unwrap();
        }
    }

    fn reason(document: &bson::RawDocument) -> String {
        let mapping = Mapping::new(entity::named("runs").unwrap());
        mapping.encode(document, Stamp { epoch: 0, clock: 0 }, &mut Vec::new()).unwrap_err().reason
    }

    #[test]
    fn a_refusal_says_what_is_wrong_with_the_required_field() {
        let long = "t".repeat(NAME_LIMIT + 1);
        let words = "planning, queued, running, completed, error, cancelled";
        assert_eq!(reason(&bson::rawdoc! { "_id": 1, "tenantId": bson::RawBson::Undefined }), "tenantId is undefined");
        assert_eq!(reason(&bson::rawdoc! { "_id": 1, "tenantId": bson::RawBson::Null }), "tenantId is null");
        assert_eq!(reason(&bson::rawdoc! { "_id": 1, "tenantId": long }), "tenantId is longer than 384 bytes");
        assert_eq!(reason(&bson::rawdoc! { "_id": 1, "tenantId": "t" }), "state is missing");
        assert_eq!(
            reason(&bson::rawdoc! { "_id": 1, "tenantId": "t", "state": "lost" }),
            format!("state is not one of {words}: \"lost\"")
        );
        assert_eq!(reason(&bson::rawdoc! { "tenantId": "t", "state": "queued" }), "_id is missing");
        assert_eq!(
            reason(&bson::rawdoc! { "_id": "k".repeat(KEY_LIMIT + 1), "tenantId": "t", "state": "queued" }),
            "_id is longer than 1400 bytes"
        );
    }
}
