//! The probes that run: one task per distinct target, which tells of each change of its verdict. May import `probe`.

use crds::nodes::ProbeSpec;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{
    agent::Event as AgentEvent,
    probe::{Count, Error, Probe, Target, Verdict},
};

/// A verdict about a target changed.
#[derive(Debug)]
pub struct Event {
    target: Target,
    spec: ProbeSpec,
    verdict: Verdict,
    error: Option<String>,
}

/// The probes that run.
#[derive(Debug)]
pub struct Probing {
    events: mpsc::UnboundedSender<AgentEvent>,
    asked: Vec<Asked>,
}

#[derive(Debug)]
struct Asked {
    target: Target,
    spec: ProbeSpec,
    verdict: Verdict,
    error: Option<String>,
    _task: AbortOnDropHandle<()>,
}

impl Probing {
    /// None yet; those to come tell `events`.
    #[must_use]
    pub fn new(events: mpsc::UnboundedSender<AgentEvent>) -> Self {
        Self { events, asked: vec![] }
    }

    /// Asks these targets from now on and no others; those that are asked already go on.
    pub fn ask(&mut self, wanted: impl Iterator<Item = (Target, ProbeSpec)>) {
        let mut rest = std::mem::take(&mut self.asked);
        for (target, spec) in wanted {
            let is_it = |asked: &Asked| asked.target == target && asked.spec == spec;
            if self.asked.iter().any(is_it) {
                continue;
            }
            let running = rest.iter().position(is_it).map(|index| rest.swap_remove(index));
            self.asked.push(running.unwrap_or_else(|| self.start(target, spec)));
        }
    }

    /// Takes in what a probe told.
    pub fn hear(&mut self, event: Event) {
        let asked = self.asked.iter_mut().find(|asked| asked.target == event.target && asked.spec == event.spec);
        if let Some(asked) = asked {
            asked.verdict = event.verdict;
            asked.error = event.error;
        }
    }

    /// What is known of a target, and what its last bad answer was.
    #[must_use]
    pub fn verdict(&self, target: &Target, spec: &ProbeSpec) -> (Verdict, Option<String>) {
        let asked = self.asked.iter().find(|asked| asked.target == *target && asked.spec == *spec);
        asked.map_or((Verdict::Unknown, None), |asked| (asked.verdict, asked.error.clone()))
    }

    fn start(&self, target: Target, spec: ProbeSpec) -> Asked {
        let task = tokio::spawn(watch(target.clone(), spec.clone(), self.events.clone()));
        Asked { target, spec, verdict: Verdict::Unknown, error: None, _task: AbortOnDropHandle::new(task) }
    }
}

/// Asks one target for ever.
async fn watch(target: Target, spec: ProbeSpec, events: mpsc::UnboundedSender<AgentEvent>) {
    let probe = Probe::new(target.clone(), spec.timeout.get());
    let mut count = Count::new(spec.clone());
    loop {
        let answer = match &probe {
            Ok(probe) => probe.ask().await.map_err(|error| error.to_string()),
            Err(error) => Err(Error::to_string(error)),
        };
        let before = count.verdict();
        let pause = count.take(answer.is_ok());
        if count.verdict() != before {
            let event =
                Event { target: target.clone(), spec: spec.clone(), verdict: count.verdict(), error: answer.err() };
            if events.send(AgentEvent::Verdict(event)).is_err() {
                return;
            }
        }
        sleep(pause).await;
    }
}
