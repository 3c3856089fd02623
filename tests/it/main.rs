//! The integration tests: one binary, so that all tests share one pair of servers.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test fails by a panic and speaks by printing")]

mod bed;
mod browser;
pub mod checker;
mod children;
mod cli;
mod commands;
mod contract;
mod convergence;
mod cron;
mod dual;
mod embedded;
mod faults;
mod finalize;
mod lock;
mod mapping;
mod mirror;
mod outbox;
mod runbooks;
mod schema;
mod simulate;
mod status;
mod stores;
mod target;
mod verify;
