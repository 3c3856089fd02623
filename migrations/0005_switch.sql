-- What dual writes and the switch need.

create or replace function bridge.enter(expected integer) returns table (epoch integer) language plpgsql rows 1 as $$
begin
    -- The lock first: each statement of this function sees what was committed before it begins, so that the fence is read
    -- as whoever closed it under the exclusive lock has left it, and stays so until this transaction ends.
    perform pg_advisory_xact_lock_shared(-321069874943212795);
    return query select f.epoch from bridge.fence f where f.open and f.epoch = expected;
    if not found then
        raise exception 'PostgreSQL takes no primary writes of epoch %', expected using errcode = 'BR001';
    end if;
end
$$;
comment on function bridge.enter is 'Holds the fence open for this transaction, or fails (BR001) when it is not open at that epoch.';

create table if not exists bridge.instance (
    id uuid primary key,
    name text not null,
    epoch integer not null,
    seen_at timestamptz not null default clock_timestamp()
);
comment on table bridge.instance is 'The application''s processes that take PostgreSQL for the primary, and the epoch at which each saw the fence last.';

create table if not exists bridge.switch (
    singleton boolean primary key default true constraint switch_is_one_row check (singleton),
    from_phase text not null,
    to_phase text not null,
    step text not null,
    holder uuid not null,
    held_by text not null,
    leased_until timestamptz not null,
    began_at timestamptz not null default clock_timestamp()
);
comment on table bridge.switch is 'The switch that is under way, its last step, and who is at it until when. No row when none is.';

create table if not exists bridge.phase_history (
    epoch integer not null,
    phase text not null,
    turned_at timestamptz not null default clock_timestamp(),
    turned_by text not null,
    pause_seconds double precision,
    conditions jsonb not null,
    primary key (epoch, phase)
);
comment on table bridge.phase_history is 'Every phase since the first: when it began, who turned it, for how long writers waited, and what the gate measured.';
