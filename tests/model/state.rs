//! What the two stores, the processes and what is on its way between them hold.

use crate::operator::Operator;

/// A set of writes, one bit each: the model's only document is the set of the writes that it has taken.
pub type Writes = u8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Store {
    Mongo,
    Postgres,
}

impl Store {
    pub fn other(self) -> Self {
        match self {
            Self::Mongo => Self::Postgres,
            Self::Postgres => Self::Mongo,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence {
    pub is_open: bool,
    pub epoch: u8,
    /// The phase, as far as the switch goes: which store is the primary of the epoch.
    pub primary: Store,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    pub epoch: u8,
    pub clock: u8,
}

/// What a write left behind, on its way to the other store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Image {
    pub writes: Writes,
    pub stamp: Stamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Author {
    Process,
    Drain,
}

/// An entry of MongoDB's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    pub clock: u8,
    pub writes: Writes,
    pub author: Author,
}

/// The end of MongoDB's log from the position on that is stored in PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Log {
    entries: [Option<Entry>; Self::ROOM],
}

impl Log {
    pub const ROOM: usize = 8;

    pub fn first(&self) -> Option<Entry> {
        self.entries[0]
    }

    pub fn push(&mut self, entry: Entry) {
        let room = self.entries.iter_mut().find(|slot| slot.is_none());
        *room.expect("the log has room for all of a history") = Some(entry);
    }

    /// Moves the position past the entry of this time.
    pub fn move_past(&mut self, clock: u8) {
        while self.first().is_some_and(|entry| entry.clock <= clock) {
            self.entries.copy_within(1.., 0);
            self.entries[Self::ROOM - 1] = None;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mongo {
    pub fence: Fence,
    pub writes: Writes,
    /// The stamp the drain keeps beside the document; the processes know nothing of it.
    pub drained: Stamp,
    pub clock: u8,
    pub log: Log,
}

impl Mongo {
    /// Writes the document, and the log.
    pub fn put(&mut self, writes: Writes, author: Author) {
        self.clock += 1;
        self.writes = writes;
        self.log.push(Entry { clock: self.clock, writes, author });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Postgres {
    pub fence: Fence,
    pub writes: Writes,
    pub stamp: Stamp,
    pub clock: u8,
    /// The stamp of the newest write whose key is in the outbox.
    pub outbox: Option<Stamp>,
}

impl Postgres {
    /// Gives the row a new stamp of this epoch, and its key to the outbox.
    pub fn put(&mut self, writes: Writes, epoch: u8) {
        self.clock += 1;
        self.writes = writes;
        self.stamp = Stamp { epoch, clock: self.clock };
        self.outbox = Some(self.stamp);
    }
}

/// What a process holds of the document of leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lease {
    Missing,
    /// Run out, when the last thing seen was an open fence.
    RunOut(u8),
    Open(u8),
    Closed(u8),
}

/// A write that its process still waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flight {
    Sent { write: Writes, base: Writes, epoch: u8 },
    Answered { write: Writes, image: Image, is_stray: bool },
    ToPostgres { write: Writes, epoch: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    pub lease: Lease,
    /// Whether it has acknowledged the epoch that MongoDB's fence has now.
    pub has_acknowledged: bool,
    pub flight: Option<Flight>,
    /// What it has still to write.
    pub intended: Writes,
}

/// A write on its way to MongoDB whose process no longer waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Late {
    pub write: Writes,
    pub base: Writes,
}

/// A batch of a mirror that has read but not yet written: it may have been paused for any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Batch {
    pub entry: Entry,
    /// The epoch of MongoDB's fence, looked at after the log was read.
    pub epoch: u8,
}

/// A drain that is at work, or paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carry {
    Taken(Image),
    Applied(Stamp),
}

/// What went wrong in the past, for what is there no longer shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Faults {
    /// A write was acknowledged that reached a store while the other one was open.
    pub from_secondary: bool,
    /// A store lost sight of an acknowledged write that it had.
    pub went_back: bool,
    /// A fence was closed at an epoch that its operator had not seen.
    pub closed_unseen: bool,
}

/// How often what may happen at any time may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    pub flips: u8,
    pub rollbacks: u8,
    pub aborts: u8,
    /// Deaths of operators.
    pub deaths: u8,
    /// Deaths of processes.
    pub crashes: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    pub mongo: Mongo,
    pub postgres: Postgres,
    pub processes: [Process; 2],
    pub late: Option<Late>,
    pub convergence: Option<Image>,
    pub mirror: Option<Batch>,
    pub drain: Option<Carry>,
    pub operators: [Option<Operator>; 3],
    pub acknowledged: Writes,
    pub faults: Faults,
    pub budget: Budget,
}

impl State {
    pub fn new(intended: [Writes; 2], budget: Budget) -> Self {
        let fence = Fence { is_open: true, epoch: 0, primary: Store::Mongo };
        let stamp = Stamp { epoch: 0, clock: 0 };
        let log = Log { entries: [None; Log::ROOM] };
        let mongo = Mongo { fence, writes: 0, drained: stamp, clock: 0, log };
        let fence = Fence { is_open: false, ..fence };
        let postgres = Postgres { fence, writes: 0, stamp, clock: 0, outbox: None };
        let process = |intended| Process { lease: Lease::Missing, has_acknowledged: false, flight: None, intended };
        Self {
            mongo,
            postgres,
            processes: intended.map(process),
            late: None,
            convergence: None,
            mirror: None,
            drain: None,
            operators: [None; 3],
            acknowledged: 0,
            faults: Faults::default(),
            budget,
        }
    }

    pub fn fence(&self, store: Store) -> Fence {
        match store {
            Store::Mongo => self.mongo.fence,
            Store::Postgres => self.postgres.fence,
        }
    }

    pub fn set_fence(&mut self, store: Store, fence: Fence) {
        match store {
            Store::Postgres => self.postgres.fence = fence,
            Store::Mongo => {
                if fence.epoch != self.mongo.fence.epoch {
                    self.processes.iter_mut().for_each(|process| process.has_acknowledged = false);
                }
                self.mongo.fence = fence;
            }
        }
    }

    /// A write of the secondary, by whom it may be, that keeps what has a stamp at least as new.
    pub fn bring_to_postgres(&mut self, image: Image, is_guarded: impl Fn() -> bool) {
        if is_guarded() && self.postgres.stamp >= image.stamp {
            return;
        }
        self.faults.went_back |= self.postgres.writes & self.acknowledged & !image.writes != 0;
        self.postgres.writes = image.writes;
        self.postgres.stamp = image.stamp;
    }

    pub fn is_without_operator(&self) -> bool {
        self.operators == [None; 3]
    }

    pub fn open_fences(&self) -> usize {
        [self.mongo.fence, self.postgres.fence].iter().filter(|fence| fence.is_open).count()
    }
}
