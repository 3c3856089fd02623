-- The scheduler's own tables, one an entity (src/entity). A column holds one top-level field of the document; residue,
-- epoch and clock belong to the move and go with it.
--
-- Text is compared by bytes (collate "C"), as MongoDB does it. Rows arrive in any order while the move lasts, so there
-- are no foreign keys, and nothing is unique but the key. Every statement leaves alone what is there already.

create schema if not exists scheduler;

create table if not exists scheduler.schedules (
    id text collate "C" not null,
    schema_version text collate "C",
    tenant_id text collate "C" not null,
    name text collate "C",
    enabled boolean,
    cron_expression text collate "C",
    timezone text collate "C",
    mode text collate "C",
    selection jsonb,
    only_if jsonb,
    notify jsonb,
    limits jsonb,
    subscribers jsonb,
    created_at timestamptz,
    created_by text collate "C",
    updated_at timestamptz,
    updated_by text collate "C",
    deleted_at timestamptz,
    deleted_by text collate "C",
    residue bytea,
    epoch integer not null,
    clock bigint not null,
    constraint schedules_pkey primary key (id),
    constraint schedules_mode_check check (
        mode in ('analysis-only', 'content-refresh')
    )
);
comment on table scheduler.schedules is 'What is to be run, and when.';

-- schedules: list, a page by (created_at, id)
create index if not exists schedules_listed on scheduler.schedules (tenant_id, created_at, id);

-- schedules: list enabled; due across tenants
create index if not exists schedules_active on scheduler.schedules (tenant_id, created_at, id)
    where enabled and deleted_at is null;

create table if not exists scheduler.triggers (
    id text collate "C" not null,
    tenant_id text collate "C" not null,
    schedule_id text collate "C",
    kind text collate "C",
    cron_expression text collate "C",
    timezone text collate "C",
    enabled boolean,
    next_fire_at timestamptz,
    last_fired_at timestamptz,
    misfire_policy text collate "C",
    created_at timestamptz,
    updated_at timestamptz,
    residue bytea,
    epoch integer not null,
    clock bigint not null,
    constraint triggers_pkey primary key (id),
    constraint triggers_kind_check check (
        kind in ('cron', 'manual', 'conselier', 'excitor')
    ),
    constraint triggers_misfire_policy_check check (
        misfire_policy in ('fire-once', 'skip')
    )
);
comment on table scheduler.triggers is 'What sets a schedule off.';

-- triggers: list by schedule
create index if not exists triggers_by_schedule on scheduler.triggers (tenant_id, schedule_id, created_at, id);

-- triggers: claim_due across tenants; schedules: due
create index if not exists triggers_due on scheduler.triggers (next_fire_at, id)
    where enabled;

create table if not exists scheduler.runs (
    id text collate "C" not null,
    schema_version text collate "C",
    tenant_id text collate "C" not null,
    schedule_id text collate "C",
    trigger text collate "C",
    state text collate "C" not null,
    stats jsonb,
    reason jsonb,
    created_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    error text collate "C",
    deltas jsonb,
    retry_of text collate "C",
    updated_at timestamptz,
    residue bytea,
    epoch integer not null,
    clock bigint not null,
    constraint runs_pkey primary key (id),
    constraint runs_state_check check (
        state in ('planning', 'queued', 'running', 'completed', 'error', 'cancelled')
    )
);
comment on table scheduler.runs is 'One execution of a schedule, or of a request made by hand.';

-- runs: list, created after, a page by (created_at, id)
create index if not exists runs_listed on scheduler.runs (tenant_id, created_at, id);

-- runs: list by state
create index if not exists runs_by_state on scheduler.runs (tenant_id, state, created_at, id);

-- runs: by_schedule, the newest first
create index if not exists runs_by_schedule on scheduler.runs (tenant_id, schedule_id, created_at, id)
    where schedule_id is not null;

-- runs: pending, the oldest first
create index if not exists runs_pending on scheduler.runs (tenant_id, created_at, id)
    where state in ('planning', 'queued');

create table if not exists scheduler.graph_jobs (
    id text collate "C" not null,
    schema_version text collate "C",
    tenant_id text collate "C" not null,
    type text collate "C",
    status text collate "C" not null,
    sbom_id text collate "C",
    sbom_version_id text collate "C",
    sbom_digest text collate "C",
    graph_snapshot_id text collate "C",
    trigger text collate "C",
    attempts integer,
    correlation_id text collate "C",
    created_at timestamptz,
    updated_at timestamptz,
    started_at timestamptz,
    completed_at timestamptz,
    error text collate "C",
    metadata jsonb,
    residue bytea,
    epoch integer not null,
    clock bigint not null,
    constraint graph_jobs_pkey primary key (id),
    constraint graph_jobs_type_check check (
        type in ('build', 'overlay')
    ),
    constraint graph_jobs_status_check check (
        status in ('pending', 'queued', 'running', 'completed', 'failed', 'cancelled')
    )
);
comment on table scheduler.graph_jobs is 'Building the graph of an SBOM, or an overlay of one.';

-- graph_jobs: list by status
create index if not exists graph_jobs_by_status on scheduler.graph_jobs (tenant_id, status, created_at, id);

create table if not exists scheduler.policy_jobs (
    id text collate "C" not null,
    schema_version text collate "C",
    tenant_id text collate "C" not null,
    policy_id text collate "C",
    policy_version integer,
    mode text collate "C",
    priority text collate "C",
    status text collate "C" not null,
    run_id text collate "C",
    requested_by text collate "C",
    correlation_id text collate "C",
    inputs jsonb,
    attempt_count integer,
    available_at timestamptz,
    last_attempt_at timestamptz,
    last_error text collate "C",
    lease_owner text collate "C",
    lease_expires_at timestamptz,
    queued_at timestamptz,
    submitted_at timestamptz,
    completed_at timestamptz,
    created_at timestamptz,
    updated_at timestamptz,
    metadata jsonb,
    residue bytea,
    epoch integer not null,
    clock bigint not null,
    constraint policy_jobs_pkey primary key (id),
    constraint policy_jobs_mode_check check (
        mode in ('full', 'incremental', 'simulate')
    ),
    constraint policy_jobs_priority_check check (
        priority in ('normal', 'high', 'emergency')
    ),
    constraint policy_jobs_status_check check (
        status in ('pending', 'dispatching', 'submitted', 'completed', 'failed', 'cancelled')
    )
);
comment on table scheduler.policy_jobs is 'Evaluations of a policy, leased by the workers that submit them.';

-- policy_jobs: list by status
create index if not exists policy_jobs_by_status on scheduler.policy_jobs (tenant_id, status, created_at, id);

-- policy_jobs: lease the next that is available, across tenants
create index if not exists policy_jobs_available on scheduler.policy_jobs (available_at, id)
    where status = 'pending';

-- policy_jobs: leases that ran out, and those of a dead worker
create index if not exists policy_jobs_leased on scheduler.policy_jobs (lease_expires_at, lease_owner)
    where lease_owner is not null;

create table if not exists scheduler.impact_snapshots (
    id text collate "C" not null,
    schema_version text collate "C",
    tenant_id text collate "C" not null,
    run_id text collate "C",
    selector jsonb,
    images jsonb,
    usage_only boolean,
    generated_at timestamptz,
    total integer,
    snapshot_id text collate "C",
    residue bytea,
    epoch integer not null,
    clock bigint not null,
    constraint impact_snapshots_pkey primary key (id)
);
comment on table scheduler.impact_snapshots is 'Which images a run is about, frozen when it was planned.';

-- impact_snapshots: by run
create index if not exists impact_snapshots_by_run on scheduler.impact_snapshots (tenant_id, run_id, generated_at, id)
    where run_id is not null;

-- impact_snapshots: latest
create index if not exists impact_snapshots_latest on scheduler.impact_snapshots (tenant_id, generated_at, id);

create table if not exists scheduler.workers (
    id text collate "C" not null,
    tenant_id text collate "C",
    hostname text collate "C",
    process_id integer,
    status text collate "C" not null,
    job_types jsonb,
    max_concurrent integer,
    current_jobs integer,
    registered_at timestamptz,
    last_heartbeat_at timestamptz,
    metadata jsonb,
    residue bytea,
    epoch integer not null,
    clock bigint not null,
    constraint workers_pkey primary key (id),
    constraint workers_status_check check (
        status in ('active', 'draining', 'dead')
    )
);
comment on table scheduler.workers is 'The processes that execute jobs, and whether they still live.';

-- workers: dead (heartbeat older than), reap
create index if not exists workers_by_heartbeat on scheduler.workers (status, last_heartbeat_at, id);

create table if not exists scheduler.execution_logs (
    id text collate "C" not null,
    tenant_id text collate "C" not null,
    run_id text collate "C",
    sequence bigint,
    level text collate "C",
    event_type text collate "C",
    message text collate "C",
    step_id text collate "C",
    timestamp timestamptz,
    metadata jsonb,
    residue bytea,
    epoch integer not null,
    clock bigint not null,
    constraint execution_logs_pkey primary key (id)
);
comment on table scheduler.execution_logs is 'What a run said, in order. Append-only.';

-- execution_logs: by run from sequence
create index if not exists execution_logs_by_run on scheduler.execution_logs (run_id, sequence);

create table if not exists scheduler.locks (
    id text collate "C" not null,
    owner text collate "C",
    token bigint,
    acquired_at timestamptz,
    expires_at timestamptz,
    residue bytea,
    epoch integer not null,
    clock bigint not null,
    constraint locks_pkey primary key (id)
);
comment on table scheduler.locks is 'Who holds what, until when, and the fencing token.';

create table if not exists scheduler.run_summaries (
    id text collate "C" not null,
    tenant_id text collate "C" not null,
    schedule_id text collate "C",
    last_run jsonb,
    recent jsonb,
    counters jsonb,
    updated_at timestamptz,
    residue bytea,
    epoch integer not null,
    clock bigint not null,
    constraint run_summaries_pkey primary key (id)
);
comment on table scheduler.run_summaries is 'The last runs of one schedule and their counts.';

-- run_summaries: list
create index if not exists run_summaries_listed on scheduler.run_summaries (tenant_id, id);

create table if not exists scheduler.audit (
    id text collate "C" not null,
    tenant_id text collate "C" not null,
    category text collate "C",
    action text collate "C",
    occurred_at timestamptz,
    actor jsonb,
    entity_id text collate "C",
    schedule_id text collate "C",
    run_id text collate "C",
    correlation_id text collate "C",
    message text collate "C",
    metadata jsonb,
    residue bytea,
    epoch integer not null,
    clock bigint not null,
    constraint audit_pkey primary key (id)
);
comment on table scheduler.audit is 'Who did what to which record. Append-only.';

-- audit: query by entity and time
create index if not exists audit_by_entity on scheduler.audit (tenant_id, entity_id, occurred_at, id)
    where entity_id is not null;

-- audit: query by time
create index if not exists audit_by_time on scheduler.audit (tenant_id, occurred_at, id);
