//! `fork`: the child has one thread, and none of the others' sections will ever end.
//!
//! Before a fork each domain that has readers is held: its locks, and all threads' bags. Both processes let go of it, the child
//! after it has ended the other threads' sections and taken over what they had retired. What another thread was freeing at the
//! moment leaks in the child, as do that thread's own values. As after any fork of a process with threads, other locks of the
//! program may be held by nobody there.

#[cfg(all(unix, not(any(loom, shuttle))))]
mod unix {
    use core::cell::RefCell;
    use std::{sync::Once, vec::Vec};

    use sync::{SpinGuard, SpinLock};

    use super::super::{
        barrier,
        core::{Core, fork::Held},
    };

    /// A domain, and how many readers it has, which keep it where it is. Readers of a static domain needn't leave.
    struct Enrolled(*const Core, usize);

    // SAFETY: domains are shared by threads.
    unsafe impl Send for Enrolled {}

    static DOMAINS: SpinLock<Vec<Enrolled>> = SpinLock::new(Vec::new());

    type Hold = (Vec<Held>, SpinGuard<'static, Vec<Enrolled>>);

    std::thread_local! {
        /// What the thread holds while it forks.
        static HOLD: RefCell<Option<Hold>> = const { RefCell::new(None) };
    }

    pub(crate) fn enroll(core: &Core) {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: the handlers are what the function asks for. If there is no memory for them, forks go without.
            unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
        });
        let mut domains = DOMAINS.lock();
        match domains.iter_mut().find(|other| core::ptr::eq(other.0, core)) {
            Some(one) => one.1 += 1,
            None => domains.push(Enrolled(core, 1)),
        }
    }

    pub(crate) fn leave(core: &Core) {
        let mut domains = DOMAINS.lock();
        for one in domains.iter_mut().filter(|other| core::ptr::eq(other.0, core)) {
            one.1 -= 1;
        }
        domains.retain(|one| one.1 > 0);
    }

    extern "C" fn prepare() {
        let domains = DOMAINS.lock();
        // SAFETY: a reader borrows each, and nobody drops one while we have the lock that this takes.
        let held = domains.iter().map(|one| unsafe { &*one.0 }.hold()).collect();
        HOLD.with_borrow_mut(|hold| *hold = Some((held, domains)));
    }

    extern "C" fn parent() {
        HOLD.with_borrow_mut(|hold| *hold = None);
    }

    extern "C" fn child() {
        // What was granted to the parent may have to be asked for anew.
        barrier::register();
        let hold = HOLD.with_borrow_mut(Option::take);
        for held in hold.into_iter().flat_map(|(held, _)| held) {
            held.alone();
        }
    }
}

#[cfg(all(unix, not(any(loom, shuttle))))]
pub(super) use unix::{enroll, leave};

#[cfg(not(all(unix, not(any(loom, shuttle)))))]
pub(super) fn enroll(_: &super::core::Core) {}
#[cfg(not(all(unix, not(any(loom, shuttle)))))]
pub(super) fn leave(_: &super::core::Core) {}
