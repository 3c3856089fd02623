//! Data is printed as data: nothing in a document can move the cursor, clear the screen or reorder a line.

use std::borrow::Cow;
use std::fmt::Write;

/// `text` for a terminal or a log: control characters, line breaks and direction marks stand as `\u{…}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    replaced(text, |escaped, c| write!(escaped, "\\u{{{:x}}}", u32::from(c)))
}

/// The same for several lines at once (a diff): line breaks and tabs stand as they are.
pub fn escape_lines(text: &str) -> Cow<'_, str> {
    replaced(text, |escaped, c| match c {
        '\n' | '\t' => escaped.write_char(c),
        c => write!(escaped, "\\u{{{:x}}}", u32::from(c)),
    })
}

/// The same for JSON text as a serializer wrote it: every such character stands inside a string, as `\uXXXX`.
pub fn escape_json(text: &str) -> Cow<'_, str> {
    replaced(text, |escaped, c| match c {
        // Between tokens only: inside a string the serializer has replaced them.
        '\n' => escaped.write_char(c),
        c => c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(escaped, "\\u{unit:04x}")),
    })
}

fn replaced(text: &str, with: impl Fn(&mut String, char) -> std::fmt::Result) -> Cow<'_, str> {
    if !text.contains(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        // Writing to a String does not fail.
        if !is_hostile(c) || with(&mut escaped, c).is_err() {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Control characters (C0, DEL, C1), line and paragraph separators, direction marks, zero-width and tag characters.
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_text_stands_as_it_is() {
        for text in ["", "run-7", "Grüße, 世界 🎉", "a \"quoted\" \\ text"] {
            assert!(matches!(escape(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn an_id_cannot_move_the_cursor_or_reorder_the_line() {
        assert_eq!(escape("\x1b[2Jrun"), "\\u{1b}[2Jrun");
        assert_eq!(escape("\u{9b}2J\x7f"), "\\u{9b}2J\\u{7f}");
        assert_eq!(escape("a\r\nb\tc\0"), "a\\u{d}\\u{a}b\\u{9}c\\u{0}");
        assert_eq!(escape("a\u{202e}b\u{2066}c\u{200f}\u{feff}"), "a\\u{202e}b\\u{2066}c\\u{200f}\\u{feff}");
    }

    #[test]
    fn a_diff_keeps_its_lines() {
        assert_eq!(escape_lines("-\ta\n+\tb\x1b\r\n"), "-\ta\n+\tb\\u{1b}\\u{d}\n");
    }

    #[test]
    fn json_is_escaped_as_json_and_reads_back() {
        let value = serde_json::json!({ "id": "\u{9b}2J\u{202e}\u{e0041}\x1b\n" });
        let text = value.to_string();
        let escaped = escape_json(&text);
        assert!(!escaped.contains(is_hostile), "{escaped:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
    }
}
