//! State machines: which state of a record may follow which (design 14).
//!
//! The tables are the rules; nothing else in the program knows a transition. A test holds them against the vocabularies
//! of the columns and tries every pair.

use crate::entity::{Vocabulary, graph_jobs, policy_jobs, runs, workers};

/// The states of one kind of record and the ways between them.
#[derive(Debug)]
pub struct StateMachine {
    /// What is in these states, as errors name it.
    pub of: &'static str,
    /// The words of the states.
    pub states: &'static Vocabulary,
    /// Each state with those that may follow it. A state that none may follow is final.
    pub transitions: &'static [(&'static str, &'static [&'static str])],
}

/// What an update does to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The state stays: the update reports progress.
    Progress,
    /// Another state that others may follow.
    Entered,
    /// A final state.
    Ended,
}

/// A transition that the table does not allow, or one from or to a word that is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {of} cannot go from {from:?} to {to:?}: {}", allowed_text(allowed))]
pub struct IllegalTransition {
    /// What was to change its state.
    pub of: &'static str,
    /// The state it is in.
    pub from: String,
    /// The state it was to enter.
    pub to: String,
    /// The states that may follow.
    pub allowed: &'static [&'static str],
}

fn allowed_text(allowed: &[&str]) -> String {
    if allowed.is_empty() { "its state is final".to_owned() } else { format!("it may go to {}", allowed.join(", ")) }
}

/// Runs.
pub const RUN: StateMachine = StateMachine {
    of: "run",
    states: &runs::STATE,
    transitions: &[
        ("planning", &["queued", "completed", "error", "cancelled"]),
        ("queued", &["running", "error", "cancelled"]),
        ("running", &["completed", "error", "cancelled"]),
        ("completed", &[]),
        ("error", &[]),
        ("cancelled", &[]),
    ],
};

/// Graph jobs.
pub const GRAPH_JOB: StateMachine = StateMachine {
    of: "graph job",
    states: &graph_jobs::STATUS,
    transitions: &[
        ("pending", &["queued", "running", "failed", "cancelled"]),
        ("queued", &["running", "failed", "cancelled"]),
        ("running", &["completed", "failed", "cancelled"]),
        ("completed", &[]),
        ("failed", &[]),
        ("cancelled", &[]),
    ],
};

/// Policy jobs. A lease that ends unused takes a job from `dispatching` back to `pending`.
pub const POLICY_JOB: StateMachine = StateMachine {
    of: "policy job",
    states: &policy_jobs::STATUS,
    transitions: &[
        ("pending", &["dispatching", "failed", "cancelled"]),
        ("dispatching", &["pending", "submitted", "completed", "failed", "cancelled"]),
        ("submitted", &["completed", "failed", "cancelled"]),
        ("completed", &[]),
        ("failed", &[]),
        ("cancelled", &[]),
    ],
};

/// Workers. A dead one that comes back registers anew.
pub const WORKER: StateMachine = StateMachine {
    of: "worker",
    states: &workers::STATUS,
    transitions: &[("active", &["draining", "dead"]), ("draining", &["dead"]), ("dead", &["active"])],
};

impl StateMachine {
    /// The states that may follow `state`; nothing when `state` is no state.
    pub fn allowed(&self, state: &str) -> Option<&'static [&'static str]> {
        self.transitions.iter().find(|(from, _)| *from == state).map(|(_, allowed)| *allowed)
    }

    /// Whether no state may follow `state`.
    pub fn is_final(&self, state: &str) -> bool {
        self.allowed(state).is_some_and(<[_]>::is_empty)
    }

    /// What an update from `from` to `to` does. The words are those of the table; older spellings are to be translated
    /// before, by [`Vocabulary::word`].
    ///
    /// # Errors
    /// [`IllegalTransition`]. A final state allows no update at all, not even one that keeps the state.
    pub fn step(&self, from: &str, to: &str) -> Result<Step, IllegalTransition> {
        let allowed = self.allowed(from).unwrap_or_default();
        let is_progress = from == to && !allowed.is_empty();
        if is_progress {
            Ok(Step::Progress)
        } else if !allowed.contains(&to) {
            Err(self.refusal(from, to))
        } else if self.is_final(to) {
            Ok(Step::Ended)
        } else {
            Ok(Step::Entered)
        }
    }

    /// The refusal of a transition from `from` to `to`.
    pub fn refusal(&self, from: &str, to: &str) -> IllegalTransition {
        let allowed = self.allowed(from).unwrap_or_default();
        IllegalTransition { of: self.of, from: from.to_owned(), to: to.to_owned(), allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&StateMachine; 4] = [&RUN, &GRAPH_JOB, &POLICY_JOB, &WORKER];

    #[test]
    fn the_tables_name_every_word_of_the_column_once_and_no_other() {
        for machine in ALL {
            let states: Vec<_> = machine.transitions.iter().map(|(state, _)| *state).collect();
            assert_eq!(states, machine.states.words, "{}", machine.of);
            let named = machine.transitions.iter().flat_map(|(_, allowed)| *allowed);
            assert!(named.clone().all(|state| states.contains(state)), "{}", machine.of);
        }
    }

    /// Written as design 14 has it, so that a slip in the table shows.
    fn run_may(from: &str, to: &str) -> bool {
        let ends = ["error", "cancelled"].contains(&to);
        match from {
            "planning" => ["planning", "queued", "completed"].contains(&to) || ends,
            "queued" => ["queued", "running"].contains(&to) || ends,
            "running" => ["running", "completed"].contains(&to) || ends,
            _ => false,
        }
    }

    #[test]
    fn every_pair_of_states_of_a_run_is_allowed_exactly_if_the_design_says_so() {
        for from in RUN.states.words {
            for to in RUN.states.words {
                assert_eq!(RUN.step(from, to).is_ok(), run_may(from, to), "{from} to {to}");
            }
        }
    }

    #[test]
    fn every_pair_is_progress_a_transition_or_refused_with_what_is_allowed() {
        for machine in ALL {
            for (from, allowed) in machine.transitions {
                for to in machine.states.words {
                    let expected = match (from == to, allowed.contains(to)) {
                        (true, _) if !allowed.is_empty() => Ok(Step::Progress),
                        (_, true) if machine.is_final(to) => Ok(Step::Ended),
                        (_, true) => Ok(Step::Entered),
                        _ => Err((*allowed).to_vec()),
                    };
                    let found = machine.step(from, to).map_err(|refusal| refusal.allowed.to_vec());
                    assert_eq!(found, expected, "{}: {from} to {to}", machine.of);
                }
            }
        }
    }

    #[test]
    fn a_refusal_says_from_what_to_what_and_what_is_allowed() {
        let refusal = |machine: &StateMachine, from, to| machine.step(from, to).unwrap_err().to_string();
        assert_eq!(
            refusal(&RUN, "queued", "completed"),
            r#"a run cannot go from "queued" to "completed": it may go to running, error, cancelled"#
        );
        assert_eq!(
            refusal(&POLICY_JOB, "failed", "failed"),
            r#"a policy job cannot go from "failed" to "failed": its state is final"#
        );
        assert!(RUN.step("lost", "queued").is_err() && RUN.step("queued", "lost").is_err());
    }
}
