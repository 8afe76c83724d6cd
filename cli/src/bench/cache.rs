//! Points that would come out the same: `--resume` takes what an earlier run has measured with the same kernel,
//! benchmark, emulator and options, as far as hashes tell. Only counts are kept: times never come out the same.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    plan::{Sweep, Target},
    point::Lab,
};
use crate::{results::Results, workspace};

/// The results of a point: kept ones if they may be taken, else those of `measure`, which are kept then.
pub fn through(
    lab: &Lab,
    sweep: &Sweep,
    cpus: u32,
    operations: u32,
    measure: impl FnOnce() -> Result<Results>,
) -> Result<Results> {
    if !lab.is_exact() {
        return measure();
    }
    let path = place(lab, sweep, cpus, operations)?;
    if lab.resume
        && let Ok(results) = Results::read(&path)
    {
        return Ok(results);
    }
    let results = Results { version: crate::results::VERSION, ..measure()? };
    results.write(&path)?;
    Ok(results)
}

fn place(lab: &Lab, sweep: &Sweep, cpus: u32, operations: u32) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    let kernel = match sweep.system {
        Target::Quire(_) => lab.kernel.clone(),
        Target::Linux(choice) => {
            let found = lab.linux.iter().find(|(one, _)| *one == choice);
            found.map(|(_, linux)| linux.vmlinuz.clone()).context("a Linux that was not asked for")?
        }
    };
    contents(&kernel, &mut hasher)?;
    contents(&lab.program, &mut hasher)?;
    if let Some(exact) = &lab.exact {
        contents(&exact.tracer, &mut hasher)?;
    }
    lab.qemu.hash(&mut hasher);
    let point = lab.point(sweep, cpus, sweep.npages.unwrap_or(0))?;
    (point, operations, Sweep::warm_up(operations), sweep.steady, crate::results::VERSION).hash(&mut hasher);
    Ok(workspace::target("quire").join("points").join(format!("{:016x}.json", hasher.finish())))
}

fn contents(path: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?.hash(hasher);
    Ok(())
}
