//! What every benchmark needs: its sizes, the middle of its figures, and the file they go to.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The size that the variable `name` gives.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect(name))
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Where figures go.
pub fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").join("bench");
    std::fs::create_dir_all(&folder).expect("make the folder of results");
    folder
}

/// Writes the figures of one benchmark.
pub fn write(name: &str, figures: &Value) {
    let file = folder().join(name);
    std::fs::write(&file, serde_json::to_string_pretty(figures).expect("JSON") + "\n").expect("write the figures");
    println!("figures in {}", file.display());
}
