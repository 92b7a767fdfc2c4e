//! What a small answer costs in instructions, which a busy machine does not change: a regression shows where times are noise.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::{
    cases::Sample,
    client::Connection,
    contender::{Contender, Ground, Running, Setup},
    report::Samples,
    stage::Stage,
};

/// Requests that are counted.
const REQUESTS: u32 = 2000;

/// Each contender runs under callgrind once for nothing but its warm-up, and once for each kind of request; the difference is what
/// those requests cost.
pub async fn measure(ground: &Ground, stage: &Stage, rounds: usize) -> Result<Samples> {
    let kinds = [("by_tag", &stage.by_tag), ("by_digest", &stage.by_digest), ("small", &stage.small)];
    let mut samples = Samples::new();
    for _ in 0..rounds {
        let mut round = BTreeMap::new();
        for contender in [Contender::Ours, Contender::NginxCache] {
            let nothing = count(ground, stage, contender, None).await?;
            let mut sample = Sample::new();
            for (name, request) in kinds {
                let all = count(ground, stage, contender, Some(request)).await?;
                sample.insert(name, (all - nothing) / f64::from(REQUESTS));
            }
            round.insert(contender, sample);
        }
        samples.push(round);
    }
    Ok(samples)
}

/// The instructions of a contender from its start to its end.
async fn count(ground: &Ground, stage: &Stage, contender: Contender, request: Option<&[u8]>) -> Result<f64> {
    let folder = ground.dir("instructions")?;
    let setup =
        Setup { contender, origin: &stage.fast, tls: false, mirrors: 1, counts: Some(&folder.join("callgrind")) };
    let running = Running::start(ground, setup).await?;
    let mut connection = Connection::open(running.address(), None)?;
    for request in [&stage.by_tag, &stage.by_digest, &stage.small] {
        // The second one finds it stored.
        for _ in 0..2 {
            connection.fetch(request)?;
        }
    }
    if let Some(request) = request {
        for _ in 0..REQUESTS {
            connection.fetch(request)?;
        }
    }
    drop(connection);
    running.stop(ground).await?;
    let counted = total(&folder)?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok(counted)
}

/// The sum over all processes.
fn total(folder: &Path) -> Result<f64> {
    let mut sum = 0.0;
    for file in fs::read_dir(folder).context("callgrind wrote nothing")? {
        let text = fs::read_to_string(file?.path()).context("cannot read what callgrind wrote")?;
        let lines = text.lines().filter_map(|line| line.strip_prefix("totals:")?.trim().parse::<f64>().ok());
        sum += lines.sum::<f64>();
    }
    ensure!(sum > 0.0, "callgrind counted nothing");
    Ok(sum)
}
