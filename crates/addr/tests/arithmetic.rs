//! The arithmetic on addresses, pages and ranges, against the definitions.

use addr::{
    DirectMap, Frame, PAGE_SHIFT, PAGE_SIZE, Page, PageRange, PhysAddr, Prot, Pte, USER_END, USER_END_PAGE,
    VirtAddr,
};
use proptest::prelude::*;

const PAGES: u64 = 1 << 36;

/// Numbers near the borders as well as all over.
fn number(bits: u32) -> impl Strategy<Value = u64> {
    let end = 1u64 << bits;
    prop_oneof![0..end, 0..4u64, end - 4..end]
}

fn page() -> impl Strategy<Value = Page> {
    number(36).prop_map(|n| Page::new(n).unwrap())
}

fn range() -> impl Strategy<Value = PageRange> {
    // Close together, so that ranges touch and overlap.
    (prop_oneof![0..40u64, PAGES - 41..PAGES - 1], 0..40u64)
        .prop_filter_map("past the end", |(start, len)| PageRange::with_len(Page::new(start)?, len))
}

fn prot() -> impl Strategy<Value = Prot> {
    (0..8u8).prop_map(Prot::from_bits_truncate)
}

proptest! {
    #[test]
    fn a_virtual_address_is_canonical(raw: u64) {
        let canonical = !(1 << 47..!0 << 47).contains(&raw);
        prop_assert_eq!(VirtAddr::new(raw).map(VirtAddr::as_u64), canonical.then_some(raw));
        prop_assert_eq!(VirtAddr::user(raw).map(VirtAddr::as_u64), (raw < USER_END).then_some(raw));
    }

    #[test]
    fn an_address_is_its_page_and_its_offset(low in number(48)) {
        let raw = ((low << 16) as i64 >> 16) as u64;
        let va = VirtAddr::new(raw).unwrap();
        prop_assert_eq!(va.page().base().as_u64() + va.offset(), raw);
        prop_assert!(va.offset() < PAGE_SIZE);
        prop_assert!(va.page().number() < PAGES);
    }

    #[test]
    fn a_page_comes_back_from_its_base(p in page()) {
        prop_assert_eq!(p.base().page(), p);
        prop_assert_eq!(p.base().offset(), 0);
        prop_assert_eq!(VirtAddr::new(p.base().as_u64()), Some(p.base()));
    }

    #[test]
    fn a_frame_comes_back_from_its_base(n in number(40), offset in 0..PAGE_SIZE) {
        let f = Frame::new(n).unwrap();
        prop_assert_eq!(f.base().frame(), f);
        prop_assert_eq!(PhysAddr::new(f.base().as_u64() + offset).unwrap().frame(), f);
    }

    #[test]
    fn the_indices_of_a_page_make_up_its_number(p in page()) {
        let number = (0..4).rev().fold(0, |n, level| n << 9 | p.index(level) as u64);
        prop_assert_eq!(number, p.number());
    }

    #[test]
    fn page_sums_stop_at_the_ends(p in page(), n in prop_oneof![0..PAGES, any::<u64>()]) {
        let sum = u128::from(p.number()) + u128::from(n);
        prop_assert_eq!(p.checked_add(n).map(|q| u128::from(q.number())), (sum < u128::from(PAGES)).then_some(sum));
        prop_assert_eq!(p.checked_sub(n).map(Page::number), p.number().checked_sub(n));
        if let Some(q) = p.checked_add(n) {
            prop_assert_eq!(q.checked_sub(n), Some(p));
        }
    }

    #[test]
    fn a_range_holds_the_pages_between_its_ends(r in range(), p in page()) {
        let pages: Vec<_> = r.iter().collect();
        prop_assert_eq!(pages.len() as u64, r.len());
        prop_assert_eq!(r.iter().size_hint(), (pages.len(), Some(pages.len())));
        prop_assert_eq!(r.is_empty(), pages.is_empty());
        prop_assert_eq!(r.contains(p), pages.contains(&p));
        prop_assert!(pages.iter().all(|q| r.contains(*q)));
        prop_assert!(pages.windows(2).all(|w| w[0].checked_add(1) == Some(w[1])));
        prop_assert!(!r.contains(r.end()));
    }

    #[test]
    fn intersection_and_inclusion_are_those_of_sets(a in range(), b in range()) {
        let both: Vec<_> = a.iter().filter(|p| b.contains(*p)).collect();
        let meet = a.intersect(b);
        prop_assert_eq!(meet.map(|r| r.iter().collect::<Vec<_>>()), (!both.is_empty()).then_some(both));
        prop_assert_eq!(meet, b.intersect(a));
        prop_assert_eq!(a.contains_range(b), b.iter().all(|p| a.contains(p)));
    }

    #[test]
    fn covering_takes_every_page_that_a_byte_is_in(
        p in page(), offset in 0..PAGE_SIZE, len in prop_oneof![0..1u64 << 20, any::<u64>()]
    ) {
        let va = VirtAddr::new(p.base().as_u64() + offset).unwrap();
        let pages = len.div_ceil(PAGE_SIZE);
        let fits = offset == 0 && len <= u64::MAX - (PAGE_SIZE - 1) && p.number() + pages < PAGES;
        prop_assert_eq!(PageRange::covering(va, len).map(|r| (r.start(), r.len())), fits.then_some((p, pages)));
    }

    #[test]
    fn a_range_from_end_to_start_is_refused(a in page(), b in page()) {
        prop_assert_eq!(PageRange::new(a, b).is_some(), a <= b);
    }

    #[test]
    fn a_user_entry_gives_back_its_frame_and_rights(n in number(40), prot in prot()) {
        let frame = Frame::new(n).unwrap();
        let pte = Pte::user_page(frame, prot);
        prop_assert_eq!(pte.frame(), frame);
        prop_assert_eq!(pte.is_present(), !prot.is_empty());
        // The processor has no page that is present and not readable.
        let granted = if prot.is_empty() { prot } else { prot | Prot::READ };
        prop_assert_eq!(pte.prot(), granted);
        prop_assert_eq!(Pte::from_bits(pte.bits()), pte);
        prop_assert!(!pte.is_dirty() && !pte.is_empty());
    }

    #[test]
    fn bits_that_the_processor_ignores_change_nothing(n in number(40), prot in prot()) {
        let pte = Pte::user_page(Frame::new(n).unwrap(), prot);
        let marked = Pte::from_bits(pte.bits() | Pte::LOCK | Pte::SOFT | Pte::ACCESSED | Pte::DIRTY);
        prop_assert_eq!((marked.frame(), marked.prot()), (pte.frame(), pte.prot()));
        prop_assert!(marked.is_dirty());
    }

    #[test]
    fn the_direct_map_is_a_shift(offset in 0..1usize << 47, n in number(40)) {
        // SAFETY: the pointer is computed, never followed.
        let dm = unsafe { DirectMap::new(offset) };
        let at = Frame::new(n).unwrap().base();
        prop_assert_eq!(dm.ptr(at).addr(), offset + at.as_u64() as usize);
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    assert_eq!(Page::new(PAGES), None);
    assert_eq!(Frame::new(1 << 40), None);
    assert_eq!(PhysAddr::new(1 << 52), None);
    assert_eq!(VirtAddr::new(1 << 47), None);
    assert_eq!(VirtAddr::user(USER_END), None);
    assert_eq!(PageRange::single(Page::new(PAGES - 1).unwrap()), None);
}

#[test]
fn constants_agree() {
    assert_eq!(PAGE_SIZE, 1 << PAGE_SHIFT);
    assert_eq!(USER_END_PAGE.base().as_u64(), USER_END);
    assert_eq!(Pte::EMPTY, Pte::default());
    let table = Pte::table(Frame::new(7).unwrap());
    assert_eq!((table.frame().number(), table.bits() & 0xfff), (7, Pte::PRESENT | Pte::WRITE | Pte::USER));
}
