//! A map from ranges of numbers to small values, for programs of a host: the tree with all that it needs around it.

use alloc::{alloc as heap, boxed::Box};
use core::{alloc::Layout, cell::Cell, fmt, marker::PhantomData, ops::Range, ptr::NonNull};

use percpu::{CpuId, PerCpu, Pinned};
use refcache::{AllStopped, Budget, Domain};
use sync::primitive::spin_loop;

use crate::{Error, Found, Mode, RangeGuard, Reserve, Section, Space, Tree};

/// A value that a slot can have: 61 bits. What is larger is kept elsewhere and named by a number, as
/// [`Descriptors`](crate::Descriptors) does.
pub trait Value: Copy {
    /// The value as a number below 2^61.
    fn into_bits(self) -> u64;
    /// The value whose number this is.
    fn from_bits(bits: u64) -> Self;
}

macro_rules! value {
    ($($type:ty),*) => {$(
        impl Value for $type {
            fn into_bits(self) -> u64 {
                self.into()
            }
            fn from_bits(bits: u64) -> Self {
                bits as $type
            }
        }
    )*};
}

value!(u8, u16, u32);

impl Value for () {
    fn into_bits(self) -> u64 {
        0
    }
    fn from_bits(_: u64) -> Self {}
}

/// Set in each word that is a value, so that none is EMPTY. LINK and LOCK are the bits below.
const PRESENT: u64 = 1 << 2;

fn word<V: Value>(value: V) -> u64 {
    let bits = value.into_bits();
    assert!(bits < 1 << 61, "the value {bits:#x} has more than 61 bits");
    bits << 3 | PRESENT
}

fn value<V: Value>(word: u64) -> Option<V> {
    (word & PRESENT != 0).then(|| V::from_bits(word >> 3))
}

/// What surrounds a map's tree. Memory is the heap's.
struct Around {
    refs: Domain<256>,
    rcu: rcu::kernel::Domain,
}

// SAFETY: memory is the heap's; the domains are fields; values are the map's words.
unsafe impl Space for Around {
    const BITS: &'static [u32] = &[6, 9, 9, 9, 9, 9, 6, 6];
    type Refs = Domain<256>;
    type Annex = ();

    fn refs(&self) -> &Self::Refs {
        &self.refs
    }
    fn rcu(&self) -> &rcu::kernel::Domain {
        &self.rcu
    }
    fn alloc(&self, layout: Layout, _: &Pinned<'_>) -> Option<NonNull<u8>> {
        // SAFETY: a node has a size.
        NonNull::new(unsafe { heap::alloc(layout) })
    }
    unsafe fn free(&self, memory: NonNull<u8>, layout: Layout, _: &Pinned<'_>) {
        // SAFETY: the caller's promise.
        unsafe { heap::dealloc(memory.as_ptr(), layout) };
    }
    fn spin_wait(&self, _: &Pinned<'_>) -> bool {
        spin_loop();
        true
    }
}

/// A map from numbers below 2^63 to values, in which a value may be given to a whole range at once. Operations on ranges that
/// don't overlap write no common memory, but for the first in a span that was given a value as a whole; lookups write none at
/// all.
///
/// ```
/// # #[cfg(not(loom))] {
/// use percpu::testing::Machine;
/// use radix::RadixMap;
///
/// let (machine, map) = (Machine::new(2), RadixMap::<u32>::new(2).unwrap());
/// machine.run(|cpu, ctx| {
///     let base = cpu.index() as u64 * 1_000_000;
///     let mut pin = ctx.pin();
///     let mut here = map.join(&mut pin);
///     here.insert(base..base + 100_000, 7).unwrap();
///     here.remove(base + 10..base + 20).unwrap();
///     here.update(base..base + 15, |old| old.map(|n| n + 1)).unwrap();
///     assert_eq!(here.get(base + 9), Some(8));
///     assert_eq!(here.get(base + 15), None);
///     assert_eq!(here.get(base + 99_999), Some(7));
/// });
/// # }
/// ```
pub struct RadixMap<V> {
    /// `Some` until the end.
    tree: Option<Tree<Around>>,
    around: NonNull<Around>,
    /// Whether a CPU has joined.
    joined: PerCpu<Cell<bool>>,
    _values: PhantomData<fn(V) -> V>,
}

// SAFETY: the tree and its surroundings may be used by any thread.
unsafe impl<V> Send for RadixMap<V> {}
// SAFETY: as above.
unsafe impl<V> Sync for RadixMap<V> {}

/// A CPU's use of a map. As long as it lasts, nodes are collected only while each CPU that has joined calls
/// [`Self::tick`] now and then.
pub struct Here<'m, 'p, V> {
    map: &'m RadixMap<V>,
    pin: &'m mut Pinned<'p>,
    reserve: Reserve<Around>,
}

impl<V: Value> RadixMap<V> {
    /// An empty map for CPUs below `cpus`. Panics if those are none or more than [`percpu::MAX_CPUS`].
    pub fn new(cpus: usize) -> Result<Self, Error> {
        let around = Around { refs: Domain::new(cpus), rcu: rcu::kernel::Domain::new(cpus) };
        let around = NonNull::from(Box::leak(Box::new(around)));
        let joined = PerCpu::new(cpus, |_| Cell::new(false));
        let mut map = Self { tree: None, around, joined, _values: PhantomData };
        // SAFETY: nobody else is on a CPU of this map yet. The surroundings are there as long as the tree.
        let (pin, space) = unsafe { (Pinned::assume(CpuId::default()), around.as_ref()) };
        map.tree = Some(Tree::new(space, &pin)?);
        Ok(map)
    }
    /// Use the map from the CPU of `pin`. Panics if it has joined already, or isn't one of the map's.
    pub fn join<'m, 'p>(&'m self, pin: &'m mut Pinned<'p>) -> Here<'m, 'p, V> {
        assert!(!self.joined.get(pin).replace(true), "{:?} has joined the map already", pin.cpu());
        self.around().rcu.idle_exit(pin);
        Here { map: self, pin, reserve: Reserve::new() }
    }
}

impl<V> RadixMap<V> {
    fn around(&self) -> &Around {
        // SAFETY: made from a box in `new`, and there until `drop`.
        unsafe { self.around.as_ref() }
    }
    fn tree(&self) -> &Tree<Around> {
        match &self.tree {
            Some(tree) => tree,
            None => unreachable!("the map has a tree until it is dropped"),
        }
    }
}

impl<V: Value> Here<'_, '_, V> {
    /// The value of `key`. Panics from 2^63 on.
    pub fn get(&self, key: u64) -> Option<V> {
        value(self.map.tree().get(key, &self.section()).value)
    }
    /// Give all of `keys` a value. On failure nothing has changed, here and below.
    pub fn insert(&mut self, keys: Range<u64>, value: V) -> Result<(), Error> {
        self.with(keys, Mode::Fill, |guard| guard.replace(word(value), |_| ()))
    }
    /// Take the values of `keys` away.
    pub fn remove(&mut self, keys: Range<u64>) -> Result<(), Error> {
        self.with(keys, Mode::Take, |guard| guard.replace(0, |_| ()))
    }
    /// Give each of `keys` that has a value another one, or none: `new` is asked once for each span that has one value.
    pub fn update(
        &mut self,
        keys: Range<u64>,
        mut new: impl FnMut(Option<V>) -> Option<V>,
    ) -> Result<(), Error> {
        self.with(keys, Mode::Edit, |guard| {
            guard.update(|span| match value(span.value) {
                None => 0,
                some => new(some).map_or(0, word),
            });
        })
    }
    /// Call `f` with spans that have a value, in ascending order, as each is when it is come to.
    pub fn for_each(&self, keys: Range<u64>, mut f: impl FnMut(Range<u64>, V)) {
        let each = |found: Found| {
            let span = found.first.max(keys.start)..(found.first + found.keys).min(keys.end);
            value(found.value).into_iter().for_each(|value| f(span.clone(), value));
            true
        };
        self.map.tree().scan(keys.clone(), &self.section(), each);
    }
    /// Lock `keys`, and call `f` with what is there, span by span; the whole is of one moment.
    pub fn locked(
        &mut self,
        keys: Range<u64>,
        mut f: impl FnMut(Range<u64>, Option<V>),
    ) -> Result<(), Error> {
        let (from, to) = (keys.start, keys.end);
        self.with(keys, Mode::Cover, |guard| {
            for span in guard.spans() {
                f(span.first.max(from)..(span.first + span.keys).min(to), value(span.value));
            }
        })
    }
    /// The regular work of a CPU: count, collect, free.
    pub fn tick(&mut self) {
        self.map.around().refs.work(self.pin, Budget::default());
        self.map.around().rcu.tick(self.pin);
    }
    /// How many nodes the map has now.
    pub fn nodes(&self) -> usize {
        self.map.tree().nodes(&self.section()).iter().sum()
    }

    fn section(&self) -> Section<'_, Around> {
        Section::new(self.map.around(), self.pin)
    }
    fn with(
        &mut self,
        keys: Range<u64>,
        mode: Mode,
        f: impl FnOnce(&mut RangeGuard<'_, Around>),
    ) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        let section = Section::new(self.map.around(), self.pin);
        let mut guard = self.map.tree().lock_range(keys, mode, &mut self.reserve, &section)?;
        f(&mut guard);
        Ok(())
    }
}

impl<V> Drop for Here<'_, '_, V> {
    fn drop(&mut self) {
        let around = self.map.around();
        self.reserve.give_back(around, self.pin);
        around.refs.leave(self.pin);
        around.rcu.idle_enter(self.pin);
        self.map.joined.get(self.pin).set(false);
    }
}

impl<V> Drop for RadixMap<V> {
    fn drop(&mut self) {
        // SAFETY: the map is owned, so that no CPU has joined it, and none will.
        let (stopped, around) = unsafe { (AllStopped::assume(), self.around.as_ref()) };
        // SAFETY: as above.
        let pins =
            || (0..around.refs.cpus()).filter_map(CpuId::new).map(|cpu| unsafe { Pinned::assume(cpu) });
        if let Some(tree) = self.tree.take() {
            // SAFETY: as above.
            let mut pin = unsafe { Pinned::assume(CpuId::default()) };
            around.rcu.idle_exit(&mut pin);
            tree.retire(&Section::new(around, &pin), |_| ());
            around.rcu.idle_enter(&mut pin);
        }
        // All nodes go: to the domains, and from there to the heap.
        loop {
            around.refs.settle(&stopped);
            if pins().all(|pin| around.rcu.pending(&pin) == 0) {
                break;
            }
            pins().for_each(|mut pin| _ = around.rcu.tick(&mut pin));
        }
        // SAFETY: made from a box in `new`; nothing that uses it is left.
        drop(unsafe { Box::from_raw(self.around.as_ptr()) });
    }
}

impl<V> fmt::Debug for RadixMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RadixMap").finish_non_exhaustive()
    }
}

impl<V> fmt::Debug for Here<'_, '_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Here({:?})", self.pin.cpu())
    }
}
