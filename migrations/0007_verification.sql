-- What the verifier needs to carry on after an interruption, and the gate to look at.

create table if not exists bridge.verification (
    id bigint generated always as identity primary key,
    phase text not null,
    epoch integer not null,
    collections text[] not null,
    sample double precision,
    tolerance_seconds double precision not null,
    holder uuid not null,
    held_by text not null,
    leased_until timestamptz not null,
    queued_until timestamptz,
    rechecked bigint not null default 0,
    began_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    report jsonb,
    digest bytea
);
comment on table bridge.verification is 'Comparisons of both stores: the phase and epoch in which each began, the collections, the part of their ranges that is compared (null is all), how long a difference must last, who is at it until when, up to when the queue of keys to compare again was gone through, how many keys were compared again; and its report, with the digest over it and all that the gate looks at.';

create table if not exists bridge.verification_share (
    verification bigint not null references bridge.verification on delete cascade,
    ordinal integer not null,
    collection text collate "C" not null,
    kind text not null constraint verification_share_kind check (kind in ('range', 'marked rows', 'all rows', 'quarantine')),
    lower bytea,
    upper bytea,
    documents bigint not null default 0,
    rows bigint not null default 0,
    quarantined bigint not null default 0,
    seconds double precision not null default 0,
    finished_at timestamptz,
    primary key (verification, ordinal)
);
comment on table bridge.verification_share is 'The parts of a verification: ranges of _id (BSON documents {_id}, lower included, upper not, null is open), the rows that no range compares, and the quarantine; what each has looked at, how long that took, and when it was done.';

create table if not exists bridge.suspect (
    verification bigint not null references bridge.verification on delete cascade,
    collection text collate "C" not null,
    id text collate "C" not null,
    document_id bytea not null,
    kind text not null constraint suspect_kind check (kind in ('missing', 'extra', 'content')),
    reason text,
    print bytea,
    since timestamptz not null default clock_timestamp(),
    settled text constraint suspect_settled check (settled in ('lasting', 'unsettled')),
    primary key (verification, collection, id)
);
comment on table bridge.suspect is 'Keys whose two sides differed in a verification: the _id (a BSON document {_id}), how they differ, a digest of both sides as they were read last, since when they have stood so, and whether that lasted, or the key was written to all the time.';
create index if not exists suspect_open on bridge.suspect (verification, collection, id) where settled is null;

create table if not exists bridge.read_parity (
    id bigint generated always as identity primary key,
    phase text not null,
    epoch integer not null,
    began_at timestamptz not null,
    finished_at timestamptz not null default clock_timestamp(),
    report jsonb not null,
    digest bytea not null
);
comment on table bridge.read_parity is 'Comparisons of what the repositories'' queries answer on both stores: the phase and epoch in which each began, and its report, with the digest over it and all that the gate looks at.';

alter table bridge.quarantine add column if not exists accepted_at timestamptz;
comment on table bridge.quarantine is 'Documents that cannot become a row, whole (BSON), and why; and when an operator has accepted that PostgreSQL does without.';

alter table bridge.switch add column if not exists conditions jsonb not null default '[]';
comment on table bridge.switch is 'The switch that is under way, what the gate measured before it, its last step, and who is at it until when. No row when none is.';
