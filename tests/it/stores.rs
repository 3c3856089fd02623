//! The stores: what each must do, shown on all of them alike.

mod any;
mod contract;
pub mod samples;

pub use any::{AnyStore, both};
