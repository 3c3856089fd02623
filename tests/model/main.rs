//! The protocol of the switch between MongoDB ("M") and PostgreSQL ("P"), model-checked (design 11). The code cites the
//! numbers of its rules.
//!
//! 1. **Fences.** Each store holds a fence: open or closed, an epoch, and the phase, which names the primary of that
//!    epoch. It changes only by a compare-and-set that names what was seen: from open to closed at the same epoch, or
//!    to a higher epoch. So no fence is ever twice in the same state, and what comes late finds another one.
//! 2. **Lease.** M's fence and the leases of the processes are one document. A process renews by one `findAndModify`
//!    that returns the document: it looks at the fence in the same step. Its lease counts from before it sent that.
//! 3. **Write to M.** A process begins one only if its lease holds by its own clock and M's fence was open when last
//!    seen.
//! 4. M takes the write if the document is unchanged since the process read it, whatever M's fence says.
//! 5. **Answer of M.** The process acknowledges the write to its caller only if its lease has held without
//!    interruption, at the one epoch, since before the write; else the outcome is unknown. What was acknowledged it
//!    then sends to P as it now is, with the stamp (that epoch, M's clock).
//! 6. **Acknowledgement.** A process that sees M's fence closed begins no write, waits until none of its own is in
//!    flight, and then acknowledges the fence's epoch in the document.
//! 7. **Write to P.** One transaction holds the fence's lock shared and finds the fence open at the writer's epoch.
//! 8. The same transaction writes the row with the stamp (epoch, P's clock) and puts its key into the outbox.
//! 9. **Convergence.** P keeps a row whose stamp is at least as new as what the mirror or a process brings.
//! 10. **Mirror.** It reads M's log from the position that P stores, then M's fence. One transaction finds P's fence
//!     closed at an epoch not above that of M's fence, writes the rows with the stamp (epoch of M's fence, time in the
//!     log), and moves the position, which never goes back.
//! 11. **Drain.** It reads a row whose key is in the outbox and brings it to M, which keeps the stamp beside the
//!     document and gives way only to a newer one, not to the same. Then the key leaves the outbox, unless a newer
//!     stamp has come in.
//! 12. **Strays.** While P is open the mirror reads on. It passes the drain's own writes; to any other it answers with
//!     a primary write of the row as it stands in P: new stamp, outbox, and the position in the same transaction.
//! 13. **Look.** Every operator, for whatever command, first looks at both fences. The one of the higher epoch names
//!     the primary A. If A's own fence is of a lower epoch, an abort is under way and can only be completed: A reopens
//!     at that epoch. If it is open, a flip closes it (14); if it is closed, a flip goes on (15) or is aborted (19).
//! 14. **Close.** A's fence goes from open to closed, at the epoch that was seen.
//! 15. **Wait.** From M: until one look at M's document finds its fence still closed at that epoch, and every process
//!     to have acknowledged it or to have a lease that ran out at the server. From P: holding the fence's lock alone
//!     was enough.
//! 16. **Drain.** From M: until the position is past the end that M's log had after 15. From P: until the outbox is
//!     empty.
//! 17. **Move on.** From P: the position moves past the drain's own writes. Another write before the log's end is a
//!     stray that nobody has noticed: abort (19).
//! 18. **Open, the commit point.** B's fence goes from closed, at the epoch that was seen in 13, to open at the epoch
//!     of A's fence plus one.
//! 19. **Abort.** The other fence, B's, goes first from closed, at the epoch that was seen in 13, to closed at the
//!     epoch of A's fence plus one, with A's phase. Only then A's fence goes from its epoch, open or closed, to open at
//!     the new one. So 18 and 19 are decided by one record: of an opening and an abort, the first wins.
//! 20. **Overtaken.** An operator whose compare-and-set in 18 or 19 fails, or who finds while it waits in 15 or 16 that
//!     the fences have changed, begins anew with 13, to go on or to abort as before; an abort ends if A is no longer
//!     the primary. One whose closing (14) or reopening (19) fails has nothing more to do.
//!
//! No lock on the switch is among the rules: operators who exclude each other save themselves work, and no more than
//! that. Nor is what an operator notes of its intent: the fences say everything. After an abort the mirror may take the
//! secondary back for a moment, since it brings what is left of the old epoch with stamps of the new one.
//!
//! What is left out: an answer that gets lost makes less acknowledged and changes nothing else, so a write to P has no
//! such step; a process that no longer waits for a write is one that has died; deletions are in `tests/it/convergence`.
//! A stray write may overwrite what it has not read, for its guard may say less than the whole document, but only while
//! P is open: after 17 nothing would repair it.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test fails by a panic and speaks by printing")]

mod configuration;
mod explored;
mod guard;
mod mirror;
mod operator;
mod property;
mod state;
mod switch;
mod without;
mod writer;
