//! What keeps the switch right: each guard is a part of a rule, which can be left out.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Rule 3: a write begins only under a valid lease.
    LeaseBeforeTheWrite,
    /// Rule 5: a write is acknowledged only if the lease has held since before it.
    LeaseAfterTheAnswer,
    /// Rule 6: a process acknowledges a closed fence only when none of its own writes is in flight.
    OwnWritesFirst,
    /// Rule 7: PostgreSQL looks at its fence in the transaction that writes.
    FenceInTheTransaction,
    /// Rule 8: the key comes into the outbox with the row.
    OutboxWithTheRow,
    /// Rule 9: PostgreSQL keeps what has a stamp at least as new.
    StampInPostgres,
    /// Rule 10: the position moves with the rows.
    PositionWithTheRows,
    /// Rule 10: the transaction of the mirror looks at PostgreSQL's fence.
    MirrorLooksAtTheFence,
    /// Rule 11: MongoDB keeps what has a newer stamp.
    StampInMongo,
    /// Rule 11: and what has the same one.
    AnEqualStampStays,
    /// Rule 11: a key leaves the outbox when MongoDB has the row.
    OutboxAfterMongo,
    /// Rule 11: and only if nothing newer has come into the outbox.
    OutboxAsTaken,
    /// Rule 12: a stray write is noticed.
    StraysAreRepaired,
    /// Rule 12: its repair is a write of its own.
    ARepairHasANewStamp,
    /// Rule 13: an abort that has refused the opening can only be completed.
    AnAbortIsFinal,
    /// Rule 14: the one fence is closed before the other one is opened.
    CloseFirst,
    /// Rule 14: closing is for the epoch that was seen open.
    ClosingNamesTheEpoch,
    /// Rule 15: every process has acknowledged, or has no lease.
    WaitForAcknowledgements,
    /// Rule 16: the new primary has all that the old one had.
    DrainFirst,
    /// Rule 17: a rollback moves the stream on past the drain's own writes.
    StreamMovesOn,
    /// Rule 17: but past no other.
    StreamStopsAtAStray,
    /// Rule 18: a fence opens only from what was seen of it.
    OpeningComparesAndSets,
    /// Rule 18: at a new epoch.
    OpeningRaisesTheEpoch,
    /// Rule 19: an abort changes the other fence first, so that nobody opens it any more.
    AbortRefusesTheOpening,
    /// Rule 19: and reopens at a new epoch.
    AbortRaisesTheEpoch,
    /// Rule 20: an operator whom another one has overtaken begins anew.
    BeginsAnew,
}
