-- What the watch for stray writes needs.

create table if not exists bridge.stray (
    collection text collate "C" not null,
    id text collate "C" not null,
    epoch integer not null,
    clock bigint not null,
    document bytea,
    seen_at timestamptz not null default clock_timestamp(),
    accepted_at timestamptz,
    primary key (collection, id, clock)
);
comment on table bridge.stray is 'Writes to MongoDB while it followed that were not the mirror''s, and were undone: the epoch and the oplog time of each, the document (BSON) that it left or nothing, and when an operator has accepted that it is lost.';
