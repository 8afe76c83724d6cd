//! `fork` while another thread is in a section, and another retires. A file of its own: the child has this one thread.
#![cfg(not(any(loom, shuttle)))]

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rcu::Ptr;

#[test]
fn the_child_waits_for_none_of_the_others() {
    static AT: Ptr<u64> = Ptr::none();
    let (entered, stop) = (Barrier::new(3), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _section = rcu::read();
            entered.wait();
            while !stop.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        });
        scope.spawn(|| {
            entered.wait();
            while !stop.load(Ordering::SeqCst) {
                AT.assign(Box::new(1), &mut ()).into_iter().for_each(rcu::call);
            }
        });
        // The forking thread's own section is open in the child too.
        rcu::register();
        rcu::user::global().set_limit(1 << 20);
        entered.wait();
        for _ in 0..20 {
            let section = rcu::read();
            // SAFETY: the child calls what is safe to call there: the domain, which is held at the fork, and `_exit`.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let need = rcu::user::global().snap();
                let blocked = !rcu::user::global().poll(need);
                drop(section);
                let over = rcu::user::global().poll(need);
                let waited = rcu::synchronize().is_ok() && rcu::barrier().is_ok();
                // SAFETY: ends the child, and nothing else.
                unsafe { libc::_exit(if blocked && over && waited { 0 } else { 1 }) };
            }
            assert!(child > 0, "no child");
            drop(section);
            let mut status = -1;
            // SAFETY: the status is this frame's.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0, "in the child something went wrong");
        }
        stop.store(true, Ordering::SeqCst);
    });
    rcu::barrier().unwrap();
}
