//! Which operations there are, and which situations each of them can meet.

use std::collections::BTreeSet;
use std::path::Path;

use super::{ALL, Situation};

/// Situations that an operation cannot meet, and why.
const NOT_APPLICABLE: &[(&[&str], Situation, &str)] = {
    use Situation::{Absent, Concurrent, Conflicting, Deleted, Repeated, WrongTenant};
    &[
        (
            &[
                "triggers.*",
                "runs.*",
                "graph_jobs.*",
                "policy_jobs.*",
                "impact_snapshots.*",
                "workers.*",
                "execution_logs.*",
                "run_summaries.*",
                "audit.*",
                "fences.*",
            ],
            Deleted,
            "only schedules can be deleted",
        ),
        (
            &[
                "*.get",
                "*.list",
                "*.list_by_schedule",
                "*.pending",
                "*.by_schedule",
                "*.by_run",
                "*.latest",
                "*.query",
                "*.dead",
                "*.due",
                "fences.check",
            ],
            Conflicting,
            "reading conflicts with nothing",
        ),
        (
            &[
                "*.get",
                "*.list",
                "*.list_by_schedule",
                "*.pending",
                "*.by_schedule",
                "*.by_run",
                "*.latest",
                "*.query",
                "*.dead",
                "*.due",
                "fences.check",
            ],
            Repeated,
            "reading again reads again",
        ),
        (
            &[
                "*.get",
                "*.list_by_schedule",
                "*.pending",
                "*.by_schedule",
                "*.by_run",
                "*.latest",
                "*.dead",
                "*.due",
                "fences.check",
                "graph_jobs.list",
                "policy_jobs.list",
                "run_summaries.list",
                "schedules.list",
            ],
            Concurrent,
            "pages under concurrent changes are shown once, for runs and audit; a single read sees one state",
        ),
        (&["*.create", "*.upsert", "*.put", "*.register", "*.append", "*.project"], Absent, "it makes what is absent"),
        (
            &["*.list", "*.list_by_schedule", "*.pending", "*.by_schedule", "*.by_run", "*.query", "*.dead", "*.due"],
            Absent,
            "what is absent is not listed: the happy case lists exactly what is there",
        ),
        (
            &[
                "*.claim_due",
                "*.fire_due",
                "policy_jobs.lease",
                "policy_jobs.return_expired",
                "workers.reap",
                "workers.dead",
                "schedules.due",
            ],
            Absent,
            "it takes what it finds, also nothing: the happy case shows both",
        ),
        (
            &["*.claim_due", "*.fire_due", "policy_jobs.lease", "policy_jobs.return_expired", "schedules.due"],
            WrongTenant,
            "it works for all tenants",
        ),
        (&["workers.*", "fences.*"], WrongTenant, "workers and records of locks belong to no tenant"),
        (
            &["schedules.list", "schedules.upsert"],
            Deleted,
            "shown by the happy cases: hidden or included, and brought back",
        ),
        (
            &["workers.register", "workers.heartbeat", "workers.drain"],
            Conflicting,
            "the newest word of a worker counts",
        ),
        (
            &["workers.reap", "policy_jobs.lease", "policy_jobs.return_expired", "*.claim_due", "*.fire_due"],
            Conflicting,
            "the concurrent case: each goes to one",
        ),
        (&["workers.heartbeat"], Repeated, "a heartbeat is a repetition"),
        (&["run_summaries.project"], Conflicting, "projections of one run agree, in whatever order: the repeated case"),
        (&["audit.query", "runs.list"], Situation::Repeated, "reading again reads again"),
        (&["schedules.soft_delete"], Conflicting, "the concurrent case: one of several deletes it"),
        (&["triggers.advance"], Conflicting, "an older firing changes nothing: the repeated case"),
        (&["triggers.upsert"], Repeated, "the conflicting case puts it again"),
        (&["runs.cancel"], Conflicting, "a run that is over: the repeated case"),
        (&["fences.get", "execution_logs.append", "execution_logs.by_run"], Absent, "see the happy case"),
        (&["policy_jobs.complete_with"], WrongTenant, "it reads the job as complete does"),
        (&["policy_jobs.complete_with"], Absent, "it reads the job as complete does"),
        (&["policy_jobs.complete_with", "policy_jobs.renew"], Concurrent, "the lease has one holder, and only it may"),
        (
            &["impact_snapshots.put", "execution_logs.append", "audit.append", "*.create"],
            WrongTenant,
            "the record says whose it is; an id that is another's is the conflicting case",
        ),
        (&["schedules.due"], Deleted, "shown by the happy case"),
    ]
};

const EVERY: [Situation; 7] = [
    Situation::Happy,
    Situation::Absent,
    Situation::WrongTenant,
    Situation::Deleted,
    Situation::Conflicting,
    Situation::Repeated,
    Situation::Concurrent,
];

/// The operations that a source file has.
fn operations(repository: &str, source: &str) -> BTreeSet<String> {
    let names = source.lines().filter_map(|line| line.strip_prefix("    pub async fn "));
    names.filter_map(|rest| rest.split(['(', '<']).next()).map(|name| format!("{repository}.{name}")).collect()
}

fn all_operations() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/scheduler");
    let files = std::fs::read_dir(folder).expect("read the sources").map(|file| file.expect("a file").path());
    // What is common to all repositories is reached through each of them.
    let repositories =
        files.filter(|file| file.extension().is_some_and(|end| end == "rs") && !file.ends_with("records.rs"));
    let read = |file: std::path::PathBuf| {
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        operations(&name, &std::fs::read_to_string(file).expect("read a source"))
    };
    repositories.flat_map(read).collect()
}

fn names(pattern: &str, operation: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => operation.ends_with(end),
        (_, Some(begin)) => operation.starts_with(begin),
        _ => pattern == operation,
    }
}

fn is_excused(operation: &str, situation: Situation) -> bool {
    let excuses = NOT_APPLICABLE.iter().filter(|(_, of, _)| *of == situation);
    excuses.into_iter().any(|(patterns, ..)| patterns.iter().any(|pattern| names(pattern, operation)))
}

/// What is missing: operations and situations without a case, and cases of operations that there are not.
fn missing(operations: &BTreeSet<String>, covered: &BTreeSet<(String, Situation)>) -> Vec<String> {
    let unshown = |operation: &String| {
        let covered = |situation: &Situation| covered.contains(&(operation.clone(), *situation));
        let unshown = EVERY.iter().filter(|situation| !covered(situation) && !is_excused(operation, **situation));
        unshown.map(|situation| format!("{operation}: no case {situation:?}")).collect::<Vec<_>>()
    };
    let unknown = covered.iter().filter(|(operation, _)| !operations.contains(operation));
    let unknown = unknown.map(|(operation, _)| format!("{operation}: no such operation"));
    operations.iter().flat_map(unshown).chain(unknown).collect()
}

#[test]
fn every_operation_has_a_case_for_every_situation_that_it_can_meet() {
    let operations = all_operations();
    assert!(operations.len() > 35, "the sources were to be read: {operations:?}");
    let cases = ALL.iter().flat_map(|cases| cases.iter());
    let covered = cases.map(|case| (case.operation.to_owned(), case.situation)).collect();
    assert_eq!(missing(&operations, &covered), Vec::<String>::new());
}

#[test]
fn an_operation_without_a_case_is_missed_and_one_that_is_not_there_too() {
    let source =
        "impl X {\n    pub async fn wipe(&self) {}\n    pub async fn fold<T>(&self) {}\n    async fn own() {}\n}";
    let found = operations("things", source);
    assert_eq!(found.iter().collect::<Vec<_>>(), ["things.fold", "things.wipe"]);
    let one = BTreeSet::from(["things.wipe".to_owned()]);
    let all = EVERY.iter().map(|situation| ("things.wipe".to_owned(), *situation));
    assert_eq!(missing(&one, &all.clone().collect()), Vec::<String>::new());
    assert_eq!(missing(&one, &all.clone().skip(1).collect()), ["things.wipe: no case Happy"]);
    assert_eq!(missing(&BTreeSet::new(), &all.take(1).collect()), ["things.wipe: no such operation"]);
}
