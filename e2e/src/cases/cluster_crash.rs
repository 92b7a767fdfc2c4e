//! The operator is killed after each of its writes in turn, while a mirror is created, changed and deleted: what is there in
//! the end, and how often each object was created and deleted, is as if nothing had happened. And when nothing is left to
//! do, nothing is written.
//!
//! In reading order: [`operator`] (as a process that can be killed), [`workload`] (what it has to do), [`end_state`] (what is
//! compared), the cases.

mod end_state;
mod operator;
mod workload;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use self::end_state::Differences;
use self::operator::{Account, HostOperator};
use self::workload::Step;
use crate::cluster::{Cluster, ClusterWorld, inventory, trail};
use crate::suite::ClusterCase;

/// How long a step may take, with a crash in it.
const STEP_LIMIT: Duration = Duration::from_mins(1);
/// After so much silence an operator that was killed has most likely done what there was to do; what it has not, is waited for.
const QUIET: Duration = Duration::from_secs(2);
/// After so much silence nothing more is to come: the operator's looks at caches and agents are closer together.
const QUIET_UNDISTURBED: Duration = Duration::from_secs(6);
/// How long what is seen may differ from an undisturbed run at the end of a step.
const SAME_LIMIT: Duration = Duration::from_secs(20);
/// How long all of it may take: less than a case may, so that the Deployment is always started again.
const CRASHES_LIMIT: Duration = Duration::from_mins(8);
/// No step takes this many writes; one that does writes without end.
const MOST_WRITES: usize = 60;
/// How long the product may take until it is idle.
const IDLE_LIMIT: Duration = Duration::from_mins(2);

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<ClusterCase> {
    vec![
        ClusterCase::new("cluster crash: an operator killed after any write leaves what it would have left", |world| {
            Box::pin(killed_after_each_write(world))
        }),
        ClusterCase::new("cluster crash: nothing is written in an idle minute", |world| {
            Box::pin(idle(&world.cluster, 1))
        }),
    ]
}

/// What one step led to.
#[derive(Debug)]
struct Outcome {
    end: Value,
    creates_and_deletes: BTreeMap<String, usize>,
    killed: bool,
}

async fn killed_after_each_write(world: &ClusterWorld) -> Result<()> {
    let account = operator::stand_in(&world.cluster).await?;
    let shown = tokio::time::timeout(CRASHES_LIMIT, crash(world, &account))
        .await
        .unwrap_or_else(|_| Err(anyhow!("not through all writes after {CRASHES_LIMIT:?}")));
    let removed = workload::remove(&world.cluster).await;
    let back = operator::stand_back(&world.cluster, &account).await;
    shown?;
    removed?;
    back?;
    workload::is_removed(&world.cluster).await
}

async fn crash(world: &ClusterWorld, account: &Account) -> Result<()> {
    let mut operator = HostOperator::start(world, account).await?;
    let reference = Reference::take(world, &mut operator, account).await?;
    let begun = Instant::now();
    let mut kills = 0;
    for count in 1.. {
        ensure!(count <= MOST_WRITES, "a step takes more than {MOST_WRITES} writes; does it end at all?");
        let mut killed = 0;
        for step in Step::ALL {
            let outcome = carry_out(world, &mut operator, account, step, Some((count, &reference))).await;
            let outcome = outcome.with_context(|| format!("{step:?}, killed after write {count}"))?;
            let (expected, _) = reference.of(step);
            ensure!(
                outcome.creates_and_deletes == expected.creates_and_deletes,
                "{step:?}, killed after write {count}: created and deleted {:#?} instead of {:#?}",
                outcome.creates_and_deletes,
                expected.creates_and_deletes
            );
            killed += usize::from(outcome.killed);
        }
        kills += killed;
        if killed == 0 {
            ensure!(count > 1, "the operator did not write at all");
            println!(
                "       {kills} kills, up to write {} of a step, in {:.0} s",
                count - 1,
                begun.elapsed().as_secs_f64()
            );
            break;
        }
    }
    operator.stop().await
}

/// What the steps lead to when nobody is killed.
#[derive(Debug)]
struct Reference(Vec<(Step, Outcome, Differences)>);

impl Reference {
    /// Goes through the steps twice: what two runs without a crash do not agree on, no crash can spoil.
    async fn take(world: &ClusterWorld, operator: &mut HostOperator, account: &Account) -> Result<Self> {
        let mut outcomes = Vec::new();
        for _ in 0..2 {
            for step in Step::ALL {
                let outcome = carry_out(world, operator, account, step, None).await;
                outcomes.push(outcome.with_context(|| format!("{step:?}, undisturbed"))?);
            }
        }
        let again = outcomes.split_off(Step::ALL.len());
        let mut steps = Vec::new();
        for ((step, outcome), again) in Step::ALL.into_iter().zip(outcomes).zip(again) {
            ensure!(
                outcome.creates_and_deletes == again.creates_and_deletes,
                "two undisturbed runs do not agree when {step:?}: {:#?}, then {:#?}",
                outcome.creates_and_deletes,
                again.creates_and_deletes
            );
            let agreed = Differences::between(&outcome.end, &again.end);
            steps.push((step, outcome, agreed));
        }
        Ok(Self(steps))
    }

    /// What a step led to, and where two runs of it differed.
    fn of(&self, step: Step) -> (&Outcome, &Differences) {
        let (_, outcome, differences) = &self.0[step as usize];
        (outcome, differences)
    }

    /// Waits until everything is as it was when nobody was killed.
    async fn is_reached(&self, cluster: &Cluster, step: Step) -> Result<()> {
        let (expected, agreed) = self.of(step);
        cluster
            .until("the end state is that of an undisturbed run", SAME_LIMIT, async || {
                let found = Differences::between(&expected.end, &end_state::dump(cluster).await?).beyond(agreed);
                ensure!(found.is_empty(), "it differs: {found:#?}");
                Ok(true)
            })
            .await
    }
}

/// One step. With a number, the operator is killed after so many writes, if it comes to that, and the end must be that of the
/// reference.
async fn carry_out(
    world: &ClusterWorld,
    operator: &mut HostOperator,
    account: &Account,
    step: Step,
    kill: Option<(usize, &Reference)>,
) -> Result<Outcome> {
    let cluster = &world.cluster;
    let begin = trail::mark(cluster)?;
    operator.proxy().arm(kill.map(|(count, _)| count));
    step.begin(world).await?;
    let quiet = if kill.is_some() { QUIET } else { QUIET_UNDISTURBED };
    let mut killed = false;
    let settled = cluster
        .until(&format!("{step:?} is done and the operator quiet"), STEP_LIMIT, async || {
            if operator.proxy().has_killed() {
                killed = true;
                operator.restart(world).await?;
            }
            operator.must_live()?;
            Ok(operator.proxy().quiet_for() > quiet && step.is_done(cluster).await?)
        })
        .await;
    operator.proxy().arm(None);
    settled.with_context(|| operator.log())?;
    if let Some((_, reference)) = kill {
        reference.is_reached(cluster, step).await.with_context(|| operator.log())?;
    }
    let events = trail::since(cluster, begin)?;
    Ok(Outcome {
        end: end_state::dump(cluster).await?,
        creates_and_deletes: trail::creates_and_deletes(&events, &account.name),
        killed,
    })
}

/// Waits until the product has come to rest, then asserts that none of its accounts writes for so many minutes. Leases do not
/// count: they say that a program lives. For `cargo e2e soak` with ten.
pub async fn idle(cluster: &Cluster, minutes: u64) -> Result<()> {
    let mut last = trail::mark(cluster)?;
    let mut since = Instant::now();
    cluster
        .until("nothing has been written for 10 s", IDLE_LIMIT, async || {
            let writes = writes_since(cluster, last)?;
            if !writes.is_empty() {
                last = trail::mark(cluster)?;
                since = Instant::now();
                bail!("written: {writes:#?}");
            }
            Ok(since.elapsed() > Duration::from_secs(10))
        })
        .await?;
    ensure!(!inventory::lives(cluster).await?.is_empty(), "nothing runs that could write");
    let begin = trail::mark(cluster)?;
    tokio::time::sleep(Duration::from_mins(minutes)).await;
    let writes = writes_since(cluster, begin)?;
    ensure!(writes.is_empty(), "in {minutes} idle minutes these were written: {writes:#?}");
    let renewed = trail::since(cluster, begin)?.iter().filter(|event| trail::account(event).is_some()).count();
    ensure!(renewed > 0, "no account of ours asked anything: does the operator run, and is the log complete?");
    Ok(())
}

/// What our accounts wrote, a line each.
fn writes_since(cluster: &Cluster, begin: trail::Mark) -> Result<Vec<String>> {
    let events = trail::since(cluster, begin)?;
    let writes = events.iter().filter(|event| trail::is_write(event)).filter_map(|event| {
        let account = trail::account(event)?;
        Some(format!("{account}: {} {} {}", event["verb"], trail::resource(event), event["objectRef"]["name"]))
    });
    Ok(writes.collect())
}
