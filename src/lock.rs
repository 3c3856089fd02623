//! Ids of advisory locks.

use sha2::{Digest, Sha256};

/// The lock id of `parts` in `namespace`: the first 8 bytes, big-endian, of SHA-256 over the namespace and the parts,
/// separated by NUL (design 13). The same in every process of every version.
pub fn id(namespace: &str, parts: &[&str]) -> i64 {
    let mut digest = Sha256::new();
    digest.update(namespace);
    for part in parts {
        digest.update([0]);
        digest.update(part);
    }
    let bytes: [u8; 32] = digest.finalize().into();
    let (first, _) = bytes.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    i64::from_be_bytes(*first)
}

/// The lock of a collection's secondary: shared by transactions that upsert, exclusive for those that delete, since
/// two transactions that cannot see each other's work would bring a deleted row back.
pub fn of_collection(collection: &str) -> i64 {
    id("scheduler.collection.v1", &[collection])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_same_in_every_version() {
        // sha256("scheduler.lock.v1\0acme\0nightly") and its like, by an independent tool.
        assert_eq!(id("scheduler.lock.v1", &["acme", "nightly"]), GOLDEN_LOCK);
        assert_eq!(of_collection("runs"), GOLDEN_RUNS);
    }

    const GOLDEN_LOCK: i64 = -8_312_763_333_513_073_647;
    const GOLDEN_RUNS: i64 = 1_537_596_947_545_556_402;
}
