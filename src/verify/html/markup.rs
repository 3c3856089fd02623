//! HTML under construction, in which no data can be markup.
//!
//! Markup stands in this program: it is `&'static str`. Whatever comes from elsewhere is text, is escaped, and is written
//! between tags only, never into one.

use crate::escape::escape;
use crate::verify::words::count;

/// See the module.
#[derive(Debug, Default)]
pub struct Html {
    written: String,
}

impl Html {
    /// Writes markup.
    pub fn markup(&mut self, markup: &'static str) -> &mut Self {
        self.written.push_str(markup);
        self
    }

    /// Writes text. Control characters and direction marks stand as `\u{…}`.
    pub fn text(&mut self, text: &str) -> &mut Self {
        for c in escape(text).chars() {
            match c {
                '&' => self.written.push_str("&amp;"),
                '<' => self.written.push_str("&lt;"),
                '>' => self.written.push_str("&gt;"),
                c => self.written.push(c),
            }
        }
        self
    }

    /// Writes text until it has taken `limit` bytes of the page; of a longer one, what is left out is counted.
    pub fn cut(&mut self, text: &str, limit: usize) -> &mut Self {
        let end = self.written.len() + limit;
        for (at, c) in text.char_indices() {
            if self.written.len() >= end {
                return self.left_out(&text[at..]);
            }
            self.text(c.encode_utf8(&mut [0; 4]));
        }
        self
    }

    /// Stands for text that is left out.
    pub fn left_out(&mut self, text: &str) -> &mut Self {
        self.markup("<i>… +").number(text.chars().count()).markup("</i>")
    }

    /// Writes a number.
    pub fn number(&mut self, number: impl TryInto<u64>) -> &mut Self {
        self.text(&count(number.try_into().unwrap_or(u64::MAX)))
    }

    /// How many bytes are written.
    pub fn len(&self) -> usize {
        self.written.len()
    }

    /// All that is written.
    pub fn finish(self) -> String {
        self.written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, limit: usize) -> String {
        let mut html = Html::default();
        html.cut(text, limit);
        html.finish()
    }

    #[test]
    fn text_is_never_markup_and_never_moves_what_is_around_it() {
        let mut html = Html::default();
        html.markup("<b>").text("</b><script>&amp;\x1b[2J\u{202e}\u{200b}\u{feff}\n").markup("</b>");
        let expected = r"<b>&lt;/b&gt;&lt;script&gt;&amp;amp;\u{1b}[2J\u{202e}\u{200b}\u{feff}\u{a}</b>";
        assert_eq!(html.finish(), expected);
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_the_rest_is_counted() {
        assert_eq!(cut("run-7", 5), "run-7");
        assert_eq!(cut(&"x".repeat(2_000), 5), "xxxxx<i>… +1,995</i>");
        assert_eq!(cut("<<<", 5), "&lt;&lt;<i>… +1</i>");
        assert_eq!(cut("世界!", 4), "世界<i>… +1</i>");
    }
}
