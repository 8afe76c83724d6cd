//! The sequence lock: what is read is of one state, in every execution.
#![cfg(loom)]

use loom::{sync::Arc, thread};
use percpu::testing::explore;
use sync::SeqLock;

/// Two words that are equal in each state, and a reader's two looks at them.
fn read_twice(pair: &SeqLock<2>) {
    let first = pair.try_read();
    let second = pair.try_read();
    for [a, b] in first.into_iter().chain(second) {
        assert_eq!(a, b, "two states at once");
    }
    if let (Some([a, _]), Some([b, _])) = (first, second) {
        assert!(a <= b, "the state before");
    }
}

#[test]
fn what_is_read_is_of_one_state() {
    explore("sequence lock: a reader and two changes", Some(3), || {
        let pair = Arc::new(SeqLock::new([0, 0]));
        let reader = {
            let pair = pair.clone();
            thread::spawn(move || read_twice(&pair))
        };
        pair.update(|[a, b]| [a + 1, b + 1]);
        pair.update(|[a, b]| [a + 1, b + 1]);
        reader.join().unwrap();
        assert_eq!(pair.try_read(), Some([2, 2]));
    });
}

#[test]
fn no_change_is_lost() {
    explore("sequence lock: two writers and a reader", Some(3), || {
        let pair = Arc::new(SeqLock::new([0, 0]));
        let others = [0; 2].map(|_| {
            let pair = pair.clone();
            thread::spawn(move || pair.update(|[a, b]| [a + 1, b + 1]))
        });
        read_twice(&pair);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(pair.try_read(), Some([2, 2]));
    });
}
