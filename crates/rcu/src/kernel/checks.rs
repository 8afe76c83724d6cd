//! Which sections are open: known in debug builds, and with the feature `check`. Otherwise nothing is, and nothing is stored.

#[cfg(all(any(debug_assertions, feature = "check"), not(any(loom, shuttle))))]
mod on {
    use core::{
        cell::Cell,
        panic::Location,
        ptr,
        sync::atomic::{AtomicPtr, Ordering},
    };

    use percpu::{CpuId, PerCpu, Pinned};

    /// For each CPU how many sections are open, and where the outermost began.
    pub struct Places {
        open: PerCpu<Cell<u32>>,
        began: PerCpu<AtomicPtr<Location<'static>>>,
    }

    impl Places {
        pub fn new(cpus: usize) -> Self {
            let began = PerCpu::new(cpus, |_| AtomicPtr::new(ptr::null_mut()));
            Self { open: PerCpu::new(cpus, |_| Cell::new(0)), began }
        }
        #[track_caller]
        pub fn enter(&self, pin: &Pinned<'_>) {
            let open = self.open.get(pin);
            if open.replace(open.get() + 1) == 0 {
                let here = ptr::from_ref(Location::caller()).cast_mut();
                // Relaxed, all: for people.
                self.began.get(pin).store(here, Ordering::Relaxed);
            }
        }
        pub fn leave(&self, pin: &Pinned<'_>) {
            let open = self.open.get(pin);
            if open.replace(open.get() - 1) == 1 {
                self.began.get(pin).store(ptr::null_mut(), Ordering::Relaxed);
            }
        }
        #[track_caller]
        pub fn assert_none(&self, pin: &Pinned<'_>) {
            let open = self.open.get(pin).get();
            assert!(open == 0, "{:?} is said to be in no section: {:?}", pin.cpu(), self.of(pin.cpu()));
        }
        pub fn of(&self, cpu: CpuId) -> super::Place {
            // SAFETY: null, or of a location, which is there for ever.
            self.began.of(cpu).and_then(|began| unsafe { began.load(Ordering::Relaxed).as_ref() })
        }
    }
}

#[cfg(not(all(any(debug_assertions, feature = "check"), not(any(loom, shuttle)))))]
mod off {
    use percpu::{CpuId, Pinned};

    pub struct Places;

    impl Places {
        pub fn new(_: usize) -> Self {
            Self
        }
        #[inline(always)]
        pub fn enter(&self, _: &Pinned<'_>) {}
        #[inline(always)]
        pub fn leave(&self, _: &Pinned<'_>) {}
        #[inline(always)]
        pub fn assert_none(&self, _: &Pinned<'_>) {}
        pub fn of(&self, _: CpuId) -> super::Place {
            None
        }
    }
}

/// Where a section began, if that is known.
pub type Place = Option<&'static core::panic::Location<'static>>;

#[cfg(not(all(any(debug_assertions, feature = "check"), not(any(loom, shuttle)))))]
pub(super) use off::Places;
#[cfg(all(any(debug_assertions, feature = "check"), not(any(loom, shuttle))))]
pub(super) use on::Places;
