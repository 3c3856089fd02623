//! The switches of the demo.

use std::time::{Duration, Instant};

use super::broken;
use crate::cli::switch::told;
use crate::cli::{Failure, Output, report};
use crate::phase::Phase;
use crate::source::Source;
use crate::switch::gate::Limits;
use crate::switch::{Options, Switch, SwitchError};
use crate::target::Target;
use crate::verify::reads;

/// How long the gate may take to open: the mirror has a scheduler at full speed behind it.
const GATE_WAIT: Duration = Duration::from_secs(60);

/// How long another operator would wait for this one.
const LEASE: Duration = Duration::from_secs(15);

/// Turns from phase to phase.
pub(super) struct Flips {
    pub source: Source,
    pub target: Target,
    pub output: Output,
}

impl Flips {
    /// Turns to `to`, once every condition is met; tells each condition, each step, and for how long writers waited.
    pub(super) async fn turn(&self, to: Phase) -> Result<(), Failure> {
        let switch = Switch::new(self.source.clone(), self.target.clone(), "the demo".to_owned(), LEASE);
        let limits = self.limits(&switch).await?;
        let deadline = Instant::now() + GATE_WAIT;
        let permit = loop {
            match switch.permit(to, &limits).await {
                Ok(permit) => break permit,
                Err(SwitchError::Unmet { conditions }) if Instant::now() > deadline => {
                    self.output.text(&report::conditions(&conditions))?;
                    return Err(broken("the gate stays closed"));
                }
                Err(SwitchError::Unmet { .. }) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(error) => return Err(error.into()),
            }
        };
        self.output.text(&report::conditions(permit.conditions()))?;
        let output = self.output;
        let made = switch.make(permit, Options::default(), &mut |step| told(&step, output)).await?;
        let millis = made.pause.as_secs_f64() * 1_000.0;
        self.output
            .text(&format!("the phase is {}, epoch {}; writers waited {millis:.0} ms", made.phase, made.epoch))?;
        self.output.object(&serde_json::json!({ "phase": made.phase.name(), "pause_milliseconds": millis }))
    }

    /// What an operator decides: in a demo nobody waits a day before the way back is given up; others may use the servers
    /// that it was given; and old documents whose dates are texts sort otherwise in MongoDB, which is told and accepted.
    async fn limits(&self, switch: &Switch) -> Result<Limits, Failure> {
        let latest = reads::latest(self.target.pool()).await?;
        let accepted_reads = latest.map(|latest| latest.differing).unwrap_or_default().into_iter().collect();
        switch.fences().await?;
        let accepted_clients = switch.strangers().await?;
        Ok(Limits { accepted_clients, accepted_reads, soak: Duration::ZERO, ..Limits::default() })
    }
}
