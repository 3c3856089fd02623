//! The digest of a record that the gate relies on: whoever changes the record by hand is found out.

use sha2::{Digest, Sha256};

/// SHA-256 over `parts`, each with its length before it.
pub fn digest(parts: &[&[u8]]) -> Vec<u8> {
    let mut hash = Sha256::new_with_prefix("scheduler.verification.v1");
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_from_one_part_to_the_next_is_another_record() {
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
        assert_ne!(digest(&[b"ab"]), digest(&[b"ab", b""]));
        assert_eq!(digest(&[b"ab", b"c"]), digest(&[b"ab", b"c"]));
    }
}
