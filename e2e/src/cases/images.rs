//! Our own images: small, and the same bytes every time.

use anyhow::{Result, ensure};

use crate::package::{MAX_BYTES, PRODUCTS, beside_this_program, build, size_of};
use crate::suite::{Case, World};

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![Case::new("images: two builds give the same digest, under 20 MB", |world| {
        Box::pin(async { reproducible(world) })
    })]
}

fn reproducible(world: &World) -> Result<()> {
    for product in PRODUCTS {
        let program = beside_this_program(product.name)?;
        let first = world.lab.dir("images")?.join(format!("{}-1", product.name));
        let second = world.lab.dir("images")?.join(format!("{}-2", product.name));
        let one = build(&product, &program, &first)?;
        let two = build(&product, &program, &second)?;
        ensure!(one == two, "{}: {} is not {}", product.name, one.digest(), two.digest());
        let size = size_of(&first)?;
        ensure!(size < MAX_BYTES, "{} is {size} bytes", product.name);
    }
    Ok(())
}
