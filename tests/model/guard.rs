//! What keeps the switch right.

/// Each guard stands for a part of the rule whose number it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    LeaseBeforeTheWrite,
    LeaseAfterTheAnswer,
    OwnWritesFirst,
    WaitForAcknowledgements,
    CloseFirst,
    ClosingNamesTheEpoch,
    DrainFirst,
    FenceInTheTransaction,
    OutboxWithTheRow,
    OutboxAfterMongo,
    OutboxAsTaken,
    StampInPostgres,
    StampInMongo,
    PositionWithTheRows,
    MirrorLooksAtTheFence,
    StraysAreRepaired,
    ARepairHasANewStamp,
    StreamMovesOn,
    StreamStopsAtStray,
    OpeningComparesAndSets,
    OpeningRaisesTheEpoch,
    AbortRefusesTheOpening,
    AbortRaisesTheEpoch,
    AnAbortIsFinal,
}
