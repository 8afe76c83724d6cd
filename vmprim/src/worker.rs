//! Threads of a region: they answer deferred faults, or read faults from the userfaultfd's descriptor.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::Arc,
    thread::JoinHandle,
};

use crate::{
    access::Kind,
    error::{Errno, Error},
    fault::{self, Place},
    region::Inner,
    sys,
    thread::{self, Inside},
    uapi,
};

/// Faults read by one call.
const BATCH: usize = 16;

/// Start a region's workers.
pub fn start(region: &Arc<Inner>, count: usize) -> Result<(Vec<JoinHandle<()>>, Option<OwnedFd>), Error> {
    let os = |op| move |errno| Error::Os { op, errno };
    let (readers, event) = match region.mechanism.faults() {
        // SAFETY: it touches no memory.
        Some(_) => match unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) } {
            fd if fd < 0 => return Err(os("eventfd")(Errno(libc::EMFILE))),
            fd => (count.max(1), Some(sys::owned(fd as usize).map_err(os("eventfd"))?)),
        },
        None => (0, None),
    };
    let answering = if readers == 0 && region.deferred.is_some() { count.max(1) } else { 0 };
    let mut workers: Vec<JoinHandle<()>> = Vec::new();
    for _ in 0..readers + answering {
        let shared = region.clone();
        let stop = event.as_ref().map(AsRawFd::as_raw_fd);
        let worker = thread::spawn("vmprim", move || {
            let inside = Inside::enter(None);
            match (shared.mechanism.faults(), stop, &shared.deferred) {
                (Some(faults), Some(stop), _) => read_faults(&shared, &inside, faults, stop),
                (_, _, Some(queue)) => queue.work(&shared, inside.block),
                _ => {}
            }
        });
        let refused = |error: std::io::Error| Errno(error.raw_os_error().unwrap_or(libc::EAGAIN));
        match worker {
            Ok(worker) => workers.push(worker),
            Err(error) => {
                // Those that were started end; a thread that sleeps for them already is let go with the descriptor.
                self::stop(region, event.as_ref());
                // A handler that panics ends the process.
                workers.into_iter().for_each(|worker| _ = worker.join());
                return Err(os("thread")(refused(error)));
            }
        }
    }
    Ok((workers, event))
}

/// Tell a region's workers to end.
pub fn stop(region: &Inner, event: Option<&OwnedFd>) {
    if let Some(queue) = &region.deferred {
        queue.stop();
    }
    if let Some(event) = event {
        let one = 1_u64;
        // SAFETY: the buffer holds eight bytes. It never blocks, and a counter that is full says the same.
        unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

/// Read faults and resolve them, until the event comes.
fn read_faults(region: &Inner, inside: &Inside, faults: RawFd, stop: RawFd) {
    let ready = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    loop {
        let mut both = [ready(faults), ready(stop)];
        // SAFETY: the array is valid for the call.
        if unsafe { libc::poll(both.as_mut_ptr(), 2, -1) } < 0 {
            continue;
        }
        if both[1].revents != 0 {
            return;
        }
        let mut messages = [uapi::Message::default(); BATCH];
        // SAFETY: the buffer is valid, and messages are plain numbers.
        let got = unsafe { libc::read(faults, messages.as_mut_ptr().cast(), size_of_val(&messages)) };
        // Another reader may have been first.
        let got = usize::try_from(got).unwrap_or(0) / size_of::<uapi::Message>();
        for message in messages.iter().take(got).filter(|message| message.event == uapi::EVENT_PAGEFAULT) {
            let write = message.flags & uapi::PAGEFAULT_FLAG_WRITE != 0;
            let kind = if write { Kind::Write } else { Kind::Read };
            let (page, offset) = region.page_of(message.address as usize);
            let outcome = fault::resolve(
                region,
                inside.block,
                page,
                offset,
                Place { kind, pc: 0, signal: 0, upcall: false },
            );
            if outcome != (fault::Outcome::Resume { raised: true }) {
                // It repeats the access, and faults again if it must.
                region.mechanism.wake(region.span(page.into()));
            }
        }
    }
}
