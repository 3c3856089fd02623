//! Compares journals with a store: every acknowledged write must be there, and nothing may have been done twice.

use std::collections::{BTreeMap, HashMap, HashSet};

use bson::{Bson, Document};

use super::journal::Entry;
use super::tenants;
use crate::entity::runs::RunState;
use crate::entity::{Entity, named};
use crate::mapping::Key;
use crate::scheduler::state::{GRAPH_JOB, POLICY_JOB, RUN, StateMachine};
use crate::scheduler::{Error, PageRequest, Scheduler, Tenant, audit, runs};
use crate::store::{Store, StoreError};

/// How many keys are read at a time.
const BATCH: usize = 500;

/// What the comparison found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Findings {
    /// Acknowledged writes that were compared.
    pub writes: usize,
    /// Keys that they are of.
    pub keys: usize,
    /// Runs in the store.
    pub runs: usize,
    /// Runs that are over.
    pub runs_over: usize,
    /// What is wrong, for people.
    pub faults: Vec<String>,
}

/// How an acknowledged write must still show in the document that the store holds at last.
enum Lasts {
    /// The document is the same for ever.
    Unchanged,
    /// These fields never fall.
    Rising(&'static [&'static str]),
    /// These fields never fall, and the state in this field is the same or one that may follow.
    Moving(&'static [&'static str], &'static str, &'static StateMachine),
}

fn lasts(entity: &Entity) -> Lasts {
    match entity.name {
        "runs" => Lasts::Moving(&["updatedAt", "startedAt", "finishedAt"], "state", &RUN),
        "graph_jobs" => Lasts::Moving(&["updatedAt", "startedAt", "completedAt", "attempts"], "status", &GRAPH_JOB),
        "policy_jobs" => Lasts::Moving(&["updatedAt", "attemptCount", "completedAt"], "status", &POLICY_JOB),
        "triggers" => Lasts::Rising(&["updatedAt", "lastFiredAt", "nextFireAt"]),
        "run_summaries" | "schedules" => Lasts::Rising(&["updatedAt"]),
        "workers" => Lasts::Rising(&["registeredAt", "lastHeartbeatAt"]),
        _ => Lasts::Unchanged,
    }
}

/// Compares `entries` with `store`.
pub async fn check<S: Store>(store: &S, entries: &[Entry], tenant_count: u32) -> Result<Findings, Error> {
    let mut by_key: BTreeMap<(&str, &str), Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        by_key.entry((entry.entity.name, &entry.id)).or_default().push(entry);
    }
    let mut findings = Findings { writes: entries.len(), keys: by_key.len(), ..Findings::default() };
    let mut groups: BTreeMap<&str, Vec<(&str, Vec<&Entry>)>> = BTreeMap::new();
    for ((entity, id), entries) in by_key {
        groups.entry(entity).or_default().push((id, entries));
    }
    for (entity, keys) in groups {
        let Some(entity) = named(entity) else { continue };
        for keys in keys.chunks(BATCH) {
            compare(store, entity, keys, &mut findings.faults).await?;
        }
    }
    let scheduler = Scheduler::new(store);
    for tenant in tenants(tenant_count)? {
        once(&scheduler, &tenant, &mut findings).await?;
    }
    Ok(findings)
}

async fn compare<S: Store>(
    store: &S,
    entity: &'static Entity,
    entries: &[(&str, Vec<&Entry>)],
    faults: &mut Vec<String>,
) -> Result<(), Error> {
    let keys: Vec<Key> = entries.iter().map(|(id, _)| Key::from_text(*id)).collect();
    let found = store.get_many(entity, &keys).await?;
    for ((id, written), stored) in entries.iter().zip(found) {
        let Some(stored) = stored else {
            faults.push(format!("{} {id:?}: acknowledged, and not in the store", entity.name));
            continue;
        };
        let document = Document::try_from(stored.document.as_ref()).map_err(|error| Error::Failed {
            source: StoreError::Failed { attempted: format!("read {} {id:?}", entity.name), source: error.into() },
        })?;
        let fault = written.iter().find_map(|entry| fault(&lasts(entity), &entry.document, &document));
        faults.extend(fault.map(|fault| format!("{} {id:?}: {fault}", entity.name)));
    }
    Ok(())
}

/// What of the acknowledged document is missing in the one that is there.
fn fault(lasts: &Lasts, written: &Document, found: &Document) -> Option<String> {
    match lasts {
        Lasts::Unchanged => {
            let same =
                written.len() == found.len() && written.iter().all(|(name, value)| found.get(name) == Some(value));
            (!same).then(|| "is not what was acknowledged".to_owned())
        }
        Lasts::Rising(fields) => fallen(fields, written, found),
        Lasts::Moving(fields, state, machine) => {
            fallen(fields, written, found).or_else(|| lost_state(state, machine, written, found)).or_else(|| {
                let stats = |document: &Document| document.get_document("stats").cloned().unwrap_or_default();
                let (written, found) = (stats(written), stats(found));
                let names: Vec<&str> = written.keys().map(String::as_str).collect();
                fallen(&names, &written, &found)
            })
        }
    }
}

fn fallen(fields: &[&str], written: &Document, found: &Document) -> Option<String> {
    let number = |document: &Document, field: &str| match document.get(field) {
        Some(Bson::DateTime(date)) => Some(date.timestamp_millis()),
        Some(Bson::Int32(number)) => Some(i64::from(*number)),
        Some(Bson::Int64(number)) => Some(*number),
        _ => None,
    };
    let fallen = fields.iter().find(|field| number(found, field) < number(written, field));
    fallen.map(|field| format!("{field} was acknowledged as {:?} and is {:?}", written.get(*field), found.get(*field)))
}

fn lost_state(field: &str, machine: &StateMachine, written: &Document, found: &Document) -> Option<String> {
    let state = |document: &Document| document.get_str(field).unwrap_or_default().to_owned();
    let (from, to) = (state(written), state(found));
    let mut reached: HashSet<&str> = HashSet::from([from.as_str()]);
    // Each round adds at least one state, or is the last.
    loop {
        let next: Vec<&str> =
            reached.iter().flat_map(|state| machine.allowed(state).unwrap_or_default()).copied().collect();
        let before = reached.len();
        reached.extend(next);
        if reached.len() == before {
            break;
        }
    }
    (!reached.contains(to.as_str())).then(|| format!("{field} was acknowledged as {from:?} and is {to:?}"))
}

/// Each firing has one run, each run that is over ended once, and so did each job.
async fn once<S: Store>(scheduler: &Scheduler<S>, tenant: &Tenant, findings: &mut Findings) -> Result<(), Error> {
    let mut firings: HashMap<String, String> = HashMap::new();
    let mut over: HashSet<String> = HashSet::new();
    let mut page = PageRequest::first(500);
    loop {
        let listed = scheduler.runs.list(tenant, &runs::ListOptions::default(), &page).await?;
        for run in listed.items {
            findings.runs += 1;
            if run.state == RunState::Completed {
                over.insert(run.id.clone());
            }
            if let Some(firing) = run.reason.cursor
                && let Some(other) = firings.insert(firing.clone(), run.id.clone())
            {
                findings.faults.push(format!("firing {firing:?} has two runs: {other:?} and {:?}", run.id));
            }
        }
        page.after = listed.next;
        if page.after.is_none() {
            break;
        }
    }
    findings.runs_over += over.len();
    ended_once(scheduler, tenant, &over, findings).await
}

async fn ended_once<S: Store>(
    scheduler: &Scheduler<S>,
    tenant: &Tenant,
    over: &HashSet<String>,
    findings: &mut Findings,
) -> Result<(), Error> {
    let mut ends: HashMap<String, usize> = HashMap::new();
    let mut page = PageRequest::first(500);
    loop {
        let listed = scheduler.audit.query(tenant, &audit::ListOptions::default(), &page).await?;
        for record in listed.items.into_iter().filter(|record| record.action == "completed") {
            *ends.entry(record.entity_id.unwrap_or_default()).or_default() += 1;
        }
        page.after = listed.next;
        if page.after.is_none() {
            break;
        }
    }
    let twice = ends.iter().filter(|(_, count)| **count > 1);
    findings.faults.extend(twice.map(|(id, count)| format!("{id:?} was completed {count} times")));
    let missing = over.iter().filter(|id| !ends.contains_key(*id));
    findings.faults.extend(missing.map(|id| format!("run {id:?} is completed without a record of it")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    #[test]
    fn a_later_state_and_greater_counts_are_no_fault_and_earlier_ones_are() {
        let run = |state: &str, completed: i32| doc! { "state": state, "stats": { "completed": completed } };
        let lasts = lasts(named("runs").unwrap());
        assert_eq!(fault(&lasts, &run("planning", 0), &run("completed", 3)), None);
        assert_eq!(fault(&lasts, &run("queued", 1), &run("queued", 1)), None);
        assert!(fault(&lasts, &run("running", 1), &run("queued", 1)).is_some());
        assert!(fault(&lasts, &run("completed", 1), &run("error", 1)).is_some());
        assert!(fault(&lasts, &run("running", 2), &run("running", 1)).is_some());
    }

    #[test]
    fn a_moment_that_was_set_may_not_be_missing_and_an_appended_record_may_not_change() {
        let at = |millis| bson::DateTime::from_millis(millis);
        let triggers = lasts(named("triggers").unwrap());
        assert!(fault(&triggers, &doc! { "lastFiredAt": at(5) }, &doc! {}).is_some());
        assert!(fault(&triggers, &doc! { "lastFiredAt": at(5) }, &doc! { "lastFiredAt": at(4) }).is_some());
        assert_eq!(fault(&triggers, &doc! {}, &doc! { "lastFiredAt": at(4) }), None);
        let audit = lasts(named("audit").unwrap());
        assert_eq!(fault(&audit, &doc! { "a": 1, "b": 2 }, &doc! { "b": 2, "a": 1 }), None);
        assert!(fault(&audit, &doc! { "a": 1 }, &doc! { "a": 1, "b": 2 }).is_some());
    }
}
