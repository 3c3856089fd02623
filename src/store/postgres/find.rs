//! A query as SQL.
//!
//! Words of closed vocabularies and booleans stand in the text, since they decide which partial index serves the query;
//! every other value is bound, in the form in which its column holds it.

use bson::Bson;
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder};

use super::arrays::{Array, Element, Scalar, TEXT};
use crate::entity::{Field, Kind};
use crate::mapping::{self, Mapping, raw};
use crate::store::query::{Cursor, Direction, Filter, Query};
use crate::store::{Page, StoreError, Stored};

/// The statement of `query`, after `prefix`. It asks for one row more than the page has, to know whether there is another
/// page.
pub fn statement(prefix: &str, query: &Query, columns: &str) -> Result<QueryBuilder<Postgres>, StoreError> {
    let mut sql =
        QueryBuilder::new(format!("{prefix}select {columns} from scheduler.{} t where true", query.entity.name));
    for filter in &query.filters {
        push_filter(&mut sql, query, filter);
    }
    if let Some(after) = &query.after {
        push_after(&mut sql, query, after)?;
    }
    let direction = match query.order.direction {
        Direction::Ascending => "",
        Direction::Descending => " desc",
    };
    match query.order.field {
        Some(field) => sql.push(format!(" order by {}{direction}, id{direction}", ordered(query, field))),
        None => sql.push(format!(" order by id{direction}")),
    };
    sql.push(" limit ").push_bind(i64::from(query.limit) + 1);
    if query.skip > 0 {
        sql.push(" offset ").push_bind(i64::from(query.skip));
    }
    Ok(sql)
}

/// The page that `rows` are, the one beyond it cut off.
pub fn page(query: &Query, rows: &[PgRow]) -> Result<Page, StoreError> {
    let mapping = Mapping::new(query.entity);
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let items: Vec<Stored> =
        rows.iter().take(limit).map(|row| super::rows::stored(mapping, row)).collect::<Result<_, _>>()?;
    let last = items.last().filter(|_| rows.len() > limit);
    let next = last.map(|last| Cursor { value: value(query, last), id: mapping.key(&last.document).text().to_owned() });
    Ok(Page { items, next })
}

/// The value of the order's field, under whichever name the document has it; null where the column cannot hold it, and
/// is null itself.
fn value(query: &Query, last: &Stored) -> Bson {
    let field = query.order.field.and_then(|name| query.entity.field(name));
    let names = field.into_iter().flat_map(Field::names);
    let value = names.filter_map(|name| raw::find(&last.document, name)).find_map(|element| element.to_bson());
    let is_held = |value: &Bson| field.is_some_and(|field| mapping::of_value(field.kind, value).is_some());
    value.filter(is_held).unwrap_or(Bson::Null)
}

fn column(query: &Query, field: &'static str) -> &'static str {
    // A name that is no field is no column either: PostgreSQL refuses it.
    query.entity.field(field).map_or(field, |field| field.column)
}

/// What lacks the field comes first, as in MongoDB. The indexes are built on this expression.
fn ordered(query: &Query, field: &'static str) -> String {
    format!("coalesce({}, '{}')", column(query, field), least(query, field))
}

/// What stands for an absent value.
fn least(query: &Query, field: &'static str) -> &'static str {
    match query.kind(field) {
        Kind::Int64 => "-9223372036854775808",
        _ => "-infinity",
    }
}

fn push_filter(sql: &mut QueryBuilder<Postgres>, query: &Query, filter: &Filter) {
    sql.push(" and ");
    match filter {
        Filter::Is(field, value) => push_is(sql, query, field, std::slice::from_ref(value)),
        Filter::In(field, values) => push_is(sql, query, field, values),
        Filter::Absent(field) => {
            sql.push(column(query, field)).push(" is null");
        }
        Filter::From(field, value) => push_range(sql, query, (field, ">="), value),
        Filter::Above(field, value) => push_range(sql, query, (field, ">"), value),
        Filter::Below(field, value) => push_range(sql, query, (field, "<"), value),
        Filter::UpTo(field, value) => push_range(sql, query, (field, "<="), value),
    }
}

fn push_is(sql: &mut QueryBuilder<Postgres>, query: &Query, field: &'static str, values: &[Bson]) {
    let (kind, column) = (query.kind(field), column(query, field));
    match (kind, values) {
        (Kind::Word(vocabulary), _) => {
            // Only words of the vocabulary come into the text, never the value itself.
            let known = values.iter().filter_map(|value| vocabulary.word(value.as_str()?));
            let words: Vec<String> = known.map(|word| format!("'{word}'")).collect();
            let none = words.is_empty();
            sql.push(if none { "false".to_owned() } else { format!("{column} in ({})", words.join(", ")) });
        }
        (Kind::Bool, [Bson::Boolean(true)]) => {
            sql.push(column);
        }
        (Kind::Bool, [Bson::Boolean(false)]) => {
            sql.push(format!("not {column}"));
        }
        (_, [value]) => {
            sql.push(format!("{column} = ")).push_bind(scalar(kind, value));
        }
        _ => {
            let mut array = Array::new(Element::of(kind));
            values.iter().for_each(|value| array.push(mapping::of_value(kind, value).as_deref()));
            sql.push(format!("{column} = any(")).push_bind(array).push(")");
        }
    }
}

fn push_range(sql: &mut QueryBuilder<Postgres>, query: &Query, (field, operator): (&'static str, &str), value: &Bson) {
    let column = column(query, field);
    let compared = if query.order.field == Some(field) { ordered(query, field) } else { column.to_owned() };
    sql.push(format!("{column} is not null and {compared} {operator} ")).push_bind(scalar(query.kind(field), value));
}

/// The row comparison is one range of the index, however deep the page.
fn push_after(sql: &mut QueryBuilder<Postgres>, query: &Query, after: &Cursor) -> Result<(), StoreError> {
    let operator = match query.order.direction {
        Direction::Ascending => ">",
        Direction::Descending => "<",
    };
    let Some(field) = query.order.field else {
        sql.push(format!(" and id {operator} ")).push_bind(text(&after.id));
        return Ok(());
    };
    let value = scalar(query.kind(field), &after.value);
    if value.bytes.is_none() && after.value != Bson::Null {
        let attempted = format!("go on with a page of {}", query.entity.name);
        return Err(StoreError::Failed { attempted, source: "the cursor is of another query".into() });
    }
    sql.push(format!(" and ({}, id) {operator} (coalesce(", ordered(query, field)))
        .push_bind(value)
        .push(format!("::{}, '{}'), ", Element::of(query.kind(field)).name, least(query, field)))
        .push_bind(text(&after.id))
        .push(")");
    Ok(())
}

fn scalar(kind: Kind, value: &Bson) -> Scalar {
    Scalar { element: Element::of(kind), bytes: mapping::of_value(kind, value) }
}

fn text(text: &str) -> Scalar {
    Scalar { element: TEXT, bytes: Some(text.as_bytes().to_vec()) }
}
