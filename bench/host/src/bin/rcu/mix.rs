//! Reads and writes of one value of 64 bytes, by the share of writes: from which share on a lock is better.

use std::{
    cell::Cell,
    hint::black_box,
    sync::{Mutex, PoisonError, RwLock},
};

use rcu::{Ptr, domain, user::Reader};

use crate::team::{Record, Scale, Subject, measure};

domain!(static DOMAIN: Mixed);

/// Writes among 1000 operations.
const SHARES: [u64; 8] = [0, 1, 10, 50, 100, 250, 500, 1000];

type Value = [u64; 8];

thread_local! {
    static READER: Reader<'static, Mixed> = DOMAIN.register();
    static SEED: Cell<u64> = const { Cell::new(1) };
}

/// Whether the next operation is a write, by a generator that costs each subject the same.
#[inline(always)]
fn is_write(share: u64) -> bool {
    let seed = SEED.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    SEED.set(seed);
    ((seed >> 32) * 1000) >> 32 < share
}

/// With each number of threads.
pub fn run(scale: &Scale) -> Vec<Record> {
    let mut all = Vec::new();
    for &threads in &scale.threads {
        println!("mix, {threads} threads: ns for an operation, by the share of writes");
        println!("   writes        rcu   RwLock    Mutex   (and the generator alone)");
        let mut curve = Vec::new();
        for share in SHARES {
            let (at, turns) = (Ptr::<Value, Mixed>::new(Box::new([0; 8])), scale.turns);
            let (rwlock, mutex) = (RwLock::new([0u64; 8]), Mutex::new([0u64; 8]));
            // Serialises the copy and its publication, as whoever changes a part of what is there needs it.
            let lock = Mutex::new(());
            let subjects = [
                Subject::new("rcu", |_, ops| {
                    READER.with(|reader| {
                        for n in 0..ops {
                            if is_write(share) {
                                let mut lock = lock.lock().unwrap_or_else(PoisonError::into_inner);
                                // SAFETY: whoever assigns holds the lock.
                                let mut new = unsafe { at.load_locked(&lock) }.copied().unwrap_or_default();
                                new[1] = n;
                                let old = at.assign(Box::new(new), &mut lock);
                                drop(lock);
                                old.into_iter().for_each(|old| reader.call(old));
                            } else {
                                let section = reader.read();
                                black_box(at.load(&section).map(|value| value[1]));
                            }
                        }
                    });
                }),
                Subject::new("RwLock", |_, ops| {
                    for n in 0..ops {
                        if is_write(share) {
                            rwlock.write().unwrap_or_else(PoisonError::into_inner)[1] = n;
                        } else {
                            black_box(rwlock.read().unwrap_or_else(PoisonError::into_inner)[1]);
                        }
                    }
                }),
                Subject::new("Mutex", |_, ops| {
                    for n in 0..ops {
                        let mut value = mutex.lock().unwrap_or_else(PoisonError::into_inner);
                        if is_write(share) {
                            value[1] = n;
                        } else {
                            black_box(value[1]);
                        }
                    }
                }),
                Subject::new("generator", |_, ops| (0..ops).for_each(|_| _ = black_box(is_write(share)))),
            ];
            let bench = format!("mix_{}", share as f64 / 10.0);
            let records = measure(bench, threads, turns, scale.operations >> 3, &subjects);
            let [rcu, rwlock, mutex, generator] = [0, 1, 2, 3].map(|i| records[i].ns[1]);
            let percent = share as f64 / 10.0;
            println!("  {percent:6.1} % {rcu:10.2} {rwlock:8.2} {mutex:8.2}   ({generator:.2})");
            curve.push((percent, rcu - rwlock.min(mutex)));
            all.extend(records);
        }
        match crossover(&curve) {
            Some(share) => println!("  rcu costs less than either lock up to {share:.0} % of writes"),
            None => println!("  rcu costs less than either lock at each share"),
        }
    }
    all
}

/// Where the difference, from point to point a line, first is above 0.
fn crossover(curve: &[(f64, f64)]) -> Option<f64> {
    let at = curve.iter().position(|(_, more)| *more > 0.0)?;
    let Some(before) = at.checked_sub(1) else { return Some(0.0) };
    let ((x, a), (y, b)) = (curve[before], curve[at]);
    Some(x + (y - x) * a / (a - b))
}

#[cfg(test)]
mod tests {
    use super::crossover;

    #[test]
    fn the_crossover_is_where_the_line_passes_0() {
        assert_eq!(crossover(&[(0.0, -3.0), (10.0, -1.0), (20.0, 1.0)]), Some(15.0));
        assert_eq!(crossover(&[(0.0, -3.0), (10.0, -1.0)]), None);
        assert_eq!(crossover(&[(0.0, 1.0)]), Some(0.0));
    }
}
