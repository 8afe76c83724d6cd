//! Runs of guests, two at a time where that is fair: a machine whose CPUs share one thread of the host leaves another for
//! a second machine.
//!
//! Runs start in order, and their results come in order. A run that wants both threads waits for both, and those after it
//! wait behind it, so none starves.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use anyhow::{Context, Result};

use super::Report;

/// Threads of the host that runs share. More would slow down what has time limits, and save little.
pub const THREADS: usize = 2;

/// What workers tell.
enum News<T> {
    Begun(usize),
    Done(usize, Result<T>),
}

/// Do `run(0)` to `run(count - 1)`, each of which keeps `needs` threads busy (those above [`THREADS`] count as that).
/// `begun` is told when one starts; `done` gets the results in order. The first error ends it all.
pub fn in_order<T: Send>(
    count: usize,
    needs: impl Fn(usize) -> usize + Sync,
    run: impl Fn(usize) -> Result<T> + Sync,
    mut begun: impl FnMut(usize),
    mut done: impl FnMut(usize, T),
) -> Result<()> {
    let (next, threads, stop) = (Mutex::new(0), Permits::new(THREADS), AtomicBool::new(false));
    let (news, inbox) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let (news, next, threads, stop, needs, run) =
                (news.clone(), &next, &threads, &stop, &needs, &run);
            scope.spawn(move || {
                loop {
                    // Held while waiting for threads, so that runs start in order.
                    let mut turn = next.lock().unwrap_or_else(PoisonError::into_inner);
                    let i = *turn;
                    // Relaxed: only ends things sooner.
                    if i == count || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    *turn += 1;
                    let permit = threads.take(needs(i).clamp(1, THREADS));
                    drop(turn);
                    let _ = news.send(News::Begun(i));
                    let result = run(i);
                    if result.is_err() {
                        // Relaxed: as above.
                        stop.store(true, Ordering::Relaxed);
                    }
                    drop(permit);
                    let _ = news.send(News::Done(i, result));
                }
            });
        }
        drop(news);
        let (mut early, mut wanted) = (BTreeMap::new(), 0);
        for event in inbox {
            match event {
                News::Begun(i) => begun(i),
                News::Done(i, Ok(result)) => {
                    early.insert(i, result);
                    while let Some(result) = early.remove(&wanted) {
                        done(wanted, result);
                        wanted += 1;
                    }
                }
                News::Done(_, Err(error)) => return Err(error),
            }
        }
        (wanted == count).then_some(()).context("a run ended without a result")
    })
}

/// Tests that are made together, beside other tasks.
pub struct Task<'a> {
    name: String,
    /// Threads of the host that it keeps busy.
    needs: usize,
    run: Box<Run<'a>>,
}

/// Gives the tests that were made, each with its result.
type Run<'a> = dyn Fn() -> Result<Vec<(String, Verdict)>> + Sync + 'a;

/// A test's result, or why it failed.
pub type Verdict = std::result::Result<(), String>;

impl<'a> Task<'a> {
    /// Several tests.
    pub fn new(
        name: String,
        needs: usize,
        run: impl Fn() -> Result<Vec<(String, Verdict)>> + Sync + 'a,
    ) -> Self {
        Self { name, needs, run: Box::new(run) }
    }

    /// One test.
    pub fn test(
        name: impl Into<String>,
        needs: usize,
        run: impl Fn() -> Result<Verdict> + Sync + 'a,
    ) -> Self {
        let name = name.into();
        Self::new(name.clone(), needs, move || Ok(vec![(name.clone(), run()?)]))
    }
}

/// Do all tasks, and record what they say. Those that want the host for themselves come last, after one another: each waits
/// until nothing else runs.
pub fn record(report: &mut Report, mut tasks: Vec<Task<'_>>) -> Result<()> {
    tasks.sort_by_key(|task| task.needs.min(THREADS));
    let shared = RefCell::new(report);
    in_order(
        tasks.len(),
        |i| tasks[i].needs,
        |i| (tasks[i].run)(),
        |i| shared.borrow().begin(i, tasks.len(), &tasks[i].name),
        |_, tests| {
            for (name, result) in tests {
                shared.borrow_mut().record(&name, result);
            }
        },
    )
}

/// A number of threads that runs may take.
struct Permits {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Some of them, until dropped.
struct Permit<'a> {
    of: &'a Permits,
    number: usize,
}

impl Permits {
    fn new(number: usize) -> Self {
        Self { free: Mutex::new(number), freed: Condvar::new() }
    }

    fn take(&self, number: usize) -> Permit<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.freed.wait_while(free, |free| *free < number).unwrap_or_else(PoisonError::into_inner);
        *free -= number;
        Permit { of: self, number }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.of.free.lock().unwrap_or_else(PoisonError::into_inner) += self.number;
        self.of.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, time::Duration};

    use anyhow::bail;

    use super::*;

    #[test]
    fn results_come_in_order_and_threads_are_never_exceeded() {
        let needs = |i: usize| if i.is_multiple_of(5) { 2 } else { 1 };
        let (busy, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let run = |i: usize| {
            let now = busy.fetch_add(needs(i), Ordering::SeqCst) + needs(i);
            most.fetch_max(now, Ordering::SeqCst);
            // The later ones are the quicker ones.
            thread::sleep(Duration::from_millis(if i.is_multiple_of(2) { 4 } else { 1 }));
            busy.fetch_sub(needs(i), Ordering::SeqCst);
            Ok(i * i)
        };
        let (mut started, mut results) = (Vec::new(), Vec::new());
        in_order(40, needs, run, |i| started.push(i), |i, square| results.push((i, square))).unwrap();
        started.sort_unstable();
        assert_eq!(started, (0..40).collect::<Vec<_>>());
        assert_eq!(results, (0..40).map(|i| (i, i * i)).collect::<Vec<_>>());
        assert_eq!(most.into_inner(), THREADS);
    }

    #[test]
    fn an_error_ends_it() {
        let ran = AtomicUsize::new(0);
        let run = |i: usize| {
            ran.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
            if i == 3 { bail!("the third") } else { Ok(()) }
        };
        let error = in_order(1000, |_| 1, run, |_| (), |_, ()| ()).unwrap_err();
        assert_eq!(error.to_string(), "the third");
        assert!(ran.into_inner() < 1000);
        in_order(0, |_| 1, |_| Ok(()), |_| (), |_, ()| ()).unwrap();
    }
}
