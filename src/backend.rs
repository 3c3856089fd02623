//! The table `[backend]` of an application's settings: how it uses the two stores. What each key takes, and whether it may
//! change while the stores are used, stands in `KEYS` alone.

use std::fmt::{self, Display, Formatter};
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, Expected, MapAccess, Unexpected, Visitor};

use crate::phase::Backend;
use crate::store::dual::Tuning;

/// How an application uses the stores. A key that is absent has its default; one that is unknown, or out of its range, is
/// refused by name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackendSettings {
    /// Whose fence is asked first for the phase.
    pub phase_source: Backend,
    /// For how long a process may write to MongoDB after it has seen the fence open.
    pub lease: Duration,
    /// Sessions of PostgreSQL at most, for the store and for what follows each.
    pub connections: u32,
    /// What may change while the stores are used.
    pub tuning: Tuning,
}

impl Default for BackendSettings {
    fn default() -> Self {
        Self { phase_source: Backend::Mongo, lease: Duration::from_secs(3), connections: 8, tuning: Tuning::default() }
    }
}

/// Why settings are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A value that the key does not take.
    #[error("{key} must be {allowed}")]
    Range {
        /// The key.
        key: &'static str,
        /// What it takes.
        allowed: String,
    },
    /// They differ from those in use where that needs a restart.
    #[error("a change of {} needs a restart", keys.join(", "))]
    Restart {
        /// The keys that differ.
        keys: Vec<&'static str>,
    },
}

/// A key of the table.
struct Key {
    name: &'static str,
    changes: Changes,
    takes: Takes,
}

/// When a change takes effect.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changes {
    AtOnce,
    AtRestart,
}

type Field<T> = fn(&mut BackendSettings) -> &mut T;

/// What a key takes, and where it goes.
enum Takes {
    Store(Field<Backend>),
    Fraction(Field<f64>),
    Count(RangeInclusive<u64>, Field<u32>),
    Milliseconds(RangeInclusive<u64>, Field<Duration>),
    Seconds(RangeInclusive<u64>, Field<Duration>),
}

/// A value as the file has it.
#[derive(Clone, Copy, PartialEq)]
enum Value<'a> {
    Word(&'a str),
    Whole(u64),
    Fraction(f64),
}

const KEYS: [Key; 7] = [
    Key {
        name: "phase-source",
        changes: Changes::AtRestart,
        takes: Takes::Store(|settings| &mut settings.phase_source),
    },
    Key {
        name: "shadow-fraction",
        changes: Changes::AtOnce,
        takes: Takes::Fraction(|settings| &mut settings.tuning.shadow_fraction),
    },
    Key {
        name: "mirror-deadline-milliseconds",
        changes: Changes::AtOnce,
        takes: Takes::Milliseconds(1..=60_000, |settings| &mut settings.tuning.protection.deadline),
    },
    Key {
        name: "breaker-pause-milliseconds",
        changes: Changes::AtOnce,
        takes: Takes::Milliseconds(1..=600_000, |settings| &mut settings.tuning.protection.pause),
    },
    Key {
        name: "switch-wait-seconds",
        changes: Changes::AtOnce,
        takes: Takes::Seconds(1..=600, |settings| &mut settings.tuning.switch_wait),
    },
    Key {
        name: "lease-seconds",
        changes: Changes::AtRestart,
        takes: Takes::Seconds(1..=60, |settings| &mut settings.lease),
    },
    Key {
        name: "connections",
        changes: Changes::AtRestart,
        takes: Takes::Count(2..=1_000, |settings| &mut settings.connections),
    },
];

impl BackendSettings {
    /// Refuses what a file could not say.
    ///
    /// # Errors
    /// [`SettingsError::Range`].
    pub fn check(&self) -> Result<(), SettingsError> {
        let refused = |key: &&Key| key.take(&mut self.clone(), key.value(*self)).is_none();
        match KEYS.iter().find(refused) {
            Some(key) => Err(SettingsError::Range { key: key.name, allowed: key.takes.to_string() }),
            None => Ok(()),
        }
    }

    /// Refuses `new` where it cannot follow these settings while the stores are used.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn check_change(&self, new: &Self) -> Result<(), SettingsError> {
        new.check()?;
        let differs = |key: &&Key| key.changes == Changes::AtRestart && key.value(*self) != key.value(*new);
        let keys: Vec<&str> = KEYS.iter().filter(differs).map(|key| key.name).collect();
        if keys.is_empty() { Ok(()) } else { Err(SettingsError::Restart { keys }) }
    }
}

impl Key {
    /// Puts `value` where it belongs; nothing when it is not allowed.
    fn take(&self, settings: &mut BackendSettings, value: Value<'_>) -> Option<()> {
        match (&self.takes, value) {
            (Takes::Store(field), Value::Word(word)) => *field(settings) = Backend::named(word)?,
            (Takes::Fraction(field), Value::Fraction(share)) if (0.0..=1.0).contains(&share) => {
                *field(settings) = share;
            }
            (Takes::Fraction(_), Value::Whole(whole)) => {
                let share = f64::from(u32::try_from(whole).ok()?);
                return self.take(settings, Value::Fraction(share));
            }
            (Takes::Count(range, field), Value::Whole(count)) if range.contains(&count) => {
                *field(settings) = u32::try_from(count).ok()?;
            }
            (Takes::Milliseconds(range, field), Value::Whole(count)) if range.contains(&count) => {
                *field(settings) = Duration::from_millis(count);
            }
            (Takes::Seconds(range, field), Value::Whole(count)) if range.contains(&count) => {
                *field(settings) = Duration::from_secs(count);
            }
            _ => return None,
        }
        Some(())
    }

    /// Its value in `settings`.
    fn value(&self, mut settings: BackendSettings) -> Value<'static> {
        match self.takes {
            Takes::Store(field) => Value::Word(field(&mut settings).name()),
            Takes::Fraction(field) => Value::Fraction(*field(&mut settings)),
            Takes::Count(_, field) => Value::Whole((*field(&mut settings)).into()),
            Takes::Milliseconds(_, field) => {
                Value::Whole(u64::try_from(field(&mut settings).as_millis()).unwrap_or(u64::MAX))
            }
            Takes::Seconds(_, field) => Value::Whole(field(&mut settings).as_secs()),
        }
    }
}

impl Display for Takes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(_) => f.write_str(&Backend::ALL.map(Backend::name).join(" or ")),
            Self::Fraction(_) => f.write_str("a number from 0 to 1"),
            Self::Count(range, _) | Self::Milliseconds(range, _) | Self::Seconds(range, _) => {
                write!(f, "a whole number from {} to {}", range.start(), range.end())
            }
        }
    }
}

impl Expected for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} to be {}", self.name, self.takes)
    }
}

impl Value<'_> {
    fn unexpected(&self) -> Unexpected<'_> {
        match *self {
            Self::Word(word) => Unexpected::Str(word),
            Self::Whole(whole) => Unexpected::Unsigned(whole),
            Self::Fraction(fraction) => Unexpected::Float(fraction),
        }
    }
}

impl<'de> Deserialize<'de> for BackendSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Table)
    }
}

struct Table;

impl<'de> Visitor<'de> for Table {
    type Value = BackendSettings;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "a table of {}", KEYS.map(|key| key.name).join(", "))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<BackendSettings, A::Error> {
        let mut settings = BackendSettings::default();
        while let Some(name) = entries.next_key::<String>()? {
            let known = KEYS.iter().find(|key| key.name == name);
            let key = known.ok_or_else(|| {
                A::Error::custom(format_args!("unknown key `{name}`, expected {}", KEYS.map(|key| key.name).join(", ")))
            })?;
            entries.next_value_seed(Entry { key, settings: &mut settings })?;
        }
        Ok(settings)
    }
}

struct Entry<'a> {
    key: &'a Key,
    settings: &'a mut BackendSettings,
}

impl Entry<'_> {
    fn taken<E: Error>(self, value: Value<'_>) -> Result<(), E> {
        let taken = self.key.take(self.settings, value);
        taken.ok_or_else(|| E::invalid_value(value.unexpected(), self.key))
    }
}

impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Entry<'_> {
    type Value = ();

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Expected::fmt(self.key, f)
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<(), E> {
        self.taken(Value::Word(word))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.taken(Value::Whole(number))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), self.key)),
        }
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.taken(Value::Fraction(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BackendSettings, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    /// The key's line in the README.
    fn line(key: &Key) -> String {
        let default = match key.value(BackendSettings::default()) {
            Value::Word(word) => word.to_owned(),
            Value::Whole(whole) => whole.to_string(),
            Value::Fraction(fraction) => fraction.to_string(),
        };
        let changes = if key.changes == Changes::AtOnce { "at once" } else { "at a restart" };
        format!("| `{}` | {} | {default} | {changes} |", key.name, key.takes)
    }

    #[test]
    fn what_is_absent_is_the_default_and_what_is_there_is_taken() {
        assert_eq!(read(""), Ok(BackendSettings::default()));
        let mut expected =
            BackendSettings { phase_source: Backend::Postgres, lease: Duration::from_secs(5), ..Default::default() };
        expected.connections = 20;
        expected.tuning.shadow_fraction = 0.25;
        expected.tuning.protection.deadline = Duration::from_millis(100);
        expected.tuning.protection.pause = Duration::from_millis(2_000);
        expected.tuning.switch_wait = Duration::from_secs(60);
        let text = "phase-source = \"postgresql\"\nshadow-fraction = 0.25\nmirror-deadline-milliseconds = 100\n\
                    breaker-pause-milliseconds = 2000\nswitch-wait-seconds = 60\nlease-seconds = 5\nconnections = 20";
        assert_eq!(read(text), Ok(expected));
        for (text, share) in [("shadow-fraction = 1", 1.0), ("shadow-fraction = 0", 0.0)] {
            assert_eq!(read(text).unwrap().tuning.shadow_fraction.to_bits(), f64::to_bits(share));
        }
    }

    #[test]
    fn the_ends_of_each_range_are_taken_and_what_lies_beyond_is_refused_with_the_key_and_the_range() {
        for key in &KEYS {
            let (Takes::Count(range, _) | Takes::Milliseconds(range, _) | Takes::Seconds(range, _)) = &key.takes else {
                continue;
            };
            for end in [range.start(), range.end()] {
                assert!(read(&format!("{} = {end}", key.name)).is_ok_and(|read| read.check().is_ok()), "{}", key.name);
            }
            for value in [(range.start() - 1).to_string(), (range.end() + 1).to_string()] {
                let refused = read(&format!("{} = {value}", key.name)).unwrap_err();
                let allowed = format!("{} to be a whole number from {} to {}", key.name, range.start(), range.end());
                assert!(refused.contains(&value) && refused.contains(&allowed), "{refused}");
            }
        }
    }

    #[test]
    fn a_value_of_another_kind_is_refused_with_the_key_and_what_it_takes() {
        for key in &KEYS {
            for value in ["-1", "0.5", "1.5", "nan", "inf", "true", "\"250ms\"", "\"MongoDB\"", "[]"] {
                if matches!(key.takes, Takes::Fraction(_)) && value == "0.5" {
                    continue;
                }
                let refused = read(&format!("{} = {value}", key.name)).unwrap_err();
                assert!(refused.ends_with(&format!("expected {} to be {}", key.name, key.takes)), "{refused}");
            }
        }
        let refused = read("phase-source = \"mongo\"").unwrap_err();
        assert_eq!(refused, "invalid value: string \"mongo\", expected phase-source to be mongodb or postgresql");
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_known_ones() {
        let refused = read("shadow_fraction = 0.5").unwrap_err();
        assert!(refused.contains("unknown key `shadow_fraction`"), "{refused}");
        assert!(KEYS.iter().all(|key| refused.contains(key.name)), "{refused}");
    }

    #[test]
    fn settings_made_in_code_are_held_to_the_same_ranges() {
        let with = |change: fn(&mut BackendSettings)| {
            let mut settings = BackendSettings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert_eq!(
            with(|settings| settings.lease = Duration::ZERO),
            "lease-seconds must be a whole number from 1 to 60"
        );
        let share = "shadow-fraction must be a number from 0 to 1";
        assert_eq!(with(|settings| settings.tuning.shadow_fraction = f64::NAN), share);
        assert_eq!(with(|settings| settings.tuning.shadow_fraction = -0.1), share);
        assert!(with(|settings| settings.tuning.protection.deadline = Duration::MAX).starts_with("mirror-deadline"));
    }

    #[test]
    fn a_change_is_taken_at_once_or_named_as_one_that_needs_a_restart() {
        let old = BackendSettings::default();
        let mut new = old;
        new.tuning.shadow_fraction = 0.5;
        new.tuning.switch_wait = Duration::from_secs(1);
        assert_eq!(old.check_change(&new), Ok(()));
        (new.phase_source, new.connections) = (Backend::Postgres, 9);
        let refused = old.check_change(&new).unwrap_err();
        assert_eq!(refused.to_string(), "a change of phase-source, connections needs a restart");
        // What is not in `Tuning` needs one.
        let other = BackendSettings { lease: Duration::from_secs(4), tuning: old.tuning, ..new };
        let keys = KEYS.iter().filter(|key| key.changes == Changes::AtRestart).map(|key| key.name).collect();
        assert_eq!(old.check_change(&other), Err(SettingsError::Restart { keys }));
    }

    #[test]
    fn the_readme_has_each_key_with_what_it_takes_its_default_and_when_it_changes() {
        for key in &KEYS {
            assert!(include_str!("../README.md").contains(&line(key)), "{}", line(key));
        }
    }
}
