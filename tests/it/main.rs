//! The integration tests: one binary, so that all tests share one pair of servers.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test fails by a panic and speaks by printing")]

mod bed;
mod checker;
mod cli;
mod commands;
mod embedded;
mod faults;
mod mapping;
mod schema;
mod stores;
mod verify;
