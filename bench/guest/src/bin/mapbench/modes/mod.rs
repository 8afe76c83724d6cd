//! The modes: what one operation is, and which part of it is measured.

mod countbench;
mod fault;
mod fork;
mod global;
mod imbalance;
mod local;
mod pipeline;
mod protect;
mod unmap;

use crate::{
    meter::Meter,
    options::{Kind, Plan},
};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// A mode, made for one run: what its threads share.
pub trait Mode: Sync {
    /// Bytes of the modes' range that it uses, from the begin.
    fn extent(&self) -> usize;

    /// Maps what threads share. The range is free when it is called, once, before any thread starts.
    fn prepare(&self) {}

    /// What one thread does. Called on that thread, which is on its CPU already.
    fn start(&self, thread: usize) -> Box<dyn Work + '_>;

    /// Threads that wait for one another have one number: in a timed run they must end after the same round.
    fn team(&self, thread: usize) -> usize {
        thread
    }
}

/// One thread's part.
pub trait Work {
    /// One operation. `round` counts from 0 with the warm-up.
    fn round(&mut self, round: u32, meter: &mut Meter);

    /// When all threads have left their windows, after `rounds` rounds: clear up, and check what is left.
    fn finish(&mut self, rounds: u32, meter: &mut Meter);
}

/// The mode that the plan names, or what is wrong with the plan.
pub fn make(kind: Kind, plan: &Plan) -> Result<Box<dyn Mode>, String> {
    let (threads, npages) = (plan.threads, plan.npages_of(kind));
    Ok(match kind {
        Kind::Local => Box::new(local::Local { threads, npages }),
        Kind::Pipeline => Box::new(pipeline::Pipeline::new(threads, npages)?),
        Kind::Global => Box::new(global::Global::new(threads, threads * npages, false)?),
        Kind::GlobalFixed => Box::new(global::Global::new(threads, npages, true)?),
        Kind::Countbench => Box::new(countbench::Countbench::new(threads, npages)),
        Kind::Imbalance => Box::new(imbalance::Imbalance::new(threads, npages, plan.pairs.as_deref())?),
        Kind::Fault => Box::new(fault::Fault::slices(threads, npages, plan)?),
        Kind::Fault2m => Box::new(fault::Fault::spans(threads, npages, plan)?),
        Kind::Protect => Box::new(protect::Protect { threads, npages }),
        Kind::Fork => Box::new(fork::Fork { threads, npages }),
        Kind::UnmapVirt => Box::new(unmap::Unmap { threads, npages, touched: false }),
        Kind::UnmapTouched => Box::new(unmap::Unmap { threads, npages, touched: true }),
    })
}
