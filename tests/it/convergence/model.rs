//! A model of the secondary: transactions of PostgreSQL at `read committed`, with the locks, guards and tombstones of
//! `src/secondary`, interleaved step by step.
//!
//! What it keeps of PostgreSQL: a statement sees what was committed when it began; a row that another transaction has
//! written is waited for, and read anew then, but tombstones are not; a row that was inserted meanwhile is not seen by a
//! deletion. A key's values are numbers that no two writes share.

use std::collections::BTreeMap;

/// What keeps the secondary right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// A row with a newer stamp stays.
    RowStamp,
    /// A tombstone with a newer stamp keeps the row away.
    Tombstone,
    /// A deletion waits for those who upsert, and they for it.
    CollectionLock,
    /// The mirror moves on only with the rows it speaks of.
    PositionWithRows,
    /// The events of one transaction in the source, which share a stamp, replace each other in their order.
    EqualStamps,
    /// A chunk of the backfill has the stamp of a time before its read.
    StampBeforeRead,
    /// The anchor is taken before the first chunk is read, and the mirror begins there.
    AnchorBeforeRead,
    /// What was written before the anchor of a backfill is the backfill's: the mirror began later, so that a deletion in
    /// between has left no tombstone.
    Anchor,
}

impl Guard {
    pub const ALL: [Self; 8] = [
        Self::RowStamp,
        Self::Tombstone,
        Self::CollectionLock,
        Self::PositionWithRows,
        Self::EqualStamps,
        Self::StampBeforeRead,
        Self::AnchorBeforeRead,
        Self::Anchor,
    ];
}

const KEYS: usize = 2;

/// Writes to the source in one history.
const WRITES: u64 = 6;

/// Steps after which a history counts as stuck.
const STEPS: usize = 10_000;

type Value = Option<u64>;

/// What happened in the source.
#[derive(Debug, Clone, Copy)]
struct Event {
    key: usize,
    clock: u64,
    value: Value,
}

/// What a transaction is to write to one key.
#[derive(Debug, Clone, Copy)]
struct Write {
    key: usize,
    clock: u64,
    value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Locking,
    Beginning,
    Writing(usize),
    Committing,
}

/// Who wrote a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Author {
    Mirror { position: usize },
    Backfill,
    Sweep { anchor: u64 },
    Dual,
}

#[derive(Debug, Clone)]
struct Transaction {
    author: Author,
    writes: Vec<Write>,
    stage: Stage,
    /// Whether its process hardly ever comes to begin it.
    is_slow: bool,
    is_exclusive: bool,
    seen: Committed,
    rows: BTreeMap<usize, Option<(u64, Value)>>,
    tombstones: BTreeMap<usize, u64>,
}

#[derive(Debug, Clone, Default)]
struct Committed {
    rows: [Option<(u64, Value)>; KEYS],
    tombstones: [Option<u64>; KEYS],
    /// The anchor of the backfill, once its plan stands.
    anchor: u64,
    /// How many events the mirror has applied.
    position: usize,
}

/// How far the backfill is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backfill {
    Ready,
    Anchored { anchor: u64 },
    Stamped { anchor: u64, clock: u64 },
    Read { anchor: u64, values: [Value; KEYS] },
    Copying { anchor: u64 },
    Sweeping,
    Done,
}

struct World {
    random: Random,
    without: Option<Guard>,
    source: [Value; KEYS],
    events: Vec<Event>,
    clock: u64,
    writes_left: u64,
    committed: Committed,
    running: Vec<Transaction>,
    backfill: Backfill,
    /// From which event on the mirror reads.
    start: Option<usize>,
}

/// Numbers that follow from a seed.
pub struct Random(pub u64);

impl Random {
    /// splitmix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).expect("a small number")).expect("a small number")
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Runs one history to its rest; what went wrong.
pub fn history(seed: u64, without: Option<Guard>) -> Result<(), String> {
    let mut world = World {
        random: Random(seed),
        without,
        source: [None; KEYS],
        events: Vec::new(),
        clock: 1,
        writes_left: WRITES,
        committed: Committed::default(),
        running: Vec::new(),
        backfill: Backfill::Ready,
        start: None,
    };
    for _ in 0..STEPS {
        if world.is_at_rest() {
            return world.require_equal();
        }
        world.step()?;
    }
    Err(format!("stuck: {:?}", world.running))
}

impl World {
    fn has(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    fn is_at_rest(&self) -> bool {
        let mirrored = self.start.is_some() && self.committed.position == self.events.len();
        self.writes_left == 0 && self.running.is_empty() && self.backfill == Backfill::Done && mirrored
    }

    fn require_equal(&self) -> Result<(), String> {
        let rows: Vec<Value> = self.committed.rows.iter().map(|row| row.and_then(|(_, value)| value)).collect();
        if rows == self.source {
            return Ok(());
        }
        Err(format!("source {:?}, secondary {:?}, events {:?}", self.source, self.committed, self.events))
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.below(4) {
            0 if self.writes_left > 0 => self.write(),
            1 => self.move_backfill(),
            2 => self.move_mirror(),
            _ if !self.running.is_empty() => {
                let index = self.random.below(self.running.len());
                let Transaction { is_slow, stage, .. } = self.running[index];
                if !is_slow || stage != Stage::Locking || self.random.chance(3) {
                    return self.move_transaction(index);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A write to the source, or a transaction that writes one key twice; the writer may mirror it itself.
    fn write(&mut self) {
        self.writes_left -= 1;
        self.clock += 1;
        let key = self.random.below(KEYS);
        for _ in 0..=usize::from(self.random.chance(25)) {
            let value = (!self.random.chance(40)).then(|| self.random.next());
            if value.is_some() || self.source[key].is_some() {
                self.source[key] = value;
                self.events.push(Event { key, clock: self.clock, value });
            }
        }
        if self.random.chance(60) {
            let write = Write { key, clock: self.clock, value: self.source[key] };
            self.begin(Author::Dual, vec![write]);
        }
    }

    fn begin(&mut self, author: Author, writes: Vec<Write>) {
        let deletes = writes.iter().any(|write| write.value.is_none());
        let is_exclusive = deletes || matches!(author, Author::Sweep { .. });
        let is_slow = author == Author::Dual && self.random.chance(25);
        let (seen, rows, tombstones) = (Committed::default(), BTreeMap::new(), BTreeMap::new());
        let stage = Stage::Locking;
        self.running.push(Transaction { author, writes, stage, is_slow, is_exclusive, seen, rows, tombstones });
    }

    fn move_backfill(&mut self) {
        self.backfill = match self.backfill {
            Backfill::Ready => {
                if self.has(Guard::AnchorBeforeRead) {
                    self.start = Some(self.events.len());
                    self.committed.position = self.events.len();
                }
                self.committed.anchor = self.clock;
                Backfill::Anchored { anchor: self.clock }
            }
            Backfill::Anchored { anchor } => Backfill::Stamped { anchor, clock: self.clock },
            Backfill::Stamped { anchor, .. } if !self.has(Guard::StampBeforeRead) => {
                Backfill::Read { anchor, values: self.source }
            }
            Backfill::Stamped { anchor, clock } => self.copy(anchor, clock, self.source),
            Backfill::Read { anchor, values } => self.copy(anchor, self.clock, values),
            Backfill::Copying { anchor } if !self.runs(|author| author == Author::Backfill) => {
                if self.start.is_none() {
                    self.start = Some(self.events.len());
                    self.committed.position = self.events.len();
                }
                self.begin(Author::Sweep { anchor }, Vec::new());
                Backfill::Sweeping
            }
            Backfill::Sweeping if !self.runs(|author| matches!(author, Author::Sweep { .. })) => Backfill::Done,
            same => same,
        };
    }

    fn copy(&mut self, anchor: u64, clock: u64, values: [Value; KEYS]) -> Backfill {
        let read = (0..KEYS).filter(|key| values[*key].is_some());
        let writes = read.map(|key| Write { key, clock, value: values[key] }).collect();
        self.begin(Author::Backfill, writes);
        Backfill::Copying { anchor }
    }

    fn runs(&self, is_it: impl Fn(Author) -> bool) -> bool {
        self.running.iter().any(|running| is_it(running.author))
    }

    /// The mirror takes a batch, or dies in the middle of one and begins again from what is committed.
    fn move_mirror(&mut self) {
        let is_mirror = |author| matches!(author, Author::Mirror { .. });
        if self.start.is_none() {
            return;
        }
        if self.runs(is_mirror) {
            if self.random.chance(5) {
                self.running.retain(|running| !is_mirror(running.author));
            }
            return;
        }
        let left = self.events.len() - self.committed.position;
        if left == 0 {
            return;
        }
        let position = self.committed.position + 1 + self.random.below(left);
        let mut folded = BTreeMap::new();
        for event in &self.events[self.committed.position..position] {
            folded.insert(event.key, Write { key: event.key, clock: event.clock, value: event.value });
        }
        if !self.has(Guard::PositionWithRows) {
            self.committed.position = position;
        }
        self.begin(Author::Mirror { position }, folded.into_values().collect());
    }

    fn move_transaction(&mut self, index: usize) -> Result<(), String> {
        let mut moved = self.running.swap_remove(index);
        match moved.stage {
            Stage::Locking if self.is_locked_out(&moved) => {}
            Stage::Locking => moved.stage = Stage::Beginning,
            Stage::Beginning => {
                moved.seen = self.committed.clone();
                if let Author::Sweep { anchor } = moved.author {
                    moved.writes = swept(&moved.seen, anchor);
                }
                moved.stage = Stage::Writing(0);
            }
            Stage::Writing(at) if at == moved.writes.len() => moved.stage = Stage::Committing,
            Stage::Writing(at) if self.running.iter().any(|other| other.rows.contains_key(&moved.writes[at].key)) => {}
            Stage::Writing(at) => {
                self.write_row(&mut moved, at);
                moved.stage = Stage::Writing(at + 1);
            }
            Stage::Committing => return self.commit(moved),
        }
        self.running.push(moved);
        Ok(())
    }

    fn is_locked_out(&self, one: &Transaction) -> bool {
        let holds = |other: &&Transaction| other.stage != Stage::Locking;
        let excludes = |other: &Transaction| other.is_exclusive || one.is_exclusive;
        self.has(Guard::CollectionLock) && self.running.iter().filter(holds).any(excludes)
    }

    fn write_row(&self, moved: &mut Transaction, at: usize) {
        let Write { key, clock, value } = moved.writes[at];
        let takes_equal = self.has(Guard::EqualStamps) && matches!(moved.author, Author::Mirror { .. });
        let is_replaced = |stamp: u64| stamp < clock || (takes_equal && stamp == clock);
        let now = self.committed.rows[key];
        let row_gives_way = !self.has(Guard::RowStamp) || now.is_none_or(|(stamp, _)| is_replaced(stamp));
        if value.is_none() {
            if moved.seen.rows[key].is_some() && row_gives_way {
                moved.rows.insert(key, None);
            }
            let buried = self.committed.tombstones[key].map_or(clock, |stamp| stamp.max(clock));
            moved.tombstones.insert(key, buried);
            return;
        }
        let is_alive = !self.has(Guard::Tombstone) || moved.seen.tombstones[key].is_none_or(is_replaced);
        let is_ours = !self.has(Guard::Anchor) || moved.seen.anchor <= clock;
        if is_alive && is_ours && row_gives_way {
            moved.rows.insert(key, Some((clock, value)));
        }
    }

    fn commit(&mut self, moved: Transaction) -> Result<(), String> {
        for (key, row) in &moved.rows {
            let before = self.committed.rows[*key].map(|(stamp, _)| stamp);
            let after = row.map(|(stamp, _)| stamp).or(moved.tombstones.get(key).copied());
            if before > after {
                return Err(format!("key {key} went from {before:?} back to {after:?} by {:?}", moved.author));
            }
            self.committed.rows[*key] = *row;
        }
        for (key, clock) in moved.tombstones {
            self.committed.tombstones[key] = self.committed.tombstones[key].max(Some(clock));
        }
        if let Author::Mirror { position } = moved.author {
            self.committed.position = position;
        }
        Ok(())
    }
}

/// What the backfill did not find any more.
fn swept(seen: &Committed, anchor: u64) -> Vec<Write> {
    let is_old = |key: &usize| seen.rows[*key].is_some_and(|(stamp, _)| stamp < anchor);
    (0..KEYS).filter(is_old).map(|key| Write { key, clock: anchor, value: None }).collect()
}
