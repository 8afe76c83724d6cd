//! Every interleaving and weak-memory outcome of users that are lent an object with those who take it out of its place.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-rcu --test loom_lend`.
#![cfg(loom)]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use loom::{cell::UnsafeCell, thread};
use percpu::testing::explore;
use rcu::lend::{Table, User};

/// An object, whose uses loom watches: writing to the cell stands for freeing it.
struct File(u64, UnsafeCell<()>);

// SAFETY: loom fails the test if two uses of a cell race; that none do is what is shown.
unsafe impl Sync for File {}
// SAFETY: as above.
unsafe impl Send for File {}

/// The objects are kept by the model too, so that one that has ended can be asked about that.
struct Sim {
    table: Arc<Table<File>>,
    files: [Arc<File>; 2],
    ended: Mutex<[bool; 2]>,
    /// Whether a user has given up a reference that was handed over.
    handed: AtomicBool,
}

impl Sim {
    /// A table with file 0 at 0, put there by `by`.
    fn new(
        by: impl FnOnce(&Arc<Table<File>>) -> Option<Arc<User<File>>>,
    ) -> (Arc<Self>, Option<Arc<User<File>>>) {
        let table = Arc::new(Table::new());
        let user = by(&table);
        let files = [0, 1].map(|number| Arc::new(File(number, UnsafeCell::new(()))));
        let mut held = table.lock();
        held.extend_to(0).expect("there is memory");
        assert!(held.put(0, files[0].clone(), 0, user.as_deref()).is_none());
        drop(held);
        (Arc::new(Self { table, files, ended: Mutex::new([false; 2]), handed: AtomicBool::new(false) }), user)
    }
    /// Give up a reference that was taken out: the last but the model's ends the file.
    fn give_up(&self, file: Arc<File>) {
        let number = file.0 as usize;
        if Arc::strong_count(&file) == 2 {
            // Loom knows no counts, so not that they order the end after the use of what was handed over.
            if !self.handed.load(Relaxed) {
                file.1.with_mut(|_| ());
            }
            assert!(!std::mem::replace(&mut self.ended.lock().unwrap()[number], true), "it ends once");
        }
    }
    /// Be lent what is there, and use it; gives its number.
    fn look(&self, user: &Arc<User<File>>) -> Option<u64> {
        let lent = user.lend(0)?;
        lent.1.with(|_| ());
        assert!(!self.ended.lock().unwrap()[lent.0 as usize], "it has ended while it is used");
        thread::yield_now();
        lent.1.with(|_| ());
        assert!(!self.ended.lock().unwrap()[lent.0 as usize], "it has ended while it is used");
        let (number, before) = (lent.0, Arc::strong_count(&self.files[lent.0 as usize]));
        drop(lent);
        let after = Arc::strong_count(&self.files[number as usize]);
        self.handed.fetch_or(after < before, Relaxed);
        Some(number)
    }
    fn close(&self, by: Option<&User<File>>) {
        let taken = self.table.lock().take(0, by);
        if let Some(file) = taken {
            self.give_up(file);
        }
    }
    /// When all is over nobody has it but the model, so nothing that was handed over was lost.
    fn end(&self) {
        self.files.iter().for_each(|file| assert_eq!(Arc::strong_count(file), 1));
    }
}

#[test]
fn what_is_lent_outlives_its_place() {
    explore("lend: a user and who closes", None, || {
        let (sim, _) = Sim::new(|_| None);
        let user = User::of(sim.table.clone());
        let reader = {
            let (sim, user) = (sim.clone(), user.clone());
            thread::spawn(move || sim.look(&user))
        };
        sim.close(None);
        reader.join().unwrap();
        assert_eq!(user.lend(0).map(|lent| lent.0), None);
        sim.end();
    });
}

/// The second use is of another file, in a word that stood for the first.
#[test]
fn a_word_is_used_again() {
    explore("lend: a user twice and who replaces and closes", Some(3), || {
        let (sim, _) = Sim::new(|_| None);
        let user = User::of(sim.table.clone());
        let reader = {
            let (sim, user) = (sim.clone(), user.clone());
            thread::spawn(move || [sim.look(&user), sim.look(&user)])
        };
        let old = sim.table.lock().put::<Table<File>>(0, sim.files[1].clone(), 0, None);
        sim.give_up(old.expect("file 0 was there"));
        let seen = reader.join().unwrap();
        assert!(matches!(seen, [Some(0), Some(0 | 1)] | [Some(1), Some(1)]), "{seen:?}");
        sim.close(None);
        sim.end();
    });
}

/// Who has put it there doesn't ask others before somebody else was lent it; and puts it there again.
#[test]
fn who_has_put_it_there_takes_it_out() {
    explore("lend: its owner closes, and a user", Some(3), || {
        let (sim, owner) = Sim::new(|table| Some(User::of(table.clone())));
        // What was handed over may be given up before the count is looked at: then it isn't noted.
        sim.handed.store(true, Relaxed);
        let owner = owner.expect("made above");
        let reader = {
            let (sim, user) = (sim.clone(), User::of(sim.table.clone()));
            thread::spawn(move || sim.look(&user))
        };
        assert_eq!(sim.look(&owner), Some(0));
        let again = sim.table.lock().take(0, Some(&owner)).expect("it was there");
        assert!(sim.table.lock().put(0, again, 0, Some(&owner)).is_none());
        sim.close(Some(&owner));
        reader.join().unwrap();
        sim.end();
    });
}

/// A look begins before it is put there again, and ends when who put it has taken it out without asking others, and what has replaced
/// it is said to be shared.
#[test]
fn the_owner_of_another_put_is_not_believed() {
    explore("lend: its owner closes, opens the same, closes, and another is put there", Some(6), || {
        let (sim, owner) = Sim::new(|table| Some(User::of(table.clone())));
        // As above.
        sim.handed.store(true, Relaxed);
        let owner = owner.expect("made above");
        let reader = {
            let (sim, user) = (sim.clone(), User::of(sim.table.clone()));
            thread::spawn(move || sim.look(&user))
        };
        let again = sim.table.lock().take(0, Some(&owner)).expect("it was there");
        assert!(sim.table.lock().put(0, again, 0, Some(&owner)).is_none());
        sim.close(Some(&owner));
        let other = sim.files[1].clone();
        assert!(sim.table.lock().put::<Table<File>>(0, other, 0, None).is_none());
        assert!(matches!(reader.join().unwrap(), None | Some(0 | 1)));
        sim.close(None);
        sim.end();
    });
}
