-- What the scheduler needs of PostgreSQL as its store.

create sequence if not exists bridge.clock as bigint;
comment on sequence bridge.clock is 'The clock of stamps while PostgreSQL is primary: taken while the row is locked.';

-- MongoDB sorts a missing date before every other; the stores' queries sort by these expressions to agree with it.

drop index if exists scheduler.schedules_listed;
create index if not exists schedules_listed on scheduler.schedules
    (tenant_id, coalesce(created_at, '-infinity'), id);
drop index if exists scheduler.schedules_active;
create index if not exists schedules_active on scheduler.schedules
    (tenant_id, coalesce(created_at, '-infinity'), id)
    where enabled and deleted_at is null;

drop index if exists scheduler.triggers_by_schedule;
create index if not exists triggers_by_schedule on scheduler.triggers
    (tenant_id, schedule_id, coalesce(created_at, '-infinity'), id);
drop index if exists scheduler.triggers_due;
create index if not exists triggers_due on scheduler.triggers
    (coalesce(next_fire_at, '-infinity'), id)
    where enabled and next_fire_at is not null;

drop index if exists scheduler.runs_listed;
create index if not exists runs_listed on scheduler.runs
    (tenant_id, coalesce(created_at, '-infinity'), id);
drop index if exists scheduler.runs_by_state;
create index if not exists runs_by_state on scheduler.runs
    (tenant_id, state, coalesce(created_at, '-infinity'), id);
drop index if exists scheduler.runs_by_schedule;
create index if not exists runs_by_schedule on scheduler.runs
    (tenant_id, schedule_id, coalesce(created_at, '-infinity'), id)
    where schedule_id is not null;
drop index if exists scheduler.runs_pending;
create index if not exists runs_pending on scheduler.runs
    (tenant_id, coalesce(created_at, '-infinity'), id)
    where state in ('planning', 'queued');

drop index if exists scheduler.graph_jobs_by_status;
create index if not exists graph_jobs_by_status on scheduler.graph_jobs
    (tenant_id, status, coalesce(created_at, '-infinity'), id);
-- graph_jobs: list
create index if not exists graph_jobs_listed on scheduler.graph_jobs
    (tenant_id, coalesce(created_at, '-infinity'), id);

drop index if exists scheduler.policy_jobs_by_status;
create index if not exists policy_jobs_by_status on scheduler.policy_jobs
    (tenant_id, status, coalesce(created_at, '-infinity'), id);
-- policy_jobs: list
create index if not exists policy_jobs_listed on scheduler.policy_jobs
    (tenant_id, coalesce(created_at, '-infinity'), id);
drop index if exists scheduler.policy_jobs_available;
create index if not exists policy_jobs_available on scheduler.policy_jobs
    (priority, coalesce(available_at, '-infinity'), id)
    where status = 'pending';
drop index if exists scheduler.policy_jobs_leased;
-- policy_jobs: leases that ran out
create index if not exists policy_jobs_leased on scheduler.policy_jobs
    (coalesce(lease_expires_at, '-infinity'), id)
    where status = 'dispatching';
-- policy_jobs: the leases of one worker
create index if not exists policy_jobs_by_owner on scheduler.policy_jobs (lease_owner, id)
    where lease_owner is not null;

drop index if exists scheduler.impact_snapshots_by_run;
create index if not exists impact_snapshots_by_run on scheduler.impact_snapshots
    (tenant_id, run_id, coalesce(generated_at, '-infinity'), id)
    where run_id is not null;
drop index if exists scheduler.impact_snapshots_latest;
create index if not exists impact_snapshots_latest on scheduler.impact_snapshots
    (tenant_id, coalesce(generated_at, '-infinity'), id);

drop index if exists scheduler.workers_by_heartbeat;
create index if not exists workers_by_heartbeat on scheduler.workers
    (coalesce(last_heartbeat_at, '-infinity'), id)
    where status in ('active', 'draining');

drop index if exists scheduler.execution_logs_by_run;
create index if not exists execution_logs_by_run on scheduler.execution_logs
    (tenant_id, run_id, coalesce(sequence, '-9223372036854775808'), id);

drop index if exists scheduler.audit_by_entity;
create index if not exists audit_by_entity on scheduler.audit
    (tenant_id, entity_id, coalesce(occurred_at, '-infinity'), id)
    where entity_id is not null;
drop index if exists scheduler.audit_by_time;
create index if not exists audit_by_time on scheduler.audit
    (tenant_id, coalesce(occurred_at, '-infinity'), id);
