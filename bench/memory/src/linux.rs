//! What Linux needs for a process.
//!
//! As the RadixVM paper counts (Clements, Kaashoek and Zeldovich, EuroSys 2013, section 5): a `struct vm_area_struct` a mapping, and
//! the pages of a page table of four levels in which every resident page has an entry.

use crate::shape::Shape;

/// Bytes of a mapping: `struct vm_area_struct` of Linux 3.5 on x86-64. Later ones are larger: 192 in Linux 6.18.
pub const MAPPING: u64 = 176;
/// Bytes of a page of a page table.
pub const TABLE: u64 = 4096;
/// Bits of a page's number that each level of a page table takes.
const BITS: u32 = 9;

/// Pages of page tables: that of the root, and so on down.
pub fn tables(shape: &Shape) -> [u64; 4] {
    let mut pages = [0; 4];
    for (level, count) in pages.iter_mut().rev().enumerate() {
        let shift = BITS * (level as u32 + 1);
        let mut next = 0;
        for &(start, end) in &shape.resident {
            let (first, last) = ((start >> shift).max(next), (end - 1) >> shift);
            *count += (last + 1).saturating_sub(first);
            next = next.max(last + 1);
        }
    }
    // There is a root whatever there is in it.
    pages[0] = 1;
    pages
}

/// Bytes of it all: mappings, and page tables.
pub fn bytes(shape: &Shape) -> (u64, u64) {
    (shape.maps.len() as u64 * MAPPING, tables(shape).iter().sum::<u64>() * TABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_those_that_hold_a_resident_page() {
        let of = |resident: &[(u64, u64)]| tables(&Shape { resident: resident.to_vec(), ..Shape::default() });
        assert_eq!(of(&[]), [1, 0, 0, 0]);
        assert_eq!(of(&[(0, 1), (5, 512)]), [1, 1, 1, 1]);
        assert_eq!(of(&[(511, 513), (600, 601), (1 << 18, (1 << 18) + 1)]), [1, 1, 2, 3]);
        assert_eq!(of(&[(0, 1), ((1 << 35) - 1, 1 << 35)]), [1, 2, 2, 2]);
        assert_eq!(of(&[(0, 4 * 512)]), [1, 1, 1, 4]);
    }
}
