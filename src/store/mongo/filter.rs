//! Queries and guards as MongoDB filters, built from the entity's field table.

use bson::spec::ElementType;
use bson::{Bson, Document, RawDocument, doc};

use crate::entity::{Entity, Kind};
use crate::mapping::{Key, NotAKey, raw};
use crate::store::query::{Cursor, Direction, Filter, Query};

/// The filter of `query`.
pub fn of(query: &Query) -> Result<Document, NotAKey> {
    let mut all: Vec<Document> = query.filters.iter().map(|filter| condition(query, filter)).collect();
    if let Some(after) = &query.after {
        all.push(beyond(query, after)?);
    }
    Ok(match all.len() {
        0 => doc! {},
        1 => all.remove(0),
        _ => doc! { "$and": all },
    })
}

/// The sort of `query`.
pub fn order(query: &Query) -> Document {
    let direction = match query.order.direction {
        Direction::Ascending => 1,
        Direction::Descending => -1,
    };
    match query.order.field {
        Some(field) => doc! { field: direction, "_id": direction },
        None => doc! { "_id": direction },
    }
}

/// Where `document` stands in the order of `query`.
pub fn cursor(query: &Query, document: &RawDocument, key: &Key) -> Cursor {
    let element = query.order.field.and_then(|field| raw::find(document, field));
    let value = element.and_then(|element| element.to_bson()).unwrap_or(Bson::Null);
    Cursor { value, id: key.text().to_owned() }
}

/// The `_id` that `key` stands for.
pub fn id(entity: &Entity, key: &Key) -> Result<Bson, NotAKey> {
    let document = key.document(entity.key)?;
    Ok(raw::first(&document).and_then(|id| id.to_bson()).unwrap_or(Bson::Null))
}

fn condition(query: &Query, filter: &Filter) -> Document {
    match filter {
        Filter::Is(field, value) => is(query, field, std::slice::from_ref(value)),
        Filter::In(field, values) => is(query, field, values),
        // Equality with null holds for absent fields too.
        Filter::Absent(field) => doc! { *field: Bson::Null },
        Filter::From(field, value) => doc! { *field: { "$gte": value } },
        Filter::Above(field, value) => doc! { *field: { "$gt": value } },
        Filter::Below(field, value) => doc! { *field: { "$lt": value } },
        Filter::UpTo(field, value) => doc! { *field: { "$lte": value } },
    }
}

/// `$eq` and `$in` take the values as data, whatever they contain. A word stands for its older spellings too.
fn is(query: &Query, field: &'static str, values: &[Bson]) -> Document {
    let spellings: Vec<Bson> = match query.kind(field) {
        Kind::Word(vocabulary) => {
            let words = values.iter().filter_map(|value| vocabulary.word(value.as_str()?));
            words.flat_map(|word| vocabulary.spellings(word)).map(Bson::from).collect()
        }
        _ => values.to_vec(),
    };
    match spellings.as_slice() {
        [one] => doc! { field: { "$eq": one } },
        _ => doc! { field: { "$in": spellings } },
    }
}

/// What comes after `after`. A range in MongoDB holds only values of its own type, so the types beyond stand beside it:
/// nothing is passed over because an older writer stored a text where a date belongs.
fn beyond(query: &Query, after: &Cursor) -> Result<Document, NotAKey> {
    let direction = query.order.direction;
    let id = id(query.entity, &Key::from_text(after.id.as_str()))?;
    let Some(field) = query.order.field else {
        return Ok(doc! { "$or": past("_id", &id, direction) });
    };
    let mut either = past(field, &after.value, direction);
    for mut tied in past("_id", &id, direction) {
        tied.insert(field, doc! { "$eq": &after.value });
        either.push(tied);
    }
    Ok(doc! { "$or": either })
}

/// The conditions, any of which holds for what comes after `value` in `field`.
fn past(field: &str, value: &Bson, direction: Direction) -> Vec<Document> {
    let operator = match direction {
        Direction::Ascending => "$gt",
        Direction::Descending => "$lt",
    };
    let place = ORDER.iter().position(|types| types.contains(&value.element_type()));
    let types = match (place, direction) {
        (None, _) => &ORDER[..0],
        (Some(place), Direction::Ascending) => &ORDER[place + 1..],
        (Some(place), Direction::Descending) => &ORDER[..place],
    };
    let types: Vec<i32> = types.iter().flat_map(|types| types.iter()).map(|kind| number(*kind)).collect();
    let mut past = vec![doc! { field: { "$type": types } }];
    if *value == Bson::Null {
        // Nothing is greater or less than null, and what is absent has no type but sorts as null.
        return past;
    }
    past.insert(0, doc! { field: { operator: value } });
    let descends_to_null = direction == Direction::Descending && place.is_some_and(|place| place > NULLS);
    if descends_to_null {
        past.push(doc! { field: Bson::Null });
    }
    past
}

/// The types of BSON in the order in which MongoDB sorts them (manual, "Comparison/Sort Order").
const ORDER: &[&[ElementType]] = &[
    &[ElementType::MinKey],
    &[ElementType::Null, ElementType::Undefined],
    &[ElementType::Int32, ElementType::Int64, ElementType::Double, ElementType::Decimal128],
    &[ElementType::String, ElementType::Symbol],
    &[ElementType::EmbeddedDocument],
    &[ElementType::Array],
    &[ElementType::Binary],
    &[ElementType::ObjectId],
    &[ElementType::Boolean],
    &[ElementType::DateTime],
    &[ElementType::Timestamp],
    &[ElementType::RegularExpression],
    &[ElementType::MaxKey],
];

/// The place of null in [`ORDER`].
const NULLS: usize = 1;

/// The number that `$type` takes: that of BSON, but for the two ends.
fn number(kind: ElementType) -> i32 {
    match kind {
        ElementType::MinKey => -1,
        ElementType::MaxKey => 127,
        kind => i32::from(kind as u8),
    }
}
