//! The stores: what each must do, shown on all of them alike.

mod any;
pub mod claims;
mod contract;
mod indexes;
mod races;
mod same;
pub mod samples;

pub use any::{AnyStore, both};
