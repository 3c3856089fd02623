//! What the scheduler does with its records, the same on either store (design 10, 13 and 14).

pub mod state;
