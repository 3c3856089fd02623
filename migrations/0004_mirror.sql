-- What the mirror needs.

alter table bridge.stream add column if not exists holder uuid;
alter table bridge.stream add column if not exists leased_until timestamptz;
alter table bridge.stream add column if not exists lag_seconds double precision;
alter table bridge.stream add column if not exists lag_events bigint;
alter table bridge.stream add column if not exists level_at timestamptz;
comment on table bridge.stream is 'Where the mirror goes on in the change stream: a resume token (BSON), or none before its first event, and the oplog time of the last event applied; which mirror is at it until when; how far it lags behind, and when it was level last. One row.';

create table if not exists bridge.recheck (
    collection text collate "C" not null,
    id text collate "C" not null,
    epoch integer not null,
    clock bigint not null,
    queued_at timestamptz not null default clock_timestamp(),
    primary key (collection, id)
);
comment on table bridge.recheck is 'Keys that the mirror wrote since the verifier compared them last, and the stamp of the newest such write.';

create table if not exists bridge.outbox (
    ordinal bigint generated always as identity primary key,
    collection text collate "C" not null,
    id text collate "C" not null,
    written_at timestamptz not null default clock_timestamp()
);
comment on table bridge.outbox is 'Keys written while PostgreSQL is the primary and MongoDB follows: the mirror brings each level with its row, or with its tombstone.';

create table if not exists bridge.truncated (
    collection text collate "C" primary key,
    truncated_at timestamptz not null default clock_timestamp()
);
comment on table bridge.truncated is 'Collections whose table was truncated and that were not copied anew since: nobody else would bring their rows back.';

create or replace function bridge.note_truncation() returns trigger language plpgsql as $$
begin
    insert into bridge.truncated (collection) values (tg_table_name)
    on conflict (collection) do update set truncated_at = excluded.truncated_at;
    return null;
end
$$;

create or replace trigger noted after truncate on scheduler.schedules for each statement execute function bridge.note_truncation();
create or replace trigger noted after truncate on scheduler.triggers for each statement execute function bridge.note_truncation();
create or replace trigger noted after truncate on scheduler.runs for each statement execute function bridge.note_truncation();
create or replace trigger noted after truncate on scheduler.graph_jobs for each statement execute function bridge.note_truncation();
create or replace trigger noted after truncate on scheduler.policy_jobs for each statement execute function bridge.note_truncation();
create or replace trigger noted after truncate on scheduler.impact_snapshots for each statement execute function bridge.note_truncation();
create or replace trigger noted after truncate on scheduler.workers for each statement execute function bridge.note_truncation();
create or replace trigger noted after truncate on scheduler.execution_logs for each statement execute function bridge.note_truncation();
create or replace trigger noted after truncate on scheduler.locks for each statement execute function bridge.note_truncation();
create or replace trigger noted after truncate on scheduler.run_summaries for each statement execute function bridge.note_truncation();
create or replace trigger noted after truncate on scheduler.audit for each statement execute function bridge.note_truncation();
