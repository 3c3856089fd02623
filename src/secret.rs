//! Keeps the passwords of the two URLs out of every text.

use std::borrow::Cow;

use secrecy::{ExposeSecret, SecretString};

/// What stands in the place of a password.
pub const REDACTED: &str = "***";

/// Texts shorter than this are replaced only as part of a URL: they stand in too many ordinary words.
const SHORTEST: usize = 4;

/// The passwords of some URLs, in every spelling a driver may repeat.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    // Longest first, so that a part never spoils the whole.
    spellings: Vec<SecretString>,
}

impl Secrets {
    /// The passwords of `urls`: of the user, and of query parameters whose name says so. Works on malformed URLs too.
    pub fn of<'a>(urls: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let mut spellings: Vec<String> = urls.into_iter().flat_map(|url| spellings(url.expose_secret())).collect();
        spellings.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        spellings.dedup();
        Self { spellings: spellings.into_iter().map(SecretString::from).collect() }
    }

    /// `text` without the passwords.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.spellings.iter().map(ExposeSecret::expose_secret).fold(Cow::Borrowed(text), |text, secret| {
            if text.contains(secret) { Cow::Owned(text.replace(secret, REDACTED)) } else { text }
        })
    }
}

/// Whether a URL carries a password.
pub fn has_password(url: &str) -> bool {
    !passwords(url).is_empty()
}

/// The passwords of a URL as they stand in it.
fn passwords(url: &str) -> Vec<&str> {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    // The last `@`: a password whose own `@` was not percent-encoded is still found whole.
    let user = after_scheme.rsplit_once('@').map(|(user, _)| user);
    let of_user = user.and_then(|user| user.split_once(':')).map(|(_, password)| password);
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let named = query.split('&').filter_map(|pair| pair.split_once('='));
    let of_query = named.filter(|(name, _)| name.to_ascii_lowercase().contains("password")).map(|(_, value)| value);
    of_user.into_iter().chain(of_query).filter(|password| !password.is_empty()).collect()
}

fn spellings(url: &str) -> Vec<String> {
    let mut all = Vec::new();
    for password in passwords(url) {
        // Where reserved characters were not encoded, a driver may take a part of the password for a host or a port.
        let parts = password.split(['@', ':', '/', '?', '#', '&']).chain([password]);
        all.extend(parts.flat_map(|part| [part.to_owned(), percent_decoded(part)]));
        all.push(format!(":{password}@"));
    }
    all.retain(|spelling| spelling.len() >= SHORTEST || spelling.starts_with(':'));
    all
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(hex);
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digits: &[u8]) -> Option<u8> {
    std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(url: &str, text: &str) -> String {
        Secrets::of([&SecretString::from(url)]).redact(text).into_owned()
    }

    #[test]
    fn a_password_is_replaced_raw_and_decoded() {
        let url = "postgres://me:p%40ss%2Fword@host/db";
        assert_eq!(redacted(url, "tried p%40ss%2Fword then p@ss/word"), "tried *** then ***");
        assert_eq!(redacted(url, url), "postgres://me***host/db");
    }

    #[test]
    fn a_password_with_reserved_characters_is_replaced_in_parts() {
        let url = "mongodb://me:hunter2@secret/word@host:27017";
        assert_eq!(redacted(url, "invalid host secret, port hunter2"), "invalid host ***, port ***");
    }

    #[test]
    fn a_password_in_the_query_is_replaced() {
        let url = "postgres://host/db?user=me&password=hunter2&sslmode=require";
        assert!(has_password(url));
        assert_eq!(redacted(url, "value hunter2"), "value ***");
    }

    #[test]
    fn a_short_password_is_replaced_inside_the_url_only() {
        assert_eq!(redacted("mongodb://me:a@host", "a bad url mongodb://me:a@host"), "a bad url mongodb://me***host");
    }

    #[test]
    fn a_url_without_a_password_changes_nothing() {
        assert!(!has_password("mongodb://me@host:27017/?replicaSet=rs0"));
        assert_eq!(redacted("postgres:///db", "postgres:///db"), "postgres:///db");
    }
}
