//! Readers that check that nothing they find is freed, beside updaters that do all there is to do: in each mode.
#![cfg(not(any(loom, shuttle)))]

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use rcu::{
    Ptr, domain,
    user::{Domain, Mode},
};

const ALIVE: u64 = 0x600D_600D_600D_600D;

/// Dies visibly.
struct Block(AtomicU64);

impl Drop for Block {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

fn block() -> Box<Block> {
    Box::new(Block(AtomicU64::new(ALIVE)))
}

fn torture<D: 'static>(domain: &'static Domain<D>, at: &'static [Ptr<Block, D>; 4]) {
    let millis = if std::env::var_os("QUIRE_FULL").is_some() { 20_000 } else { 500 };
    let (stop, sections) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for seed in 0..3u32 {
            let (stop, sections) = (&stop, &sections);
            scope.spawn(move || {
                let (mut count, mut spins) = (0, seed);
                while !stop.load(Ordering::Relaxed) {
                    // Threads that come and go.
                    let reader = domain.register();
                    for _ in 0..10_000 {
                        let section = reader.read();
                        let found = [0, 1, 2, 3].map(|i| at[i].load(&section));
                        spins = spins.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        if spins >> 24 == 0 {
                            // A long one.
                            thread::yield_now();
                            drop(reader.read());
                        }
                        for block in found.into_iter().flatten() {
                            assert_eq!(block.0.load(Ordering::Relaxed), ALIVE, "found what is freed");
                        }
                        count += 1;
                    }
                }
                sections.fetch_add(count, Ordering::Relaxed);
            });
        }
        for seed in 0..2usize {
            let stop = &stop;
            scope.spawn(move || {
                let mut updater = domain.register();
                for turn in seed.. {
                    let old = at[turn % 4].assign(block(), &mut ());
                    match (old, turn % 64) {
                        (Some(old), 0) => updater.free(old),
                        (Some(old), 1) => updater.barrier_after(old),
                        (Some(old), 2) => match updater.try_call(old) {
                            Ok(()) => {}
                            Err(full) => updater.free(full.0),
                        },
                        (Some(old), _) => updater.call(old),
                        (None, _) => {}
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        thread::sleep(Duration::from_millis(millis));
        stop.store(true, Ordering::Relaxed);
    });
    at.iter().filter_map(|at| at.take(&mut ())).for_each(|old| domain.register().call(old));
    domain.barrier_unregistered();
    let stats = domain.stats();
    assert_eq!(stats.waiting, 0);
    println!("{:?}: {} sections, {stats:?}", domain.mode(), sections.load(Ordering::Relaxed));
    assert!(sections.load(Ordering::Relaxed) > 0 && stats.periods > 0);
}

/// Makes barriers a part of the mix.
trait BarrierAfter<D> {
    fn barrier_after(&mut self, old: rcu::ptr::Retired<Block, D>);
}

impl<D: 'static> BarrierAfter<D> for rcu::user::Reader<'_, D> {
    fn barrier_after(&mut self, old: rcu::ptr::Retired<Block, D>) {
        self.call(old);
        self.barrier();
    }
}

#[test]
fn readers_find_nothing_freed() {
    domain!(static DOMAIN: Brand);
    static AT: [Ptr<Block, Brand>; 4] = [const { Ptr::none() }; 4];
    torture(&DOMAIN, &AT);
}

#[test]
fn readers_find_nothing_freed_with_fences() {
    domain!(static DOMAIN: Brand);
    static AT: [Ptr<Block, Brand>; 4] = [const { Ptr::none() }; 4];
    assert!(DOMAIN.use_fences());
    torture(&DOMAIN, &AT);
    assert_eq!(DOMAIN.mode(), Mode::Fences);
}
