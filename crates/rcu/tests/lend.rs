//! What tables lend: that it ends when it should, once, and not while it is used.
#![cfg(not(any(loom, shuttle)))]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use rcu::lend::{Full, Lent, MOST, Table, User};

const ALIVE: usize = 0x600D;

/// Tells when it ends, and that it has.
struct File<'a>(AtomicUsize, &'a AtomicUsize);

impl<'a> File<'a> {
    fn new(ends: &'a AtomicUsize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(ALIVE), ends))
    }
    fn check(&self) {
        assert_eq!(self.0.load(Ordering::Relaxed), ALIVE, "used after its end");
    }
}

impl Drop for File<'_> {
    fn drop(&mut self) {
        assert_eq!(self.0.swap(0, Ordering::Relaxed), ALIVE, "it ends once");
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

fn put<'a>(
    table: &Table<File<'a>>,
    at: usize,
    file: Arc<File<'a>>,
    by: &User<File<'a>>,
) -> Option<Arc<File<'a>>> {
    let mut held = table.lock();
    held.extend_to(at).expect("there is memory");
    held.put(at, file, 0, Some(by))
}

#[test]
fn what_nobody_is_lent_ends_when_it_is_taken_out() {
    let ends = AtomicUsize::new(0);
    let table = Arc::new(Table::new());
    let (me, other) = (User::of(table.clone()), User::of(table.clone()));
    for (round, closer) in [&me, &other].into_iter().enumerate() {
        assert!(put(&table, 0, File::new(&ends), &me).is_none());
        other.lend(0).expect("it is there").check();
        drop(table.lock().take(0, Some(closer)));
        assert_eq!(ends.load(Ordering::Relaxed), round + 1);
        assert!(me.lend(0).is_none());
    }
}

#[test]
fn what_is_lent_ends_when_the_last_gives_it_back() {
    let ends = AtomicUsize::new(0);
    let ended = || ends.load(Ordering::Relaxed);
    let table = Arc::new(Table::new());
    let (me, other) = (User::of(table.clone()), User::of(table.clone()));
    assert!(put(&table, 5, File::new(&ends), &me).is_none());
    let lent = [me.lend(5), other.lend(5), other.lend(5)].map(|lent| lent.expect("it is there"));
    drop(table.lock().take(5, Some(&me)));
    for (at, lent) in lent.into_iter().enumerate() {
        assert_eq!(ended(), 0, "before {at}");
        lent.check();
        drop(lent);
    }
    assert_eq!(ended(), 1);
    // What has replaced it, and what is counted beside.
    assert!(put(&table, 5, File::new(&ends), &me).is_none());
    let lent = me.lend(5).expect("it is there");
    let counted = lent.counted();
    drop(put(&table, 5, File::new(&ends), &other));
    drop(lent);
    assert_eq!(ended(), 1);
    drop(counted);
    assert_eq!(ended(), 2);
    // More than there are words for.
    let many: Vec<_> = (0..20).map(|_| me.lend(5).expect("it is there")).collect();
    drop(table.lock().take(5, Some(&me)));
    many.iter().for_each(|lent| lent.check());
    assert_eq!(ended(), 2);
    drop(many);
    assert_eq!(ended(), 3);
}

#[test]
fn a_table_ends_with_what_is_in_it_but_not_with_what_it_has_lent() {
    let ends = AtomicUsize::new(0);
    let table = Arc::new(Table::new());
    let me = User::of(table.clone());
    (0..100).for_each(|at| assert!(put(&table, at, File::new(&ends), &me).is_none()));
    let lent = me.lend(99).expect("it is there");
    let mut held = table.lock();
    (0..held.len()).for_each(|at| drop(held.take::<Table<_>>(at, None)));
    drop(held);
    drop((table, me));
    assert_eq!(ends.load(Ordering::Relaxed), 99);
    lent.check();
    drop(lent);
    assert_eq!(ends.load(Ordering::Relaxed), 100);
    let table = Arc::new(Table::new());
    let me = User::of(table.clone());
    (0..40).for_each(|at| assert!(put(&table, at, File::new(&ends), &me).is_none()));
    drop((me, table));
    assert_eq!(ends.load(Ordering::Relaxed), 140);
}

#[test]
fn places_are_where_they_were() {
    let table = Arc::new(Table::new());
    let me = User::of(table.clone());
    let mut held = table.lock();
    assert!(held.is_empty() && held.get(0).is_none() && held.counted(7).is_none());
    for at in 0..1000u32 {
        held.extend_to(at as usize).expect("there is memory");
        assert!(held.put(at as usize, Arc::new(at), at + 1, Some(&me)).is_none());
    }
    assert!((0..1000).all(|at| held.get(at) == Some(&(at as u32)) && held.mark(at) == at as u32 + 1));
    assert_eq!(held.get(1001), None);
    assert_eq!(held.extend_to(MOST), Err(Full));
    drop(held);
    assert!((0..1000).all(|at| me.lend(at).map(|lent: Lent<u32>| *lent) == Some(at as u32)));
    assert!(me.lend(MOST).is_none() && me.lend(usize::MAX / 2).is_none());
}

/// Threads are lent files, close them, and put others there, all at the same few places.
#[test]
fn threads_share_places() {
    const PLACES: usize = 3;
    const ROUNDS: usize = 20_000;
    let (ends, made, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let table: Arc<Table<File>> = Arc::new(Table::new());
    table.lock().extend_to(PLACES).expect("there is memory");
    let fresh = || {
        made.fetch_add(1, Ordering::Relaxed);
        File::new(&ends)
    };
    thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                let me = User::of(table.clone());
                while !done.load(Ordering::Relaxed) {
                    let lent: Vec<_> = (0..PLACES).filter_map(|at| me.lend(at)).collect();
                    lent.iter().for_each(|lent| lent.check());
                    thread::yield_now();
                    lent.iter().for_each(|lent| lent.check());
                }
            });
        }
        let me = User::of(table.clone());
        for round in 0..ROUNDS {
            let at = round % PLACES;
            match round / PLACES % 4 {
                0 => drop(table.lock().take(at, Some(&me))),
                // The same again, as by dup2.
                2 => {
                    let mut held = table.lock();
                    let again = held.take(at, Some(&me)).expect("it was put there");
                    assert!(held.put(at, again, 0, Some(&me)).is_none());
                }
                _ => drop(put(&table, at, fresh(), &me)),
            }
            me.lend(at).iter().for_each(|lent| lent.check());
        }
        done.store(true, Ordering::Relaxed);
    });
    drop(table);
    assert_eq!(ends.load(Ordering::Relaxed), made.load(Ordering::Relaxed));
}
