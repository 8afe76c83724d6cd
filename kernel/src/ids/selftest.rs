//! The tests of the table of ids, in the machine.

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::Ordering;

use super::{FIRST, IDS, Id, PID_MAX, PRESENT, TABLE, new_id};
use crate::{errno::Errno, selftest::Test};

pub const TESTS: &[(&str, Test)] = &[
    ("ids go round, past those that are used", ids_go_round),
    ("an id is free when nobody uses it", last_use_frees),
    ("chunks of ids come and go with their use", chunks_come_and_go),
];

fn numbers(count: usize) -> Result<Vec<Id>, String> {
    (0..count).map(|_| new_id()).collect::<Result<_, Errno>>().map_err(|e| format!("{e:?}"))
}

/// Have the numbers go on from `next`; gives where they were.
fn jump(next: u32) -> u32 {
    core::mem::replace(&mut TABLE.lock().next, next)
}

fn chunks() -> u32 {
    PRESENT.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
}

fn equal<T: PartialEq + core::fmt::Debug>(what: &str, got: &T, wanted: &T) -> Result<(), String> {
    if got == wanted { Ok(()) } else { Err(format!("{what}: {got:?}, not {wanted:?}")) }
}

fn ids_go_round() -> Result<(), String> {
    let back = jump(PID_MAX - 3);
    let before = numbers(3)?;
    let after = numbers(8)?;
    let told: Vec<u32> = before.iter().map(Id::number).collect();
    equal("the last", &told, &alloc::vec![PID_MAX - 3, PID_MAX - 2, PID_MAX - 1])?;
    let told: Vec<u32> = after.iter().map(Id::number).collect();
    if !told.is_sorted() || told[0] < FIRST || told[7] >= PID_MAX - 3 {
        return Err(format!("then came {told:?}"));
    }
    // Once more round, where the same are still used.
    jump(PID_MAX - 3);
    let third = new_id().map_err(|e| format!("{e:?}"))?.number();
    jump(back);
    if told.contains(&third) || third >= PID_MAX - 3 {
        Err(format!("{third} was given out twice"))
    } else {
        Ok(())
    }
}

fn last_use_frees() -> Result<(), String> {
    let at = PID_MAX / 2;
    let back = jump(at);
    let id = new_id().map_err(|e| format!("{e:?}"))?;
    equal("the first", &id.number(), &at)?;
    // As by a process whose group it names.
    TABLE.lock().join(at);
    drop(id);
    jump(at);
    let second = new_id().map_err(|e| format!("{e:?}"))?;
    equal("while it is used", &second.number(), &(at + 1))?;
    let unlinked = TABLE.lock().leave(at);
    drop(unlinked);
    jump(at);
    let third = new_id().map_err(|e| format!("{e:?}"))?;
    equal("when nobody does", &third.number(), &at)?;
    jump(back);
    Ok(())
}

fn chunks_come_and_go() -> Result<(), String> {
    let before = chunks();
    let back = jump(PID_MAX / 4);
    let all = numbers(3 * IDS)?;
    equal("with three chunks of ids", &chunks(), &(before + 3))?;
    jump(back);
    drop(all);
    equal("without", &chunks(), &before)
}
