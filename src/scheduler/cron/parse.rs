//! The grammar: every field becomes a plain list of numbers, and every error knows its place.

use std::ops::RangeInclusive;

/// Why an expression, or its zone, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// Something in the expression cannot be read.
    #[error("{expression:?}, character {position}, {field}: {reason}")]
    Expression {
        /// The whole expression.
        expression: String,
        /// Where the error is: characters, from 1.
        position: usize,
        /// In which field.
        field: &'static str,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// The zone is not one of the IANA database.
    #[error("{zone:?} is not a zone of the IANA database: write it like Europe/Berlin or UTC")]
    Zone {
        /// What was given.
        zone: String,
    },
    /// The calendar does not take the expression though the grammar does; no such expression is known.
    #[error("the calendar refuses the expression: {reason}")]
    Calendar {
        /// What the calendar says.
        reason: String,
    },
}

/// One field of the grammar.
struct Field {
    name: &'static str,
    values: RangeInclusive<u32>,
    names: &'static [&'static str],
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    DayOfMonth,
    DayOfWeek,
}

const MONTHS: &[&str] = &["", "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: &[&str] = &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

const FIELDS: [Field; 6] = [
    Field { name: "seconds", values: 0..=59, names: &[], kind: Kind::Plain },
    Field { name: "minutes", values: 0..=59, names: &[], kind: Kind::Plain },
    Field { name: "hours", values: 0..=23, names: &[], kind: Kind::Plain },
    Field { name: "days of the month", values: 1..=31, names: &[], kind: Kind::DayOfMonth },
    Field { name: "months", values: 1..=12, names: MONTHS, kind: Kind::Plain },
    Field { name: "days of the week", values: 0..=7, names: DAYS, kind: Kind::DayOfWeek },
];

const NICKNAMES: &[(&str, &str)] = &[
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// The longest day of each month.
const LONGEST: [u32; 13] = [0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// A piece of an expression, and where it begins: bytes, from 0.
#[derive(Clone, Copy)]
struct Piece<'a> {
    text: &'a str,
    start: usize,
}

impl<'a> Piece<'a> {
    /// The pieces between `separator`s.
    fn split(self, separator: char) -> impl Iterator<Item = Piece<'a>> {
        self.text
            .split(separator)
            .map(move |text| Piece { text, start: self.start + (text.as_ptr().addr() - self.text.as_ptr().addr()) })
    }

    /// What stands before and after the first `separator`.
    fn cut(self, separator: char) -> (Piece<'a>, Option<Piece<'a>>) {
        match self.text.split_once(separator) {
            Some((before, after)) => {
                let start = self.start + before.len() + separator.len_utf8();
                (Piece { text: before, ..self }, Some(Piece { text: after, start }))
            }
            None => (self, None),
        }
    }
}

/// What one field matches.
#[derive(Default)]
struct Matches {
    numbers: Vec<u32>,
    /// `L`, `FRIL`, `FRI#2`, as the calendar spells them.
    others: Vec<String>,
    is_any: bool,
}

impl Matches {
    fn text(&self) -> String {
        if self.is_any {
            return "*".to_owned();
        }
        let numbers = self.numbers.iter().map(u32::to_string);
        numbers.chain(self.others.iter().cloned()).collect::<Vec<_>>().join(",")
    }
}

/// The six fields of `expression` as lists of numbers.
pub(super) fn normal(expression: &str) -> Result<String, CronError> {
    let trimmed = expression.trim();
    let start = expression.len() - expression.trim_start().len();
    if trimmed.starts_with('@') {
        let known = NICKNAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(trimmed));
        let names = || NICKNAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let (_, fields) =
            known.ok_or_else(|| refused(expression, start, "nickname", format!("it is none of {}", names())))?;
        return normal(fields);
    }
    let whole = Piece { text: expression, start: 0 };
    let pieces: Vec<Piece<'_>> =
        whole.split(' ').flat_map(|piece| piece.split('\t')).filter(|piece| !piece.text.is_empty()).collect();
    let fields = match pieces.len() {
        5 => &FIELDS[1..],
        6 => &FIELDS[..],
        count => {
            return Err(refused(
                expression,
                expression.len(),
                "fields",
                format!("there are {count}: give five, or six with seconds first"),
            ));
        }
    };
    let read = |(piece, field): (&Piece<'_>, &Field)| matches(expression, *piece, field);
    let mut all: Vec<Matches> = pieces.iter().zip(fields).map(read).collect::<Result<_, _>>()?;
    if all.len() == 5 {
        all.insert(0, Matches { numbers: vec![0], ..Matches::default() });
    }
    if let [.., days, months, weekdays] = all.as_slice()
        && never(days, months, weekdays)
    {
        let at = pieces[pieces.len() - 3].start;
        return Err(refused(
            expression,
            at,
            FIELDS[3].name,
            "no month that is named has such a day: it would never fire",
        ));
    }
    Ok(all.iter().map(Matches::text).collect::<Vec<_>>().join(" "))
}

/// Whether no date can match: day 30 of February, day 31 of short months.
fn never(days: &Matches, months: &Matches, weekdays: &Matches) -> bool {
    let any_month: Vec<u32> = (1..=12).collect();
    let months = if months.is_any { &any_month } else { &months.numbers };
    let is_date =
        |day: &u32| months.iter().any(|month| LONGEST.get(*month as usize).is_some_and(|longest| day <= longest));
    weekdays.is_any && !days.is_any && days.others.is_empty() && !days.numbers.iter().any(is_date)
}

fn matches(expression: &str, piece: Piece<'_>, field: &Field) -> Result<Matches, CronError> {
    let is_day = field.kind != Kind::Plain;
    if piece.text == "*" || (piece.text == "?" && is_day) {
        return Ok(Matches { is_any: true, ..Matches::default() });
    }
    let mut matches = Matches::default();
    for item in piece.split(',') {
        match special(expression, item, field)? {
            Some(other) => matches.others.push(other),
            None => matches.numbers.extend(range(expression, item, field)?),
        }
    }
    if field.kind == Kind::DayOfWeek {
        matches.numbers.iter_mut().for_each(|day| *day %= 7);
    }
    matches.numbers.sort_unstable();
    matches.numbers.dedup();
    Ok(matches)
}

/// What only fields of days have: `L`, `FRIL`, `FRI#2`.
fn special(expression: &str, item: Piece<'_>, field: &Field) -> Result<Option<String>, CronError> {
    let refuse = |at: usize, reason: &str| Err(refused(expression, at, field.name, reason));
    match field.kind {
        Kind::DayOfMonth if item.text.eq_ignore_ascii_case("L") => Ok(Some("L".to_owned())),
        Kind::DayOfWeek if item.text.contains('#') => {
            let (day, nth) = item.cut('#');
            let day = value(expression, day, field)? % 7;
            match nth.map(|nth| (nth, nth.text.parse::<u32>())) {
                Some((_, Ok(nth @ 1..=5))) => Ok(Some(format!("{day}#{nth}"))),
                nth => refuse(nth.map_or(item.start, |(nth, _)| nth.start), "after # stands 1 to 5"),
            }
        }
        Kind::DayOfWeek if item.text.ends_with(['L', 'l']) => {
            let day = Piece { text: &item.text[..item.text.len() - 1], ..item };
            if day.text.is_empty() {
                return refuse(item.start, "L stands after a day of the week: 5L is the last Friday of the month");
            }
            Ok(Some(format!("{}L", value(expression, day, field)? % 7)))
        }
        _ => Ok(None),
    }
}

/// `*`, a value or a range, each with or without a step. A single value with a step goes on to the end.
fn range(expression: &str, item: Piece<'_>, field: &Field) -> Result<impl Iterator<Item = u32> + use<>, CronError> {
    let refuse = |at: usize, reason: String| Err(refused(expression, at, field.name, reason));
    let (values, step) = item.cut('/');
    let largest = if field.kind == Kind::DayOfWeek { 6 } else { *field.values.end() };
    let (first, last) = match values.cut('-') {
        _ if values.text == "*" => (*field.values.start(), largest),
        (first, Some(last)) => {
            let (first, mut end) = (value(expression, first, field)?, value(expression, last, field)?);
            // Sunday ends a week as well as it begins one.
            if field.kind == Kind::DayOfWeek && end == 0 && first > 0 {
                end = 7;
            }
            if end < first {
                return refuse(last.start, format!("the range ends before it begins: {}", values.text));
            }
            (first, end)
        }
        (first, None) => {
            let first = value(expression, first, field)?;
            (first, if step.is_some() { largest.max(first) } else { first })
        }
    };
    let step = match step.map(|step| (step, step.text.parse::<usize>())) {
        None => 1,
        Some((_, Ok(step))) if step > 0 => step,
        Some((step, _)) => return refuse(step.start, "a step is a number from 1".to_owned()),
    };
    Ok((first..=last).step_by(step))
}

/// A number or a name.
fn value(expression: &str, piece: Piece<'_>, field: &Field) -> Result<u32, CronError> {
    let named = field.names.iter().position(|name| !name.is_empty() && name.eq_ignore_ascii_case(piece.text));
    let is_number = !piece.text.is_empty() && piece.text.bytes().all(|byte| byte.is_ascii_digit());
    let number = is_number.then(|| piece.text.parse().ok()).flatten();
    let value = named.and_then(|index| u32::try_from(index).ok()).or(number);
    let allowed = || {
        let names = field.names.iter().filter(|name| !name.is_empty()).copied().collect::<Vec<_>>().join(", ");
        let names = if names.is_empty() { names } else { format!(", or {names}") };
        format!("{} to {}{names}", field.values.start(), field.values.end())
    };
    value
        .filter(|value| field.values.contains(value))
        .ok_or_else(|| refused(expression, piece.start, field.name, format!("{:?} is not {}", piece.text, allowed())))
}

fn refused(expression: &str, at: usize, field: &'static str, reason: impl Into<String>) -> CronError {
    let position = expression[..at.min(expression.len())].chars().count() + 1;
    CronError::Expression { expression: expression.to_owned(), position, field, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_becomes_a_list_of_numbers() {
        for (expression, expected) in [
            ("* * * * *", "0 * * * * *"),
            ("*/20 1-3 1,15,L jan-MAR mon-FRI", "0 0,20,40 1,2,3 1,15,L 1,2,3 1,2,3,4,5"),
            ("5/20 0 0 ? * 7", "5,25,45 0 0 * * 0"),
            ("0 0 * * fri-sun", "0 0 0 * * 0,5,6"),
            ("0 0 * * 5-7/2,SUNL,mon#1", "0 0 0 * * 0,5,0L,1#1"),
            (" \t@Weekly ", "0 0 0 * * 0"),
            ("0 0 29 2 *", "0 0 0 29 2 *"),
            ("0 0 31 2 MON", "0 0 0 31 2 1"),
        ] {
            assert_eq!(normal(expression).as_deref(), Ok(expected), "{expression}");
        }
    }

    #[test]
    fn a_refusal_says_where_and_what_is_allowed() {
        for (expression, position, field, reason) in REFUSED {
            let Err(CronError::Expression { position: at, field: of, reason: why, .. }) = normal(expression) else {
                panic!("{expression} was not refused");
            };
            assert_eq!((at, of), (*position, *field), "{expression}: {why}");
            assert!(why.contains(reason), "{expression}: {why}");
        }
    }

    const REFUSED: &[(&str, usize, &str, &str)] = &[
        ("", 1, "fields", "there are 0"),
        ("* * * *", 8, "fields", "there are 4"),
        ("* * * * * * *", 14, "fields", "there are 7"),
        ("60 * * * *", 1, "minutes", "\"60\" is not 0 to 59"),
        ("* 24 * * *", 3, "hours", "\"24\" is not 0 to 23"),
        ("* * 0 * *", 5, "days of the month", "\"0\" is not 1 to 31"),
        ("* * * 13 *", 7, "months", "\"13\" is not 1 to 12, or JAN, FEB"),
        ("* * * * 8", 9, "days of the week", "\"8\" is not 0 to 7, or SUN, MON"),
        ("61 * * * * *", 1, "seconds", "\"61\" is not 0 to 59"),
        ("1,2,x * * * *", 5, "minutes", "\"x\" is not"),
        ("1,,2 * * * *", 3, "minutes", "\"\" is not"),
        ("5-1 * * * *", 3, "minutes", "ends before it begins: 5-1"),
        ("*/0 * * * *", 3, "minutes", "a step is a number from 1"),
        ("*/x * * * *", 3, "minutes", "a step is a number from 1"),
        ("*/ * * * *", 3, "minutes", "a step is a number from 1"),
        ("* * * * MON#6", 13, "days of the week", "after # stands 1 to 5"),
        ("* * * * MON#", 13, "days of the week", "after # stands 1 to 5"),
        ("* * * * #2", 9, "days of the week", "\"\" is not"),
        ("* * * * L", 9, "days of the week", "5L is the last Friday"),
        ("* * LW * *", 5, "days of the month", "\"LW\" is not"),
        ("* * * FEBRUARY *", 7, "months", "\"FEBRUARY\" is not"),
        ("? * * * *", 1, "minutes", "\"?\" is not"),
        ("* * * * +1", 9, "days of the week", "\"+1\" is not"),
        ("-1 * * * *", 1, "minutes", "\"\" is not"),
        ("99999999999 * * * *", 1, "minutes", "is not 0 to 59"),
        ("0 0 30 2 *", 5, "days of the month", "it would never fire"),
        ("0 0 31 2,4,6,9,11 *", 5, "days of the month", "it would never fire"),
        ("@reboot", 1, "nickname", "it is none of @yearly"),
        ("  @never", 3, "nickname", "it is none of @yearly"),
        ("äöü * * * *", 1, "minutes", "\"äöü\" is not"),
        ("1,ä,99 * * * *", 3, "minutes", "\"ä\" is not"),
        ("1-2-3 * * * *", 3, "minutes", "\"2-3\" is not"),
        ("1/2/3 * * * *", 3, "minutes", "a step is a number from 1"),
        ("L * * * *", 1, "minutes", "\"L\" is not"),
        ("* * 15W * *", 5, "days of the month", "\"15W\" is not"),
    ];

    #[test]
    fn no_text_makes_the_grammar_panic() {
        let alphabet = ['*', '/', '-', ',', '#', 'L', '?', '1', '7', '9', ' ', '@', 'M', 'O', 'N', 'ä', '\0'];
        for length in 0..5_u32 {
            for number in 0..u32::try_from(alphabet.len()).unwrap().pow(length) {
                let mut rest = usize::try_from(number).unwrap();
                let field: String = (0..length)
                    .map(|_| {
                        let at = rest % alphabet.len();
                        rest /= alphabet.len();
                        alphabet[at]
                    })
                    .collect();
                drop(normal(&format!("{field} * * * *")));
                drop(normal(&format!("* * * * {field}")));
            }
        }
    }
}
