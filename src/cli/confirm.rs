//! Asking the person at the terminal. Nobody else can confirm.

use std::io::{IsTerminal, Write};

use super::Failure;

/// Whether whoever is at the terminal types `word`, which is `to do` something; no when nobody is.
pub(super) fn typed(word: &str, to_do: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let asked = |error| Failure::system("ask for the confirmation", &error);
    let mut stderr = std::io::stderr();
    write!(stderr, "type {word} to {to_do}: ").and_then(|()| stderr.flush()).map_err(asked)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(asked)?;
    Ok(answer.trim() == word)
}
