//! The table of faults: each row makes an upstream, a disk or a client fail in one way, asserts what the product
//! does about it, and shows beside it what Debian's docker-registry does as a pull-through cache.
//!
//! The product runs with a tenth of its default limits ([`mirror`](crate::upstream::mirror)); a case of its own
//! checks the defaults.

mod reference;
mod rows;
mod stage;

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use futures_util::{StreamExt as _, future::LocalBoxFuture, stream};

use self::{reference::Theirs, stage::Stage};
use crate::{
    lab::CacheServer,
    suite::{Case, World},
    upstream::{
        client::{Ask, half_a_head},
        fault::{Fault, Target},
        mirror::{Configuration, Mirror},
    },
};

/// Rows under way at once: most of them wait for a limit.
const ROWS_AT_ONCE: usize = 3;
/// No row takes longer.
const ROW_LIMIT: Duration = Duration::from_mins(1);

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("faults: the table", |world| Box::pin(table(world))),
        Case::new("faults: the default limits", |world| Box::pin(default_limits(world))),
    ]
}

/// Asserts, and says what it saw.
type Check = for<'s> fn(&'s Stage<'s>) -> LocalBoxFuture<'s, Result<String>>;

/// One fault.
struct Row {
    name: &'static str,
    /// Makes the upstream fail; nothing where the fault is elsewhere.
    spoil: fn(&Stage<'_>),
    ours: Check,
    theirs: Theirs,
}

/// What came of one row.
struct Outcome {
    name: &'static str,
    ours: Result<String>,
    theirs: String,
}

async fn table(world: &World) -> Result<()> {
    let rows = rows::all();
    let began = Instant::now();
    let numbered = rows.iter().enumerate();
    let mut outcomes: Vec<_> = stream::iter(numbered.map(|(number, row)| outcome(world, number, row)))
        .buffer_unordered(ROWS_AT_ONCE)
        .collect()
        .await;
    outcomes.sort_by_key(|(number, _)| *number);
    let outcomes: Vec<_> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    print(&outcomes, began.elapsed());
    let failed: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| outcome.ours.as_ref().err().map(|error| format!("{}: {error:#}", outcome.name)))
        .collect();
    ensure!(failed.is_empty(), "{} of {} rows failed:\n{}", failed.len(), outcomes.len(), failed.join("\n"));
    Ok(())
}

async fn outcome(world: &World, number: usize, row: &Row) -> (usize, Outcome) {
    let ours = tokio::time::timeout(ROW_LIMIT, ours(world, number, row))
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("still not done after {ROW_LIMIT:?}")));
    let theirs = reference::seen(world, number, row).await;
    let outcome = Outcome { name: row.name, ours, theirs };
    (number, outcome)
}

async fn ours(world: &World, number: usize, row: &Row) -> Result<String> {
    let stage = Stage::new(world, &format!("fault-{number}"), row.spoil)?;
    let seen = (row.ours)(&stage).await;
    stage.repair();
    seen
}

fn print(outcomes: &[Outcome], took: Duration) {
    println!("\n{:<44} {:<58} docker-registry", "fault", "ours");
    for outcome in outcomes {
        let ours = match &outcome.ours {
            Ok(seen) => format!("ok: {seen}"),
            Err(_) => "FAILED (see below)".to_owned(),
        };
        println!("{:<44} {:<58} {}", outcome.name, ours, outcome.theirs);
    }
    println!("{} rows in {:.0} s\n", outcomes.len(), took.as_secs_f64());
}

/// The limits as they are when nobody sets them: ten seconds for half a request header and for an upstream's answer.
async fn default_limits(world: &World) -> Result<()> {
    let upstream = &world.upstream;
    let configuration = Configuration::with_defaults(upstream).mirror(Mirror::hub());
    let server = CacheServer::start(&world.lab, configuration.setup("defaults")).await?;
    upstream.content().put_image("library/defaults", "latest", Vec::new())?;
    upstream.faults().set(Target::path("library/defaults/"), Fault::Hang);
    let ask = Ask::get("/v2/library/defaults/manifests/latest").run(server.listen());
    let half = half_a_head(server.listen(), Duration::from_secs(15));
    let (hung, half) = tokio::join!(ask, half);
    upstream.faults().clear_path("library/defaults/");
    let hung = hung?;
    if !matches!(hung.status, 503 | 504) {
        bail!("a hanging upstream gave {}", hung.summary());
    }
    for (what, took) in [("an upstream's header", hung.took), ("a request's header", half?)] {
        let is_ten = (8.5..12.0).contains(&took.as_secs_f64());
        ensure!(is_ten, "{what} was given up after {took:?}, the default is 10 s");
    }
    Ok(())
}
