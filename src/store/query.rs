//! Questions to a store, as values.
//!
//! A query names fields of the entity's table and nothing else, so every store can answer it from the same table. Order is
//! total: a field and the key, or the key alone.

use std::fmt;

use bson::{Bson, RawDocument, doc};

use crate::entity::{Entity, Kind, NAME_LIMIT};
use crate::mapping::hex;

/// A question to a store.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// What is asked for.
    pub entity: &'static Entity,
    /// All of which must hold.
    pub filters: Vec<Filter>,
    /// The order of the answer.
    pub order: Order,
    /// Where the page before ended; nothing for the first page.
    pub after: Option<Cursor>,
    /// How many to pass over.
    pub skip: u32,
    /// How many at most.
    pub limit: u32,
}

impl Query {
    /// All of `entity`, by key, without end.
    pub fn of(entity: &'static Entity) -> Self {
        let order = Order { field: None, direction: Direction::Ascending };
        Self { entity, filters: Vec::new(), order, after: None, skip: 0, limit: u32::MAX }
    }

    /// Only what `filter` holds for.
    #[must_use]
    pub fn only(mut self, filter: Filter) -> Self {
        self.filters.push(filter);
        self
    }

    /// Only what each of `filters` that is there holds for.
    #[must_use]
    pub fn only_if(mut self, filter: Option<Filter>) -> Self {
        self.filters.extend(filter);
        self
    }

    /// By `field`, then by key.
    #[must_use]
    pub fn by(mut self, field: &'static str, direction: Direction) -> Self {
        self.order = Order { field: Some(field), direction };
        self
    }

    /// What comes after a page that ended at `after`.
    #[must_use]
    pub fn after(mut self, after: Option<Cursor>) -> Self {
        self.after = after;
        self
    }

    /// Not the first `skip`.
    #[must_use]
    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    /// At most `limit`.
    #[must_use]
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = limit;
        self
    }

    /// Whether nothing can match: a column holds no such text, so no document written by the scheduler has it.
    pub(super) fn is_hopeless(&self) -> bool {
        let hopeless = |value: &Bson| value.as_str().is_some_and(|text| text.len() > NAME_LIMIT || text.contains('\0'));
        self.filters.iter().any(|filter| match filter {
            Filter::Is(_, value) => hopeless(value),
            Filter::In(_, values) => values.iter().all(hopeless),
            _ => false,
        })
    }

    /// The kind of a field of the entity; text where there is no such field, which the tests of the repositories find.
    pub(super) fn kind(&self, field: &str) -> Kind {
        self.entity.field(field).map_or(Kind::Text, |field| field.kind)
    }
}

/// The question for people, but for its limit; values as extended JSON.
impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, filter) in self.filters.iter().enumerate() {
            write!(f, "{} {filter} ", if index == 0 { "where" } else { "and" })?;
        }
        let direction = match self.order.direction {
            Direction::Ascending => "",
            Direction::Descending => " descending",
        };
        write!(f, "by {}{direction}", self.order.field.unwrap_or("_id"))?;
        if let Some(Cursor { value, id }) = &self.after {
            write!(f, " after {} {id:?}", json(value))?;
        }
        if self.skip > 0 { write!(f, ", {} passed over", self.skip) } else { Ok(()) }
    }
}

fn json(value: &Bson) -> serde_json::Value {
    value.clone().into_relaxed_extjson()
}

/// A condition on one field, by its name in the document.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// Equals the value. Of a closed vocabulary, older spellings of the word are the word.
    Is(&'static str, Bson),
    /// Equals one of the values.
    In(&'static str, Vec<Bson>),
    /// Is absent or null.
    Absent(&'static str),
    /// Is the value or greater.
    From(&'static str, Bson),
    /// Is greater than the value.
    Above(&'static str, Bson),
    /// Is less than the value.
    Below(&'static str, Bson),
    /// Is the value or less.
    UpTo(&'static str, Bson),
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (field, sign, value) = match self {
            Self::Is(field, value) => (field, "=", json(value)),
            Self::In(field, values) => (field, "in", values.iter().map(json).collect()),
            Self::Absent(field) => return write!(f, "{field} is absent or null"),
            Self::From(field, value) => (field, ">=", json(value)),
            Self::Above(field, value) => (field, ">", json(value)),
            Self::Below(field, value) => (field, "<", json(value)),
            Self::UpTo(field, value) => (field, "<=", json(value)),
        };
        write!(f, "{field} {sign} {value}")
    }
}

/// The order of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The field that comes before the key: a date or an Int64. What lacks it comes first.
    pub field: Option<&'static str>,
    /// Of both.
    pub direction: Direction,
}

/// Which end comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The least.
    Ascending,
    /// The greatest.
    Descending,
}

/// Where a page ended: the last item's place in the order.
#[derive(Debug, Clone, PartialEq)]
pub struct Cursor {
    /// The value of the field of the order; null when it is absent, or the order has none.
    pub value: Bson,
    /// The text of the key.
    pub id: String,
}

/// A text that is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the page's cursor is not one that a page before it gave")]
pub struct NotACursor;

impl Cursor {
    /// An opaque text for callers outside the program.
    pub fn to_text(&self) -> String {
        let document = doc! { "v": self.value.clone(), "i": &self.id };
        // Values of a cursor are dates, numbers and texts, which always serialize.
        hex(&bson::serialize_to_vec(&document).unwrap_or_default())
    }

    /// The cursor of such a text.
    pub fn from_text(text: &str) -> Result<Self, NotACursor> {
        let bytes = crate::mapping::unhex(text).ok_or(NotACursor)?;
        let document = RawDocument::from_bytes(&bytes).map_err(|_| NotACursor)?;
        let value = document.get("v").ok().flatten().ok_or(NotACursor)?;
        let id = document.get_str("i").map_err(|_| NotACursor)?.to_owned();
        Ok(Self { value: value.try_into().map_err(|_| NotACursor)?, id })
    }
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The items, in order.
    pub items: Vec<super::Stored>,
    /// Where the next page begins; nothing when there was no more.
    pub next: Option<Cursor>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_told_with_its_values_as_data() {
        let runs = crate::entity::named("runs").unwrap();
        let query = Query::of(runs)
            .only(Filter::Is("tenantId", "a\" or \u{1b}".into()))
            .only(Filter::In("state", vec!["planning".into(), "queued".into()]))
            .only(Filter::Absent("error"))
            .only(Filter::UpTo("createdAt", bson::DateTime::from_millis(0).into()));
        assert!(query.clone().skip(3).to_string().ends_with(" by _id, 3 passed over"));
        assert_eq!(
            query
                .by("createdAt", Direction::Descending)
                .after(Some(Cursor { value: Bson::Int32(5), id: "x".into() }))
                .to_string(),
            "where tenantId = \"a\\\" or \\u001b\" and state in [\"planning\",\"queued\"] and error is absent or null and \
             createdAt <= {\"$date\":\"1970-01-01T00:00:00Z\"} by createdAt descending after 5 \"x\""
        );
    }

    #[test]
    fn a_cursor_comes_back_from_its_text_and_other_texts_are_refused() {
        for value in [Bson::Null, Bson::Int64(-5), Bson::DateTime(bson::DateTime::from_millis(1)), "x".into()] {
            let cursor = Cursor { value, id: "run:\u{1f600}".to_owned() };
            assert_eq!(Cursor::from_text(&cursor.to_text()), Ok(cursor));
        }
        for text in ["", "00", "zz", "0500000000"] {
            assert_eq!(Cursor::from_text(text), Err(NotACursor), "{text}");
        }
    }
}
