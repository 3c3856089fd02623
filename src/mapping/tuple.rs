//! Rows in PostgreSQL's binary form: the tuples of `COPY … (format binary)`, whose columns have the same bytes as the
//! values of the extended protocol. Source: the PostgreSQL manual, COPY, "Binary Format".

/// What stands before the first tuple: signature, flags, length of the header's extension.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// What stands after the last tuple.
pub const TRAILER: &[u8] = &[0xff, 0xff];

/// Appends the head of a tuple of `columns` columns.
pub fn push_head(out: &mut Vec<u8>, columns: usize) {
    // A table has at most 1,600 columns.
    out.extend_from_slice(&i16::try_from(columns).unwrap_or(i16::MAX).to_be_bytes());
}

/// Appends an SQL null.
pub fn push_null(out: &mut Vec<u8>) {
    out.extend_from_slice(&(-1_i32).to_be_bytes());
}

/// Appends a column of these bytes.
pub fn push(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = open(out);
    out.extend_from_slice(bytes);
    close(out, start);
}

/// Opens a column whose bytes are appended to `out` next; [`close`] takes what this returns.
pub fn open(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[0; 4]);
    out.len()
}

/// Closes the column that starts at `start`.
pub fn close(out: &mut [u8], start: usize) {
    // Every column is shorter than twice a document, which ends at 16 MiB.
    let length = i32::try_from(out.len() - start).unwrap_or(i32::MAX);
    out[start - 4..start].copy_from_slice(&length.to_be_bytes());
}

/// Splits one tuple into its columns; nothing when the bytes are not one whole tuple.
pub fn columns(tuple: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (head, mut rest) = tuple.split_first_chunk::<2>()?;
    let count = usize::try_from(i16::from_be_bytes(*head)).ok()?;
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (column, after) = match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => after.split_at_checked(length).map(|(column, after)| (Some(column), after))?,
            Err(_) => (None, after),
        };
        columns.push(column);
        rest = after;
    }
    rest.is_empty().then_some(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_gives_its_columns_back_and_a_part_of_one_gives_nothing() {
        let mut tuple = Vec::new();
        push_head(&mut tuple, 3);
        push(&mut tuple, b"one");
        push_null(&mut tuple);
        push(&mut tuple, b"");
        assert_eq!(columns(&tuple), Some(vec![Some(b"one".as_slice()), None, Some(b"".as_slice())]));
        assert!((0..tuple.len()).all(|end| columns(&tuple[..end]).is_none()));
        tuple.push(0);
        assert_eq!(columns(&tuple), None);
    }
}
