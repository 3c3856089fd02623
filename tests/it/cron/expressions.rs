//! Expressions of every form that the grammar has, by chance.

use crate::faults::killed::Moments;

const MONTHS: [&str; 12] = ["JAN", "feb", "Mar", "APR", "MAY", "JUN", "jul", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: [&str; 7] = ["SUN", "mon", "Tue", "WED", "THU", "fri", "SAT"];
const NICKNAMES: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// An expression.
pub fn expression(dice: &mut Moments) -> String {
    if dice.below(25) == 0 {
        return pick(dice, &NICKNAMES).to_owned();
    }
    let mut fields = vec![
        times(dice, 59),
        times(dice, 23),
        day_of_month(dice),
        list(dice, 40, |dice| range(dice, (1, 12), &MONTHS, 1)),
        day_of_week(dice),
    ];
    if dice.below(3) == 0 {
        fields.insert(0, times(dice, 59));
    }
    fields.join([" ", "  ", "\u{20}"][usize::try_from(dice.below(3)).expect("small")])
}

fn pick<'a>(dice: &mut Moments, words: &[&'a str]) -> &'a str {
    words[usize::try_from(dice.below(words.len() as u64)).expect("small")]
}

/// `*` so many times of a hundred, else up to three items.
fn list(dice: &mut Moments, stars: u64, item: impl Fn(&mut Moments) -> String) -> String {
    if dice.below(100) < stars {
        return "*".to_owned();
    }
    (0..=dice.below(3)).map(|_| item(dice)).collect::<Vec<_>>().join(",")
}

fn times(dice: &mut Moments, largest: u64) -> String {
    list(dice, 20, |dice| range(dice, (0, largest), &[], 0))
}

fn day_of_month(dice: &mut Moments) -> String {
    match dice.below(12) {
        0 => "?".to_owned(),
        1 => "L".to_owned(),
        2 => format!("{},L", 1 + dice.below(28)),
        _ => list(dice, 50, |dice| range(dice, (1, 31), &[], 0)),
    }
}

fn day_of_week(dice: &mut Moments) -> String {
    match dice.below(12) {
        0 => "?".to_owned(),
        1 => format!("{}#{}", pick(dice, &DAYS), 1 + dice.below(5)),
        2 => format!("{}L,{}#{}", dice.below(8), dice.below(8), 1 + dice.below(5)),
        3 => format!("{}L", pick(dice, &DAYS)),
        4 => "FRI-SUN".to_owned(),
        _ => list(dice, 50, |dice| {
            let sunday = 6 + dice.below(2);
            range(dice, (0, sunday), &DAYS, 0)
        }),
    }
}

/// A value, a range or a star, with or without a step.
fn range(dice: &mut Moments, (low, high): (u64, u64), names: &[&str], first_name: u64) -> String {
    let named = dice.below(3) == 0;
    let word = |value: u64| match usize::try_from(value - first_name.min(value)).ok().and_then(|at| names.get(at)) {
        Some(name) if named => (*name).to_owned(),
        _ => value.to_string(),
    };
    let (one, other) = (low + dice.below(high - low + 1), low + dice.below(high - low + 1));
    let (from, to) = (one.min(other), one.max(other));
    let step = 1 + dice.below(high);
    match dice.below(6) {
        0 => format!("{}-{}", word(from), word(to)),
        1 => format!("{}-{}/{step}", word(from), word(to)),
        2 => format!("*/{step}"),
        3 => format!("{}/{step}", word(from)),
        _ => word(one),
    }
}
