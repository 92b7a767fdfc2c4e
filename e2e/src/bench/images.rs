//! How large our images are.

use anyhow::Result;

use super::{
    cases::Sample,
    contender::{Contender, Ground},
    report::Samples,
};
use crate::package::{build_all, size_of};

/// Makes them; each round would say the same.
pub fn measure(ground: &Ground, rounds: usize) -> Result<Samples> {
    let folder = ground.dir("images")?;
    build_all(&folder)?;
    let megabytes = |name: &str| -> Result<f64> {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        Ok(size_of(&folder.join(name))? as f64 / 1e6)
    };
    let sample = Sample::from([("server_mb", megabytes("cache-server")?), ("operator_mb", megabytes("operator")?)]);
    Ok(vec![[(Contender::Ours, sample)].into(); rounds])
}
