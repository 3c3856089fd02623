//! `vectors.txt`: expression, zone, an instant, and the firings after it. `cron.py` has worked them out; those around the
//! changes of zones were compared with the changes' own dates by hand.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use scheduler_bridge::scheduler::cron::Cron;

const VECTORS: &str = include_str!("vectors.txt");

#[test]
fn every_vector_fires_when_it_was_worked_out_to() {
    let (mut count, mut zones) = (0, BTreeSet::new());
    for line in VECTORS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let [expression, zone, after, firings] =
            line.split('|').map(str::trim).collect::<Vec<_>>().try_into().expect(line);
        let cron = Cron::parse(expression, zone).expect(line);
        let mut at: DateTime<Utc> = after.parse().expect(line);
        for firing in firings.split_whitespace() {
            let next = cron.next(at).map(|next| next.format("%FT%TZ").to_string());
            assert_eq!(next.as_deref().unwrap_or("-"), firing, "{line}");
            if let Ok(firing) = firing.parse() {
                at = firing;
            }
        }
        count += 1;
        zones.insert(zone);
    }
    assert!(count >= 200, "{count}");
    for zone in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia"] {
        assert!(zones.contains(zone), "{zone}");
    }
}

#[test]
fn an_unknown_zone_is_refused_by_name() {
    for zone in ["Europe/Wien", "", "CET+1", "europe/berlin", "Mars/Olympus"] {
        let refusal = Cron::parse("* * * * *", zone).expect_err(zone).to_string();
        assert!(refusal.starts_with(&format!("{zone:?} is not a zone")), "{refusal}");
    }
}
