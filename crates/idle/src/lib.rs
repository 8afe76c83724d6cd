//! Regular work of CPUs, and idle CPUs that needn't do it: who naps, who sleeps, and who must go on.
//!
//! Refcache and RCU free nothing before every CPU has said something: that it brought the changes it held back, that it was in
//! no section. A CPU that runs threads says so in a *tick*, at the end of each slice. A CPU that halts can't; so either
//! the others must not wait for it, or it must come back.
//!
//! **Claim.** Nothing ends while a CPU that halts may still use it or holds back a reference to it; no CPU waits for one that
//! halts longer than for one that runs; and when all have halted for good, nothing is left to collect.
//!
//! **Idea.** To leave the epochs and to join them again writes words that all CPUs write, and threads that wait for each other
//! halt their CPUs often, and not for long. So a CPU leaves nothing at first: it *naps*, a member of the epochs still, with all
//! that it holds back, which the others await as if it ran; for grace periods it is quiescent, which it says on a line of its
//! own. A timer bounds the nap to one tick from the moment the CPU became idle. A CPU that has been idle for that long, or is
//! asked to tick, *rests*: it collects until it has nothing left or others are at it. Then it leaves the others the rest and
//! is *asleep*, without a timer. Who has nothing to leave sleeps at once.
//!
//! ```text
//!           wake                                idle for less than a tick, and something is held back
//!  RUNS <---------- NAPS, timer armed   <------+
//!   |                                          |
//!   +--- idle: rest ---------------------------+
//!   |                                          |
//!   +<------ nobody would collect the rest ----+
//!   |                                          |
//!   +<--------- ASLEEP, no timer  <------------+  all is left to others, or there is nothing
//!           wake
//! ```
//!
//! **Invariants**, each with what keeps it.
//!
//! * *Who naps is awaited in epochs.* [`Collect::nap`] says nothing to Refcache: the CPU's bit stays pending, so the epoch after
//!   the present one doesn't begin before the CPU has flushed. Only [`Collect::tick`] takes a CPU out, once it has held nothing
//!   back for a whole epoch ([`refcache::Domain::park`]), and [`Collect::idle_enter`], which brings all changes first.
//! * *Who halts is in no section.* Both ways to halt take a `&mut Pinned`, which sections borrow; the idle thread opens none around them.
//! * *Who naps comes back.* [`Halt::Nap`] names the time, and the caller arms a timer for it with interrupts off, before it halts.
//! * *The last goes on.* A CPU that leaves something learns whether anybody is left: of the epochs' members under the gate
//!   ([`refcache::Domain::leave`]), of grace periods by a fence between its own word and the look at the others'
//!   ([`rcu::kernel::Domain::is_abandoned`]). Of CPUs that fall asleep at once at least one is told.
//! * *What is queued for a CPU that halts wakes it.* It announces itself and then looks at its queue; who queues looks for the
//!   announcement afterwards: [`Announcement`].
//! * *Who is asked to tick does so, or has left.* A request ([`State::set_due`]) comes before its interrupt. That ends a halt, or comes
//!   before it; so who is about to halt looks for a request with interrupts off. Who is [asleep](State::is_asleep) holds nothing
//!   back, so nobody [waits](State::is_awaited) for it.
//!
//! The models in `tests/loom.rs` run this source with the two domains it is about.
#![no_std]

mod announce;
mod domains;
mod state;

pub use announce::Announcement;
pub use domains::{Collect, Domains};
pub use state::{Halt, Idle, State};
