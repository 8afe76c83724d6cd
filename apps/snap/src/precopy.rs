//! Checkpoints without traps: rounds of copies of what was written, the last one in the cut.

use std::time::Instant;

use sync::mutant;
use vmprim::{PageSet, Region};

use crate::{error::Error, gate::Gate, snap::Taken, write::Writer};

/// Rounds before the cut, at most.
const ROUNDS: u32 = 5;
/// So few pages that another round would not be worth it.
const FEW: usize = 64;

/// Copy what was written since the last cut, and `more`, to the image, and make the cut. Pages for which there is room
/// in a buffer of `room` bytes are written only after the cut.
///
/// Whatever happens, `taken.pages` are those whose notes were taken.
pub fn checkpoint(
    region: &Region,
    gate: &Gate,
    more: PageSet,
    room: usize,
    writer: &mut Writer,
    taken: &mut Taken,
    state: impl FnOnce(&mut Vec<u8>),
) -> Result<(), Error> {
    let (alias, size) = (region.alias()?, region.page_size());
    let all = 0..region.pages();
    let copy = |page: usize, to: &mut [u8]| alias.read_into(page * size, to);
    let mut set = more;
    let mut before = usize::MAX;
    for _ in 0..ROUNDS {
        let result = region.take_dirty(all.clone(), &mut set);
        set.iter().for_each(|page| taken.pages.insert(page));
        result?;
        for page in set.iter() {
            let mut result = Ok(());
            writer.page(page.0 as u32, |to| result = copy(page.0, to));
            result?;
        }
        taken.rounds += 1;
        let len = set.len();
        set.clear();
        // Few, or no fewer than before: they are written faster than they are copied.
        if len <= FEW || len > before / 2 {
            break;
        }
        before = len;
    }
    if !writer.works() {
        // Nothing comes of it: no cut.
        return Ok(());
    }
    let mut buffer = vec![0; room / size * size];
    let begin = Instant::now();
    let closed = gate.close();
    let began = Instant::now();
    state(&mut taken.state);
    let result = match mutant!("snap-no-last-round") {
        true => Ok(()),
        false => region.take_dirty(all, &mut set),
    };
    set.iter().for_each(|page| taken.pages.insert(page));
    result?;
    let mut kept = Vec::with_capacity(buffer.len() / size);
    let mut slots = buffer.chunks_exact_mut(size);
    for page in set.iter() {
        let mut result = Ok(());
        match slots.next() {
            Some(slot) => {
                result = copy(page.0, slot);
                kept.push(page.0 as u32);
            }
            None => writer.page(page.0 as u32, |to| result = copy(page.0, to)),
        }
        result?;
    }
    taken.cut = began.elapsed();
    drop(closed);
    taken.pause = begin.elapsed();
    for (page, bytes) in kept.into_iter().zip(buffer.chunks_exact(size)) {
        writer.page(page, |to| to.copy_from_slice(bytes));
    }
    Ok(())
}
