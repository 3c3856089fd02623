-- Everything that exists only for the move.

create schema if not exists bridge;

create table if not exists bridge.fence (
    singleton boolean primary key default true constraint fence_is_one_row check (singleton),
    phase text not null constraint fence_phase check (phase in ('mongo', 'mongo-primary', 'postgres-primary', 'postgres')),
    epoch integer not null constraint fence_epoch check (epoch > 0),
    open boolean not null
);
comment on table bridge.fence is 'The phase, the epoch, and whether PostgreSQL accepts primary writes. One row.';
insert into bridge.fence (phase, epoch, open) values ('mongo', 1, false) on conflict do nothing;

create table if not exists bridge.stream (
    singleton boolean primary key default true constraint stream_is_one_row check (singleton),
    token bytea,
    clock bigint not null,
    updated_at timestamptz not null default clock_timestamp()
);
comment on table bridge.stream is 'Where the mirror goes on in the change stream: a resume token (BSON), or none before its first event, and the oplog time. One row.';

create table if not exists bridge.backfill (
    id bigint generated always as identity primary key,
    collection text collate "C" not null,
    epoch integer not null,
    clock bigint not null,
    estimated_documents bigint not null,
    removed bigint not null default 0,
    started_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz
);
comment on table bridge.backfill is 'One row for each time a collection was copied: its anchor (epoch, clock) and when it ended.';
create unique index if not exists backfill_open on bridge.backfill (collection) where finished_at is null;

create table if not exists bridge.chunk (
    backfill bigint not null references bridge.backfill on delete cascade,
    ordinal integer not null,
    lower bytea,
    upper bytea,
    position bytea,
    documents bigint not null default 0,
    rows bigint not null default 0,
    irregular bigint not null default 0,
    quarantined bigint not null default 0,
    bytes bigint not null default 0,
    irregular_fields jsonb not null default '{}',
    holder uuid,
    leased_until timestamptz,
    finished_at timestamptz,
    primary key (backfill, ordinal)
);
comment on table bridge.chunk is 'The ledger of the backfill: ranges of _id (BSON documents {_id}, lower included, upper not, null is open), how far each was copied, and who is at it until when.';
create index if not exists chunk_unfinished on bridge.chunk (backfill, ordinal) where finished_at is null;

create table if not exists bridge.tombstone (
    collection text collate "C" not null,
    id text collate "C" not null,
    epoch integer not null,
    clock bigint not null,
    primary key (collection, id)
);
comment on table bridge.tombstone is 'Deleted keys and the stamp of their deletion: no older write brings them back.';

create table if not exists bridge.quarantine (
    collection text collate "C" not null,
    id text collate "C" not null,
    document bytea not null,
    reason text not null,
    epoch integer not null,
    clock bigint not null,
    quarantined_at timestamptz not null default clock_timestamp(),
    primary key (collection, id)
);
comment on table bridge.quarantine is 'Documents that cannot become a row, whole (BSON), and why.';
