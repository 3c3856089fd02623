//! Cron expressions: vectors worked out beforehand, and a million firings worked out a second time by another program in
//! another language with another source of zones.

mod agreement;
mod expressions;
mod vectors;
