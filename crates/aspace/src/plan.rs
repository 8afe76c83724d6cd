//! What operations on an ordered list of mappings come to, decided before anything changes: the designs that keep such a
//! list differ in who is excluded meanwhile, and in nothing that is decided here. Takes no locks.

mod change;
mod remap;
mod rights;

pub(crate) use change::{NewMapping, growth, lockable, part_of};
pub(crate) use remap::{Remap, in_parts};
pub(crate) use rights::{down_to_start, protectable};
